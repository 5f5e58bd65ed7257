"""A browser, what it may not do, and where its pictures go: the folder in $ARTEFACTS, or a temporary one."""

import contextlib
import os
import shutil
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from slm.errors import UserError
from slm.export.web import from_npm
from slm.files import user_path

AXE = "axe-core@4.14.1"
AXE_SHA512 = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="session")
def browser():
    """Chromium, as it is installed here."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """open_page(url, **context options) -> a page; at the end, nothing may be in a console or come from elsewhere."""
    contexts, faults = [], []

    def foreign(url):
        place = urlsplit(url)
        return place.scheme in ("http", "https", "ws", "wss") and place.hostname not in ("127.0.0.1", "localhost")

    def open_page(url, **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda said: said.type in ("error", "warning") and faults.append(f"console: {said.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        contexts[-1].on("request", lambda request: foreign(request.url) and faults.append(f"request: {request.url}"))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


@contextlib.contextmanager
def serving(app):
    """The address at which an ASGI `app` answers."""
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory):
    """The folder for pictures of the pages."""
    folder = Path(os.environ["ARTEFACTS"]) if os.environ.get("ARTEFACTS") else tmp_path_factory.mktemp("artefacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def axe():
    """The source of axe-core, which finds faults of accessibility."""
    try:
        files = from_npm(AXE, AXE_SHA512, ["axe.min.js"], user_path("~/.cache/slm"))
    except UserError as error:
        pytest.skip(str(error))
    return files["axe.min.js"].decode()


def until(page, expression):
    """Wait until JavaScript's `expression` is true. Playwright's own way needs the eval that the pages forbid."""
    deadline = time.monotonic() + 30
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never came true: {expression}"
        page.wait_for_timeout(20)


def serious_faults(page, axe):
    """What axe-core calls serious or critical on a page, one line each."""
    page.evaluate(axe)
    found = page.evaluate("axe.run()")["violations"]
    return [
        f"{fault['id']}: {node['html'][:150]} {node['failureSummary'][:300]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]
