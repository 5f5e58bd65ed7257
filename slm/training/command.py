"""`slm train`: check, prepare, print the plan, train, and print the result."""

from __future__ import annotations

import shlex
import signal
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from slm.checkpoint import file as checkpoint
from slm.checkpoint.file import Checkpoint
from slm.checkpoint.open import open_model
from slm.config.fields import command
from slm.config.formats import format_list
from slm.config.train import TrainConfig
from slm.data.corpus import Corpus, prepare
from slm.data.tokenizer import Tokenizer
from slm.device import make_deterministic, pick_device, pick_precision
from slm.errors import UserError
from slm.evaluation.measure import Measures
from slm.export.command import export
from slm.files import user_path
from slm.learner.workers import Workers, joined
from slm.training import folder
from slm.training.describe import advice, continuations, describe, duration, speed
from slm.training.folder import BEST, EXPORTS, LAST, RUN_FILES
from slm.training.interrupt import first_signal
from slm.training.loop import loop
from slm.training.run import Clock, Run, assemble
from slm.training.showing import Showing, say
from slm.training.stored import defaults as defaults  # which slm.cli asks for
from slm.training.terminal import wrapped


def main(config: TrainConfig) -> int:
    """Run `slm train`. Returns the exit code: 0, or 128 + the signal that stopped the run after it was saved."""
    with joined(pick_device(config.device), config.parallel) as workers:
        return train(workers.broadcast(lambda: config), workers)


def train(
    config: TrainConfig,
    workers: Workers,
    *,
    clock: Clock = time.perf_counter,
    assemble: Callable[..., Run] = assemble,
) -> int:
    """The run of `config`, as one of `workers`. Returns the exit code as `main` does.

    clock: returns seconds. assemble: builds the Run from the settings.
    """
    with folder.opened(config, workers.rank == 0) as out_dir:
        saved = workers.broadcast(lambda: _resumed(config, out_dir, workers) if config.resume else None)
        if config.deterministic:
            make_deterministic()
        dtype = workers.broadcast(lambda: pick_precision(config.precision, workers.device))
        if config.data.dataset == "stories":
            say("training on the built-in stories; --dataset takes a text of yours")
        start, own_tokenizer = saved, None
        if config.init_from is not None:
            start = saved or open_model(user_path(config.init_from))
            own_tokenizer = start.tokenizer
        corpus = prepared(config, own_tokenizer, workers)
        run = assemble(config, corpus, workers.device, dtype, start, workers, clock)
        del saved, start  # as large as the run itself
        if config.tensorboard and workers.rank == 0:
            run.keeper.open_board()
        files = [*RUN_FILES, *exports(config)]
        say(Showing()("description of the run", _describe, run, files))
        where = "" if config.out_dir == "." else f" --out_dir {shlex.quote(config.out_dir)}"
        again = f"{command('train')} --resume{where}"
        with first_signal() as stop:
            stopped_by = _run_loop(run, clock, stop, again)
            if stopped_by:  # said in here, where more signals change nothing
                say(f"\nstopped and saved after step {run.state.step:,}; to continue: {again}")
                return 128 + stopped_by
        try:
            say(finish(run))
        except KeyboardInterrupt:
            say(f"\nstopped; the run is done and saved, and its last measures and exports are made by: {again}")
            return 128 + signal.SIGINT
    return 0


def _describe(run: Run, files: Sequence[str]) -> None:
    """Print what the run is about to do."""
    config, out_dir = run.config, run.keeper.out_dir
    described = describe(
        run.plan, run.state,
        config=config, corpus=run.corpus, learner=run.learner, out_dir=out_dir, files=files,
    )  # fmt: skip
    say(wrapped(described))


def _run_loop(run: Run, clock: Clock, stop: Callable[[], int], again: str) -> int:
    """The loop; prints what can be continued, and how, where something else than its end or a first signal ends it."""
    try:
        return loop(run, clock=clock, stop=stop)
    except UserError:
        raise
    except KeyboardInterrupt:
        say(f"\nstopped at once; to continue from step {run.keeper.saved_step:,}: {again}")
        raise
    except Exception:  # a defect, or no memory
        say(f"\n{run.keeper.rescue()}; to continue: {again}")
        raise


