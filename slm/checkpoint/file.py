"""A checkpoint explains itself: weights, shape, tokenizer and facts in one file of tensors and plain values.

Nothing else is needed to generate, evaluate or export, and opening one runs no code: `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from slm.config.fields import command, fits, flags
from slm.config.formats import EXPORT_FORMATS
from slm.config.model import ModelConfig
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError, first_line
from slm.files import replacing
from slm.model.gpt import GPT

FORMAT, VERSION = "small-language-model", 1
KEYS = ("format", "version", "model_config", "weights", "tokenizer", "facts", "training")


@dataclass(frozen=True)
class Checkpoint:
    """A model as it lies on disk. facts: plain values, for people. training: what `--resume` needs, in last.pt only."""

    config: ModelConfig
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer
    facts: Mapping[str, Any]
    training: Mapping[str, Any] | None = None

    def model(self, device: torch.device | str = "cpu") -> GPT:
        """The network with these weights, ready to evaluate."""
        with torch.device("meta"):
            model = GPT(self.config)
        model.load_state_dict(self.weights, assign=True)
        return model.to(device).eval()


def save(path: Path, checkpoint: Checkpoint, keep: Path | None = None) -> None:
    """Write `checkpoint` to `path`, whole or not at all; `keep`: a name for what was there.

    Raises UserError where the disk refuses.
    """
    tokenizer = {
        key: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
        for key, value in checkpoint.tokenizer.to_state().items()
    }
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model_config": dataclasses.asdict(checkpoint.config),
        "weights": dict(checkpoint.weights),
        "tokenizer": tokenizer,
        "facts": dict(checkpoint.facts),
    }
    if checkpoint.training is not None:
        content["training"] = dict(checkpoint.training)
    with replacing(path, keep=keep) as file:
        torch.save(content, file)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises UserError where there is none, or the file is truncated, of another format or version, or holds code.
    """
    content = _content(path, header=False)
    with _reporting_damage(path):
        config, tokenizer = ModelConfig(**content["model_config"]), Tokenizer.from_state(content["tokenizer"])
        weights = _checked(config, tokenizer, dict(content["weights"]))
        return Checkpoint(config, weights, tokenizer, dict(content["facts"]), content.get("training"))


def model_config(path: Path) -> ModelConfig:
    """The shape of a checkpoint's model, without reading its tensors. Raises UserError as `load` does."""
    content = _content(path, header=True)
    with _reporting_damage(path):
        config = ModelConfig(**content["model_config"])
        _check_config(config)
        return config


def training_header(path: Path) -> dict[str, Any]:
    """The plain values of a run's state, without reading its tensors. Raises UserError as `load` does."""
    training = _content(path, header=True).get("training")
    if not isinstance(training, dict):
        raise UserError(f"{path} is a model, but not a run that can be continued")
    return {name: value for name, value in training.items() if name in ("config", "launch", "stamp")}


def _content(path: Path, header: bool) -> dict[str, Any]:
    """What a checkpoint's file holds. header: without reading or checking the tensors, which must not be used then."""
    if os.path.isdir(path):  # noqa: PTH112
        raise UserError(f"{path} is a folder; give the checkpoint in it, such as {path / 'best_model.pt'}")
    if not os.path.exists(path):  # noqa: PTH110 - also for names that cannot be
        raise UserError(f"no checkpoint {path}: train one with `{command('train')}`, or name another with --model_path")
    try:
        with path.open("rb") as file:
            content = load_safely(file, header=header)
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # a damaged file can fail in any part of the reader
        for format, (_, ending) in EXPORT_FORMATS.items():
            if path.name.lower().endswith(ending):
                raise UserError(
                    f"{path} is an export ({format}): give the checkpoint, such as best_model.pt"
                ) from error
        reason = "it may be truncated or damaged, or hold code, none of which was run"
        raise UserError(
            f"{path} is not a checkpoint that can be opened safely: {reason} ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is a PyTorch file, but not a checkpoint of this project")
    if content.get("version") != VERSION:
        raise UserError(f"{path} has format version {content.get('version')!r}; this program reads version {VERSION}")
    unknown = [repr(key) for key in content if key not in KEYS]
    if unknown:
        raise UserError(f"{path} holds {unknown[0][:40]}, which this program does not know: a newer version wrote it")
    return content


