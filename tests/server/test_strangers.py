"""Clients that mean no good: silent, slow, many, or a page of another site in the user's browser."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from slm.server import listening
from slm.server.watch import make_app
from tests.pages.conftest import serving
from tests.server.conftest import alphabet, running

ROOT = Path(__file__).parents[2]


def place(url):
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def connected(url):
    return socket.create_connection(place(url), timeout=20)


def closed(connection):
    """Whether the server closes it, whatever it says before; waits for that."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(1000):
            pass
    return True


def answered(connection):
    """Send a request and read its answer: whether it was a good one."""
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(1000)
    return answer.startswith(b"HTTP/1.1 200 OK\r\n")


def get(url, host, path="/health"):
    """The status for a request with this Host header, or with none."""
    with connected(url) as connection:
        header = "" if host is None else f"Host: {host}\r\n"
        connection.sendall(f"GET {path} HTTP/1.{int(host is not None)}\r\n{header}\r\n".encode())
        return int(connection.recv(1000).split()[1])


def test_on_loopback_only_its_own_names_are_answered():
    with running(alphabet()) as url:
        port = place(url)[1]
        for host in ("127.0.0.1", f"127.0.0.1:{port}", "localhost:1", "LOCALHOST", "[::1]", f"[::1]:{port}", None):
            assert get(url, host) == 200, host
        for host in (
            "evil.com",
            f"evil.com:{port}",
            "127.0.0.1.evil.com",
            "localhost.evil.com",
            "[::2]",
            "",
            "@localhost",
        ):
            assert get(url, host) == 403, host
            assert get(url, host, "/static/page.js") == get(url, host, "/v1/models") == 403
        answer = httpx.get(f"{url}/v1/models", headers={"host": "evil.com"}).json()["error"]
        assert answer["code"] == "unknown_host"
        assert "'evil.com'" in answer["message"]


def test_other_names_are_answered_where_they_are_allowed(tmp_path):
    with running(alphabet(), allowed_hosts=("Stories.example",)) as url:
        assert [get(url, host) for host in ("stories.example", "localhost", "evil.com")] == [200, 200, 403]
    with running(alphabet(), allowed_hosts=("*",)) as url:
        assert get(url, "anything.example") == 200
    with running(alphabet(), host="0.0.0.0") as url:  # an open address is reached by names that it cannot know
        assert get(url, "anything.example") == 200
    with running(alphabet(), host="0.0.0.0", allowed_hosts=("stories.example",)) as url:
        assert [get(url, host) for host in ("stories.example:80", "evil.com")] == [200, 403]
    with serving(make_app(tmp_path)) as url:
        assert [get(url, host, "/watch/runs") for host in ("127.0.0.1", "evil.com")] == [200, 403]
    with serving(make_app(tmp_path, allowed_hosts=("stories.example",))) as url:
        assert get(url, "stories.example", "/watch/runs") == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/detokenize"])
def test_a_post_is_json_by_its_own_account(path):
    bodies = {"/v1/completions": b'{"model": "m", "prompt": "a"}', "/tokenize": b'{"prompt": "a"}'}
    with running(alphabet()) as url:

        def status(kind):
            headers = {} if kind is None else {"content-type": kind}
            return httpx.post(
                f"{url}{path}", content=bodies.get(path, b'{"tokens": [97]}'), headers=headers
            ).status_code

        good = ("application/json", "application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json")
        assert [status(kind) for kind in good] == [200] * 4
        for kind in (None, "", "text/plain", "text/json", "application/x-www-form-urlencoded", "application/jsonp"):
            assert status(kind) == 400, kind


def test_head_is_answered_as_get_without_a_body():
    with running(alphabet(), api_key="key") as url:
        for path in ("/", "/health", "/docs"):
            answer = httpx.head(f"{url}{path}")
            assert (answer.status_code, answer.content) == (200, b""), path
            assert int(answer.headers["content-length"]) == len(httpx.get(f"{url}{path}").content)
        assert httpx.head(f"{url}/v1/models").status_code == 401


@pytest.mark.parametrize("prefix", ["", "/slm"])
def test_behind_a_proxy_that_strips_its_prefix_or_does_not(prefix):
    with running(alphabet(), root_path="/slm", api_key="key") as url:
        key = {"authorization": "bearer key"}
        assert httpx.get(f"{url}{prefix}/").status_code == 200
        assert httpx.get(f"{url}{prefix}/static/page.js").status_code == 200
        assert httpx.get(f"{url}{prefix}/v1/models").status_code == 401
        assert httpx.get(f"{url}{prefix}/v1/models", headers=key).json()["data"][0]["id"] == "m"
        assert httpx.get(f"{url}{prefix}/openapi.json").json()["servers"] == [{"url": "/slm"}]
        answer = httpx.post(f"{url}{prefix}/v1/completions", json={"model": "m", "prompt": "a"}, headers=key)
        assert answer.json()["choices"][0]["text"]
        assert 'slm_requests_total{status="200"} 2.0' in httpx.get(f"{url}{prefix}/metrics", headers=key).text
    with running(alphabet(), root_path="/slm") as url:
        assert httpx.get(f"{url}/slm").headers["location"] == "/slm/"


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        b"\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\n",
    ],
)
def test_headers_that_never_end_are_not_waited_for(begin, monkeypatch):
    monkeypatch.setattr(listening, "HEADERS", 0.5)
    with running(alphabet()) as url, connected(url) as connection:
        connection.sendall(begin)
        if begin.endswith(b": "):  # a byte now and then does not help
            with contextlib.suppress(ConnectionError):
                for _ in range(200):
                    connection.sendall(b"a")
                    time.sleep(0.05)
                pytest.fail("the connection is still open")
        assert closed(connection)


