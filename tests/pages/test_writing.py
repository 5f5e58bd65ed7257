"""The writing page in a browser, over the server."""

import json
import re
import time

import pytest

import slm
from slm.config.use import ServeConfig
from tests.pages.conftest import serious_faults, serving, until

pytestmark = pytest.mark.slow
BEGINNING = "Once upon a time"


@pytest.fixture(scope="module")
def model(trained):
    return slm.load(trained)


@pytest.fixture(scope="module")
def address(model):
    app = pytest.importorskip("slm.server.app", reason="the server's packages are not installed")
    with serving(app.make_app(model, ServeConfig())) as address:
        yield address


@pytest.fixture(scope="module")
def slow_address(trained):
    """A server of a model that takes its time, and whose stories never end."""
    app = pytest.importorskip("slm.server.app", reason="the server's packages are not installed")
    model = slm.load(trained)
    decode = model.engine.decode

    def slowly(ids):
        time.sleep(0.05)
        logits = decode(ids)
        for row in logits:
            row[model.tokenizer.end_of_text] = -1e9
        return logits

    model.engine.decode = slowly
    with serving(app.make_app(model, ServeConfig())) as address:
        yield address


def settle(page, *, temperature=0, length=20, seed=1):
    """Wait for the model and choose how to write."""
    page.wait_for_selector("#write:enabled")
    page.locator("#temperature").fill(str(temperature))
    page.fill("#length", str(length))
    page.fill("#seed", str(seed))


def write(page, **how):
    settle(page, **how)
    page.click("#write")
    page.wait_for_selector("#after:not([hidden])")


def story(page):
    return page.evaluate("document.getElementById('text').textContent")


def tokens(page):
    """The story's visible tokens."""
    return page.locator(".token").all()


def test_the_api_is_described_without_another_host(open_page, address, axe):
    page = open_page(f"{address}/docs")
    until(page, "document.querySelector('#status').textContent === 'The API, version 0.1.0.'")
    titles = page.locator("h2").all_inner_texts()
    assert titles[0] == "POST /v1/completions"
    assert "GET /metrics" in titles
    row = page.locator("tr", has=page.locator("code", has_text="logprobs")).first
    assert row.inner_text().split("\t")[1:3] == ["integer or null", ""]
    assert page.locator("tr", has=page.locator("code", has_text="model")).first.inner_text().split("\t")[2] == "needed"
    assert "string, list of string, list of integer, list of list of integer or null" in page.inner_text("main")
    assert serious_faults(page, axe) == []


def test_the_page_says_what_the_model_is(open_page, address):
    page = open_page(address)
    page.wait_for_selector("#write:enabled")
    assert page.inner_text("#summary") == "A GPT of 129,792 parameters that continues what you begin."
    about = page.inner_text("#about")
    for fact in ("129,792", "64 tokens", "gpt2-400", "built-in stories", "300", "1.900", "1.200", "50.0 %"):
        assert fact in about
    assert page.locator("nav").is_hidden()  # the server was given no run to watch


def test_a_story_is_what_the_model_writes_and_goes_on(open_page, address, model):
    page = open_page(address)
    write(page, length=12)
    first = story(page)
    page.click("#continue")
    until(page, "document.querySelectorAll('.token').length > 12")
    page.wait_for_selector("#after:not([hidden])")
    whole = story(page)
    page.close()  # the server lets nobody else use its model while it runs
    assert first == BEGINNING + reference(model, BEGINNING, 12)
    assert whole == BEGINNING + reference(model, BEGINNING, 24)


def reference(model, prompt, length):
    """What the model's file writes greedily, by an engine of its own."""
    from slm.inference.text import TextModel
    from slm.inference.torch_engine import TorchEngine

    return TextModel(TorchEngine(model.engine.model), model.tokenizer, {}).generate(
        prompt, max_length=length, temperature=0
    )


def test_the_same_seed_writes_the_same_story_and_another_one_is_another(open_page, address):
    page = open_page(address)
    write(page, temperature=1, seed=5, length=30)
    first = story(page)
    assert "Seed 5" in page.inner_text("#status")
    write(page, temperature=1, seed=5, length=30)
    assert story(page) == first
    page.click("#another")
    until(page, "document.getElementById('status').textContent.includes('Seed 6')")
    page.wait_for_selector("#after:not([hidden])")
    assert story(page) != first
    assert page.input_value("#seed") == "6"


