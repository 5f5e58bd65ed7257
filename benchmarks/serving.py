"""How fast does the server write for many at once, how soon does each see a word, and does it hold for long?

`load`: the default model with random weights behind `serve.py` in a process of its own, and clients on the same machine
that each ask for one streamed completion after another: tokens a second, time to the first token and between tokens,
and peak memory. `soak`: 64 clients for minutes, some of which hang up in the middle; each text must be the one that the
model writes alone, nothing may be lost, and memory may not grow. Both print a table and one JSON line (Linux only).

The clients share the cores with the server, so they are plain asyncio: with httpx they took more time than the server.

    python benchmarks/serving.py load
    python benchmarks/serving.py soak --minutes 10
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from slm.cores import usable_cores

TOKENS = 100
WORDS = "once upon a time there was little fox who lived in the old forest and loved to sing with friends every day"
ENDINGS = {"fp32": "best_model.onnx", "int8": "best_model.int8.onnx", "pt": "best_model.pt"}


def make_models(folder: Path) -> None:
    """The default model with random weights, as PyTorch and ONNX Runtime read it."""
    import torch

    from slm.checkpoint import file as checkpoint
    from slm.checkpoint.file import Checkpoint
    from slm.config.model import ModelConfig
    from slm.data.tokenizer import gpt2
    from slm.export.command import export
    from slm.model.gpt import GPT

    torch.manual_seed(0)
    loaded = Checkpoint(ModelConfig(), GPT(ModelConfig()).state_dict(), gpt2(), {})
    checkpoint.save(folder / "best_model.pt", loaded)
    for format in ("onnx", "onnx-int8"):
        export(loaded, format, folder / "best_model")


def prompts(count: int) -> list[str]:
    """Beginnings of 4 to 16 words."""
    draws = random.Random(0)
    return [" ".join(draws.choices(WORDS.split(), k=draws.randint(4, 16))) for _ in range(count)]


@dataclass
class Server:
    """A running `serve.py`."""

    process: subprocess.Popen[str]
    host: str
    port: int
    model: str

    def memory(self, what: str) -> int:
        """Bytes by /proc/PID/status: VmHWM is the peak, VmRSS what is held now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.findall(rf"{what}:\s+(\d+) kB", status)[0])


