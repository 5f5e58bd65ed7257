"""GPT-2 models in the layout of the transformers library, from a folder or the hub, as checkpoints of this project.

Legend: T context length, C width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slm.checkpoint.file import Checkpoint, load_safely
from slm.config.fields import python
from slm.config.model import ModelConfig
from slm.data.source import END_OF_TEXT, note
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.files import user_path

DESCRIPTION = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)
# The parts of a block: our name, transformers' name, and the shape of its weight there in units of C.
BLOCK: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("attention_norm", "ln_1", (1,)),
    ("attention.qkv", "attn.c_attn", (1, 3)),
    ("attention.projection", "attn.c_proj", (1, 1)),
    ("mlp_norm", "ln_2", (1,)),
    ("mlp.up", "mlp.c_fc", (1, 4)),
    ("mlp.down", "mlp.c_proj", (4, 1)),
)
# config.json's sizes, with the values that transformers takes where they are missing.
SIZES = {"vocab_size": 50_257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
# config.json's other settings of the network: the values that our GPT computes, the first being transformers' default.
COMPUTED: dict[str, tuple[object, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False, True),  # becomes a part of the queries' weights
    "reorder_and_upcast_attn": (False, True),  # the same in fp32
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def layout(shape: ModelConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Each weight of a GPT-2: our name, transformers' name and its shape there.

    Those with `.c_` in their name there are of linear layers, and their matrices lie as (in, out): transposed to ours.
    """
    C = shape.n_embd
    yield "token_embedding.weight", "wte.weight", (shape.vocab_size, C)
    yield "position_embedding.weight", "wpe.weight", (shape.context_length, C)
    for n in range(shape.n_layer):
        for ours, theirs, factors in BLOCK:
            size = tuple(C * factor for factor in factors)
            yield f"blocks.{n}.{ours}.weight", f"h.{n}.{theirs}.weight", size
            yield f"blocks.{n}.{ours}.bias", f"h.{n}.{theirs}.bias", size[-1:]
    yield "final_norm.weight", "ln_f.weight", (C,)
    yield "final_norm.bias", "ln_f.bias", (C,)


def load(source: str) -> Checkpoint:
    """The model of a folder in transformers' layout, or of the hub's `source`, whose files are downloaded once.

    Weights become fp32. Our ids are the 256 bytes, the merges in their order and the end of text: the rows of the token
    embedding are gathered to that, and the others are left out: padding, and tokens such as [PAD] that were added to
    the vocabulary and whose text is ordinary text from now on. Tokens that a tokenizer puts around a text are not put.
    Of the dropout rates, which only further training would use, resid_pdrop is taken.

    Raises UserError with every difference where our GPT or tokenizer cannot compute the same, and where a file is
    missing or damaged. Nothing in the files is run.
    """
    with _reporting(source):
        return _load(source)


def shape_of(source: str) -> ModelConfig:
    """The shape of the model that `load` gives, without its weights. Raises UserError as `load` does."""
    with _reporting(source):
        shape, tokenizer, *_ = _described(source)
        return dataclasses.replace(shape, vocab_size=tokenizer.vocab_size)


@contextmanager
def _reporting(source: str) -> Iterator[None]:
    """Say of each problem where it was met."""
    try:
        yield
    except UserError as error:
        raise UserError(*(f"cannot import {source}: {problem}" for problem in error.problems)) from error
    except OSError as error:
        raise UserError(f"cannot import {source}: {error}") from error


def _described(source: str) -> tuple[ModelConfig, Tokenizer, list[int], bool]:
    """The shape there, the tokenizer, the id that each of its ids has there, and whether scores shrink by layer."""
    folder = _fetch(source, DESCRIPTION)
    config = _json(folder / "config.json")
    problems = list(_differences(config))
    try:
        tokenizer, ids = _tokenizer(folder, config.get("eos_token_id"))
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)

    V, T, C, n_layer, n_head = (config.get(name, default) for name, default in SIZES.items())
    dropout = config.get("resid_pdrop", 0.1)
    shape = ModelConfig(V, context_length=T, n_layer=n_layer, n_head=n_head, n_embd=C, dropout=dropout)
    if max(ids) >= V:
        raise UserError(f"its tokenizer has the id {max(ids)}, and its vocab_size is {V}")
    return shape, tokenizer, ids, config.get("scale_attn_by_inverse_layer_idx", False)


