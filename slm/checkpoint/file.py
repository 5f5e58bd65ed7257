"""A checkpoint explains itself: weights, shape, tokenizer and facts in one file of tensors and plain values.

Nothing else is needed to generate, evaluate or export, and opening one runs no code: `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import dataclasses
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from slm.config.formats import EXPORT_FORMATS
from slm.config.model import ModelConfig
from slm.config.train import TrainConfig
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.files import replacing
from slm.model.gpt import GPT

FORMAT, VERSION = "small-language-model", 1


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
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the checkpoint in it, such as {path / 'best_model.pt'}")
    if not path.exists():
        raise UserError(f"no checkpoint {path}: train one with `python train.py`, or name another with --model_path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with path.open("rb") as file:  # opened once: what is checked is what is read
                check_records(file)
                content = torch.load(file, map_location="cpu", weights_only=True)
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
    try:
        config, tokenizer = ModelConfig(**content["model_config"]), Tokenizer.from_state(content["tokenizer"])
        weights = _checked(config, tokenizer, dict(content["weights"]))
        return Checkpoint(config, weights, tokenizer, dict(content["facts"]), content.get("training"))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{path} is damaged: {type(error).__name__}: {reason}") from error


def check_records(file: IO[bytes]) -> None:
    """Compare each record of an open PyTorch file with its CRC-32, which PyTorch writes and does not look at.

    Leaves `file` at its beginning. Raises zipfile.BadZipFile, or whatever else damage leads to.
    """
    with zipfile.ZipFile(file) as archive:
        # PyTorch neither compresses, which could fill the memory, nor sets attributes: with one there is no content.
        if any(record.compress_type != zipfile.ZIP_STORED or record.external_attr for record in archive.infolist()):
            raise zipfile.BadZipFile("a record is not as PyTorch writes it")
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{damaged} is damaged")
    file.seek(0)


def _checked(config: ModelConfig, tokenizer: Tokenizer, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` in fp32. Raises ValueError where shape, tokenizer and weights do not belong together."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if type(value) is not type(entry.default) and not (type(value) is int and type(entry.default) is float):
            raise ValueError(f"{entry.name} is {value!r}")
    for problem in TrainConfig(model=config, init_from="").problems():
        raise ValueError(problem.removeprefix("--"))
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(f"{tokenizer.vocab_size} tokens in the tokenizer, {config.vocab_size} in the model")
    if config.n_layer > len(weights):
        raise ValueError(f"{len(weights)} weights for {config.n_layer} layers")
    with torch.device("meta"):
        expected = {name: weight.shape for name, weight in GPT(config).state_dict().items()}
    found = {name: weight.shape for name, weight in weights.items() if weight.is_floating_point()}
    wrong = sorted(str(name) for name, _ in expected.items() ^ found.items())
    if wrong:
        raise ValueError(f"weights that do not fit the model: {', '.join(dict.fromkeys(wrong[:4]))}")
    return {name: weight.float().contiguous() for name, weight in weights.items()}
