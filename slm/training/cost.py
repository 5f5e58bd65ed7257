"""What a run costs: parameters, FLOPs and memory, and the batch size that follows.

Legend: B sequences in a micro-batch, T context length.
"""

from __future__ import annotations

import math

import torch

from slm.config.model import ModelConfig
from slm.config.train import TrainConfig
from slm.device import flops, total_memory
from slm.learner.workers import Workers
from slm.model.loss import chunk_elements

TOKENS_PER_STEP = 1536  # in a run over up to a million tokens; docs/experiments.md
GPU_TOKENS = 1 << 16  # in a micro-batch: fewer leave a data centre's GPU waiting for its next kernel
GPU_STEPS = 400  # that a run on a GPU has nevertheless: a small text learns more by steps than by speed
MPS_TOKENS = 1 << 15  # in a micro-batch at most: beyond, Apple's GPUs can give wrong gradients (slm/learner/check.py)
PYTORCH_BYTES = 4e8  # of a process that has done nothing yet


def in_training(shape: ModelConfig, rows: int) -> tuple[int, int]:
    """The number of weights where the embedding has `rows` rows, and of those in matrix products."""
    C, biases = shape.n_embd, shape.bias
    matrices = 12 * shape.n_layer * C * C + rows * C
    vectors = (shape.n_layer * (2 + 11 * biases) + 1 + biases) * C
    return matrices + shape.context_length * C + vectors, matrices


def flops_per_token(shape: ModelConfig, rows: int) -> float:
    """Of forward and backward: 6 for each weight in a product, and attention's own (Chowdhery et al., 2022)."""
    _, in_products = in_training(shape, rows)
    return 6 * in_products + 12 * shape.n_layer * shape.n_embd * shape.context_length


def memory_estimate(
    config: TrainConfig, shape: ModelConfig, rows: int, batch_size: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Bytes at the peak: weights, gradients, averages; the head's gradient and logits; activations; PyTorch."""
    tokens = batch_size * shape.context_length
    weights = 16 * in_training(shape, rows)[0] + 8 * rows * shape.n_embd
    bytes_each = 4 if dtype == torch.float32 else 2 if device.type == "cuda" else 6
    logits = min(chunk_elements(device), tokens * rows) * bytes_each
    layers_kept = 1 if config.activation_checkpointing else shape.n_layer
    activations = tokens * shape.n_embd * 4 * (18 * layers_kept + shape.n_layer + 4)
    return weights + logits + activations + PYTORCH_BYTES


def pick_batch_size(
    config: TrainConfig,
    shape: ModelConfig,
    rows: int,
    text_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    workers: Workers,
) -> int:
    """Sequences in a micro-batch of one process: the more tokens the run will see, the larger, by their root.

    docs/experiments.md has the figures. On CUDA GPU_TOKENS at least, if GPU_STEPS are left; on MPS MPS_TOKENS at most.
    """
    tokens = config.epochs * text_tokens
    if config.max_minutes:
        speed = workers.world * 0.5 * flops(device, dtype) / flops_per_token(shape, rows)
        tokens = 60 * config.max_minutes * speed
    if config.max_steps:
        tokens = (config.max_steps * TOKENS_PER_STEP) ** 2 / 1e6  # so that they are the steps times the batch
    fewest = workers.world * GPU_TOKENS if device.type == "cuda" else 0.0
    if not config.max_steps:
        fewest = min(fewest, tokens / GPU_STEPS)
    in_a_step = config.global_batch_tokens or max(TOKENS_PER_STEP * math.sqrt(max(1.0, tokens / 1e6)), fewest)
    wanted = in_a_step / (shape.context_length * config.grad_accum * workers.world)
    sizes = sorted([2**n for n in range(12)] + [3 * 2**n for n in range(11)])  # 1 2 3 4 6 8 12 16 ...
    room = 0.8 * total_memory(device) / (workers.local_world if device.type == "cpu" else 1)
    if device.type == "mps":
        sizes = [size for size in sizes if size * shape.context_length <= MPS_TOKENS]
    fitting = [size for size in sizes if memory_estimate(config, shape, rows, size, device, dtype) < room] or [1]
    return min(fitting, key=lambda size: abs(math.log(size / wanted)))