def test_a_story_grows_and_can_be_stopped(open_page, slow_address):
    page = open_page(slow_address)
    settle(page, length=1000)
    page.press("#prompt", "Enter")
    until(page, "document.querySelectorAll('.token').length >= 3")
    assert page.locator("#write").is_hidden()
    page.click("#stop")
    page.wait_for_selector("#after:not([hidden])")
    count = len(tokens(page))
    assert 3 <= count < 200
    assert page.inner_text("#status").startswith(f"Stopped after {count} tokens")
    page.wait_for_timeout(300)
    assert len(tokens(page)) == count
    assert page.evaluate("document.activeElement.id") == "write"


def test_another_token_is_chosen_with_the_keyboard_and_the_story_goes_on_from_there(open_page, slow_address):
    page = open_page(slow_address)
    settle(page, length=15)
    page.check("#think")
    page.click("#write")
    page.wait_for_selector("#after:not([hidden])")
    before = [token.text_content() for token in tokens(page)]
    page.locator(".token[tabindex='0']").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.at") == "4"
    assert re.fullmatch(r".+, (under )?[\d.]+ %", page.evaluate("document.activeElement.ariaLabel"))
    assert page.locator("#alternatives").is_visible()
    assert page.get_by_role("menuitem").count() == 5
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.parentElement.id") == "menu"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.at") == "4"
    assert page.locator("#alternatives").is_hidden()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")  # the second likeliest: greedy writing took the first
    chosen = page.evaluate("document.activeElement.firstChild.textContent")
    page.keyboard.press("Enter")
    page.wait_for_selector("#after:not([hidden])")
    after = [token.text_content() for token in tokens(page)]
    assert after[:4] == before[:4]
    assert after[4].strip() == chosen.strip("␣↵…") != before[4].strip()
    assert page.evaluate("document.activeElement.dataset.at") == "4"
    assert page.locator("#alternatives").is_hidden()
    assert len(after) == 20  # four kept, the chosen one, and as many as are asked for


def test_a_choice_while_the_story_grows_stops_it_first(open_page, slow_address):
    page = open_page(slow_address)
    settle(page, length=60)
    page.check("#think")
    page.click("#write")
    until(page, "document.querySelectorAll('.token').length >= 6")
    page.locator(".token").nth(2).hover()
    assert page.locator("#alternatives").is_visible()
    page.get_by_role("menuitem").nth(3).click()
    page.wait_for_selector("#after:not([hidden])")
    assert len(tokens(page)) == 63
    assert page.inner_text("#problem") == ""


def test_choosing_the_end_ends_the_story(open_page, address):
    page = open_page(address)
    write(page, temperature=1, length=2000)
    assert page.inner_text("#status").startswith("The story ended after")
    page.check("#think")
    for token in reversed(tokens(page)):  # near its end, ending is among the likeliest
        token.click()
        if page.get_by_text("(the story ends)").count():
            break
    at = token.get_attribute("data-at")
    page.get_by_role("menuitem", name="(the story ends)").click()
    until(page, "document.getElementById('status').textContent === 'The story ends here, as you chose.'")
    assert len(page.locator(".token").all()) == int(at)
    assert page.locator("#continue").is_disabled()


def test_hovering_shows_the_alternatives_and_leaving_hides_them(open_page, address):
    page = open_page(address)
    write(page)
    page.locator(".token").nth(3).hover()
    page.wait_for_timeout(100)
    assert page.locator("#alternatives").is_hidden()  # they are shown when asked for
    page.check("#think")
    page.locator(".token").nth(3).hover()
    assert page.locator("#alternatives").is_visible()
    page.mouse.move(5, 5)
    page.wait_for_selector("#alternatives", state="hidden")