def _load(source: str) -> Checkpoint:
    shape, tokenizer, ids, scaled = _described(source)
    found, C = _weights(source), shape.n_embd
    weights = {}
    for ours, theirs, size in layout(shape):
        tensor = _take(found, theirs, size)
        weights[ours] = tensor.t().contiguous() if ".c_" in theirs else tensor
    if scaled:
        for n in range(shape.n_layer):
            for kind in ("weight", "bias"):  # (3 C, C) and (3 C,): queries, keys, values
                weights[f"blocks.{n}.attention.qkv.{kind}"][:C] /= n + 1
    embedding = weights["token_embedding.weight"]
    if "lm_head.weight" in found and not torch.equal(_take(found, "lm_head.weight", (shape.vocab_size, C)), embedding):
        raise UserError("its output layer is not its token embedding, as it is in our GPT")
    rest = [name for name in found if not re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name)]
    if rest:
        raise UserError(f"its config.json has no place for {len(rest)} of its weights, such as {rest[0]!r}")
    weights["token_embedding.weight"] = embedding[torch.tensor(ids)]
    shape = dataclasses.replace(shape, vocab_size=tokenizer.vocab_size)
    return Checkpoint(shape, weights, tokenizer, {"text": f"imported from {source}"})


def _fetch(source: str, patterns: Sequence[str]) -> Path:
    """The folder `source`, or one with the hub's files whose names match `patterns`."""
    folder = user_path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        raise UserError("it is no folder: give one with a config.json, or the name of a model on the hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except Exception as error:  # there are many kinds
        raise UserError(f"there is no such folder here, and the hub did not give it ({_reason(error)})") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"it holds no {path.name}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"its {path.name} is damaged: {_reason(error)}") from error


def _json(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"its {path.name} is damaged: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"its {path.name} is damaged: it holds no JSON object")
    return content


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _differences(config: dict[str, Any]) -> Iterator[str]:
    """One line for each setting of config.json that our GPT has otherwise or that cannot be."""
    if config.get("model_type") != "gpt2":
        yield f"its model_type is {config.get('model_type')!r}, not 'gpt2'"
    for name, values in COMPUTED.items():
        value = config.get(name, values[0])
        if value not in values:
            yield f"its {name} is {value!r}, and our GPT has {' or '.join(map(repr, values))}"
    sizes = {name: config.get(name, default) for name, default in SIZES.items()}
    wrong = {name: value for name, value in sizes.items() if type(value) is not int or value < 1}
    for name, value in wrong.items():
        yield f"its {name} is {value!r}, not a whole number from 1 on"
    C, n_head, inner = sizes["n_embd"], sizes["n_head"], config.get("n_inner")
    if not wrong and C % n_head:
        yield f"its n_embd {C} is not divisible by its n_head {n_head}"
    if not wrong and inner not in (None, 4 * C):
        yield f"its n_inner is {inner!r}, and our GPT has 4 * n_embd = {4 * C}"
    dropout = config.get("resid_pdrop", 0.1)
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        yield f"its resid_pdrop is {dropout!r}, not a share from 0 to under 1"


# --- The tokenizer ---


def _tokenizer(folder: Path, end: object = None) -> tuple[Tokenizer, list[int]]:
    """The tokenizer, and the id that each of its ids has there, (V,). end: the id after which the model ends a text.

    Raises UserError with every difference.
    """
    settings = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    path = folder / "tokenizer.json"
    if path.exists():
        whole = _json(path)
    elif (folder / "vocab.json").exists():
        path = folder / "vocab.json"
        merges = [
            line for line in _text(folder / "merges.txt").splitlines() if line and not line.startswith("#version")
        ]
        added = _json(folder / "added_tokens.json") if (folder / "added_tokens.json").exists() else {}
        whole = {
            "added_tokens": [{"content": content, "id": id} for content, id in added.items()],
            "pre_tokenizer": {"type": "ByteLevel"},
            "model": {"vocab": _json(path), "merges": merges},
        }
    else:
        raise UserError("it holds no tokenizer.json, nor vocab.json and merges.txt")
    try:
        model = whole["model"]
        problems = [f"its tokenizer is not GPT-2's byte-level BPE: it {what}" for what in _unlike(whole, settings)]
        if problems:
            raise UserError(*problems)
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        added = {entry["content"]: entry["id"] for entry in whole.get("added_tokens") or ()}
        return _in_order(model["vocab"], [(left, right) for left, right in pairs], added, end)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"its {path.name} is damaged: {_reason(error)}") from error


def _unlike(whole: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """What a tokenizer.json does that GPT-2's byte-level BPE does not."""
    model, words = whole["model"], whole.get("pre_tokenizer") or {}
    if model.get("type", "BPE") != "BPE":
        yield f"is of type {model.get('type')!r}"
    if words.get("type") != "ByteLevel" or not words.get("use_regex", True):
        yield "divides text otherwise"
    if words.get("add_prefix_space") or settings.get("add_prefix_space"):
        yield "adds a space before a text"
    if whole.get("normalizer"):
        yield "normalizes text"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        yield "marks the parts of words"
    if model.get("dropout"):
        yield "merges at random"
    if model.get("ignore_merges"):
        yield "takes whole words without merging"


def _in_order(
    vocab: dict[str, int], pairs: list[tuple[str, str]], added: dict[str, int], end: object
) -> tuple[Tokenizer, list[int]]:
    """The tokenizer of a vocabulary and its merges, and the id that each of its ids has there, (V,).

    The token that ends a text there, `</s>` for one, is our end of text: the one of id `end` unless that is an ordinary
    token, as where a config was not adapted to a tokenizer; else <|endoftext|>.

    Raises UserError where it is no tokenizer of ours, ValueError where the parts do not fit together.
    """
    printable = Tokenizer("bytes", [bytes([byte]) for byte in range(256)]).printable()[:-1]
    byte_of = {character: bytes([byte]) for byte, character in enumerate(printable)}
    single = sorted(byte_of.keys() & vocab.keys(), key=vocab.__getitem__)
    names = [*single, *(left + right for left, right in pairs)]
    rank = {name: place for place, name in enumerate(names)}
    own = [name for table in (added, vocab) for name, id in table.items() if id == end and name not in rank]
    ends = [table[name] for name in (*own, END_OF_TEXT) for table in (added, vocab) if name in table]
    problems = []
    if len(single) < 256:
        problems.append(f"it has {len(single)} of the 256 single bytes")
    if not ends:
        problems.append(f"it has no {END_OF_TEXT}")
    if rank.keys() & {END_OF_TEXT, *added}:
        problems.append("a token that it makes by merging is also an added one")
    if problems:
        raise UserError(*(f"its tokenizer is not GPT-2's byte-level BPE: {problem}" for problem in problems))
    if rank.keys() - vocab.keys():
        raise ValueError(f"the merges make {min(rank.keys() - vocab.keys())!r}, which has no id")
    ids = [*(vocab[name] for name in names), ends[0]]
    if len(set(ids)) < len(ids) or not all(type(id) is int and id >= 0 for id in ids):
        raise ValueError("a token is there twice, or an id is none")
    others = sorted(name for name, id in added.items() if id != ends[0])
    if others:
        shown = ", ".join(map(repr, others[:5])) + (" and others" if len(others) > 5 else "")
        note(f"tokens that were added to its vocabulary are ordinary text from now on: {shown}")
    tokenizer = Tokenizer(f"imported-{len(ids)}", [b"".join(byte_of[letter] for letter in name) for name in names])
    if tokenizer.merges() != [(rank[left], rank[right]) for left, right in pairs]:
        raise ValueError("it has a merge whose two parts never stand beside each other")
    return tokenizer, ids


# --- The weights ---


def _weights(source: str) -> dict[str, Tensor]:
    """All weights by their names, without the prefix `transformer.`, of whichever kind of file there is."""
    kinds: tuple[tuple[str, str, Callable[[Path], Iterable[tuple[str, Tensor]]]], ...] = (
        ("model", ".safetensors", _read_safetensors),
        ("pytorch_model", ".bin", _read_pickle),
    )
    for stem, suffix, read in kinds:
        whole, index = f"{stem}{suffix}", f"{stem}{suffix}.index.json"
        folder = _fetch(source, (whole, f"{stem}-*-of-*{suffix}", index))
        if (folder / whole).exists():
            files = [whole]
        elif (folder / index).exists():
            files = _shards(folder / index)
        else:
            continue
        return {name.removeprefix("transformer."): tensor for file in files for name, tensor in read(folder / file)}
    raise UserError("it holds no weights: neither model.safetensors nor pytorch_model.bin")


def _shards(index: Path) -> list[str]:
    """The files that `index` names, all of which are there."""
    names = _json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"its {index.name} is damaged: it has no weight_map of file names")
    files = sorted(set(names.values()))
    for file in files:
        if file != Path(file).name or not (index.parent / file).is_file():
            raise UserError(f"its {index.name} names {file!r}, which is no file beside it")
    return files


def _read_safetensors(path: Path) -> Iterable[tuple[str, Tensor]]:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        mend = f"{python()} -m pip install safetensors"
        raise UserError(f"{path.name} needs the Python package safetensors, which is not installed: {mend}") from error
    try:
        return load_file(path).items()
    except Exception as error:  # a damaged file can fail in any part of the reader
        raise UserError(f"its {path.name} cannot be read, it may be truncated ({_reason(error)})") from error


def _read_pickle(path: Path) -> Iterable[tuple[str, Tensor]]:
    try:
        with path.open("rb") as file:
            archive = file.read(2) == b"PK"
            file.seek(0)
            return {**load_safely(file, archive=archive)}.items()
    except Exception as error:  # a damaged file can fail in any part of the reader
        reason = "it may be truncated or damaged, or hold code, none of which was run"
        raise UserError(f"its {path.name} cannot be opened safely: {reason} ({type(error).__name__})") from error


def _take(found: dict[str, Tensor], name: str, size: tuple[int, ...]) -> Tensor:
    """Remove `name` from `found`; returns it in fp32, apart from any memory that it shared."""
    if name not in found:
        raise UserError(f"it has no weight {name!r}")
    tensor = found.pop(name)
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.layout != torch.strided:
        raise UserError(f"its weight {name!r} is no array of floating-point numbers")
    if tuple(tensor.shape) != size:
        raise UserError(f"its weight {name!r} has the shape {tuple(tensor.shape)}, not {size} as in its config.json")
    return tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
