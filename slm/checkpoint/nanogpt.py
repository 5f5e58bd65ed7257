"""nanoGPT's ckpt.pt as a model of ours.

The network is the same but for its GELU, which is exact there and in the tanh form here: logits differ in the third
decimal. Biases may be missing there, and are zeros here; of the 50,304 rows that GPT-2's 50,257 tokens are padded to,
the last ones are left out.

A model of single letters has its letters in a meta.pkl, which is read beside ckpt.pt. Our tokenizer also has the bytes
that are no letters and the end of text: the model must never write those, here or in any program that an export is for.
So that is said in the weights: see `_spread`.

Legend: V tokens of ours, C width.
"""

from __future__ import annotations

import dataclasses
import math
import re
import zipfile
from pathlib import Path
from pickletools import genops
from typing import Any

import torch
from torch import Tensor

from slm.checkpoint.file import Checkpoint, load_safely
from slm.checkpoint.transformers import layout
from slm.config.model import ModelConfig
from slm.data.tokenizer import Tokenizer, gpt2
from slm.errors import UserError

ARGUMENTS = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
PREFIX = "_orig_mod."  # what torch.compile puts before each name
BELOW = 64.0  # nats that a token which nanoGPT did not have lies below a letter
VALUES = ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2")  # a pickle's letters and whole numbers
MARKS = (b"model_args", b"iter_num", b"best_val_loss")  # what is in no other checkpoint together