def test_an_idle_connection_is_kept_longer_than_clients_keep_theirs(monkeypatch):
    assert listening.KEEP_ALIVE == 75  # httpx keeps one for 5 s, Node's agents for up to 60
    monkeypatch.setattr(listening, "KEEP_ALIVE", 1.5)
    monkeypatch.setattr(listening, "HEADERS", 0.2)
    with running(alphabet()) as url, connected(url) as connection:
        assert answered(connection)
        time.sleep(0.7)
        assert answered(connection)
        assert closed(connection), "when it was idle for KEEP_ALIVE"


def test_a_connection_that_was_good_once_has_the_same_limits(monkeypatch):
    monkeypatch.setattr(listening, "HEADERS", 0.5)
    with running(alphabet()) as url:
        with connected(url) as connection:
            assert answered(connection)
            time.sleep(2)  # idle: that is no offence
            assert answered(connection)
            connection.sendall(b"GET /health HT")
            assert closed(connection)
        with connected(url) as connection:  # a refused body need not arrive for ever
            connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999\r\n\r\n")
            assert b"400 Bad Request" in connection.recv(1000)
            with contextlib.suppress(ConnectionError):
                for _ in range(200):
                    connection.sendall(b"a")
                    time.sleep(0.05)
                pytest.fail("the connection is still open")


def test_where_all_connections_are_taken_the_longest_idle_one_makes_room(monkeypatch):
    monkeypatch.setattr(listening, "room", lambda: (4, 1))
    with running(alphabet()) as url, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connected(url)) for _ in range(4)]
        time.sleep(0.2)
        assert httpx.get(f"{url}/health").status_code == 200
        assert closed(silent[0])
        assert answered(silent[3])


def test_where_all_connections_are_at_work_one_more_is_told_so(monkeypatch):
    monkeypatch.setattr(listening, "room", lambda: (2, 1))
    with running(alphabet()) as url, contextlib.ExitStack() as stack:
        for _ in range(2):
            busy = stack.enter_context(connected(url))
            busy.sendall(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            busy.sendall(b"Content-Length: 9\r\n\r\n{")
        time.sleep(0.2)
        answer = httpx.get(f"{url}/health")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_more_connections_than_descriptors(tmp_path):
    """With 100 descriptors, 300 silent connections and as many that come and go: it answers, and has nothing to say."""
    flags = ["watch", str(tmp_path), "--port", "0"]
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))"
    code = f"{limit}; import sys; from slm.cli import main; sys.exit(main({flags!r}))"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        url = process.stdout.readline().split("look at ")[1].split("/watch")[0]
        with contextlib.ExitStack() as stack:
            for number in range(600):
                connection = connected(url)
                if number % 2:
                    connection.close()
                else:
                    stack.callback(connection.close)
            for _ in range(5):
                assert httpx.get(f"{url}/watch/runs", timeout=10).json() == {"runs": []}
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, -2, 130)
        assert process.stderr.read().strip() == "interrupted"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("body", [{"n": 32, "prompt": "a" * 1000}, {"n": 1, "prompt": [97] * 900}])
def test_what_may_be_echoed_is_bounded_as_a_whole(body):
    with running(alphabet(), max_request_bytes=31_999 if body["n"] == 32 else 10_000) as url:
        answer = httpx.post(f"{url}/v1/completions", json={"model": "m", "max_tokens": 0, "echo": True, **body})
        if body["n"] == 32:
            assert answer.status_code == 400
            assert "'echo' would repeat 32000 bytes of prompts; 31999 are the most" in answer.json()["error"]["message"]
        else:
            assert answer.json()["choices"][0]["text"] == "a" * 900
    with running(alphabet(), max_tokens=2049) as url:
        asked = {"model": "m", "prompt": "a", "n": 32, "max_tokens": 2049, "logprobs": 0}
        answer = httpx.post(f"{url}/v1/completions", json=asked)
        assert "'logprobs' of up to 65568 tokens are asked for" in answer.json()["error"]["message"]


def test_all_bodies_together_are_bounded():
    with running(alphabet(), max_request_bytes=1000) as url, contextlib.ExitStack() as stack:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        for _ in range(8):
            half = stack.enter_context(connected(url))
            half.sendall(head + b"Content-Length: 1000\r\n\r\n" + b" " * 999)
        time.sleep(0.3)
        body = {"model": "m", "prompt": "a" * 900, "max_tokens": 1}
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 503
        stack.close()
        end = time.monotonic() + 10
        while httpx.post(f"{url}/v1/completions", json=body).status_code != 200:
            assert time.monotonic() < end


@pytest.mark.parametrize("streamed", [False, True])
def test_who_does_not_read_is_cut_off(monkeypatch, streamed):
    monkeypatch.setattr(listening, "SENDING", 0.5)
    with running(alphabet(), max_request_bytes=10_000_000) as url, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(place(url))
        asked = {"model": "m", "prompt": "a" * 9_000_000, "max_tokens": 1, "echo": True, "stream": streamed}
        body = json.dumps(asked).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        assert connection.recv(12) == b"HTTP/1.1 200"
        end = time.monotonic() + 20
        while 'slm_requests_total{status="200"} 1.0' not in httpx.get(f"{url}/metrics").text:
            assert time.monotonic() < end
        time.sleep(3)
        received = 0
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(1_000_000):
                received += len(data)
        assert received < 9_000_000
