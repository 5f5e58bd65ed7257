"""The training run, top to bottom: check, prepare, say what will happen, loop, and say what came of it.

Legend: B windows in a batch, T context length. A step is an optimizer step, over grad_accum batches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import shlex
import signal
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.profiler import record_function

from slm.checkpoint import file as checkpoint
from slm.checkpoint.file import Checkpoint
from slm.checkpoint.open import open_model
from slm.config.fields import command
from slm.config.formats import format_list
from slm.config.train import TrainConfig
from slm.data.batches import TrainingBatches
from slm.data.corpus import Corpus, prepare
from slm.data.tokenizer import Tokenizer
from slm.device import autocast, is_out_of_memory, make_deterministic, pick_device, pick_precision
from slm.errors import UserError
from slm.evaluation.measure import Measures, evaluate
from slm.export.command import export
from slm.files import user_path
from slm.inference.text import TextModel
from slm.inference.torch_engine import TorchEngine
from slm.learner.feed import Feed
from slm.learner.optim import make_optimizers
from slm.learner.schedule import learning_rate
from slm.learner.workers import Loss, Workers, divided_as, joined, optimizer_state, whole
from slm.model.gpt import GPT
from slm.model.vocabulary import Rows
from slm.training import folder, plan, report
from slm.training.folder import BEST, EXPORTS, LAST, METRICS, PLOT, RUN_FILES, SAMPLES
from slm.training.plan import duration
from slm.training.progress import Progress
from slm.training.stored import defaults as defaults  # which slm.cli asks for

TRACE = "trace.json"
PEAK_RATES = {"adamw": 1e-3, "muon": 4e-3}  # at width 384; docs/experiments.md
EVALUATIONS = 20  # in a run, unless they would take more than EVALUATION_SHARE of it
EVALUATION_SHARE = 0.03  # of the run's time; the validation at the end comes on top
CHECK_STEPS = 20  # between looks at whether the run is sound; so many steps in a row may fail before it goes back
SAMPLE_PROMPT, SAMPLE_LENGTH = 4, 60  # tokens of the text shown at each evaluation
SPIKE = 1.0  # nats by which the mean loss between two looks may be above the lowest so far


def main(config: TrainConfig) -> int:
    """`slm train`. Returns the exit code: 0, or 128 + the signal that stopped the run after it was saved."""
    with joined(pick_device(config.device), config.parallel) as workers:
        return train(workers.first(lambda: config), workers)


def train(config: TrainConfig, workers: Workers) -> int:
    """The run of `config`, as one of `workers`. Returns as `main` does."""
    with folder.opened(config, workers.rank == 0) as out_dir:
        saved = workers.first(lambda: _resumed(config, out_dir, workers) if config.resume else None)
        if config.deterministic:
            make_deterministic()
        dtype = workers.first(lambda: pick_precision(config.precision, workers.device))
        if config.data.dataset == "stories":
            print("training on the built-in stories; --dataset takes a text of yours")
        start = open_model(user_path(config.init_from)) if config.init_from is not None and saved is None else saved
        own_tokenizer = start.tokenizer if start is not None and config.init_from is not None else None
        corpus = prepared(config, own_tokenizer, workers)
        check_length(corpus, config.model.context_length)
        run = Run(config, corpus, workers.device, dtype, start, workers)
        del saved, start  # as large as the run itself
        if config.tensorboard and workers.rank == 0:
            _ = run.board  # or say now that it is missing
        print(plan.describe(run))
        stopped_by = run.loop()
        where = "" if config.out_dir == "." else f" --out_dir {shlex.quote(config.out_dir)}"
        again = f"{command('train')} --resume{where}"
        if stopped_by:
            print(f"\nstopped and saved after step {run.state.step:,}; to go on: {again}")
            return 128 + stopped_by
        try:
            print(run.finish())
        except KeyboardInterrupt:
            print(f"\nstopped; the run is done and saved, and its last measures and exports are made by: {again}")
            return 128 + signal.SIGINT
    return 0


def _resumed(config: TrainConfig, out_dir: Path, workers: Workers) -> Checkpoint:
    """The state to go on from; tells what is otherwise than it was."""
    saved, note = folder.latest(out_dir)
    changes = folder.check_unchanged(saved.training or {}, config, workers.world)
    if note:
        (out_dir / folder.PREVIOUS).replace(out_dir / LAST)
    for line in filter(None, (note, *changes)):
        print(line)
    return saved


@dataclass
class State:
    """Where a run is; with the weights and the optimizer, all that a resumed run needs."""

    step: int = 0  # optimizer steps done
    seconds: float = 0.0  # spent in the loop
    rate: float = 0.0  # of the last step
    gradient_norm: float = 0.0  # of the last step, before clipping
    best_loss: float = math.inf  # of the model in best_model.pt
    best_step: int = 0
    evaluations_since_best: int = 0
    skipped: int = 0  # steps that changed nothing, as their gradient was no number
    skipped_in_a_row: int = 0
    checked_step: int = 0  # the step of the last look at the loss
    checked_skipped: int = 0  # steps skipped until then
    checked_loss: float = 0.0  # sum of the other steps' losses since then
    lowest_loss: float = math.inf  # mean loss between two looks, at its lowest
    rollbacks: int = 0  # returns to an earlier state, each of which halves the rate
    pieces: int = 1  # that a batch is computed in, where the memory is too small for a whole one
    rows: list[dict[str, float]] = field(default_factory=list)  # of metrics.csv
    samples: list[dict[str, Any]] = field(default_factory=list)  # of samples.jsonl


class Run:
    """A model in training: what it is made of, one step, one evaluation, and the loop over them."""

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        device: torch.device,
        dtype: torch.dtype,
        start: Checkpoint | None = None,
        workers: Workers | None = None,
    ):
        """start: a run to go on with, or, without its `training`, a model to go on from."""
        self.config, self.corpus, self.device, self.dtype = config, corpus, device, dtype
        self.workers = workers or Workers()
        self.out_dir = user_path(config.out_dir)
        self.shape = dataclasses.replace(config.model, vocab_size=corpus.tokenizer.vocab_size)
        torch.manual_seed(config.seed)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 where fp32 remains
        # A model to go on from has learned vectors for tokens that this text lacks: none may share a row.
        in_use = corpus.train.in_use(self.shape.vocab_size)
        self.used = int(in_use.sum())
        self.model = GPT(self.shape, Rows(in_use) if config.init_from is None else None).to(device)
        self.rows = self.model.token_embedding.num_embeddings  # in training
        self.model.activation_checkpointing = config.activation_checkpointing
        training = start.training if start is not None and config.resume else None  # of a run to go on with
        batch_size = (
            config.batch_size
            or (training or {}).get("batch_size")
            or self.workers.first(
                lambda: plan.pick_batch_size(
                    config, self.shape, self.rows, len(corpus.train), device, dtype, self.workers
                )
            )
        )
        # What a step's windows are follows from their number alone, not from how they are divided.
        told = folder.step_windows(config, batch_size, self.workers.world)
        self.windows: int = (training or {}).get("windows") or told
        self.batch_size, self.grad_accum = plan.divide_step(self.windows, batch_size, self.workers.world)
        self.peak_rate = config.learning_rate or PEAK_RATES[config.optimizer] * 384 / self.shape.n_embd
        if config.min_lr > self.peak_rate:
            raise UserError(
                f"--min_lr {config.min_lr} is above the peak rate, {self.peak_rate:.2g}: set --learning_rate"
            )
        self.workers.shard(self.model, dtype)
        self.optimizers = make_optimizers(
            self.model,
            config.optimizer,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            dtype=dtype,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.batches = TrainingBatches(
            corpus.train.ids,
            self.batch_size * self.workers.world,
            self.shape.context_length,
            config.seed,
            self.workers.rank,
            self.workers.world,
        )
        self.feed = Feed(self.batches, device)
        self.tokens_per_step = self.windows * self.shape.context_length
        self.steps_per_epoch = self.batches.sequences / self.windows
        self.planned_steps = config.max_steps or math.ceil(config.epochs * self.steps_per_epoch)
        self.state = State()
        self.loss_sum = torch.zeros((), device=device)  # since the last look
        self.recent_loss: Tensor | None = None  # a running mean, for the progress bar
        self.gradient_norm = torch.zeros(())  # stays on the device until it is asked for
        if training:
            changed = "text" if training["corpus"] != corpus.fingerprint else "program"
            if changed == "text" or training.get("rows") != self.rows:
                raise UserError(
                    f"the {changed} has changed since {self.out_dir / LAST} was saved: start again with --overwrite"
                )
        if start is not None:
            self.restore(start, training)
        self.draw_seconds, self.drawn_at = 0.0, 0.0
        self.step_seconds, self.steps_timed = 0.0, 0  # since the last evaluation, without evaluations and saves

    def restore(self, saved: Checkpoint, training: Any) -> None:
        """Take over the weights of `saved` and, where given, all the rest of its `training`."""
        self._load(saved.weights)
        if not training:
            return
        for optimizer, kept in zip(self.optimizers, training["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state(kept, optimizer))
        if self.scaler.is_enabled() and training["scaler"]:  # a run may move to another device
            self.scaler.load_state_dict(training["scaler"])
        self.state = State(**training["state"])
        self.loss_sum.fill_(self.state.checked_loss)
        self.gradient_norm = torch.tensor(self.state.gradient_norm)
        if not self.workers.first(lambda: (self.out_dir / BEST).exists()):
            self.state.best_loss = math.inf

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over whole weights, with a row for each token."""
        own = self.model.state_dict()
        narrowed = self.model.narrowed(weights)
        self.model.load_state_dict({name: divided_as(own[name], weight) for name, weight in narrowed.items()})

    def weights(self) -> dict[str, Tensor]:
        """Whole weights, with a row for each token; in the first process alone."""
        weights = self.workers.gathered(self.model.state_dict())
        return self.model.widened(weights) if self.workers.rank == 0 else {}

    def loop(self) -> int | None:
        """Train to the end of the run, or until early stopping; returns the number of the signal that cut it short."""
        self._plan_evaluations()
        if self.state.step == 0 and not self.state.rows:
            self.save_last()
            if self.workers.rank == 0:
                folder.begin(self.out_dir)
        started = time.perf_counter() - self.state.seconds
        saved_at = self.state.seconds
        with Progress(self) as progress, signals() as received, self._profiler(progress.write) as after_step:
            while True:
                # What all processes do follows from what they agree on here, and from the loss, which is that of all.
                seconds, stop = self.workers.largest(time.perf_counter() - started, *received[:1] or [0])
                self.state.seconds = seconds
                if stop:
                    self.save_last()
                    return int(stop)
                if seconds - saved_at > 60 * self.config.save_every:
                    try:
                        self.save_last()
                    except UserError as error:  # the one before is there
                        again = f"the run goes on, and saves again in {self.config.save_every:g} min"
                        progress.write(f"warning: {error}; {again}")
                    saved_at = seconds
                if self.time_limit:  # its length in steps follows from the speed so far
                    step = self.state.step
                    total_steps = self.time_limit * (step / seconds if step >= 5 else self.speed_guess)
                    share = min(1.0, seconds / self.time_limit)
                else:
                    total_steps, share = self.planned_steps, min(1.0, self.state.step / self.planned_steps)

                if trouble := self._trouble(at_the_end=share >= 1):
                    progress.write(self._roll_back(trouble))
                    continue
                if self._evaluation_is_due(share):
                    progress.write(self._evaluate())
                    if not math.isfinite(self.state.rows[-1]["val_loss"]):
                        progress.write(self._roll_back("the validation loss is no number"))
                        continue
                    if self.config.patience and self.state.evaluations_since_best >= self.config.patience:
                        progress.write(
                            f"stopped early: {self.config.patience} evaluations without a better validation loss"
                        )
                        return None
                if share >= 1:
                    return None
                progress.write(self.step(total_steps))
                progress.after_step()
                after_step()

    def step(self, total_steps: float) -> str:
        """One optimizer step, as a function of the step's number and the run's length. Returns a note, mostly empty."""
        config, step = self.config, self.state.step
        begun, note = time.perf_counter(), ""
        warmup: float | None = config.warmup_steps
        if warmup is None:  # fewer than some twenty steps harm a short run: docs/experiments.md
            warmup = max(0.05 * total_steps, min(20, 0.2 * total_steps))
        self.state.rate = 0.5**self.state.rollbacks * learning_rate(
            step,
            total_steps,
            kind=config.schedule,
            peak=self.peak_rate,
            minimum=config.min_lr,
            warmup_steps=warmup,
        )
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = self.state.rate * group["rate_factor"]
        while True:
            seed = config.seed + 1_000_003 * (step + 1) + 1_000_000_007 * self.workers.rank
            torch.manual_seed(seed % 2**63)  # dropout, too, follows from the step
            try:
                loss = self._gradients(step)
                break
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.state.pieces >= self.batch_size or self.workers.world > 1:
                    raise  # several processes are in the middle of an exchange
            self._release_memory()
            self.state.pieces *= 2
            windows = -(-self.batch_size // self.state.pieces)
            note = (
                f"not enough memory for {self.batch_size} windows at a time: {windows} from here on, with equal results"
            )
        with record_function("optimizer"):
            self._update(loss)
        self.state.step += 1
        self.step_seconds += time.perf_counter() - begun
        self.steps_timed += 1
        return note

    def _gradients(self, step: int) -> Tensor:
        """Forward and backward over the batches of a step: their mean loss, a scalar on the device."""
        loss_sum = torch.zeros((), device=self.device)
        own_tokens = self.tokens_per_step // self.workers.world
        for number in range(step * self.grad_accum, (step + 1) * self.grad_accum):
            with record_function("batch"):
                batch = self.feed(number)
            pieces = list(zip(*(tensor.tensor_split(self.state.pieces) for tensor in batch), strict=True))
            for piece, (ids, targets) in enumerate(pieces, 1):
                last = number == (step + 1) * self.grad_accum - 1 and piece == len(pieces)
                with self.workers.last_of_step(self.loss, last):
                    with record_function("forward and loss"), autocast(self.device, self.dtype):
                        loss, _ = self.loss(ids, targets)
                        loss = loss / own_tokens  # summed over the batches: the mean over all tokens of the step
                    with record_function("backward"):
                        self.scaler.scale(loss).backward()
                loss_sum += loss.detach()
        return self.workers.mean(loss_sum)

    def _release_memory(self) -> None:
        self.model.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _update(self, loss: Tensor) -> None:
        """Clip the gradient and let the optimizers step; a gradient that is no number changes nothing.

        On a GPU, which this would make wait, only fp16 is looked at here, and the rest by `_trouble`.
        """
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        self.gradient_norm = whole(clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf))
        looked_at = self.device.type == "cpu" or self.scaler.is_enabled()
        if not looked_at or bool(self.gradient_norm.isfinite() & loss.isfinite()):
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            self.loss_sum += loss
            self.recent_loss = loss if self.recent_loss is None else self.recent_loss.lerp(loss, 0.1)
            self.state.skipped_in_a_row = 0
        else:
            self.state.skipped += 1
            self.state.skipped_in_a_row += 1
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _trouble(self, at_the_end: bool) -> str:
        """What is wrong with the run, if anything; the loss is looked at every CHECK_STEPS steps and at the end."""
        state = self.state
        steps = state.step - state.checked_step
        if state.skipped_in_a_row >= (min(steps, CHECK_STEPS) if at_the_end else CHECK_STEPS) > 0:
            return f"the gradient was no number {state.skipped_in_a_row} times in a row"
        if steps == 0 or not (at_the_end or steps >= CHECK_STEPS):
            return ""
        loss = float(self.loss_sum) / (steps - (state.skipped - state.checked_skipped))
        if not math.isfinite(loss):
            return "the loss is no number"
        if loss > state.lowest_loss + SPIKE and steps >= CHECK_STEPS:
            return f"the loss rose from {state.lowest_loss:.2f} to {loss:.2f}"
        state.lowest_loss = min(state.lowest_loss, loss)
        state.checked_step, state.checked_skipped = state.step, state.skipped
        self.loss_sum.zero_()
        return ""

    def _roll_back(self, trouble: str) -> str:
        """Go back to the last saved state with half the rate. Raises UserError where that was done too often."""
        now = self.state
        if now.rollbacks >= self.config.max_rollbacks:
            returns = f", after {now.rollbacks} returns to an earlier state, each with half the rate" * (
                now.rollbacks > 0
            )
            raise UserError(
                f"step {now.step:,}: {trouble}{returns}: try a --learning_rate below {self.peak_rate:.2g}; "
                f"{self.out_dir / BEST} is the best model until then"
            )
        saved = self.workers.first(lambda: folder.latest(self.out_dir)[0])
        self.restore(saved, saved.training)
        kept = self.state
        kept.rollbacks, kept.pieces, kept.seconds = now.rollbacks + 1, now.pieces, now.seconds
        kept.skipped_in_a_row = 0
        kept.skipped, kept.checked_skipped = now.skipped, now.skipped - (kept.skipped - kept.checked_skipped)
        times = f"{self.state.rollbacks} of at most {self.config.max_rollbacks} times"
        return f"step {now.step:,}: {trouble}; back to step {self.state.step:,}, with half the learning rate ({times})"

    def _profiler(self, tell: Callable[[str], None]) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """What is to be called after each step."""
        if not self.config.profile:
            return contextlib.nullcontext(lambda: None)
        from slm.learner.profiling import profiled

        return profiled(self.device, self.out_dir / TRACE, tell)

    def _plan_evaluations(self) -> None:
        """How many evaluations there are, of how many batches, and when a run by the clock ends in time for them."""
        config = self.config
        self.time_limit = None
        affordable = EVALUATION_SHARE * self.planned_steps * config.grad_accum * 3  # forward alone: a third of training
        if config.max_minutes:
            for _ in range(2):  # the first one warms up
                begun = time.perf_counter()
                self.measure("val", 1)
                (batch_seconds,) = self.workers.largest(time.perf_counter() - begun)
            limit = 60 * config.max_minutes
            affordable = EVALUATION_SHARE * limit / batch_seconds
            at_the_end = batch_seconds * len(self.corpus.val) * config.grad_accum / self.tokens_per_step
            self.time_limit = limit - min(at_the_end, 0.2 * limit)
            self.speed_guess = 1 / (3 * batch_seconds * config.grad_accum)  # steps a second
        affordable /= 2  # splits
        self.evaluations = max(1, min(EVALUATIONS, int(affordable)))
        if config.eval_every and not config.max_minutes:
            self.evaluations = max(1, self.planned_steps // config.eval_every)
        self.eval_batches = config.eval_batches or max(1, int(affordable / self.evaluations))

    def _evaluation_is_due(self, share: float) -> bool:
        if not self.state.rows:
            return True
        last, every = self.state.rows[-1], self.config.eval_every
        if last["step"] == self.state.step:
            return False
        if every:
            return share >= 1 or self.state.step % every == 0
        share_then = last["seconds"] / self.time_limit if self.time_limit else last["step"] / self.planned_steps
        return share >= 1 or share >= (math.floor(share_then * self.evaluations) + 1) / self.evaluations

    def measure(self, split: str, limit: int | None) -> Measures:
        """The model as it is on `train` or `val`: on all of it, or on `limit` batches of all processes."""
        tokens = self.corpus.train if split == "train" else self.corpus.val
        return evaluate(
            self.model,
            tokens,
            self.corpus.tokenizer,
            batch_size=self.batch_size,
            dtype=self.dtype,
            limit=limit and limit * self.windows // self.config.grad_accum,
            workers=self.workers,
        )

    def _evaluate(self) -> str:
        """Measure both splits, keep the model if it is the best, bring metrics.csv and training.png up to date."""
        state = self.state
        train, val = self.measure("train", self.eval_batches), self.measure("val", self.eval_batches)
        better = val.loss < state.best_loss
        state.evaluations_since_best = 0 if better else state.evaluations_since_best + 1
        state.rows.append(
            report.row(
                step=state.step,
                epoch=state.step / self.steps_per_epoch,
                seconds=state.seconds,
                learning_rate=state.rate,
                gradient_norm=float(self.gradient_norm),
                tokens_per_second=self.steps_timed * self.tokens_per_step / max(self.step_seconds, 1e-9),
                skipped_steps=state.skipped,
                rollbacks=state.rollbacks,
                train=train,
                val=val,
            )
        )
        self.step_seconds, self.steps_timed = 0.0, 0
        with self.workers.together():
            warning = self._keep(train, val, better)
        self.state = self.workers.first(lambda: state)
        return warning + (
            f"step {state.step:>6,}   training loss {train.loss:.4f}   validation loss {val.loss:.4f}, "
            f"{val.bits_per_byte:.4f} bits per byte, accuracy {val.accuracy:.1%}{'  best so far' if better else ''}"
        )

    def _keep(self, train: Measures, val: Measures, better: bool) -> str:
        """Save the model if it is the best, let it write, bring the reports up to date. Returns warnings."""
        state, weights = self.state, self.weights()
        if self.workers.rank > 0:
            return ""
        if self.config.tensorboard:
            self.board(state.rows[-1])
        warning, best_before = "", (state.best_loss, state.best_step)
        if better:
            state.best_loss, state.best_step = val.loss, state.step
            try:
                self.save_best(train, val, weights)
            except UserError as error:  # the next one that is better than what is there is saved
                warning = f"warning: {error}\n"
                state.best_loss, state.best_step = best_before
        state.samples.append(self._sample(val, weights))
        return warning + self._report(in_a_hurry=True)

    def _sample(self, val: Measures, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """How the model, as it is, goes on from the first words of the validation text."""
        model = Checkpoint(self.shape, weights, self.corpus.tokenizer, {}).model(self.device)
        writer = TextModel(TorchEngine(model), self.corpus.tokenizer, {})
        prompt = self.corpus.tokenizer.decode(self.corpus.val.ids[:SAMPLE_PROMPT].tolist())
        text = writer.generate(prompt, max_length=SAMPLE_LENGTH, seed=0) if math.isfinite(val.loss) else ""
        place = {"step": self.state.step, "seconds": round(self.state.seconds, 1), "val_loss": round(val.loss, 4)}
        return {**place, "prompt": prompt, "text": text}

    def _report(self, in_a_hurry: bool) -> str:
        """Bring metrics.csv up to date, and training.png; in a hurry not so often that it costs 1 % of the time.

        Returns a warning where that fails: a run is worth more than its picture.
        """
        now = time.perf_counter()
        try:
            report.write_metrics(self.out_dir / METRICS, self.state.rows)
            report.write_samples(self.out_dir / SAMPLES, self.state.samples)
            if not in_a_hurry or now - self.drawn_at > 100 * self.draw_seconds:
                report.draw(self.out_dir / PLOT, self.state.rows, self.corpus.description)
                self.drawn_at = time.perf_counter()
                self.draw_seconds = self.drawn_at - now
        except UserError as error:
            return f"warning: {error}\n"
        return ""

    @functools.cached_property
    def board(self) -> Callable[[report.Row], None]:
        """Adds a row to what TensorBoard shows of this run."""
        return report.tensorboard(self.out_dir / "tensorboard", self.state.rows)

    def save_best(self, train: Measures, val: Measures, weights: Mapping[str, Tensor]) -> None:
        """best_model.pt: the model as it is now, and what is known of it."""
        facts = {
            "step": self.state.best_step,
            "tokens_seen": self.state.best_step * self.tokens_per_step,
            "text": self.corpus.description,
            "train": dataclasses.asdict(train),
            "val": dataclasses.asdict(val),
            "config": folder.kept_settings(self.config),
        }
        checkpoint.save(self.out_dir / BEST, Checkpoint(self.shape, weights, self.corpus.tokenizer, facts))

    def save_last(self) -> None:
        """last.pt: all that --resume needs, whatever the number of processes then."""
        self.state.gradient_norm, self.state.checked_loss = float(self.gradient_norm), float(self.loss_sum)
        training = {
            "state": dataclasses.asdict(self.state),
            "optimizers": [self.workers.gathered(optimizer.state_dict()) for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "corpus": self.corpus.fingerprint,
            "batch_size": self.batch_size,
            "windows": self.windows,
            "launch": folder.launch(),
            "rows": self.rows,
            "config": folder.kept_settings(self.config),
        }
        state = Checkpoint(self.shape, self.weights(), self.corpus.tokenizer, {"step": self.state.step}, training)
        with self.workers.together():
            if self.workers.rank == 0:
                folder.save(self.out_dir, state)

    def finish(self) -> str:
        """Save the run, measure the best model on all of the validation text, and say what there is."""
        self.save_last()
        if self.state.best_step != self.state.step:
            self._load(self.workers.first(lambda: checkpoint.load(self.out_dir / BEST).weights))
        train, val = self.measure("train", self.eval_batches), self.measure("val", None)
        weights = self.weights()
        with self.workers.together():
            return self._finish(train, val, weights) if self.workers.rank == 0 else ""

    def _finish(self, train: Measures, val: Measures, weights: Mapping[str, Tensor]) -> str:
        warning = self._report(in_a_hurry=False)
        self.save_best(train, val, weights)
        return warning + (
            f"\ndone after {duration(self.state.seconds)}; the best model is that of step {self.state.best_step:,}\n"
            f"training   {train}\n"
            f"validation {val}\n"
            f"speed      {plan.speed(self, self.state.rows)}\n"
            f"files      {', '.join(RUN_FILES)} in {self.out_dir.resolve()}\n"
            f"{self.export()}"
            f"next       {command('generate')} --model_path {shlex.quote(str(self.out_dir / BEST))} "
            '--prompt "Once upon a time" --max_length 100'
        )

    def files(self) -> list[str]:
        """Names of what the run will leave."""
        return [*RUN_FILES, *(path.name for path in self.exports())]

    def exports(self) -> dict[Path, str]:
        """The files and folders that `--export` asks for, and their formats."""
        formats = [] if self.config.export == "none" else format_list(self.config.export)
        return {self.out_dir / EXPORTS[format]: format for format in formats}

    def export(self) -> str:
        """Write the best model in the formats asked for: a line for each, and for those that fail a warning."""
        lines = []
        best = checkpoint.load(self.out_dir / BEST)
        for format in self.exports().values():
            try:
                written = export(best, format, self.out_dir / Path(BEST).stem)
                lines.append(f"export     {written}\n")
            except Exception as error:  # noqa: PERF203 - whatever it is, the run is saved
                reason = str(error).strip() or type(error).__name__
                again = f"{command('export')} --model_path {shlex.quote(str(self.out_dir / BEST))} --format {format}"
                lines.append(f"warning: {reason}; the run is safe, and to try again: {again}\n")
        return "".join(lines)

    @functools.cached_property
    def loss(self) -> Loss:
        """The model's loss, with gradients of all processes."""
        with self.workers.together():
            loss = self._compiled()
        return self.workers.sharing_gradients(self.model, loss)

    def _compiled(self) -> Loss:
        """The model's loss, compiled where asked for and possible: forward and backward are tried on one batch."""
        choice = self.config.compile
        if choice == "off" or (choice == "auto" and (self.device.type != "cuda" or self.workers.sharded is not None)):
            return self.model.loss
        compiled = torch.compile(self.model.loss)
        try:
            with autocast(self.device, self.dtype):
                compiled(*self.feed(0))[0].backward()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a missing compiler shows itself in many ways
            reason = (str(error).strip().splitlines() or [""])[0][:120]
            print(f"torch.compile does not work here ({type(error).__name__}: {reason}); going on without it")
            return self.model.loss
        finally:
            self.model.zero_grad(set_to_none=True)
        return compiled


def prepared(config: TrainConfig, tokenizer: Tokenizer | None, workers: Workers) -> Corpus:
    """The tokens of the run's text: one process of each machine makes them, the others find them in its cache.

    Raises UserError where another machine has another text.
    """
    corpus = None
    for turn in (workers.local_rank == 0, workers.local_rank > 0):
        with workers.together():
            corpus = prepare(config.data, config.model.vocab_size, tokenizer) if turn else corpus
    assert corpus is not None
    ids = corpus.train.ids
    sample = zlib.crc32(ids[:: 1 + len(ids) // 1_000_000].tobytes())
    found = (len(ids), len(corpus.val), corpus.tokenizer.fingerprint, sample)
    if workers.first(lambda: found) != found:
        raise UserError("the text here is not that of the first process: give every machine the same --dataset")
    return corpus


def check_length(corpus: Corpus, context_length: int) -> None:
    """Raises UserError where the training text does not fill one window."""
    if len(corpus.train) <= context_length:
        raise UserError(
            f"the text is too short: {len(corpus.train):,} tokens to train on (and {len(corpus.val):,} to validate), "
            f"where --context_length {context_length} needs at least {context_length + 1:,}: give more text, or make "
            "the context shorter"
        )


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """A list that fills with SIGINT or SIGTERM, so that the step in hand is finished; a second one stops at once."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    with contextlib.suppress(ValueError):  # outside the main thread signals are the caller's business
        before |= {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        restore()