def is_one(path: Path) -> bool:
    """Whether a file is a checkpoint of nanoGPT, by the names in it; false where it cannot be read, or is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            (record,) = (each for each in archive.infolist() if each.filename.endswith("/data.pkl"))
            if record.file_size > 10_000_000 or record.compress_type != zipfile.ZIP_STORED:
                return False
            content = archive.read(record)
    except Exception:  # a damaged file can fail in any part of the reader; whoever opens it says so
        return False
    return all(mark in content for mark in MARKS)


def load(path: Path) -> Checkpoint:
    """The model in the file, and in the meta.pkl beside it where it is one of letters. Nothing in them is run.

    Raises UserError where one of them is damaged or missing, or the model has too many letters.
    """
    try:
        with path.open("rb") as file:
            content = load_safely(file)
    except Exception as error:  # a damaged file can fail in any part of the reader
        reason = "it may be truncated or damaged, or hold code, none of which was run"
        raise UserError(
            f"cannot import {path}: it cannot be opened safely: {reason} ({type(error).__name__})"
        ) from error
    try:
        return _model(content, path)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise UserError(f"cannot import {path}: it is damaged: {type(error).__name__}: {error}") from error


def _model(content: dict[str, Any], path: Path) -> Checkpoint:
    sizes = {name: content["model_args"][name] for name in ARGUMENTS}
    if not all(type(size) is int and 0 < size < 2**31 for size in sizes.values()):
        raise ValueError(f"its model_args are {sizes}")
    tokenizer, letters, rows = gpt2(), {}, sizes["vocab_size"]
    if rows < tokenizer.vocab_size:
        letters = _letters(path, rows, sizes["n_embd"])
        parts = {letter[:end] for letter in letters for end in range(2, len(letter) + 1)}
        tokens = [*(bytes([byte]) for byte in range(256)), *sorted(parts, key=lambda part: (len(part), part))]
        tokenizer = Tokenizer(f"letters-{rows}", tokens)
    dropout = content["model_args"].get("dropout", 0.0)
    V = tokenizer.vocab_size
    shape = ModelConfig(
        V, sizes["block_size"], sizes["n_layer"], sizes["n_head"], sizes["n_embd"], dropout=float(dropout)
    )
    for problem in shape.problems():
        raise ValueError(problem.removeprefix("--"))
    found = {name.removeprefix(PREFIX).removeprefix("transformer."): each for name, each in content["model"].items()}
    weights = {}
    for ours, theirs, size in layout(dataclasses.replace(shape, vocab_size=rows)):
        # Matrices lie as (out, in) there, as they do here, and not as in transformers.
        expected = tuple(reversed(size)) if ".c_" in theirs and len(size) == 2 else size
        weight = found.pop(theirs, torch.zeros(expected) if theirs.endswith(".bias") else None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or tuple(weight.shape) != expected:
            raise ValueError(f"the weight {theirs!r} is missing, or has another shape than {expected}")
        weights[ours] = weight.float().contiguous()
    rest = [name for name in found if name != "lm_head.weight" and not re.fullmatch(r"h\.\d+\.attn\.bias", name)]
    if rest:
        raise ValueError(f"there is no place for the weight {rest[0]!r}")
    if letters:
        _spread(weights, tokenizer, letters)
    else:
        weights["token_embedding.weight"] = weights["token_embedding.weight"][:V].clone()
    facts = {"text": f"imported from {path.name}, which nanoGPT trained for {content.get('iter_num')} steps"}
    return Checkpoint(shape, weights, tokenizer, facts)


def _letters(path: Path, rows: int, width: int) -> dict[bytes, int]:
    """The row of each letter, by its UTF-8. Raises UserError where meta.pkl does not say it, or there are too many."""
    meta = path.with_name("meta.pkl")
    if rows >= width:
        reason = f"its {rows:,} tokens are not GPT-2's, and single letters must be fewer than its width of {width:,}"
        raise UserError(f"cannot import {path}: {reason}")
    try:
        with meta.open("rb") as file:
            found = _plain(file.read(1 << 20))
        letters = {letter.encode(): row for letter, row in found["stoi"].items() if len(letter) == 1}
        if sorted(letters.values()) != list(range(rows)) or len(found["stoi"]) != rows:
            raise ValueError(f"it has not one letter for each of {rows:,} rows")
    except OSError as error:
        raise UserError(
            f"cannot import {path}: it has {rows:,} tokens, so its letters are in nanoGPT's data folder: "
            f"copy the meta.pkl there to {meta} ({error.strerror})"
        ) from error
    except Exception as error:  # a damaged pickle can fail in any part
        raise UserError(f"cannot import {path}: {meta} holds no letters: {type(error).__name__}: {error}") from error
    return letters


def _plain(data: bytes) -> Any:
    """What a pickle of dicts, texts and whole numbers holds, without unpickling it.

    Raises ValueError where there is anything else in it, and whatever else damage leads to.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    for operation, value, _ in genops(data):
        name = operation.name
        if name in VALUES:
            stack.append(value)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if name == "MEMOIZE" else value] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name in ("SETITEM", "SETITEMS"):
            start = marks.pop() if name == "SETITEMS" else len(stack) - 2
            pairs = stack[start:]
            del stack[start:]
            stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"it does not only hold dicts, texts and whole numbers, but also {name}")
    return stack.pop()


def _spread(weights: dict[str, Tensor], tokenizer: Tokenizer, letters: dict[bytes, int]) -> None:
    """Give each token of ours a row of the embedding: nanoGPT's to a letter, and one that never wins to the others.

    The last layer's vectors are y = scale * n + bias, where |n| <= sqrt(C). Let u be a unit vector at right angles to
    the rows of all letters; there is one where they are fewer than C. The bias becomes bias + S u, which changes no
    letter's logit. Any other token gets the newline's row less (BELOW / S) u, and so the newline's logit less BELOW,
    give or take a quarter, as S is 4 times the greatest |y|. Where it is read, as the end of text before a prompt is,
    it is nearly a newline, with which nanoGPT too begins.
    """
    table, scale, bias = (weights[name] for name in ("token_embedding.weight", "final_norm.weight", "final_norm.bias"))
    u = torch.linalg.svd(table.double()).Vh[-1]
    size = 4 * float(scale.abs().max()) * math.sqrt(len(scale)) + 4 * float(bias.norm()) + 1
    weights["final_norm.bias"] = (bias + size * u).float()
    newline = letters.get(b"\n", 0)
    spread = table[torch.tensor([letters.get(token, newline) for token in tokenizer.tokens])].double()
    spread[[token not in letters for token in tokenizer.tokens]] -= BELOW / size * u
    weights["token_embedding.weight"] = spread.float()