def test_the_story_is_copied_and_downloaded_as_text(open_page, address):
    page = open_page(address, permissions=["clipboard-read", "clipboard-write"])
    write(page)
    page.check("#think")
    page.click("#copy")
    until(page, "document.getElementById('status').textContent === 'Copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == story(page)
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "story.txt"
    assert download.value.path().read_text(encoding="utf-8") == story(page) + "\n"
    page.click("#copy-chances")
    until(page, f"navigator.clipboard.readText().then((t) => t.startsWith({json.dumps(story(page))} + '\\n\\n'))")
    lines = page.evaluate("navigator.clipboard.readText()")[len(story(page)) :].strip().splitlines()
    assert len(lines) == len(tokens(page))
    assert all(
        re.fullmatch(r' *(under )?[\d.]+ %  ".+"  instead of (".*" (under )?[\d.]+ %(, )?){4,5}', line)
        for line in lines
    )


def test_on_paper_there_is_the_story_alone(open_page, address):
    page = open_page(address)
    write(page)
    page.check("#think")
    page.emulate_media(media="print")
    shown = page.evaluate("document.body.innerText").split("\n", 1)
    assert shown[0] == "Small Language Model"
    assert shown[1].strip() == story(page).strip()
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.level0, .level1, .level2')).backgroundImage") == "none"
    )


def test_a_prompt_longer_than_the_context_can_be_gone_on_from(browser, slow_address):
    page = browser.new_page()  # whose console may tell that the server does not give the ids of such a prompt
    page.goto(slow_address)
    settle(page, length=4)
    page.fill("#prompt", "There was a little girl named Mia. " * 20)
    page.click("#write")
    until(page, "!document.getElementById('after').hidden")
    page.click("#continue")
    until(page, "document.querySelectorAll('.token').length === 8 && !document.getElementById('after').hidden")
    assert page.inner_text("#problem") == ""
    page.close()


def test_a_server_with_a_run_shows_the_way_to_it(open_page, trained, tmp_path):
    app = pytest.importorskip("slm.server.app", reason="the server's packages are not installed")
    (tmp_path / "metrics.csv").write_text("step,val_loss\n0,5\n10,4\n")
    with serving(app.make_app(slm.load(trained), ServeConfig(run_dir=str(tmp_path)))) as address:
        page = open_page(address)
        page.get_by_role("link", name="Watch it learn").click()
        page.wait_for_selector("#charts figure:not([hidden])")
        assert page.url == f"{address}/watch"
        page.get_by_role("link", name="Write").click()
        page.wait_for_selector("#write:enabled")


def test_the_key_is_asked_for_once(browser, trained, tmp_path):
    app = pytest.importorskip("slm.server.app", reason="the server's packages are not installed")
    with serving(app.make_app(slm.load(trained), ServeConfig(api_key="secret", run_dir=str(tmp_path)))) as address:
        page = browser.new_page()  # whose console may tell of the refusals
        answers = ["wrong", "secret"]
        page.on("dialog", lambda dialog: dialog.accept(answers.pop(0)))
        page.goto(address)
        write(page)
        page.goto(f"{address}/watch")
        until(page, "document.getElementById('status').textContent === 'No run yet.'")
        assert answers == []
        page.close()


def test_what_the_server_refuses_is_said(open_page, address, browser):
    page = browser.new_page()  # whose console may tell of the refusal
    page.goto(address)
    settle(page)
    page.evaluate("document.getElementById('length').max = 9999")
    page.fill("#length", "9999")
    page.click("#write")
    until(page, "document.getElementById('problem').textContent !== ''")
    assert page.inner_text("#problem") == "'max_tokens' is 9999; 2048 is the most here."
    assert page.locator("#write").is_enabled()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_it_fits_and_can_be_used_by_all(open_page, address, axe, artefacts, width, scheme):
    page = open_page(address, viewport={"width": width, "height": 800}, color_scheme=scheme)
    write(page, temperature=1, length=120, seed=3)
    page.screenshot(path=artefacts / f"writing-{width}-{scheme}.png", full_page=True)
    assert serious_faults(page, axe) == []
    page.check("#think")
    page.locator(".token").nth(10).click()
    page.screenshot(path=artefacts / f"thinking-{width}-{scheme}.png", full_page=True)
    assert serious_faults(page, axe) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
