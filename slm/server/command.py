"""`slm serve`: a model, its application and the address that it listens on."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import sys
from typing import Any

import uvicorn

from slm.config.use import ServeConfig
from slm.cores import usable_cores
from slm.errors import UserError
from slm.files import user_path
from slm.inference.text import load
from slm.server import listening
from slm.server.answers import GRACE, describe
from slm.server.app import STATIC, make_app
from slm.server.listening import listen

KEY = "SLM_API_KEY"  # in the environment


class Server(listening.Server):
    """Takes no new requests after SIGTERM or SIGINT, finishes those it has, then exits; a second one exits at once."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal came."""
        state = self.config.app.state  # type: ignore[union-attr]
        self.should_exit = self.force_exit = state.draining
        state.draining = True

    async def on_tick(self, counter: int) -> bool:
        """True where it is time to exit; called ten times a second."""
        state = self.config.app.state  # type: ignore[union-attr]
        idle = not (state.batcher.waiting or state.batcher.running)
        return await super().on_tick(counter) or (state.draining and idle)


def main(config: ServeConfig) -> None:
    """`slm serve`. Raises UserError where the model cannot be loaded or the address cannot be listened on."""
    config = dataclasses.replace(config, api_key=key_of(config))
    model = load(config.model_path, device=config.device, threads=config.threads or usable_cores())
    app = make_app(model, config)
    socket, host, address = listen(config.host, config.port)
    about = describe(model, config)
    key = "" if config.api_key is None else " -H 'Authorization: Bearer KEY'"
    body = json.dumps({"model": about["id"], "prompt": "Once upon a time", "max_tokens": 100})
    page = f"{address}/ to write, " if (STATIC / "index.html").is_file() else ""
    print(f"model      {config.model_path}, {about['parameters']:,} parameters, as {about['id']!r}")
    if model.caution:
        print(model.caution, file=sys.stderr)
    print(f"listening  {address}, OpenAI's completions API under /v1; Ctrl-C ends")
    print(f"try        curl {address}/v1/completions{key} -H 'Content-Type: application/json' -d '{body}'")
    print(f"look at    {page}{address}/docs for the API")
    if config.api_key is None and not ipaddress.ip_address(host).is_loopback:
        print(f"warning: anyone who can reach this address can use the model: {KEY} requires a key", file=sys.stderr)
    server = Server(uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=GRACE))
    server.run(sockets=[socket])


def key_of(config: ServeConfig) -> str | None:
    """The key that requests must bring: from its flag, or the file of its flag, or the environment; None: no key.

    Raises UserError where it cannot be read or used.
    """
    where, key = f"the environment's {KEY}", os.environ.get(KEY)
    if config.api_key is not None:
        where, key = "--api_key", config.api_key
    elif config.api_key_file is not None:
        where = f"--api_key_file {config.api_key_file}"
        try:
            key = user_path(config.api_key_file).read_bytes()[:10_000].decode("latin-1").strip()
        except OSError as error:
            raise UserError(f"cannot read {where}: {error.strerror}") from error
    if key is not None and not (key.isascii() and key.isprintable() and key):
        raise UserError(f"{where} must be of printable ASCII characters, at least one")
    return key
