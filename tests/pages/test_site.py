"""The page with the model in it: what the export writes, and what a browser makes of it with nothing behind it."""

import base64
import functools
import hashlib
import http.server
import shutil
import tarfile
import threading

import pytest

import slm
from slm.cli import main
from slm.config.use import GenerateConfig
from slm.errors import UserError
from slm.export import web
from slm.export.command import export
from slm.files import user_path
from tests.pages.conftest import serious_faults, until

PROMPTS = ("Once upon a time", "One sunny morning, a brave girl", "")
LENGTH = 100  # beyond the context of 64
STOP_AT_THE_SECOND_TOKEN = """
  new MutationObserver((_, observer) => {
    if (document.querySelectorAll(".token").length < 2) return;
    observer.disconnect();
    document.getElementById("stop").click();
  }).observe(document.getElementById("text"), { childList: true });
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Python's file server, without its log."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def runtime():
    """ONNX Runtime's build for browsers in the cache."""
    try:
        return web.from_npm(web.PACKAGE, web.ARCHIVE_SHA512, web.RUNTIME, user_path("~/.cache/slm"))
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def site(runtime, trained_model, tmp_path_factory):
    """The folder that the export writes, and beside it the same model for Python."""
    base = tmp_path_factory.mktemp("site") / "best_model"
    said = export(trained_model, "web", base)
    assert "matches PyTorch but for rounding" in said
    export(trained_model, "onnx-int8", base)
    return base.with_name("best_model-web")


