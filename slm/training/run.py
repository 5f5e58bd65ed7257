"""The parts of a run, and how they are put together."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from slm.checkpoint.file import Checkpoint
from slm.config.train import TrainConfig
from slm.data.batches import TrainingBatches
from slm.data.corpus import Corpus
from slm.errors import UserError
from slm.files import user_path
from slm.learner.check import check_device
from slm.learner.feed import Feed
from slm.learner.learner import Batch, Learner
from slm.learner.optim import make_optimizers
from slm.learner.workers import Workers
from slm.model.gpt import GPT
from slm.model.vocabulary import Rows
from slm.training import cost, folder
from slm.training.evaluator import Evaluator
from slm.training.guard import Guard
from slm.training.keeper import Keeper
from slm.training.plan import Plan, divide_step, make_plan
from slm.training.state import Pace, State

Clock = Callable[[], float]  # seconds from any moment on


@dataclass
class Run:
    """A model in training. Any part may be replaced by one that does the same."""

    config: TrainConfig
    corpus: Corpus
    plan: Plan
    state: State
    learner: Learner
    guard: Guard
    evaluator: Evaluator
    keeper: Keeper
    workers: Workers
    batch: Callable[[int], Batch]  # micro-batch by its number
    pace: Pace = field(default_factory=Pace)
    evaluation_seconds: float = 0.0  # that the last one took


def assemble(
    config: TrainConfig,
    corpus: Corpus,
    device: torch.device,
    dtype: torch.dtype,
    start: Checkpoint | None = None,
    workers: Workers | None = None,
    clock: Clock = time.perf_counter,
) -> Run:
    """The run of `config` on `corpus`.

    start: the state of a run to resume, or, without its `training`, a model to start from. dtype: of matrix products.
    Raises UserError where the text is too short, or is not that of the saved state.
    """
    workers = workers or Workers()
    check_length(corpus, config.model.context_length)
    saved = start.training or {} if start is not None and config.resume else {}
    torch.manual_seed(config.seed)
    model = _new_model(config, corpus).to(device)
    sequences, batch_size, grad_accum = _divided_step(config, corpus, model, dtype, saved, workers)
    if device.type != "cpu":
        check_device(model.config, model.rows_in_training, batch_size, device, dtype, workers)
    learner = _new_learner(config, model, device, dtype, workers)
    batches = TrainingBatches(
        corpus.train.ids, batch_size * workers.world, model.config.context_length,
        config.seed, workers.rank, workers.world,
    )  # fmt: skip
    evaluator = Evaluator(corpus, batch_size=batch_size, sequences=None, dtype=dtype, workers=workers)
    plan = make_plan(
        config,
        sequences=sequences,
        batch_size=batch_size,
        grad_accum=grad_accum,
        sequences_per_epoch=batches.sequences,
        val_tokens=len(corpus.val),
        batch_seconds=_batch_seconds(evaluator, learner, sequences // config.grad_accum, clock)
        if config.max_minutes
        else 0.0,
    )
    evaluator.sequences, evaluator.tokens_per_step = plan.evaluation_sequences, plan.tokens_per_step
    state = State()
    guard = Guard(state, device)
    keeper = Keeper(config, corpus, plan, state, learner, guard, user_path(config.out_dir), clock)
    if start is not None and saved:
        changed = "text" if saved["corpus"] != corpus.fingerprint else "program"
        if changed == "text" or saved.get("rows") != model.rows_in_training:
            text = " ".join(str(start.facts.get("text", "")).split())[:300]
            was = f" (it was {text})" if text and changed == "text" else ""
            mend = (
                "give --dataset as it was, or start again with --overwrite" if was else "start again with --overwrite"
            )
            raise UserError(f"the {changed} has changed since {keeper.path(folder.LAST)} was saved{was}: {mend}")
        keeper.restore(start)
    elif start is not None:
        learner.load_weights(start.weights)
    return Run(config, corpus, plan, state, learner, guard, evaluator, keeper, workers, Feed(batches, device))


def _new_model(config: TrainConfig, corpus: Corpus) -> GPT:
    shape = dataclasses.replace(config.model, vocab_size=corpus.tokenizer.vocab_size)
    # A model to start from has learned vectors for tokens that this text lacks: none may share a row.
    rows = Rows(corpus.train.in_use(shape.vocab_size)) if config.init_from is None else None
    model = GPT(shape, rows)
    model.activation_checkpointing = config.activation_checkpointing
    return model


def _divided_step(
    config: TrainConfig, corpus: Corpus, model: GPT, dtype: torch.dtype, saved: Mapping[str, Any], workers: Workers
) -> tuple[int, int, int]:
    """The sequences of an optimizer step, and for one process the sequences of a micro-batch and the micro-batches.

    Which sequences a step has follows from its number alone, not from how they are divided among processes.
    """
    batch_size = config.batch_size or saved.get("batch_size")
    if batch_size is None:
        pick = functools.partial(
            cost.pick_batch_size, config, model.config, model.rows_in_training, len(corpus.train),
            model.token_embedding.weight.device, dtype, workers,
        )  # fmt: skip
        batch_size = workers.broadcast(pick)
    sequences = saved.get("windows") or folder.step_sequences(config, batch_size, workers.world)
    return sequences, *divide_step(sequences, batch_size, workers.world)


def _new_learner(
    config: TrainConfig, model: GPT, device: torch.device, dtype: torch.dtype, workers: Workers
) -> Learner:
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where fp32 remains
    workers.shard(model, dtype)
    optimizers = make_optimizers(
        model, config.optimizer, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay, dtype=dtype
    )
    return Learner(
        model, optimizers,
        device=device, dtype=dtype, grad_clip=config.grad_clip, compile=config.compile, workers=workers,
    )  # fmt: skip


def _batch_seconds(evaluator: Evaluator, learner: Learner, sequences: int, clock: Clock) -> float:
    """Seconds that an evaluation on `sequences` of all processes takes, in the slowest of them."""
    seconds = 0.0
    for _ in range(2):  # the first one warms up
        begun = clock()
        evaluator.measure(learner, "val", sequences, groups=1)
        (seconds,) = evaluator.workers.max(clock() - begun)
    return seconds


def check_length(corpus: Corpus, context_length: int) -> None:
    """Raises UserError where the training text does not fill one sequence."""
    if len(corpus.train) <= context_length:
        raise UserError(
            f"the text is too short: {len(corpus.train):,} tokens to train on (and {len(corpus.val):,} to validate), "
            f"where --context_length {context_length} needs at least {context_length + 1:,}: give more text, or make "
            "the context shorter"
        )
