"""The training run, top to bottom: check, prepare, say what will happen, loop, and say what came of it.

Legend: B windows in a batch, T context length. A step is an optimizer step, over grad_accum batches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import shlex
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.profiler import record_function
from tqdm import tqdm

from slm.config import EXPORT_FORMATS, DataConfig, ModelConfig, TrainConfig, command, flags, format_list, settings
from slm.data.batches import TrainingBatches
from slm.data.corpus import Corpus, prepare
from slm.device import autocast, flops, peak_flops, peak_memory, pick_device, pick_precision, total_memory
from slm.errors import UserError
from slm.export.command import export
from slm.files import user_path
from slm.model import checkpoint
from slm.model.checkpoint import Checkpoint, open_model
from slm.model.gpt import GPT
from slm.model.loss import CHUNK_ELEMENTS
from slm.model.vocabulary import Rows
from slm.training import report
from slm.training.evaluation import Measures, evaluate
from slm.training.feed import Feed
from slm.training.optim import make_optimizers
from slm.training.schedule import learning_rate

TRACE = "trace.json"
BEST, LAST, METRICS, PLOT = RUN_FILES = ("best_model.pt", "last.pt", "metrics.csv", "training.png")
EXPORTS = {format: Path(BEST).stem + ending for format, (_, ending) in EXPORT_FORMATS.items()}
PEAK_RATES = {"adamw": 1e-3, "muon": 4e-3}  # at width 384; docs/experiments.md
TOKENS_PER_STEP = 1536  # in a run over up to a million tokens; docs/experiments.md
PYTORCH_BYTES = 4e8  # of a process that has done nothing yet
MEMORY_STEPS = 3  # after which a run has held as much memory as it will
EVALUATIONS = 20  # in a run, unless they would take more than EVALUATION_SHARE of it
EVALUATION_SHARE = 0.03  # of the run's time; the validation at the end comes on top
REFRESH_SECONDS = 0.5  # of the progress bar; reading the loss more often would make a GPU wait


def main(config: TrainConfig) -> int:
    """`slm train`. Returns the exit code: 0, or 128 + the signal that stopped the run after it was saved."""
    out_dir = user_path(config.out_dir)
    saved = open_folder(config, out_dir)
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    if config.data.dataset == "stories":
        print("training on the built-in stories; --dataset takes a text of yours")
    start = open_model(user_path(config.init_from)) if config.init_from is not None and saved is None else saved
    own_tokenizer = start.tokenizer if start is not None and config.init_from is not None else None
    corpus = prepare(config.data, config.model.vocab_size, own_tokenizer)
    check_length(corpus, config.model.context_length)
    run = Run(config, corpus, device, dtype, start)
    del saved, start  # as large as the run itself
    print(run.plan())
    stopped_by = run.loop()
    if stopped_by:
        where = "" if config.out_dir == "." else f" --out_dir {shlex.quote(config.out_dir)}"
        print(f"\nstopped and saved after step {run.state.step:,}; to go on: {command('train')} --resume{where}")
        return 128 + stopped_by
    print(run.finish())
    return 0


@dataclass
class State:
    """Where a run is; with the weights and the optimizer, all that a resumed run needs."""

    step: int = 0  # optimizer steps done
    seconds: float = 0.0  # spent in the loop
    rate: float = 0.0  # of the last step
    gradient_norm: float = 0.0  # of the last step, before clipping
    best_loss: float = math.inf
    best_step: int = 0
    evaluations_since_best: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)  # of metrics.csv


class Run:
    """A model in training: what it is made of, one step, one evaluation, and the loop over them."""

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        device: torch.device,
        dtype: torch.dtype,
        start: Checkpoint | None = None,
    ):
        """start: a run to go on with, or, without its `training`, a model to go on from."""
        self.config, self.corpus, self.device, self.dtype = config, corpus, device, dtype
        self.out_dir = user_path(config.out_dir)
        self.shape = dataclasses.replace(config.model, vocab_size=corpus.tokenizer.vocab_size)
        torch.manual_seed(config.seed)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 where fp32 remains
        # A model to go on from has learned vectors for tokens that this text lacks: none may share a row.
        in_use = corpus.train.in_use(self.shape.vocab_size)
        self.used = int(in_use.sum())
        rows = Rows(in_use) if config.init_from is None else None
        self.model = GPT(self.shape, rows).to(device)
        self.model.activation_checkpointing = config.activation_checkpointing
        training = start.training if start is not None and config.resume else None  # of a run to go on with
        self.batch_size = config.batch_size or (training or {}).get("batch_size") or self._pick_batch_size()
        self.peak_rate = config.learning_rate or PEAK_RATES[config.optimizer] * 384 / self.shape.n_embd
        if config.min_lr > self.peak_rate:
            raise UserError(
                f"--min_lr {config.min_lr} is above the peak rate, {self.peak_rate:.2g}: set --learning_rate"
            )
        self.optimizers = make_optimizers(
            self.model,
            config.optimizer,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            dtype=dtype,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.batches = TrainingBatches(corpus.train.ids, self.batch_size, self.shape.context_length, config.seed)
        self.feed = Feed(self.batches, device)
        self.tokens_per_step = self.batch_size * config.grad_accum * self.shape.context_length
        self.steps_per_epoch = self.batches.windows / (self.batch_size * config.grad_accum)
        self.planned_steps = config.max_steps or math.ceil(config.epochs * self.steps_per_epoch)
        self.state = State()
        if training:
            changed = "text" if training["corpus"] != corpus.fingerprint else "program"
            if changed == "text" or training.get("rows") != self.rows():
                raise UserError(
                    f"the {changed} has changed since {self.out_dir / LAST} was saved: start again with --overwrite"
                )
            for optimizer, kept in zip(self.optimizers, training["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            if self.scaler.is_enabled() and training["scaler"]:  # a run may move to another device
                self.scaler.load_state_dict(training["scaler"])
            self.state = State(**training["state"])
        if start is not None:
            self.model.load_all_weights(start.weights)
        self.loss_sum = torch.zeros((), device=device)  # since the progress bar was last brought up to date
        self.shown_at, self.shown_step = time.perf_counter(), self.state.step
        self.gradient_norm = torch.tensor(self.state.gradient_norm)  # stays on the device until it is asked for
        self.draw_seconds, self.drawn_at = 0.0, 0.0
        self.step_seconds, self.steps_timed = 0.0, 0  # since the last evaluation, without evaluations and saves

    def loop(self) -> int | None:
        """Train to the end of the run, or until early stopping; returns the number of the signal that cut it short."""
        self._plan_evaluations()
        state, time_limit = self.state, self.time_limit
        started = time.perf_counter() - state.seconds
        saved_at, told, remembered = time.perf_counter(), state.step > 0, False
        with self._progress_bar() as bar, signals() as received, self._profiler(bar.write) as after_step:
            while True:
                state.seconds = time.perf_counter() - started
                if time_limit:  # its length in steps follows from the speed so far
                    total_steps = time_limit * (state.step / state.seconds if state.step >= 5 else self.speed_guess)
                    share = min(1.0, state.seconds / time_limit)
                else:
                    total_steps, share = self.planned_steps, min(1.0, state.step / self.planned_steps)

                if self._evaluation_is_due(share):
                    bar.write(self._evaluate())
                    if self.config.patience and state.evaluations_since_best >= self.config.patience:
                        bar.write(f"stopped early: {self.config.patience} evaluations without a better validation loss")
                        return None
                if share >= 1:
                    return None
                self.step(total_steps, bar)
                after_step()

                if self.steps_timed == MEMORY_STEPS and (peak := peak_memory(self.device)) and not remembered:
                    remembered = True
                    bar.write(f"memory     {peak / 1e9:.1f} GB at most so far")
                if not told and not time_limit and self.step_seconds > 5 and self.steps_timed >= 5:
                    told = True
                    left = self.step_seconds / self.steps_timed * (self.planned_steps - state.step)
                    if left > 60:
                        until = datetime.now() + timedelta(seconds=left)
                        bar.write(f"this will take about {duration(left)}, until {until:%H:%M}; Ctrl-C saves and stops")
                if received or time.perf_counter() - saved_at > 60 * self.config.save_every:
                    self._show(bar)  # and see that the loss is sound
                    state.seconds = time.perf_counter() - started
                    self.save_last()
                    saved_at = time.perf_counter()
                if received:
                    return received[0]

    def step(self, total_steps: float, bar: Any = None) -> None:
        """One optimizer step, as a function of the step's number and the run's length."""
        config, step = self.config, self.state.step
        begun = time.perf_counter()
        warmup: float | None = config.warmup_steps
        if warmup is None:  # fewer than some twenty steps harm a short run: docs/experiments.md
            warmup = max(0.05 * total_steps, min(20, 0.2 * total_steps))
        self.state.rate = learning_rate(
            step,
            total_steps,
            kind=config.schedule,
            peak=self.peak_rate,
            minimum=config.min_lr,
            warmup_steps=warmup,
        )
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = self.state.rate * group["rate_factor"]
        torch.manual_seed((config.seed + 1_000_003 * (step + 1)) % 2**63)  # dropout, too, follows from the step
        for number in range(step * config.grad_accum, (step + 1) * config.grad_accum):
            with record_function("batch"):
                ids, targets = self.feed(number)
            with record_function("forward and loss"), autocast(self.device, self.dtype):
                loss, _ = self.loss(ids, targets)
                loss = loss / self.tokens_per_step  # summed over the batches: the mean over all tokens of the step
            with record_function("backward"):
                self.scaler.scale(loss).backward()
            self.loss_sum += loss.detach()
        with record_function("optimizer"):
            self._update()
        self.state.step += 1
        if bar is not None and (begun - self.shown_at > REFRESH_SECONDS or self.state.step == self.planned_steps):
            self._show(bar)
        self.step_seconds += time.perf_counter() - begun
        self.steps_timed += 1

    def _update(self) -> None:
        """Clip the gradient and let the optimizers step."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        self.gradient_norm = clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf)
        # A gradient may overflow in fp16, and then no optimizer may step. Elsewhere no GPU is made to wait for this.
        if not self.scaler.is_enabled() or bool(self.gradient_norm.isfinite()):
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _show(self, bar: Any) -> None:
        """Bring the progress bar up to date. Raises UserError where the loss is no number any more."""
        steps = self.state.step - self.shown_step
        if steps == 0:
            return
        mean_loss = float(self.loss_sum) / steps
        if not math.isfinite(mean_loss):
            raise UserError(
                f"the loss is {mean_loss} at step {self.state.step:,}: try a --learning_rate below "
                f"{self.peak_rate:.2g}; {self.out_dir / BEST} is the best model until then"
            )
        now = time.perf_counter()
        speed = steps * self.tokens_per_step / (now - self.shown_at)
        bar.set_postfix_str(f"loss {mean_loss:.3f}, rate {self.state.rate:.1e}, {speed:,.0f} tokens/s", refresh=False)
        done = round(self.state.seconds) if self.time_limit else self.state.step
        bar.update(min(done, bar.total) - bar.n)
        self.loss_sum.zero_()
        self.shown_at, self.shown_step = now, self.state.step

    def _profiler(self, tell: Callable[[str], None]) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """What is to be called after each step."""
        if not self.config.profile:
            return contextlib.nullcontext(lambda: None)
        from slm.training.profiling import profiled

        return profiled(self.device, self.out_dir / TRACE, tell)

    def _progress_bar(self) -> Any:
        total, done = (
            (round(self.time_limit), round(self.state.seconds))
            if self.time_limit
            else (self.planned_steps, self.state.step)
        )
        return tqdm(
            total=total,
            initial=min(done, total),
            dynamic_ncols=True,
            smoothing=0.05,
            bar_format="{percentage:3.0f}%|{bar}| {elapsed} done, {remaining} to go{postfix}",
        )

    def _plan_evaluations(self) -> None:
        """How many evaluations there are, of how many batches, and when a run by the clock ends in time for them."""
        config = self.config
        self.time_limit = None
        affordable = EVALUATION_SHARE * self.planned_steps * config.grad_accum * 3  # forward alone: a third of training
        if config.max_minutes:
            for _ in range(2):  # the first one warms up
                begun = time.perf_counter()
                self.measure("val", 1)
                batch_seconds = time.perf_counter() - begun
            limit = 60 * config.max_minutes
            affordable = EVALUATION_SHARE * limit / batch_seconds
            at_the_end = batch_seconds * len(self.corpus.val) / (self.batch_size * self.shape.context_length)
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
        """The model as it is on `train` or `val`: on all of it, or on `limit` batches."""
        tokens = self.corpus.train if split == "train" else self.corpus.val
        return evaluate(
            self.model, tokens, self.corpus.tokenizer, batch_size=self.batch_size, dtype=self.dtype, limit=limit
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
                train=train,
                val=val,
            )
        )
        self.step_seconds, self.steps_timed = 0.0, 0
        if better:
            state.best_loss, state.best_step = val.loss, state.step
            self.save_best(train, val)
        if len(state.rows) == 1:  # a new run is on the disk: what belongs to one that it overwrites would mislead
            for path in (self.out_dir / LAST, *(self.out_dir / name for name in EXPORTS.values())):
                if path.is_file():
                    path.unlink()
        warning = self._report(in_a_hurry=True)
        return warning + (
            f"step {state.step:>6,}   training loss {train.loss:.4f}   validation loss {val.loss:.4f}, "
            f"{val.bits_per_byte:.4f} bits per byte, accuracy {val.accuracy:.1%}{'  best so far' if better else ''}"
        )

    def _report(self, in_a_hurry: bool) -> str:
        """Bring metrics.csv up to date, and training.png; in a hurry not so often that it costs 1 % of the time.

        Returns a warning where that fails: a run is worth more than its picture.
        """
        now = time.perf_counter()
        try:
            report.write_metrics(self.out_dir / METRICS, self.state.rows)
            if not in_a_hurry or now - self.drawn_at > 100 * self.draw_seconds:
                report.draw(self.out_dir / PLOT, self.state.rows, self.corpus.description)
                self.drawn_at = time.perf_counter()
                self.draw_seconds = self.drawn_at - now
        except UserError as error:
            return f"warning: {error}\n"
        return ""

    def save_best(self, train: Measures, val: Measures) -> None:
        """best_model.pt: the model as it is now, and what is known of it."""
        facts = {
            "step": self.state.best_step,
            "tokens_seen": self.state.best_step * self.tokens_per_step,
            "text": self.corpus.description,
            "train": dataclasses.asdict(train),
            "val": dataclasses.asdict(val),
            "config": settings(self.config),
        }
        model = Checkpoint(self.shape, self.model.all_weights(), self.corpus.tokenizer, facts)
        checkpoint.save(self.out_dir / BEST, model)

    def save_last(self) -> None:
        """last.pt: all that --resume needs."""
        self.state.gradient_norm = float(self.gradient_norm)
        training = {
            "state": dataclasses.asdict(self.state),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "corpus": self.corpus.fingerprint,
            "batch_size": self.batch_size,
            "rows": self.rows(),
            "config": settings(self.config),
        }
        facts = {"step": self.state.step}
        model = Checkpoint(self.shape, self.model.all_weights(), self.corpus.tokenizer, facts, training)
        checkpoint.save(self.out_dir / LAST, model)

    def finish(self) -> str:
        """Save the run, measure the best model on all of the validation text, and say what there is."""
        self.save_last()
        warning = self._report(in_a_hurry=False)
        if self.state.best_step != self.state.step:
            self.model.load_all_weights(checkpoint.load(self.out_dir / BEST).weights)
        train, val = self.measure("train", self.eval_batches), self.measure("val", None)
        self.save_best(train, val)
        return warning + (
            f"\ndone after {duration(self.state.seconds)}; the best model is that of step {self.state.best_step:,}\n"
            f"training   {train}\n"
            f"validation {val}\n"
            f"speed      {self.speed()}\n"
            f"files      {', '.join(RUN_FILES)} in {self.out_dir.resolve()}\n"
            f"{self.export()}"
            f"next       {command('generate')} --model_path {shlex.quote(str(self.out_dir / BEST))} "
            '--prompt "Once upon a time" --max_length 100'
        )

    def speed(self) -> str:
        """Tokens a second over the run's steps, and how much of what the device can do at most that is."""
        speeds = [row["tokens_per_second"] for row in self.state.rows if row["tokens_per_second"]]
        rate = statistics.median(speeds) if speeds else 0.0
        flops, peak = rate * self.flops_per_token(), peak_flops(self.device)
        share = f"{flops / peak:.0%} of the device's peak (MFU)" if peak else "MFU unknown on this device"
        return f"{rate:,.0f} tokens/s, {flops / 1e12:.3g} TFLOP/s, {share}"

    def flops_per_token(self) -> float:
        """Of forward and backward: 6 for each weight in a product, and attention's own (Chowdhery et al., 2022)."""
        shape = self.shape
        in_products = sum(p.numel() for name, p in self.model.named_parameters() if p.dim() == 2)
        in_products -= self.model.position_embedding.weight.numel()
        return 6 * in_products + 12 * shape.n_layer * shape.n_embd * shape.context_length

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
    def loss(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The model's loss, compiled where asked for and possible: forward and backward are tried on one batch."""
        choice = self.config.compile
        if choice == "off" or (choice == "auto" and self.device.type != "cuda"):
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

    def plan(self) -> str:
        """What the run is about to do."""
        config, corpus, shape = self.config, self.corpus, self.shape
        length = f"{self.planned_steps:,} steps, {self.planned_steps / self.steps_per_epoch:.3g} passes over the text"
        if config.max_minutes:
            length = f"{config.max_minutes:g} minutes"
        place = {
            "cpu": lambda: f"CPU, {torch.get_num_threads()} threads",
            "cuda": lambda: torch.cuda.get_device_name(self.device),
            "mps": lambda: "Apple GPU",
        }[self.device.type]()
        precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]
        in_use = f", of which the text uses {self.used:,}" if self.used < shape.vocab_size else ""
        files = [*RUN_FILES, *(path.name for path in self.exports())]
        lines = [
            f"text       {corpus.description}",
            f"tokens     {len(corpus.train):,} to train on, {len(corpus.val):,} to validate; "
            f"{corpus.train.text_bytes / len(corpus.train):.2f} bytes each\n"
            f"tokenizer  {corpus.tokenizer.name}, vocabulary of {shape.vocab_size:,}{in_use}",
            f"model      {self.parameters():,} parameters: {shape.n_layer} layers, {shape.n_head} heads, "
            f"width {shape.n_embd}, context {shape.context_length}",
            f"run        {length}; {self.tokens_per_step:,} tokens a step, {self.steps_per_epoch:,.1f} steps a pass",
            f"device     {place}, {precision}; about {self.memory_estimate(self.batch_size) / 1e9:.1f} GB of memory",
            f"files      {', '.join(files)} in {self.out_dir.resolve()}",
        ]
        if self.state.step:
            lines.append(f"resuming   after step {self.state.step:,}, {duration(self.state.seconds)} into the run")
        return "\n".join(lines)

    def rows(self) -> int:
        """Rows of the embedding in training: one for each token that the text uses, and for those it does not."""
        return self.model.token_embedding.num_embeddings

    def parameters(self) -> int:
        """Number of the model's weights, the tied output layer counted once."""
        in_training = sum(parameter.numel() for parameter in self.model.parameters())
        return in_training + (self.shape.vocab_size - self.rows()) * self.shape.n_embd

    def _pick_batch_size(self) -> int:
        """Windows in a batch: the more tokens the run will see, the larger, by their root (docs/experiments.md)."""
        config, context = self.config, self.shape.context_length
        tokens = config.epochs * len(self.corpus.train)
        if config.max_minutes:
            tokens = 60 * config.max_minutes * 0.5 * flops(self.device, self.dtype) / self.flops_per_token()
        if config.max_steps:
            tokens = (config.max_steps * TOKENS_PER_STEP) ** 2 / 1e6  # so that they are the steps times the batch
        fewest = 1 << 15 if self.device.type == "cuda" else TOKENS_PER_STEP  # a GPU is not filled by less
        wanted = max(TOKENS_PER_STEP * math.sqrt(tokens / 1e6), fewest) / (context * config.grad_accum)
        sizes = sorted([2**n for n in range(12)] + [3 * 2**n for n in range(11)])  # 1 2 3 4 6 8 12 16 ...
        room = 0.8 * total_memory(self.device)
        fitting = [size for size in sizes if self.memory_estimate(size) < room] or [1]
        return min(fitting, key=lambda size: abs(math.log(size / wanted)))

    def memory_estimate(self, batch_size: int) -> float:
        """Bytes at the peak: weights, gradients, averages; the head's gradient and logits; activations; PyTorch."""
        shape, tokens = self.shape, batch_size * self.shape.context_length
        in_training = sum(parameter.numel() for parameter in self.model.parameters())
        weights = 16 * in_training + 8 * self.rows() * shape.n_embd
        logits = min(CHUNK_ELEMENTS, tokens * self.rows()) * (4 if self.dtype == torch.float32 else 6)
        layers_kept = 1 if self.config.activation_checkpointing else shape.n_layer
        activations = tokens * shape.n_embd * 4 * (18 * layers_kept + shape.n_layer + 4)
        return weights + logits + activations + PYTORCH_BYTES


