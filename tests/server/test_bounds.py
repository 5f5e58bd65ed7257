"""Who may ask, how much, how long; who goes away; what is measured; and what happens where the model fails."""

import asyncio
import json
import re
import socket
import threading
import time

import httpx
import openai
import pytest

from slm.errors import UserError
from slm.server import app
from tests.server.conftest import alphabet, running


def ask(url, **body):
    return httpx.post(f"{url}/v1/completions", json={"model": "m", "prompt": "a", "temperature": 0, **body})


def stream(url, **body):
    return httpx.stream("POST", f"{url}/v1/completions", json={"model": "m", "prompt": "a", "stream": True, **body})


def metric(url, name):
    return float(re.findall(rf"^slm_{re.escape(name)} (\S+)", httpx.get(f"{url}/metrics").text, re.MULTILINE)[0])


def until(condition):
    """Wait for it; fail after ten seconds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def slow():
    """A model that reads one token of its batch for each time that its gate is released."""
    model = alphabet()
    model.engine.gate = threading.Semaphore(0)
    return model


def error(answer):
    """The status and code of an answer, in OpenAI's shape."""
    body = answer.json()["error"]
    assert body.keys() == {"message", "type", "param", "code"}
    return answer.status_code, body["code"]


def test_with_a_key_only_who_has_it_may_ask():
    with running(alphabet(), api_key="s3cret") as url:
        assert error(ask(url)) == (401, "invalid_api_key")
        assert error(httpx.get(f"{url}/metrics")) == (401, "invalid_api_key")
        assert error(httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer s3cre"})) == (
            401,
            "invalid_api_key",
        )
        assert httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer s3cret"}).status_code == 200
        for sent in ("bearer s3cret", "BEARER  s3cret"):
            assert httpx.get(f"{url}/v1/models", headers={"authorization": sent}).status_code == 200
        for sent in ("Basic s3cret", "s3cret", "Bearer", "Bearer s3cret x", "Bearers3cret", "Bearer \xe9"):
            assert httpx.get(f"{url}/v1/models", headers={"authorization": sent.encode("latin-1")}).status_code == 401
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        assert httpx.get(f"{url}/docs").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong").models.list()
        assert openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret").models.list().data[0].id == "m"


def test_a_body_may_have_so_many_bytes():
    def parts(count):
        yield b'{"model": "m", "prompt": "'
        yield from [b"a" * 100] * count
        yield b'", "max_tokens": 1}'

    with running(alphabet(), max_request_bytes=1000) as url:
        kind = {"content-type": "application/json"}
        assert error(ask(url, prompt="a" * 1000)) == (413, "request_too_large")
        assert ask(url, prompt="a" * 700).status_code == 200
        assert httpx.post(f"{url}/v1/completions", content=parts(8), headers=kind).status_code == 200
        answer = httpx.post(f"{url}/v1/completions", content=parts(20), headers=kind)
        assert (answer.status_code, answer.json()["error"]["message"]) == (413, "A request may have up to 1000 bytes.")


@pytest.mark.parametrize("part", ["[]", "[1]", "{}", '{"a": 1}'])
def test_a_body_may_have_so_many_parts(part):
    kind = {"content-type": "application/json"}

    def answer(count):
        content = f'{{"model": "m", "max_tokens": 1, "prompt": [{",".join([part] * count)}]}}'
        return httpx.post(f"{url}/v1/completions", content=content, headers=kind)

    with running(alphabet()) as url:
        said = answer(20_000)
        assert said.status_code == 400
        assert said.json()["error"]["message"] == "A body may have up to 16,384 lists, objects and keys."
        assert "may have" not in answer(1_000).json()["error"]["message"]
        assert ask(url, prompt="[" * 100, max_tokens=1).status_code == 200


def test_only_so_many_may_wait(slow):
    with running(slow, max_batch=2, max_queue=1) as url:
        with stream(url) as first, stream(url) as second:
            assert (first.status_code, second.status_code) == (200, 200)
            slow.engine.gate.release()
            until(lambda: metric(url, "running_sequences") == 2)
            third = threading.Thread(target=ask, args=(url,))
            third.start()
            until(lambda: metric(url, "queue_length") == 1)
            assert metric(url, "running_sequences") == 2
            answer = ask(url)
            assert error(answer) == (429, "rate_limit_exceeded")
            assert answer.headers["retry-after"] == "1"
            with pytest.raises(openai.RateLimitError):
                openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0).completions.create(
                    model="m", prompt="a"
                )
            slow.engine.gate.release(1000)
        third.join()
        assert metric(url, 'requests_total{status="429"}') == 2


def test_only_so_many_streams(slow):
    with running(slow, max_streams=1) as url:
        with stream(url):
            assert error(ask(url, stream=True)) == (429, "rate_limit_exceeded")
            slow.engine.gate.release(1000)
        until(lambda: metric(url, "streams") == 0)
        assert ask(url, stream=True).status_code == 200