@contextlib.contextmanager
def serving(model: Path, *flags: str) -> Iterator[Server]:
    """A server of `model`, which is asked to end at the block's end, and must end well."""
    command = [sys.executable, str(ROOT / "serve.py"), "--model_path", str(model), "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = ""
        while not (found := re.search(r"listening +http://([^:]+):(\d+),", said)):
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the server did not start")
            said += line
        yield Server(process, found[1], int(found[2]), model.stem)
        process.terminate()
        if process.wait(60) != 0:
            raise SystemExit(f"the server ended with {process.returncode}")
    finally:
        process.kill()


@dataclass
class Seen:
    """What the clients of one measurement saw; times in seconds."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    finished: int = 0
    hung_up: int = 0
    wrong: list[str] = field(default_factory=list)


async def ask(
    server: Server, prompt: str, seen: Seen, *, max_tokens: int = TOKENS, hang_up_after: int = 0, **how: object
) -> str | None:
    """One streamed completion; its text, or None where the client hung up after so many tokens."""
    asked = {"model": server.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True, **how}
    body = json.dumps(asked).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {server.host}\r\nContent-Type: application/json\r\n"
    latest, tokens, text = time.perf_counter(), 0, ""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        if not answer.startswith("HTTP/1.1 200"):
            raise RuntimeError(f"{answer}{(await reader.read(1000)).decode()}")
        while True:  # the chunks of the body, each of which holds one event or several
            data = await reader.readexactly(int(await reader.readline(), 16) + 2)
            now = time.perf_counter()
            for event in data.strip().split(b"\n\n"):
                if event == b"data: [DONE]":
                    return text
                choice = json.loads(event.removeprefix(b"data: "))["choices"][0]
                text += choice["text"]
                (seen.between if tokens else seen.first).append(now - latest)
                latest, tokens, seen.tokens = now, tokens + 1, seen.tokens + 1
            if hang_up_after and tokens >= hang_up_after:
                return None
    finally:
        writer.close()


async def load(server: Server, streams: int, seconds: float, how: dict[str, Any]) -> Seen:
    """`streams` clients that ask one request after another, for so long after a warm-up."""
    texts, warm, seen = prompts(500), Seen(), Seen()
    current = warm

    async def client_of(number: int) -> None:
        length = 1 + number * 37 % TOKENS  # at first of its own, so that they do not end all at once
        for turn in itertools.count():
            await ask(server, texts[(number * 31 + turn) % len(texts)], current, max_tokens=length, **how)
            length = TOKENS

    clients = [asyncio.create_task(client_of(number)) for number in range(streams)]
    await asyncio.wait(clients, timeout=min(10, seconds / 2))
    current = seen
    await asyncio.wait(clients, timeout=seconds)
    for client in clients:
        client.cancel()
    for result in await asyncio.gather(*clients, return_exceptions=True):
        if not isinstance(result, asyncio.CancelledError):
            raise SystemExit(f"a client ended: {result!r}")
    return seen


def percentiles(seconds: list[float]) -> list[float]:
    """p50, p95 and p99, in milliseconds."""
    return [round(1000 * float(value), 1) for value in np.percentile(seconds, [50, 95, 99])]


def run_load(folder: Path, flags: argparse.Namespace) -> None:
    """A table for each engine."""
    how = {"temperature": flags.temperature, "top_p": 0.95 if flags.temperature else 1, "logprobs": flags.logprobs}
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for engine in flags.engines.split(","):
        rows = results[engine] = {}
        for streams in map(int, flags.streams.split(",")):
            with serving(folder / ENDINGS[engine], *flags.server.split()) as server:
                seen = asyncio.run(load(server, streams, flags.seconds, how))
                rows[streams] = {
                    "tokens_per_second": round(seen.tokens / flags.seconds, 1),
                    "first_token_ms": percentiles(seen.first),
                    "between_tokens_ms": percentiles(seen.between),
                    "peak_bytes": server.memory("VmHWM"),
                }
        print(f"\n{engine}, {usable_cores()} cores, {flags.seconds:g} s each; p50 / p95 / p99 in ms")
        print(f"{'streams':>7} {'tokens/s':>9} {'first token':>24} {'between tokens':>24} {'peak memory':>12}")
        for streams, row in rows.items():
            times = [" / ".join(f"{ms:,.0f}" for ms in row[name]) for name in ("first_token_ms", "between_tokens_ms")]
            speed, memory = row["tokens_per_second"], row["peak_bytes"] / 1e6
            print(f"{streams:>7} {speed:>9,.0f} {times[0]:>24} {times[1]:>24} {memory:>9,.0f} MB")
        if {1, 32} <= rows.keys():
            gain = rows[32]["tokens_per_second"] / rows[1]["tokens_per_second"]
            print(f"32 streams to one: {gain:.1f} x the tokens a second")
    print(json.dumps({"seconds": flags.seconds, **how, "engines": results}))


async def soak(server: Server, alone: dict[str, str], streams: int, minutes: float) -> tuple[Seen, list[int]]:
    """Clients that hang up at random; what they saw, and the server's memory at sixty times."""
    seen, memory, end = Seen(), [], time.monotonic() + 60 * minutes
    texts = list(alone)

    async def client_of(number: int) -> None:
        draws = random.Random(number)
        while time.monotonic() < end:
            prompt, own = draws.choice(texts), Seen()
            hang_up_after = draws.randint(1, TOKENS - 10) if draws.random() < 0.3 else 0
            text = await ask(server, prompt, own, hang_up_after=hang_up_after)
            seen.tokens += own.tokens
            seen.hung_up += text is None
            seen.finished += text is not None
            if text not in (None, alone[prompt]):
                seen.wrong.append(prompt)

    async def watch() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(minutes)
            memory.append(server.memory("VmRSS"))

    await asyncio.gather(watch(), *(client_of(number) for number in range(streams)))
    return seen, memory


def run_soak(folder: Path, flags: argparse.Namespace) -> None:
    """The soak; ends with 1 where something is amiss."""
    import slm

    path = folder / ENDINGS[flags.engines]
    model = slm.load(path)
    alone = {prompt: model.generate(prompt, temperature=0.0, max_length=TOKENS) for prompt in prompts(20)}
    del model
    with serving(path, *flags.server.split()) as server:
        seen, memory = asyncio.run(soak(server, alone, int(flags.streams), flags.minutes))
        time.sleep(2)  # until the last ones who hung up are noticed
        with urllib.request.urlopen(f"http://{server.host}:{server.port}/metrics") as answer:
            metrics = answer.read().decode()

    def counted(name: str) -> int:
        return sum(int(float(value)) for value in re.findall(rf"^{name} (\S+)", metrics, re.MULTILINE))

    left = {name: counted(f"slm_{name}") for name in ("queue_length", "running_sequences", "streams")}
    answered, asked = counted(r'slm_requests_total\{status="200"\}'), seen.finished + seen.hung_up
    warm, last = memory[len(memory) // 5], memory[-1]
    growth = last / warm - 1
    problems = []
    if seen.wrong:
        problems.append(f"{len(seen.wrong)} texts are not what the model writes alone, such as after {seen.wrong[0]!r}")
    if any(left.values()):
        problems.append(f"the server still holds {left}")
    if answered != asked:
        problems.append(f"the server answered {answered:,} requests, the clients saw {asked:,}")
    if growth > 0.05:
        problems.append(f"memory grew by {growth:.1%}")
    print(f"{flags.minutes:g} minutes: {seen.finished:,} texts, {seen.hung_up:,} hung up, {seen.tokens:,} tokens")
    print(f"memory {warm / 1e6:,.0f} MB after a fifth of the time, {last / 1e6:,.0f} MB at the end: {growth:+.1%}")
    print(f"problems: {'; '.join(problems) or 'none'}")
    figures = {"minutes": flags.minutes, "finished": seen.finished, "hung_up": seen.hung_up, "tokens": seen.tokens}
    print(json.dumps({**figures, "wrong": len(seen.wrong), "growth": growth, "memory": memory, "problems": problems}))
    sys.exit(bool(problems))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, run, streams in (("load", run_load, "1,8,32,128"), ("soak", run_soak, "64")):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--models", help="folder with best_model.pt and its exports; default: made anew")
        command.add_argument("--engines", default="fp32,int8" if name == "load" else "fp32", help="of fp32, int8, pt")
        command.add_argument("--streams", default=streams)
        command.add_argument("--server", default="", help="more flags for serve.py, as '--max_batch 64'")
        if name == "load":
            command.add_argument("--seconds", type=float, default=30)
            command.add_argument("--temperature", type=float, default=0.0)
            command.add_argument("--logprobs", type=int)
        else:
            command.add_argument("--minutes", type=float, default=10)
    flags = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(flags.models or stack.enter_context(tempfile.TemporaryDirectory()))
        if not flags.models:
            make_models(folder)
        flags.run(folder, flags)


if __name__ == "__main__":
    main()
