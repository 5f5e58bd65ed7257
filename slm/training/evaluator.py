"""Evaluates a run: how well its steps went, how well the model predicts validation text, and a text that it writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from slm.checkpoint.file import Checkpoint
from slm.data.corpus import Corpus
from slm.evaluation.measure import Measures, evaluate
from slm.inference.text import TextModel
from slm.inference.torch_engine import TorchEngine
from slm.learner.learner import Learner
from slm.learner.workers import Workers
from slm.training.plan import GROUPS
from slm.training.showing import Showing
from slm.training.state import Evaluation, State

SAMPLE_PROMPT, SAMPLE_LENGTH = 4, 60  # tokens of the text shown at each evaluation


class Evaluator:
    """Measures a model on the splits of a text, always on the same sequences."""

    def __init__(self, corpus: Corpus, *, batch_size: int, sequences: int | None, dtype: torch.dtype, workers: Workers):
        """sequences: of the validation text, for all processes together; None: all."""
        self.corpus, self.batch_size, self.sequences = corpus, batch_size, sequences
        self.tokens_per_step = 0  # of training
        self.dtype, self.workers = dtype, workers
        self._show = Showing()

    def measure(self, learner: Learner, split: str, sequences: int | None, groups: int = GROUPS) -> Measures:
        """How well the model predicts `train` or `val`.

        sequences: how many of it to use, in so many groups at least; None: all.
        """
        tokens = self.corpus.train if split == "train" else self.corpus.val
        batch_size = self.batch_size
        if sequences is not None:
            batch_size = max(1, min(batch_size, sequences // (groups * self.workers.world)))
        return evaluate(
            learner.model,
            tokens,
            self.corpus.tokenizer,
            batch_size=batch_size,
            dtype=self.dtype,
            limit=sequences,
            workers=self.workers,
        )

    def evaluate(self, learner: Learner, state: State) -> Evaluation:
        """The measures of the steps since the last evaluation and of the validation text; and the model writes.

        state: with the sums over these steps up to date.
        """
        train = self._trained(state) if state.trained_steps else self.measure(learner, "train", self.sequences)
        val = self.measure(learner, "val", self.sequences)
        weights = learner.weights()
        sample: dict[str, Any] = {}
        warning = ""
        with self.workers.barrier():
            if self.workers.rank == 0:
                place = {"step": state.step, "seconds": round(state.seconds, 1), "val_loss": round(val.loss, 4)}
                sample = {**place, "prompt": "", "text": ""}
                if math.isfinite(val.loss):
                    warning = self._show("sample of the model's text", self._write, learner, weights, sample)
        return Evaluation(train, val, weights, sample, warning)

    def _trained(self, state: State) -> Measures:
        """Of the steps since the last evaluation, as they were computed, with dropout. Their bytes are estimated."""
        loss, accuracy = state.trained_loss / state.trained_steps, state.trained_accuracy / state.trained_steps
        bytes_per_token = max(self.corpus.train.text_bytes, 1) / len(self.corpus.train)
        tokens = state.trained_steps * self.tokens_per_step
        return Measures(loss, accuracy, loss / math.log(2) / bytes_per_token, tokens)

    def _write(self, learner: Learner, weights: Mapping[str, Tensor], sample: dict[str, Any]) -> None:
        """Put into `sample` how the model, as it is, continues the first words of the validation text."""
        tokenizer = self.corpus.tokenizer
        sample["prompt"] = tokenizer.decode(self.corpus.val.ids[:SAMPLE_PROMPT].tolist())
        model = Checkpoint(learner.model.config, weights, tokenizer, {}).model(learner.device)
        writer = TextModel(TorchEngine(model), tokenizer, {})
        sample["text"] = writer.generate(sample["prompt"], max_length=SAMPLE_LENGTH, seed=0)