def check_length(corpus: Corpus, context_length: int) -> None:
    """Raises UserError where the training text does not fill one window."""
    if len(corpus.train) <= context_length:
        raise UserError(
            f"the text is too short: {len(corpus.train):,} tokens to train on (and {len(corpus.val):,} to validate), "
            f"where --context_length {context_length} needs at least {context_length + 1:,}: give more text, or make "
            "the context shorter"
        )


def open_folder(config: TrainConfig, out_dir: Path) -> Checkpoint | None:
    """Make `out_dir` ready for a run; returns its last.pt where the run is to be continued.

    Raises UserError where it holds a run that neither --resume nor --overwrite was given for, cannot be written to, or
    was started with settings that a resumed run must not change.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make --out_dir {out_dir}: {error.strerror}") from error
    if not os.access(out_dir, os.W_OK):
        raise UserError(f"cannot write to --out_dir {out_dir}: permission denied")
    if not config.resume:
        there = [name for name in (*RUN_FILES, *EXPORTS.values()) if (out_dir / name).exists()]
        if there and not config.overwrite:
            raise UserError(
                f"{out_dir.resolve()} already holds a run ({', '.join(there)}): "
                "continue it with --resume, replace it with --overwrite, or choose another folder with --out_dir"
            )
        return None
    if not (out_dir / LAST).exists():
        raise UserError(f"nothing to resume: no {out_dir / LAST}; leave out --resume, or name the run's --out_dir")
    saved = checkpoint.load(out_dir / LAST)
    if saved.training is None:
        raise UserError(f"{out_dir / LAST} is a model, but not a run that can be continued")
    old, new = saved.training["config"], settings(config)
    fixed = (
        {"batch_size", "grad_accum", "optimizer", "weight_decay", "beta1", "beta2", "seed"}
        | flags(ModelConfig).keys()
        | flags(DataConfig).keys() - {"cache_dir"}
    )
    changed = [name for name in sorted(fixed) if old.get(name) != new[name]]
    if changed:
        raise UserError(
            *(f"--{name} was {old.get(name)} and cannot become {new[name]} in a resumed run" for name in changed),
            "leave these flags out to continue, or start again with --overwrite",
        )
    return saved


def shape_of(init_from: str) -> dict[str, Any]:
    """The flags that the model to go on from decides."""
    shape = settings(open_model(user_path(init_from)).config)
    return {name: value for name, value in shape.items() if name not in ("dropout", "attention")}


def stored_settings(out_dir: str) -> dict[str, Any]:
    """The flags that the run in `out_dir` was started with; none where there is no run to resume."""
    path = user_path(out_dir) / LAST
    training = checkpoint.load(path).training if path.exists() else None
    return {} if training is None else {**training["config"], "out_dir": out_dir, "overwrite": False}


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


def duration(seconds: float) -> str:
    """`seconds` for people: 45 s, 2 min 42 s, 12 min, 3 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
