"""A server in a thread, and models for it that take no time."""

import contextlib
import socket
import threading

import numpy as np
import uvicorn

from slm.config.use import ServeConfig
from slm.data.tokenizer import Tokenizer
from slm.inference.text import TextModel
from slm.server.app import make_app
from slm.server.command import Server

BYTES = Tokenizer("bytes", [bytes([byte]) for byte in range(256)])


class Alphabet:
    """Says the letter after the last one, and after z the end of text. `gate` is passed once for each token."""

    context_length, parameters = 64, 26

    def __init__(self):
        self.last, self.gate, self.decoded = [], None, []

    def logits(self, ids):
        """(..., V): sure of the next letter, with a little left for all others."""
        ids = np.asarray(ids)
        following = np.where(ids == ord("z"), BYTES.end_of_text, np.where(ids == BYTES.end_of_text, ord("a"), ids + 1))
        return np.eye(257, dtype=np.float32)[following % 257] * 20 - 21

    def prefill(self, prompts):
        self.last += [int(prompt[-1]) for prompt in prompts]
        return self.logits(self.last[-len(prompts) :])

    def decode(self, ids):
        if self.gate:
            self.gate.acquire()
        assert len(ids) == len(self.last)
        self.last = ids.tolist()
        self.decoded.append(len(ids))
        return self.logits(ids)

    def keep(self, rows):
        self.last = [self.last[row] for row in rows]

    def all_logits(self, ids):
        return self.logits(ids)


def alphabet():
    """A model that continues the alphabet."""
    return TextModel(Alphabet(), BYTES, {"step": 3, "val": {"loss": float("nan")}})


@contextlib.contextmanager
def running(model, **settings):
    """The address of a server of `model`, called m, that listens while the block runs."""
    app = make_app(model, ServeConfig(**{"model_path": "m.pt", **settings}))
    server = Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        if getattr(model.engine, "gate", None):
            model.engine.gate.release(10_000)
        server.should_exit = True
        thread.join()
