"""`serve.py` as a process: what it says, how it ends, and what keeps it from starting."""

import contextlib
import io
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch

from slm.checkpoint import file as checkpoint
from slm.checkpoint.file import Checkpoint
from slm.cli import main
from slm.config.model import ModelConfig
from slm.config.use import ServeConfig
from slm.errors import UserError
from slm.model.gpt import GPT
from slm.server.command import key_of
from tests.server.conftest import BYTES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=257, context_length=16, n_layer=1, n_head=1, n_embd=8)
    path = tmp_path_factory.mktemp("model") / "best_model.pt"
    checkpoint.save(path, Checkpoint(shape, GPT(shape).state_dict(), BYTES, {}))
    return str(path)


@pytest.fixture
def server(model_path):
    """A running `serve.py`, what it said before it listened, and its address."""
    command = [sys.executable, str(ROOT / "serve.py"), "--model_path", model_path, "--port", "0", "--timeout", "20"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = [process.stdout.readline() for _ in range(4)]
    yield process, said, said[1].split()[1].rstrip(",")
    process.kill()


def test_it_says_what_it_serves_and_how_to_try_it(server, model_path):
    _, said, url = server
    assert said[0] == f"model      {model_path}, 3,072 parameters, as 'best_model'\n"
    assert said[1].startswith("listening  http://127.0.0.1:")
    assert said[3].startswith("look at    ")
    assert f"{url}/docs" in said[3]
    arguments = said[2].removeprefix("try        curl ").split(" ", 1)
    assert arguments[0] == f"{url}/v1/completions"
    body = json.loads(arguments[1].split("-d ")[1].strip().strip("'"))
    assert httpx.post(arguments[0], json=body).json()["choices"][0]["finish_reason"] in ("stop", "length")


def test_the_example_of_the_page_runs(server):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "server.md").read_text(), re.DOTALL)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(example.replace("http://127.0.0.1:8000", server[2]), {})
    assert len(said.getvalue()) > 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish_and_takes_no_new_ones(server, number):
    process, _, url = server
    body = {"model": "best_model", "prompt": "a", "max_tokens": 2000, "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as response:
        lines = response.iter_lines()
        last = next(lines)
        process.send_signal(number)
        refused = 0
        for line in lines:
            if not refused and line:
                answer = httpx.post(f"{url}/v1/completions", json=body)
                refused += answer.status_code == 503
                if refused:
                    assert answer.json()["error"]["code"] == "shutting_down"
                    assert httpx.get(f"{url}/health").status_code == 503
            last = line or last
    assert last == "data: [DONE]"
    assert refused == 1
    assert process.wait(20) == 0
    assert process.stderr.read() == ""


def test_a_second_signal_ends_it_at_once(server):
    process, _, url = server
    body = {"model": "best_model", "prompt": "a", "max_tokens": 2000, "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        while httpx.get(f"{url}/health").status_code != 503:
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(10) in (0, -6)  # 6: a native thread that was cut off aborts, seen on a busy machine


def test_what_keeps_it_from_starting(model_path, tmp_path, capsys, monkeypatch):
    assert main(["serve", "--model_path", str(tmp_path / "none.pt")]) == 2
    assert f"error: no checkpoint {tmp_path / 'none.pt'}" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--model_path", model_path, "--port", str(port)]) == 2
    error = f"error: cannot listen on 127.0.0.1:{port}: Address already in use; choose with --host and --port\n"
    assert capsys.readouterr().err == error
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "slm.server.command")
    assert main(["serve", "--model_path", model_path]) == 2
    mend = "python -m pip install fastapi uvicorn prometheus-client"
    assert capsys.readouterr().err == f"error: the Python package 'uvicorn' is not installed: {mend}\n"


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--port 70000", "--port must be from 0 to 65,535, not 70000"),
        ("--max_batch 0", "--max_batch must be at least 1, not 0"),
        ("--max_queue -1", "--max_queue must be 0 or more, not -1"),
        ("--timeout 0", "--timeout must be above 0, not 0.0"),
        ("--cors example.org", "--cors 'example.org' is not an origin: write it as https://example.org"),
        ("--api_key=", "--api_key must be of printable ASCII characters"),
        ("--api_key a --api_key_file b", "--api_key and --api_key_file exclude each other"),
        ("--api_key_file /no/such/file", "error: cannot read --api_key_file /no/such/file: No such file or directory"),
        ("--root_path slm", "--root_path 'slm' is no path: write it as /slm, without a slash at its end"),
        ("--root_path /", "--root_path '/' is no path"),
        ("--threads 100000", "--threads 100000 is more than the"),
    ],
)
def test_flags_that_cannot_be_used(flags, part, capsys):
    assert main(["serve", *flags.split()]) == 2
    assert part in capsys.readouterr().err


def test_the_key_by_its_flag_its_file_or_the_environment(tmp_path, monkeypatch):
    assert key_of(ServeConfig()) is None
    monkeypatch.setenv("SLM_API_KEY", "from the environment")
    assert key_of(ServeConfig()) == "from the environment"
    file = tmp_path / "key"
    file.write_text("  from-a-file\n")
    assert key_of(ServeConfig(api_key_file=str(file))) == "from-a-file"
    assert key_of(ServeConfig(api_key="from-a-flag")) == "from-a-flag"
    file.write_text("\n")
    with pytest.raises(UserError, match="must be of printable ASCII characters, at least one"):
        key_of(ServeConfig(api_key_file=str(file)))
    monkeypatch.setenv("SLM_API_KEY", "")  # a variable of a script that was not set leaves no server open
    with pytest.raises(UserError, match="environment's SLM_API_KEY must be of printable"):
        key_of(ServeConfig())
