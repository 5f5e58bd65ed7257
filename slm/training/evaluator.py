"""Measures the model in training, and lets it write."""

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
from slm.training.state import Evaluation, State

SAMPLE_PROMPT, SAMPLE_LENGTH = 4, 60  # tokens of the text shown at each evaluation


class Evaluator:
    """Measures both splits of a text, always on the same sequences."""

    def __init__(self, corpus: Corpus, *, batch_size: int, sequences: int | None, dtype: torch.dtype, workers: Workers):
        """sequences: of each split, for all processes together; None: all."""
        self.corpus, self.batch_size, self.sequences = corpus, batch_size, sequences
        self.dtype, self.workers = dtype, workers

    def measure(self, learner: Learner, split: str, sequences: int | None) -> Measures:
        """The model as it is on `train` or `val`: on so many sequences, None: on all."""
        tokens = self.corpus.train if split == "train" else self.corpus.val
        return evaluate(
            learner.model,
            tokens,
            self.corpus.tokenizer,
            batch_size=self.batch_size,
            dtype=self.dtype,
            limit=sequences,
            workers=self.workers,
        )

    def evaluate(self, learner: Learner, state: State) -> Evaluation:
        """Measure both splits, and let the model write."""
        train = self.measure(learner, "train", self.sequences)
        val = self.measure(learner, "val", self.sequences)
        weights = learner.weights()
        with self.workers.barrier():
            sample = self._sample(learner, weights, val, state) if self.workers.rank == 0 else {}
        return Evaluation(train, val, weights, sample)

    def _sample(
        self, learner: Learner, weights: Mapping[str, Tensor], val: Measures, state: State
    ) -> Mapping[str, Any]:
        """How the model, as it is, continues the first words of the validation text."""
        tokenizer = self.corpus.tokenizer
        prompt = tokenizer.decode(self.corpus.val.ids[:SAMPLE_PROMPT].tolist())
        text = ""
        if math.isfinite(val.loss):
            model = Checkpoint(learner.model.config, weights, tokenizer, {}).model(learner.device)
            writer = TextModel(TorchEngine(model), tokenizer, {})
            text = writer.generate(prompt, max_length=SAMPLE_LENGTH, seed=0)
        place = {"step": state.step, "seconds": round(state.seconds, 1), "val_loss": round(val.loss, 4)}
        return {**place, "prompt": prompt, "text": text}