def _resumed(config: TrainConfig, out_dir: Path, workers: Workers) -> Checkpoint:
    """The state to continue from; prints what is otherwise than it was."""
    saved, note = folder.latest(out_dir)
    changes = folder.check_unchanged(saved.training or {}, config, workers.world)
    if note:
        (out_dir / folder.PREVIOUS).replace(out_dir / LAST)
    for line in filter(None, (note, *changes)):
        say(line)
    return saved


def prepared(config: TrainConfig, tokenizer: Tokenizer | None, workers: Workers) -> Corpus:
    """The tokens of the run's text: one process of each machine makes them, the others find them in its cache.

    Raises UserError where another machine has another text.
    """
    corpus = None
    with workers.barrier():
        if workers.local_rank == 0:
            corpus = prepare(config.data, config.model.vocab_size, tokenizer)
    with workers.barrier():
        if corpus is None:
            corpus = prepare(config.data, config.model.vocab_size, tokenizer)
    ids = corpus.train.ids
    sample = zlib.crc32(ids[:: 1 + len(ids) // 1_000_000].tobytes())
    found = (len(ids), len(corpus.val), corpus.tokenizer.fingerprint, sample)
    if workers.broadcast(lambda: found) != found:
        raise UserError("the text here is not that of the first process: give every machine the same --dataset")
    return corpus


def exports(config: TrainConfig) -> dict[str, str]:
    """The files and folders that `--export` asks for, and their formats."""
    formats = [] if config.export == "none" else format_list(config.export)
    return {EXPORTS[format]: format for format in formats}


def finish(run: Run) -> str:
    """Save the run, measure the best model on all of the validation text, export it, and say what there is."""
    keeper, learner, state, workers = run.keeper, run.learner, run.state, run.workers
    best = keeper.path(BEST)
    keeper.save()
    if state.best_step != state.step:
        learner.load_weights(workers.broadcast(lambda: checkpoint.load(best).weights))
    train = run.evaluator.measure(learner, "train", run.plan.evaluation_sequences)
    val = run.evaluator.measure(learner, "val", None)
    weights = learner.weights()
    with workers.barrier():
        if workers.rank > 0:
            return ""
        warning = keeper.write_reports(in_a_hurry=False)
        keeper.save_best(train, val, weights)
        done = (
            f"\ndone after {duration(state.seconds)}; the best model is that of step {state.best_step:,}\n"
            f"training   {train}\n"
            f"validation {val}\n"
            f"{_other_than_shown(run, val)}"
            f"{advice(run.plan, state.rows, run.config)}"
            f"speed      {speed(learner, state.rows)}\n"
        )
        written: list[str] = []
        warning += Showing()("samples", lambda: written.append(continuations(run.plan, state.samples)))
        return warning + (
            f"{wrapped(done)}"
            f"{_export(run.config, best)}"
            f"{''.join(written)}\n"
            f"watch      {command('watch')} {shlex.quote(str(keeper.out_dir))}\n"
            f"next       {command('generate')} --model_path {shlex.quote(str(best))} "
            '--prompt "Once upon a time" --max_length 100'
        )


def _other_than_shown(run: Run, val: Measures) -> str:
    """A line that says why the last measure of the best model is not the one that was shown before, where it is not."""
    for row in run.state.rows:
        if row["step"] == run.state.best_step and f"{row['val_bits_per_byte']:.4f}" != f"{val.bits_per_byte:.4f}":
            return (
                f"           on the whole validation text; {row['val_bits_per_byte']:.4f} above was on a part of it\n"
            )
    return ""


def _export(config: TrainConfig, best: Path) -> str:
    """Write the best model in the formats asked for: a line for each, and for those that fail a warning."""
    lines = []
    model = checkpoint.load(best)
    for format in exports(config).values():
        try:
            lines.append(wrapped(f"export     {export(model, format, best.with_suffix(''))}\n"))
        except Exception as error:  # noqa: PERF203 - whatever it is, the run is saved
            reason = str(error).strip() or type(error).__name__
            again = f"{command('export')} --model_path {shlex.quote(str(best))} --format {format}"
            lines.append(f"warning: {reason}; the run is safe, and to try again: {again}\n")
    return "".join(lines)