def test_a_request_that_takes_too_long_is_ended_and_its_place_is_free(slow):
    with running(slow, timeout=0.5) as url:
        assert error(ask(url)) == (504, "timeout")
        slow.engine.gate.release()
        with stream(url) as response:
            *events, last, _ = "".join(response.iter_text()).split("\n\n")
        assert json.loads(events[0][6:])["choices"][0]["text"] == "b"
        assert json.loads(last[6:])["error"]["code"] == "timeout"
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        with pytest.raises(openai.APIError, match=r"took more than 0\.5 seconds"):
            list(client.completions.create(model="m", prompt="a", stream=True))
        slow.engine.gate.release(1000)
        until(lambda: metric(url, "running_sequences") == 0)
        assert ask(url).json()["choices"][0]["text"] == "bcdefghijklmnopq"


def test_a_body_that_does_not_come_is_not_waited_for():
    with running(alphabet(), timeout=0.3) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            )
            connection.sendall(b"Content-Length: 9\r\n\r\n{")
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("waiting", [True, False])
def test_who_goes_away_frees_the_place_at_once(slow, streamed, waiting):
    with running(slow, max_batch=1) as url:
        before = stream(url) if waiting else None
        if before:
            before.__enter__()
            until(lambda: metric(url, "running_sequences") == 1)

        async def begin_and_leave():
            async with httpx.AsyncClient() as client:
                body = {"model": "m", "prompt": "a", "max_tokens": 1000, "stream": streamed}
                request = asyncio.create_task(client.post(f"{url}/v1/completions", json=body))
                name = "queue_length" if waiting else "running_sequences"
                while await asyncio.to_thread(metric, url, name) == 0:
                    await asyncio.sleep(0.01)
                request.cancel()

        asyncio.run(begin_and_leave())
        if waiting:
            until(lambda: metric(url, "queue_length") == 0)
            slow.engine.gate.release(1000)
            before.__exit__(None, None, None)
        else:
            slow.engine.gate.release(2)  # the token that is computed, and one more if the other comes too early
            until(lambda: metric(url, "running_sequences") == 0)
        assert sum(slow.engine.decoded) < 100


def test_a_text_that_waits_begins_when_another_ends():
    with running(alphabet(), max_batch=2) as url:
        answer = ask(url, prompt=["a", "v", "k", "x", "b"], max_tokens=8).json()
        texts = [choice["text"] for choice in answer["choices"]]
        assert texts == ["bcdefghi", "wxyz", "lmnopqrs", "yz", "cdefghij"]


def test_a_model_that_fails_is_an_error_for_those_in_the_batch_and_not_the_end(monkeypatch):
    model = alphabet()
    decode = model.engine.decode

    def failing(ids):
        if ids[0] == ord("c"):
            raise UserError("the model cannot be run")
        return decode(ids)

    monkeypatch.setattr(model.engine, "decode", failing)
    with running(model) as url:
        answer = ask(url)
        assert (answer.status_code, answer.json()["error"]["message"]) == (500, "the model cannot be run")
        *_, last, _ = ask(url, stream=True).text.split("\n\n")
        assert json.loads(last[6:])["error"]["type"] == "server_error"
        assert ask(url, prompt="k", max_tokens=2).json()["choices"][0]["text"] == "lm"


def test_metrics_count_what_was_asked_and_written():
    with running(alphabet()) as url:
        ask(url, prompt=["ab", "cde"], max_tokens=3)
        ask(url, max_tokens=-1)
        ask(url, max_tokens=4, stream=True, echo=True, logprobs=1)
        assert metric(url, 'requests_total{status="200"}') == 2
        assert metric(url, 'requests_total{status="400"}') == 1
        assert metric(url, "prompt_tokens_total") == 6
        assert metric(url, "completion_tokens_total") == 10
        assert metric(url, "time_to_first_token_seconds_count") == 2
        assert metric(url, "time_between_tokens_seconds_count") == 2 + 2 + 3
        assert metric(url, "request_duration_seconds_count") == 2
        assert metric(url, "queue_length") == metric(url, "running_sequences") == metric(url, "streams") == 0


def test_pages_may_load_nothing_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text("<h1>Write</h1>")
    (tmp_path / "docs.html").write_text("<h1>API</h1>")
    (tmp_path / "page.js").write_text("1")
    monkeypatch.setattr(app, "STATIC", tmp_path)
    with running(alphabet(), api_key="key") as url:
        page, script = httpx.get(f"{url}/"), httpx.get(f"{url}/static/page.js")
        assert (page.text, script.text) == ("<h1>Write</h1>", "1")
        assert page.headers["content-type"].startswith("text/html")
        for answer in (page, script, httpx.get(f"{url}/docs")):
            assert answer.headers["content-security-policy"].startswith("default-src 'self'; script-src 'self' ")
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert httpx.get(f"{url}/static/../app.py").status_code in (401, 404)


def test_other_origins_may_ask_only_where_that_is_wanted():
    headers = {"origin": "https://example.org", "access-control-request-method": "POST"}
    with running(alphabet()) as url:
        assert "access-control-allow-origin" not in httpx.options(f"{url}/v1/completions", headers=headers).headers
    with running(alphabet(), cors=("https://example.org",), api_key="key") as url:
        answer = httpx.options(f"{url}/v1/completions", headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://example.org")
        other = httpx.options(f"{url}/v1/completions", headers={**headers, "origin": "https://example.com"})
        assert "access-control-allow-origin" not in other.headers
