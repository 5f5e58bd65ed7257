"""`slm import`."""

from __future__ import annotations

import shlex

from slm.checkpoint import file as checkpoint
from slm.checkpoint import nanogpt, transformers
from slm.config.fields import command
from slm.config.use import ImportConfig
from slm.errors import UserError
from slm.files import make_out_dir, user_path


def main(config: ImportConfig) -> None:
    """`slm import`: write best_model.pt, and say what it is."""
    path = user_path(config.out_dir) / "best_model.pt"
    try:
        exists = path.exists()
    except OSError as error:
        raise UserError(f"cannot read --out_dir {path.parent}: {error.strerror}") from error
    if exists and not config.overwrite:
        raise UserError(f"{path} exists: replace it with --overwrite, or choose another folder with --out_dir")
    given = user_path(config.from_)
    loaded = nanogpt.load(given) if nanogpt.is_one(given) else transformers.load(config.from_)
    make_out_dir(path.parent)
    checkpoint.save(path, loaded)
    shape, count = loaded.config, sum(tensor.numel() for tensor in loaded.weights.values())
    print(
        f"model      {count:,} parameters, {shape.n_layer} layers, vocabulary of {shape.vocab_size:,}\n"
        f"file       {path}\n"
        f'next       {command("generate")} --model_path {shlex.quote(str(path))} --prompt "Once upon a time"'
    )
