"""A model of ours as an engine, on any device that PyTorch has."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from slm.inference.generator import Ids, Logits
from slm.model.gpt import GPT
from slm.model.kv_cache import KVCache


class TorchEngine:
    """Keeps the keys and values of what it has read, and runs the output layer over the last token only."""

    def __init__(self, model: GPT):
        self.model = model.eval()
        self.context_length = model.config.context_length
        self._cache: KVCache | None = None

    @torch.inference_mode()
    def prefill(self, ids: Ids) -> Logits:
        """Forget what was, read ids (B, T): the logits of the next token, (B, V)."""
        if self._cache is None or self._cache.batch_size != len(ids):
            self._cache = self.model.new_cache(len(ids))
        self._cache.clear()
        return self._read(torch.from_numpy(ids))

    @torch.inference_mode()
    def decode(self, ids: Ids) -> Logits:
        """Read one more token of each sequence, ids (B,): the logits of the next one, (B, V)."""
        return self._read(torch.from_numpy(ids).unsqueeze(1))

    def _read(self, ids: torch.Tensor) -> Logits:
        weight = self.model.token_embedding.weight
        last = self.model.hidden(ids.to(weight.device), self._cache)[:, -1]  # (B, C)
        logits: Logits = F.linear(last, weight).float().cpu().numpy()
        return logits
