"""The page with the model in it: a folder that any file server can host; stories are written on the visitor's device.

index.html, static/   the writing page of `slm serve`, and ONNX Runtime's build for browsers
best_model.onnx       the model with 8-bit weights, see slm/export/onnx.py
tokenizer.json        as the tokenizers library writes it
config.json           what the page tells about the model, as `GET /v1/models` does

ONNX Runtime is not part of Python: it comes from its npm package, once, and is kept in the cache.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from slm.checkpoint.file import Checkpoint
from slm.config.train import DataConfig
from slm.errors import UserError
from slm.export import onnx
from slm.export.huggingface import tokenizer_json
from slm.export.parts import compare_distributions, expected_logits, random_ids
from slm.files import replacing, user_path

PACKAGE = "onnxruntime-web@1.30.0"
ARCHIVE_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME = ("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm")
PAGE = ("icon.svg", "style.css", "page.js", "tokenizer.js", "local_model.js", "local_worker.js", "generator.js")
# The page loads nothing from another place and tells nothing to one: the browser itself holds it to that.
POLICY = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'"
TOLERANCE = 0.02  # nats a token


def write(loaded: Checkpoint, path: Path, format: str) -> None:
    """Make the folder `path`. Raises UserError where ONNX Runtime's build is neither in the cache nor to be had."""
    runtime = from_npm(PACKAGE, ARCHIVE_SHA512, RUNTIME, user_path(DataConfig().cache_dir))
    path.mkdir()
    onnx.write(loaded, path / "best_model.onnx", format)
    _write_json(path / "tokenizer.json", tokenizer_json(loaded.tokenizer))
    _write_json(path / "config.json", about(loaded))
    static = path / "static"
    static.mkdir()
    files = resources.files("slm.server") / "static"
    for name in PAGE:
        (static / name).write_bytes((files / name).read_bytes())
    for file in RUNTIME:
        shutil.copyfile(runtime / Path(file).name, static / Path(file).name)
    page = (files / "index.html").read_text(encoding="utf-8")
    head = '<meta name="model" content="server">'
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n  <meta name="model" content="local">'
    if head not in page:
        raise ValueError(f"index.html has no {head}")
    (path / "index.html").write_bytes(page.replace(head, policy).encode())


def check(loaded: Checkpoint, path: Path, format: str) -> str:
    """Compare in ONNX Runtime, though not in a browser: sequences of several lengths and a token after each."""
    from slm.inference.onnx_engine import OnnxEngine

    engine = OnnxEngine(path / "best_model.onnx")
    ids = random_ids(loaded)
    expected = expected_logits(loaded, ids)  # (B, T, V)
    rows = np.arange(len(ids))
    lengths = np.maximum(1, ids.shape[1] - 1 - rows)
    actual = [*engine.prefill([row[:length] for row, length in zip(ids, lengths.tolist(), strict=True)])]
    wanted = [*expected[rows, lengths - 1]]
    if ids.shape[1] > 1:
        actual += engine.decode(ids[rows, lengths])
        wanted += [*expected[rows, lengths]]
    return compare_distributions(np.stack(actual), np.stack(wanted), TOLERANCE)


def about(loaded: Checkpoint) -> dict[str, object]:
    """What the page tells about the model."""
    return {
        "id": "best_model",
        "parameters": sum(tensor.numel() for tensor in loaded.weights.values()),
        "context_length": loaded.config.context_length,
        "vocab_size": loaded.config.vocab_size,
        "tokenizer": loaded.tokenizer.name,
        "facts": dict(loaded.facts),
        "shape": {name: getattr(loaded.config, name) for name in ("n_layer", "n_head", "n_embd")},
    }


def from_npm(package: str, sha512: str, names: Sequence[str], cache: Path) -> Path:
    """The folder in `cache` that holds files of an npm package, got with npm where it does not yet.

    package: name@version. sha512: that its archive must have, in base64. names: paths in the package. Raises UserError
    where npm is missing, offline, or brings another archive.
    """
    folder = cache / package.replace("@", "-")
    files = {name: folder / Path(name).name for name in names}
    if all(path.is_file() for path in files.values()):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"{package} comes with npm, which is not installed: install Node.js, which has it")
    with tempfile.TemporaryDirectory() as temporary:
        command = [npm, "pack", package, "--silent", "--pack-destination", temporary]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=600, cwd=temporary)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"npm could not get {package} ({error}): try again with a better network") from error
        archives = list(Path(temporary).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            reason = " ".join(done.stderr.split())[:200] or "it brought no archive"
            raise UserError(f"npm could not get {package} ({reason}): try again with a network, once is enough")
        if base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode() != sha512:
            raise UserError(f"what npm brought is not {package} as it was published: look at npm's registry setting")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {folder}: {error.strerror}") from error
        with tarfile.open(archives[0]) as archive:
            for name, path in files.items():
                member = archive.extractfile(f"package/{name}")
                assert member is not None
                with replacing(path) as file:
                    shutil.copyfileobj(member, file)
    return folder


def _write_json(path: Path, content: object) -> None:
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode())
