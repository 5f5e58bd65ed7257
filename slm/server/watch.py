"""`slm watch`, and a page of `slm serve`: what runs have measured so far, and the stories they wrote on the way.

A run is a folder with a metrics.csv; samples.jsonl beside it holds a story for each evaluation. Both belong to the run,
which may be writing them: what cannot be read yet is left out, and is there when the page asks again.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from slm.config.use import WatchConfig
from slm.errors import UserError
from slm.files import user_path
from slm.server.listening import listen

STATIC = Path(__file__).with_name("static")
LARGEST = 20_000_000  # bytes of a file that is still read
FIELDS = {"step": float, "seconds": float, "val_loss": float, "prompt": str, "text": str}  # of a sample
# Nothing but what this server sends is loaded or run, whatever a run's files say.
HEADERS = {"Content-Security-Policy": "default-src 'self'", "X-Content-Type-Options": "nosniff"}


def main(config: WatchConfig) -> None:
    """`slm watch`: serve the page until interrupted."""
    import uvicorn

    run_dir = user_path(config.run_dir)
    if not run_dir.is_dir():
        raise UserError(f"no folder {run_dir}: give that of a run, or one with several runs below it, as --run_dir")
    listening, _, address = listen(config.host, config.port)
    print(f"watching {run_dir}: look at {address}/watch; Ctrl-C ends")
    server = uvicorn.Server(uvicorn.Config(make_app(run_dir), log_level="warning", access_log=False))
    server.run(sockets=[listening])


def make_app(run_dir: Path) -> FastAPI:
    """The page alone, without a model."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router(run_dir, alone=True))
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_api_route("/", lambda: RedirectResponse("watch"), include_in_schema=False)
    return app


def router(run_dir: Path, alone: bool = False) -> APIRouter:
    """`GET /watch`, the page, and `GET /watch/runs`, what it shows of the runs in `run_dir` and up to two below it.

    alone: there is no writing page to link to.
    """
    routes = APIRouter(include_in_schema=False)

    @routes.get("/watch")
    def page() -> Response:
        content = (STATIC / "watch.html").read_text(encoding="utf-8")
        return HTMLResponse(content if alone else content.replace("<nav hidden", "<nav"), headers=HEADERS)

    @routes.get("/watch/runs")
    def runs(request: Request) -> Response:
        files = _files(run_dir)
        state = repr([(path, stat.st_mtime_ns, stat.st_size) for path in files if (stat := _stat(path))])
        headers = {"ETag": f'"{hashlib.sha256(state.encode()).hexdigest()[:32]}"', "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return JSONResponse({"runs": read_runs(run_dir)}, headers=headers)

    return routes


def read_runs(run_dir: Path) -> list[dict[str, Any]]:
    """Each run's name, the rows of its metrics.csv and its samples, by name.

    A row has the columns' finite numbers, and None for what is none; rows without a step are left out.
    """
    return [
        {
            "name": path.parent.relative_to(run_dir).as_posix() if path.parent != run_dir else run_dir.resolve().name,
            "rows": _rows(path),
            "samples": _samples(path.with_name("samples.jsonl")),
        }
        for path in _files(run_dir)
        if path.name == "metrics.csv"
    ]


def _files(run_dir: Path) -> list[Path]:
    """The metrics.csv of each run and the samples.jsonl beside it."""
    try:
        found = sorted(path for level in ("", "*/", "*/*/") for path in run_dir.glob(f"{level}metrics.csv"))
    except OSError:
        return []
    return [file for path in found for file in (path, path.with_name("samples.jsonl"))]


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except OSError:
        return None


def _lines(path: Path) -> list[str]:
    """The lines of a text file, none where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(LARGEST).decode("utf-8", "replace").split("\n")
    except OSError:
        return []


def _rows(path: Path) -> list[dict[str, float | None]]:
    table = csv.reader(line.replace("\0", "") for line in _lines(path))
    rows = []
    try:
        columns = next(table, [])
        for cells in table:
            row = dict(zip(columns, map(_number, cells), strict=False))
            if row.get("step") is not None:
                rows.append(row)
    except csv.Error:  # a foreign file, or a field without an end: what came before it counts
        pass
    return rows


def _samples(path: Path) -> list[dict[str, Any]]:
    samples = []
    for line in itertools.islice(_lines(path), 10_000):
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(sample, dict) and _number(sample.get("step")) is not None and isinstance(sample.get("text"), str):
            samples.append(
                {
                    name: _number(sample.get(name)) if kind is float else str(sample.get(name) or "")
                    for name, kind in FIELDS.items()
                }
            )
    return samples


def _number(value: object) -> float | None:
    """`value` as a finite number, None where it is none."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
