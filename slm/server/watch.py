"""`slm watch`, and a page of `slm serve`: what runs have measured so far, and the stories they wrote on the way.

A run is a folder with a metrics.csv; samples.jsonl beside it holds a story for each evaluation. Both belong to the run,
which may be writing them: what cannot be read yet is there when the page asks again.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from slm.config.use import WatchConfig
from slm.errors import UserError
from slm.files import user_path
from slm.run_files import METRICS, SAMPLES, find_runs, read_rows, read_samples
from slm.server.listening import Entrance, Server, listen

STATIC = Path(__file__).with_name("static")
MOST_RUNS, LONGEST = 200, 16_000_000  # runs that are shown; about how many bytes all that is shown of them may have
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
    app = make_app(run_dir, config.host, config.allowed_hosts)
    Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listening])


def make_app(run_dir: Path, host: str = "127.0.0.1", allowed_hosts: Sequence[str] = ()) -> FastAPI:
    """The page alone, without a model."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Entrance, host=host, allowed=allowed_hosts)
    app.include_router(router(run_dir, alone=True))
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_api_route("/", lambda: RedirectResponse("watch"), include_in_schema=False)
    return app


def router(run_dir: Path, alone: bool = False) -> APIRouter:
    """`GET /watch`, the page, and `GET /watch/runs`, what it shows of the runs in `run_dir` and up to two below it.

    alone: there is no writing page to link to.
    """
    routes = APIRouter(include_in_schema=False)
    lock, latest = threading.Lock(), ("", b"")  # what was answered last: runs are read once for all who watch

    @routes.get("/watch")
    def page() -> Response:
        content = (STATIC / "watch.html").read_text(encoding="utf-8")
        return HTMLResponse(content if alone else content.replace("<nav hidden", "<nav"), headers=HEADERS)

    @routes.get("/watch/runs")
    def runs(request: Request) -> Response:
        nonlocal latest
        with lock:
            state = _state(run_dir)
            if latest[0] != state:
                latest = state, json.dumps({"runs": read_runs(run_dir)}).encode()
            content = latest[1]
        headers = {"ETag": f'"{state}"', "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type="application/json")

    return routes


def read_runs(run_dir: Path) -> list[dict[str, Any]]:
    """Each run's name, the rows of its metrics.csv and its samples, in the order of their names."""
    found: list[dict[str, Any]] = []
    left = LONGEST
    for run in find_runs(run_dir)[:MOST_RUNS]:
        name = run.relative_to(run_dir).as_posix() if run != run_dir else run_dir.resolve().name
        rows, samples = read_rows(run, run_dir), read_samples(run, run_dir)
        left -= sum(len(column) + 20 for row in rows for column in row)
        left -= sum(len(sample["prompt"]) + len(sample["text"]) + 100 for sample in samples)
        if left < 0:
            rows, samples = [], []
        found.append({"name": os.fsencode(name).decode("utf-8", "replace"), "rows": rows, "samples": samples})
    return found


def _state(run_dir: Path) -> str:
    """A hash that changes where a file of a run does."""
    state = []
    for path in (run / name for run in find_runs(run_dir)[:MOST_RUNS] for name in (METRICS, SAMPLES)):
        try:
            stat = path.stat()
        except OSError:
            continue
        state.append((str(path), stat.st_mtime_ns, stat.st_size))
    return hashlib.sha256(repr(state).encode()).hexdigest()[:32]
