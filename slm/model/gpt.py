"""A GPT-2-style decoder (Radford et al., 2019), top to bottom.

Legend: B batch, T time (tokens), S tokens looked at (T and those in the cache), C width, H heads, D = C / H,
V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from slm.config.model import ModelConfig
from slm.model.kv_cache import KVCache
from slm.model.loss import linear_cross_entropy
from slm.model.vocabulary import Rows


class Attention(nn.Module):
    """Causal multi-head self-attention: each token gathers from itself and those before it."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.n_head, self.dropout = layer, config.n_head, config.dropout
        self.flash = config.attention == "flash"
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.projection = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T, C). mask (T, S) or (B, 1, T, S): what may be looked at; None: all up to oneself."""
        B, T, C = x.shape
        # Three (B, H, T, D), views of one (B, T, 3C).
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, H, S, D)
        dropout = self.dropout if self.training else 0.0
        if self.flash and mask is None and q.device.type == "cpu" and q.dtype == torch.bfloat16 and T <= 512:
            y = causal_products(q, k, v, dropout)
        else:
            with contextlib.nullcontext() if self.flash else sdpa_kernel(SDPBackend.MATH):
                y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, is_causal=mask is None and T > 1)
        return self.projection(y.transpose(1, 2).reshape(B, T, C))


def causal_products(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the tokens up to oneself, product by product: three (B, H, T, D) -> (B, H, T, D).

    In bf16 on a CPU this is four times as fast as torch's fused kernel at 128 tokens, and slower beyond 512.
    """
    B, H, T, D = q.shape
    with torch.autocast(q.device.type, enabled=False):
        before = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1)  # added: 0 up to oneself
        q, k, v = (x.reshape(B * H, T, D) for x in (q, k, v))
        weights = torch.baddbmm(before.expand(B * H, T, T), q, k.mT, alpha=1 / math.sqrt(D)).softmax(-1)
        return (F.dropout(weights, dropout) @ v).view(B, H, T, D)


class MLP(nn.Module):
    """Each token thought over by itself: four times wider, GELU (GPT-2's tanh form), and back."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.down = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Attention, then MLP, each reading a normalised copy of the stream and adding to it (pre-norm)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attention = Attention(config, layer)
        self.mlp_norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), cache, mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


def through(block: nn.Module, x: Tensor) -> Tensor:
    """A block without cache or mask, (B, T, C) -> (B, T, C): one function that is compiled once for all blocks."""
    y: Tensor = block(x, None, None)
    return y


class GPT(nn.Module):
    """Token ids in, the next token's logits out. The output layer is the token embedding itself (tied)."""

    def __init__(self, config: ModelConfig, rows: Rows | None = None):
        """rows: keep only these of the embedding, as for training; None: one for each token."""
        super().__init__()
        self.config, self.rows = config, rows
        self.activation_checkpointing = False
        self.compiled_block: Callable[[nn.Module, Tensor], Tensor] | None = None  # `through`, for training alone
        self.token_embedding = _embedding(rows.count if rows else config.vocab_size, config.n_embd)
        self.row_of_token: Tensor
        self.register_buffer("row_of_token", rows.of_token if rows else None, persistent=False)  # (V,)
        self.position_embedding = _embedding(config.context_length, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self._initialise()

    @property
    def rows_in_training(self) -> int:
        """Rows of the token embedding, R: V, or fewer where tokens that the text lacks share one."""
        return self.token_embedding.num_embeddings

    def _initialise(self) -> None:
        """N(0, 0.02), biases 0; what adds to the stream is smaller, so that depth does not widen it (GPT-2)."""
        if self.token_embedding.weight.is_meta:  # weights to be loaded; PyTorch takes a second to draw none
            return
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                adds_to_stream = name.endswith((".projection", ".down"))
                nn.init.normal_(module.weight, std=0.02 / (math.sqrt(2 * self.config.n_layer) if adds_to_stream else 1))
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """The last layer's vectors: ids (B, T) -> (B, T, C).

        With a `cache`, `ids` continue what it holds, and it grows by T.
        Positions run to config.context_length; beyond it the embedding fails (IndexError on the CPU).
        """
        T = ids.size(1)
        positions = torch.arange(T, device=ids.device)
        if cache is not None:
            positions = cache.ends + positions  # (B, T)
        mask = cache.mask(T) if cache is not None else None
        x = self.dropout(self.token_embedding(self._rows_of(ids)) + self.position_embedding(positions))
        for block in self.blocks:
            x = self._in_training(block, x) if torch.is_grad_enabled() and cache is None else block(x, cache, mask)
        if cache is not None:
            cache.advance(T)
        return self.final_norm(x)

    def _in_training(self, block: nn.Module, x: Tensor) -> Tensor:
        run = self.compiled_block or through
        return checkpoint(run, block, x, use_reentrant=False) if self.activation_checkpointing else run(block, x)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """The logits of each next token: ids (B, T) -> (B, T, V)."""
        weight = self.token_embedding.weight
        return F.linear(self.hidden(ids, cache), self.rows.widen(weight) if self.rows else weight)

    def loss(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss in nats and the number of tokens guessed right, both scalars, without holding all logits.

        ids, targets: (B, T); a target below 0 does not count.
        """
        rows = torch.where(targets < 0, targets, self._rows_of(targets.clamp(min=0)))
        shared = self.rows.shared if self.rows else 1
        return linear_cross_entropy(self.hidden(ids).flatten(0, 1), self.token_embedding.weight, rows.flatten(), shared)

    def _rows_of(self, ids: Tensor) -> Tensor:
        return self.row_of_token[ids] if self.rows else ids

    def widened(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state_dict of this model with a row for each token."""
        name = "token_embedding.weight"
        return {**weights, name: self.rows.widen(weights[name])} if self.rows else dict(weights)

    def narrowed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `widened`."""
        name = "token_embedding.weight"
        return {**weights, name: self.rows.narrow(weights[name])} if self.rows else dict(weights)

    def new_cache(self, batch_size: int) -> KVCache:
        """An empty cache for `batch_size` sequences of the full context."""
        c = self.config
        return KVCache(
            c.n_layer, batch_size, c.n_head, c.context_length, c.n_embd // c.n_head, self.token_embedding.weight
        )


def _embedding(rows: int, width: int) -> nn.Embedding:
    """A table without values yet: nn.Embedding itself would draw some."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)