@pytest.fixture
def hosting(site):
    """A file server of the folder, at the depth of another page."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site.parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_folder_holds_what_a_browser_needs(site):
    assert sorted(path.name for path in site.iterdir()) == [
        "best_model.onnx", "config.json", "index.html", "static", "tokenizer.json",
    ]  # fmt: skip
    page = (site / "index.html").read_text()
    assert '<meta name="model" content="local">' in page
    assert "http://" not in page
    assert "https://" not in page
    assert {path.name for path in (site / "static").iterdir()} >= {"page.js", "ort-wasm-simd-threaded.wasm"}


def test_its_file_writes_in_python_too_but_does_not_measure(site, capsys):
    assert slm.load(site).generate("Once upon a time", max_length=3, temperature=0)
    assert main(["evaluate", "--model_path", str(site), "--text", "Once upon a time"]) == 2
    assert "is for a browser, and only writes" in capsys.readouterr().err


def test_the_file_is_as_small_as_with_8_bits(site):
    assert (site / "best_model.onnx").stat().st_size < 1.2 * (site.parent / "best_model.int8.onnx").stat().st_size


@pytest.mark.slow
def test_it_writes_what_python_writes_with_nothing_behind_it(open_page, hosting, site):
    page = open_page(f"http://127.0.0.1:{hosting.server_port}/best_model-web/")
    page.wait_for_selector("#write:enabled")
    page.context.set_offline(True)
    hosting.shutdown()
    page.locator("#temperature").fill("0")
    page.fill("#length", str(LENGTH))
    written = {}
    for prompt in PROMPTS:
        page.fill("#prompt", prompt)
        page.click("#write")
        until(page, "!document.getElementById('after').hidden")
        written[prompt] = page.evaluate("document.getElementById('text').textContent")
    # The same file computes the same. The one for Python also rounds what the matrices are multiplied by: its story is
    # compared as far as it is sure which token is the likeliest.
    assert agreed(slm.load(site / "best_model.onnx"), written, least=0.001) > 1.5 * LENGTH
    assert agreed(slm.load(site.parent / "best_model.int8.onnx"), written, least=0.1) > 5


def agreed(model, written, least):
    """How many tokens `model` writes as the page did, before two are likely to within `least` nats; all must be."""
    count = 0
    for prompt, story in written.items():
        expected = b""
        for _, piece in model.write([prompt], GenerateConfig(temperature=0, max_length=LENGTH), 2):
            if piece.token.id == model.tokenizer.end_of_text:
                break
            (_, first), (_, second) = piece.token.alternatives
            if first - second < least:
                break
            expected += model.tokenizer.tokens[piece.token.id]
            count += 1
        assert story.startswith(prompt + expected.decode(errors="ignore"))
    return count


@pytest.mark.slow
def test_a_story_can_be_stopped_and_another_token_chosen(open_page, hosting):
    page = open_page(f"http://127.0.0.1:{hosting.server_port}/best_model-web/")
    page.wait_for_selector("#write:enabled")
    assert "It runs in this browser" in page.inner_text("aside")
    assert page.locator("nav").is_hidden()
    page.fill("#length", "2000")
    page.locator("#temperature").fill("0")
    page.evaluate(STOP_AT_THE_SECOND_TOKEN)
    page.click("#write")
    until(page, "!document.getElementById('after').hidden")
    assert page.inner_text("#status").startswith("Stopped after 2 tokens")
    page.fill("#length", "5")
    first = page.locator(".token").first
    first.click()
    assert page.get_by_role("menuitem").count() == 5
    page.get_by_role("menuitem").nth(1).click()
    until(page, "!document.getElementById('after').hidden")
    assert page.locator(".token").count() <= 6
    assert page.inner_text("#problem") == ""


@pytest.mark.slow
def test_another_token_can_be_chosen_while_the_story_grows(open_page, hosting):
    page = open_page(f"http://127.0.0.1:{hosting.server_port}/best_model-web/")
    page.wait_for_selector("#write:enabled")
    page.fill("#length", "30")
    page.fill("#seed", "1")
    page.locator("#temperature").fill("0")
    choose = "document.querySelector('.token').click(); document.querySelector('#menu > :nth-child(2)').click();"
    page.evaluate(STOP_AT_THE_SECOND_TOKEN.replace('document.getElementById("stop").click();', choose))
    page.click("#write")
    until(page, "document.getElementById('status').textContent.includes('a second')")
    until(page, "!document.getElementById('after').hidden")
    assert page.inner_text("#status").startswith(("Paused after 30 tokens", "The story ended after"))
    assert page.evaluate("document.activeElement.dataset.at") == "0"


@pytest.mark.slow
def test_a_reload_shows_the_same_story_and_a_link_writes_it_again(open_page, hosting):
    page = open_page(f"http://127.0.0.1:{hosting.server_port}/best_model-web/#length=20&seed=1&temperature=1")
    until(page, "!document.getElementById('after').hidden")
    page.locator(".token[role=button]").nth(4).click()
    page.get_by_role("menuitem").nth(3).click()
    until(page, "!document.getElementById('after').hidden")
    told = page.evaluate("document.getElementById('text').textContent")
    page.reload()
    until(page, "!document.getElementById('after').hidden")
    assert page.evaluate("document.getElementById('text').textContent") == told
    other = open_page(page.url)
    until(other, "!document.getElementById('after').hidden")
    assert other.evaluate("document.getElementById('text').textContent") == told
    assert other.locator("#tree button").count() == 2


@pytest.mark.slow
def test_a_file_that_is_missing_is_said(browser, hosting, site):
    model = site / "best_model.onnx"
    model.rename(site / "gone")
    try:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{hosting.server_port}/best_model-web/")
        until(page, "document.getElementById('problem').textContent !== ''")
        assert page.inner_text("#problem") == "best_model.onnx could not be loaded: 404 File not found"
        assert page.locator("#write").is_disabled()
        page.close()
    finally:
        (site / "gone").rename(model)


@pytest.mark.slow
def test_it_can_be_used_by_all(open_page, hosting, axe, artefacts):
    page = open_page(f"http://127.0.0.1:{hosting.server_port}/best_model-web/", viewport={"width": 360, "height": 800})
    page.wait_for_selector("#write:enabled")
    page.click("#write")
    until(page, "!document.getElementById('after').hidden")
    page.screenshot(path=artefacts / "site-360-light.png", full_page=True)
    assert serious_faults(page, axe) == []


def fake_npm(tmp_path, monkeypatch, script):
    if shutil.which("sh") is None:
        pytest.skip("no shell")
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir(exist_ok=True)
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "a@1 comes with npm, which is not installed: install Node.js, which has it"),
        ("echo 'npm error network' >&2; exit 1", "npm could not get a@1 (npm error network): try again with a network"),
        ("exit 0", "npm could not get a@1 (it brought no archive): try again with a network"),
        ('echo x > "$5/a-1.tgz"', "what npm downloaded is not a@1 as it was published: look at npm's registry setting"),
    ],
)
def test_what_npm_cannot_bring_is_said_and_nothing_is_kept(tmp_path, monkeypatch, script, message):
    if script is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        fake_npm(tmp_path, monkeypatch, script)
    with pytest.raises(UserError) as error:
        web.from_npm("a@1", "no sum", ["file.js"], tmp_path / "cache")
    assert str(error.value).startswith(message)
    assert not (tmp_path / "cache").exists()


def test_what_is_in_the_cache_needs_no_npm_and_is_looked_at_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "file.js").write_text("x")
    with tarfile.open(tmp_path / "a-1.tgz", "w:gz") as archive:
        archive.add(tmp_path / "file.js", "package/dist/file.js")
    sha512 = base64.b64encode(hashlib.sha512((tmp_path / "a-1.tgz").read_bytes()).digest()).decode()
    assert web.from_npm("a@1", sha512, ["dist/file.js"], tmp_path) == {"dist/file.js": b"x"}
    with (tmp_path / "a-1.tgz").open("ab") as file:  # as whoever can write to the cache can
        file.write(b"evil")
    with pytest.raises(UserError, match="npm, which is not installed"):
        web.from_npm("a@1", sha512, ["dist/file.js"], tmp_path)