@contextmanager
def _reporting_damage(path: Path) -> Iterator[None]:
    """Turn whatever a damaged content leads to into a UserError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {first_line(error)}") from error


def load_safely(file: IO[bytes], *, header: bool = False, archive: bool = True) -> Any:
    """What an open PyTorch file holds: plain values, and tensors on the CPU. Nothing in it is run.

    The file is opened once: what is checked is what is read. header: without reading or checking the tensors. archive:
    False for a file of before PyTorch 1.6, which has no checksums. Raises whatever damage, or code in it, leads to.
    """
    path = str(file.name)
    mapped = header and path.isprintable()  # only a path can be, if it is UTF-8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if archive:
            check_records(file, only="data.pkl" if header else "")
        content = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    _check_tensors(content, os.fstat(file.fileno()).st_size)
    return content


def _check_tensors(content: object, size: int) -> None:
    """Raises ValueError where the tensors in `content`, read from a file of `size` bytes, stand for far more than that.

    A tensor without strides can be of any size in a few bytes, and fills the memory once it is copied. That some share
    their numbers, as tied weights do, is allowed for.
    """
    left, waiting = 4 * size, [content]
    seen: set[int] = set()  # a list may hold itself
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping | list | tuple):
            if id(each) in seen:
                continue
            seen.add(id(each))
        if isinstance(each, Mapping):
            waiting += each.values()
        elif isinstance(each, list | tuple):
            waiting += each
        elif isinstance(each, Tensor):
            if each.is_meta:
                raise ValueError("a tensor without numbers")
            left -= each.numel() * each.element_size()
            if left < 0:
                raise ValueError("its tensors have more numbers than the file holds")


def check_records(file: IO[bytes], only: str = "") -> None:
    """Compare each record of an open PyTorch file with its CRC-32, which PyTorch writes and does not look at.

    only: check just the records of this name.
    Leaves `file` at its beginning. Raises zipfile.BadZipFile, or whatever else damage leads to.
    """
    with zipfile.ZipFile(file) as archive:
        # PyTorch neither compresses, which could fill the memory, nor sets attributes: with one there is no content.
        if any(record.compress_type != zipfile.ZIP_STORED or record.external_attr for record in archive.infolist()):
            raise zipfile.BadZipFile("a record is not as PyTorch writes it")
        for record in archive.infolist():
            if record.filename.endswith(only):
                with archive.open(record) as content:  # reading to the end compares the checksum
                    while content.read(1 << 20):
                        pass
    file.seek(0)


def _checked(config: ModelConfig, tokenizer: Tokenizer, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` in fp32. Raises ValueError where shape, tokenizer and weights do not belong together."""
    _check_config(config)
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(f"{tokenizer.vocab_size} tokens in the tokenizer, {config.vocab_size} in the model")
    for name, weight in weights.items():
        if not isinstance(name, str) or not isinstance(weight, Tensor) or weight.layout != torch.strided:
            raise ValueError("a weight that is no array of numbers, or has no name")
    if config.n_layer > len(weights):
        raise ValueError(f"{len(weights)} weights for {config.n_layer} layers")
    with torch.device("meta"):
        expected = {name: weight.shape for name, weight in GPT(config).state_dict().items()}
    found = {name: weight.shape if weight.is_floating_point() else None for name, weight in weights.items()}
    wrong = sorted(name for name, _ in expected.items() ^ found.items())
    if wrong:
        raise ValueError(f"weights that do not fit the model: {', '.join(dict.fromkeys(wrong[:4]))}")
    return {name: weight.float().contiguous() for name, weight in weights.items()}


def _check_config(config: ModelConfig) -> None:
    """Raises ValueError where a value is not of its field's type, or cannot be used."""
    for name, (kind, _, _) in flags(ModelConfig).items():
        if not fits(kind, getattr(config, name)):
            raise ValueError(f"{name} is {getattr(config, name)!r}")
    for problem in config.problems():
        raise ValueError(problem.removeprefix("--"))
