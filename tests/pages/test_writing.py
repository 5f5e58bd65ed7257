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
    """Wait for the first story and choose how to write."""
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
    page = open_page(f"{slow_address}#length=2")
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
    page = open_page(f"{slow_address}#length=2")
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
    page = open_page(f"{slow_address}#length=2")
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
    page.uncheck("#think")
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
    page.goto(f"{slow_address}#length=2")
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


def test_the_key_is_asked_for_once_and_in_the_page(browser, trained, tmp_path):
    app = pytest.importorskip("slm.server.app", reason="the server's packages are not installed")
    with serving(app.make_app(slm.load(trained), ServeConfig(api_key="secret", run_dir=str(tmp_path)))) as address:
        page = browser.new_page()  # whose console may tell of the refusals
        page.goto(address)
        until(page, "document.getElementById('problem').textContent === 'This server asks for a key.'")
        assert page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        until(page, """document.getElementById('problem').textContent === "That is not the server's key." """)
        assert page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type("secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#after:not([hidden])")
        assert page.locator("#unlock").is_hidden()
        assert page.inner_text("#problem") == ""
        assert page.evaluate("document.activeElement.id") == "write"
        page.goto(f"{address}/watch")
        until(page, "document.getElementById('status').textContent === 'No run yet.'")
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


# --- A story is never lost -------------------------------------------------------------------------------------------


def written(page):
    """The story, when it is done."""
    page.wait_for_selector("#after:not([hidden])")
    return story(page)


def strip(page):
    """The stories that are kept."""
    return page.locator("#strip button").all_text_contents()


def test_a_first_story_is_there_when_the_page_opens_and_shows_what_the_model_thought(open_page, address):
    page = open_page(address)
    assert written(page).startswith(BEGINNING)
    assert len(tokens(page)) > 3
    assert page.is_checked("#think")
    assert page.locator("#explained").is_visible()
    assert page.evaluate("scrollY") == 0
    assert strip(page) == [story(page)[:160]]  # beside which there is no other to choose


def test_a_new_story_replaces_the_old_one_when_its_first_token_arrives(open_page, slow_address):
    page = open_page(f"{slow_address}#length=4")
    first = written(page)
    settle(page, length=100, seed=7)
    gate = []
    page.route("**/v1/completions", lambda route: gate.append(route))
    page.click("#write")
    until(page, "!document.getElementById('stop').hidden")
    assert story(page) == first
    assert page.evaluate("document.activeElement.id") == "stop"
    while not gate:
        page.wait_for_timeout(10)
    gate[0].continue_()
    until(page, "!document.getElementById('stop').hidden && document.querySelectorAll('.token').length > 4")
    page.focus("#prompt")
    page.keyboard.press("Enter")  # goes on writing
    assert page.inner_text("#status") == "Still writing. Escape stops it."
    assert page.locator("#stop").is_visible()
    page.keyboard.press("Escape")
    second = written(page)
    assert page.evaluate("document.activeElement.id") == "prompt"
    assert strip(page) == [second[:160], first]
    page.locator("#strip button").nth(1).click()
    assert story(page) == first
    assert page.evaluate("document.activeElement.textContent") == first
    page.go_back()
    until(page, f"document.getElementById('text').textContent === {json.dumps(second)}")


def test_a_story_stopped_before_its_first_token_leaves_the_old_one(open_page, slow_address):
    page = open_page(f"{slow_address}#length=4")
    first, link = written(page), page.url
    page.route("**/v1/completions", lambda route: None)
    page.click("#write")
    page.click("#stop")
    until(page, "document.getElementById('status').textContent === 'Stopped before the first token.'")
    assert story(page) == first
    assert page.url == link
    assert page.locator("#continue").is_visible()


def test_branches_are_a_tree_that_is_walked_and_undone(open_page, address, axe):
    page = open_page(f"{address}#length=12&seed=1&temperature=0")
    first = written(page)
    for at, other in ((3, 1), (8, 2)):
        page.locator(".token").nth(at).click()
        page.get_by_role("menuitem").nth(other).click()
        last = written(page)
    names = page.locator("#tree button").all_text_contents()
    assert names[0] == "As it was first written"
    assert len(names) == 3
    assert page.locator("#tree ul ul ul button").get_attribute("aria-current") == "true"  # a branch of a branch
    assert serious_faults(page, axe) == []
    page.click("#undo")
    between = story(page)
    assert between not in (first, last)
    page.click("#undo")
    assert story(page) == first
    assert page.locator("#undo").is_hidden()
    assert page.evaluate("document.activeElement.id") == "write"
    page.locator("#tree button").nth(2).click()
    assert story(page) == last
    assert page.evaluate("document.activeElement.dataset.key") == "2"
    page.go_back()
    until(page, f"document.getElementById('text').textContent === {json.dumps(first)}")
    page.locator(".token").nth(3).click()
    page.get_by_role("menuitem").nth(1).click()  # what was chosen before leads to the branch that is there
    assert story(page) == between
    assert page.locator("#tree button").count() == 3


def test_a_link_shows_the_same_story_and_branches_in_another_browser(open_page, address, browser):
    page = open_page(f"{address}#length=20&seed=5&temperature=1&top_p=0.9&prompt=One+day%2C")
    written(page)
    page.locator(".token").nth(6).click()
    page.get_by_role("menuitem").nth(1).click()
    written(page)
    page.click("#continue")
    last = written(page)
    page.fill("#prompt", "Something else")
    until(page, "location.hash.includes('Something')")
    link = page.url
    page.click("#undo")
    first = story(page)
    other = open_page(link)
    until(other, f"document.getElementById('text').textContent === {json.dumps(last)}")
    written(other)
    assert other.input_value("#prompt") == "Something else"
    assert [other.input_value(f"#{name}") for name in ("temperature", "top-p", "length", "seed")] == [
        "1",
        "0.9",
        "20",
        "5",
    ]
    other.click("#undo")
    assert written(other) == first


@pytest.mark.parametrize(
    "hash",
    ["story=x_0&branch=", "story=x_9&branch=5_1_1_1", "story=x_0&branch=1e99_1_1_1", "story=%3Cb%3E_0&branch=5_1_1_1"],
)
def test_a_link_that_makes_no_sense_begins_a_story(open_page, address, hash):
    page = open_page(f"{address}#prompt=Hello&length=5&{hash}")
    assert written(page).startswith("Hello")
    assert page.inner_text("#problem") == ""


def test_a_reload_in_the_middle_of_a_story_loses_nothing(open_page, slow_address):
    page = open_page(f"{slow_address}#length=30&seed=3&prompt=Hello")
    until(page, "document.querySelectorAll('.token').length >= 8")
    page.reload()
    until(page, "document.querySelectorAll('.token').length >= 8")
    assert page.locator("#stop").is_visible()  # it goes on
    whole = written(page)
    assert len(page.locator("[data-at]").all()) == 30
    page.reload()
    assert written(page) == whole
    page.goto(slow_address)  # the newest one is on show
    assert written(page) == whole


def test_a_server_that_dies_and_comes_back_loses_nothing(browser, slow_address):
    page = browser.new_page()  # whose console tells of the broken connection
    page.goto(f"{slow_address}#length=12&seed=3")
    first = written(page)
    page.context.set_offline(True)
    page.click("#continue")
    until(page, "document.getElementById('problem').textContent.startsWith('The server does not answer.')")
    assert story(page) == first
    page.fill("#prompt", "Another")
    page.click("#write")
    until(page, "document.getElementById('problem').textContent.startsWith('The server does not answer.')")
    assert story(page) == first
    page.context.set_offline(False)
    page.click("#retry")
    assert page.evaluate("document.activeElement.id") == "stop"
    until(page, "document.getElementById('text').textContent.startsWith('Another')")
    page.keyboard.press("Escape")
    assert written(page).startswith("Another")
    assert strip(page)[1] == first
    page.close()


def test_stories_are_forgotten_only_when_that_is_confirmed(open_page, address):
    page = open_page(f"{address}#length=5")
    written(page)
    page.click("#another")
    shown = written(page)
    answers = [False, True]
    page.on("dialog", lambda dialog: dialog.accept() if answers.pop(0) else dialog.dismiss())
    page.click("#forget")
    assert len(strip(page)) == 2
    page.click("#forget")
    assert page.locator("#earlier").is_hidden()
    assert page.evaluate("document.activeElement.id") == "write"
    page.reload()
    assert written(page) == shown
    assert len(strip(page)) == 1


def test_a_story_can_be_written_branched_and_undone_with_the_keyboard_alone(open_page, address):
    page = open_page(f"{address}#length=12&temperature=0&seed=1")
    first = written(page)
    page.focus("#prompt")
    focused = "document.activeElement.id || document.activeElement.className || document.activeElement.textContent"

    def press(key, times=1):
        for _ in range(times):
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement !== document.body")

    press("Enter")
    assert written(page) == first
    while "token" not in page.evaluate(focused):
        press("Tab")
    press("ArrowRight", 2)
    press("Enter")
    press("End")
    press("Enter")
    assert written(page) != first
    while page.evaluate(focused) != "undo":
        press("Tab")
    press("Enter")
    assert story(page) == first
    while page.evaluate("document.activeElement.parentElement.parentElement.id") != "strip":
        press("Tab")
    press("Enter")
    assert page.evaluate("document.activeElement.ariaCurrent") == "true"


# --- Servers that do not answer as one would like --------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_tried_again(browser, address, status):
    page = browser.new_page()
    page.route("**/v1/completions", lambda route: route.fulfill(status=status, json={"error": {"message": "128 wait"}}))
    page.goto(f"{address}#length=5")
    until(page, "document.getElementById('problem').textContent.startsWith('The server is busy.')")
    page.unroute("**/v1/completions")
    page.click("#retry")
    written(page)
    assert page.inner_text("#problem") == ""
    assert page.locator("#retry").is_hidden()
    page.close()


def test_a_frozen_server_is_noticed_and_tried_again(open_page, address):
    page = open_page(f"{address}#length=5")
    first = written(page)
    page.clock.install()
    asked = []
    page.route("**/v1/completions", lambda route: asked.append(route) if not asked else route.continue_())
    page.click("#write")
    page.clock.fast_forward(5_000)
    assert page.inner_text("#problem") == ""
    page.clock.fast_forward(4_000)
    until(page, "document.getElementById('problem').textContent.startsWith('The model has not answered for a while.')")
    assert story(page) == first
    page.click("#retry")
    until(page, "document.querySelectorAll('#strip button').length === 2")
    written(page)
    assert page.inner_text("#problem") == ""


def test_a_server_that_is_gone_at_first_is_tried_again(browser, address):
    page = browser.new_page()
    page.route("**/v1/models", lambda route: route.abort())
    page.goto(f"{address}#length=5")
    until(page, "document.getElementById('problem').textContent.startsWith('The server does not answer.')")
    assert page.locator("#write").is_disabled()
    page.unroute("**/v1/models")
    page.focus("#retry")
    page.keyboard.press("Enter")
    written(page)
    assert page.evaluate("document.activeElement.id") == "write"
    page.close()


# --- Reading along ---------------------------------------------------------------------------------------------------


def test_whole_sentences_are_announced(open_page, address):
    page = open_page(f"{address}#length=1")
    written(page)
    settle(page, length=150, temperature=1, seed=3)
    page.evaluate("""
      window.said = [];
      new MutationObserver(() => said.push(document.getElementById("said").textContent))
        .observe(document.getElementById("said"), { childList: true });
    """)
    page.click("#write")
    whole = written(page)
    said = page.evaluate("said")
    assert page.get_attribute("#said", "aria-live") == "polite"
    assert len(said) > 2
    assert all(re.search(r"[.!?…]\W*$", sentence) for sentence in said[:-1])
    assert "".join(" ".join(said).split()) == "".join(whole[len(BEGINNING) :].split())


@pytest.mark.parametrize("width", [360, 1440])
def test_a_growing_story_is_followed_unless_the_reader_scrolls(open_page, slow_address, width):
    page = open_page(f"{slow_address}#length=2", viewport={"width": width, "height": 420})
    settle(page, length=500, temperature=1)
    end = "document.getElementById('text').getBoundingClientRect().bottom"
    page.click("#write")
    until(page, "scrollY > 300")
    page.wait_for_timeout(100)
    assert page.evaluate(end) <= 420
    box = page.locator("#stop").bounding_box()
    assert 0 <= box["y"] <= 420 - box["height"]
    page.mouse.move(width / 2, 300)
    page.mouse.wheel(0, -250)
    page.wait_for_timeout(300)
    place, bottom = page.evaluate("scrollY"), page.evaluate(end)
    until(page, f"{end} > {bottom} + 20")
    assert page.evaluate("scrollY") == place
    page.keyboard.press("Escape")
    written(page)


def test_alternatives_open_where_there_is_room(open_page, address):
    page = open_page(f"{address}#length=120&seed=3", viewport={"width": 1440, "height": 500})
    written(page)
    token = page.locator(".token[role=button]").nth(20)
    for place, above in ((440, True), (80, False)):
        token.evaluate(f"(span) => scrollBy(0, span.getBoundingClientRect().top - {place})")
        token.click()
        panel, box = page.locator("#alternatives").bounding_box(), token.bounding_box()
        assert all(row.bounding_box()["height"] >= 44 for row in page.get_by_role("menuitem").all())
        assert panel["y"] >= 0
        assert panel["y"] + panel["height"] <= 500
        assert panel["y"] < box["y"] if above else panel["y"] > box["y"]
        page.keyboard.press("Escape")


def test_on_phones_the_alternatives_are_a_sheet_at_the_foot(open_page, address, axe):
    page = open_page(f"{address}#length=80&seed=3", viewport={"width": 360, "height": 640}, has_touch=True)
    written(page)
    token = page.locator(".token[role=button]").nth(20)
    token.evaluate("(span) => scrollBy(0, span.getBoundingClientRect().top - 560)")
    token.tap()
    page.wait_for_timeout(400)
    sheet = page.locator("#alternatives").bounding_box()
    assert (sheet["x"], sheet["width"], sheet["y"] + sheet["height"]) == (0, 360, 640)
    assert all(row.bounding_box()["height"] >= 44 for row in page.get_by_role("menuitem").all())
    assert token.bounding_box()["y"] + token.bounding_box()["height"] <= sheet["y"]
    assert serious_faults(page, axe) == []
    page.tap("#close")
    assert page.locator("#alternatives").is_hidden()
    assert page.evaluate("document.activeElement.classList.contains('token')")


def test_the_shading_covers_the_word_without_its_space(open_page, address):
    page = open_page(f"{address}#length=60&seed=3&temperature=1")
    written(page)
    shaded = page.locator("[class*=' level']").all_text_contents()
    assert len(shaded) > 20
    assert not [word for word in shaded if word.startswith(" ")]
    assert " " in story(page)[len(BEGINNING) + 2 :]


CONTRAST = """
  (() => {
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const colour = (under, over) => {
      for (const fill of [under, over]) { context.fillStyle = fill; context.fillRect(0, 0, 1, 1); }
      return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (rgb) => rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4))
      .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
    const style = (selector) => getComputedStyle(document.querySelector(selector));
    const paper = style("body").backgroundColor;
    const borders = ["#prompt", "#copy", "#length", "#samples button"].map((selector) =>
      ratio(colour(paper, style(selector).borderTopColor), colour(paper, paper)));
    const lines = [0, 1, 2, 3].map((level) => {
      const { backgroundColor, textDecorationColor } = style(`.legend .level${level}`);
      return ratio(colour(paper, textDecorationColor), colour(paper, backgroundColor));
    });
    return [...borders, ...lines];
  })()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_borders_and_shading_can_be_seen(open_page, address, scheme):
    page = open_page(f"{address}#length=20", color_scheme=scheme)
    written(page)
    assert min(page.evaluate(CONTRAST)) >= 3


def test_forced_colours_keep_every_state(open_page, address, artefacts):
    page = open_page(f"{address}#length=60&seed=3&temperature=1", forced_colors="active")
    written(page)
    page.screenshot(path=artefacts / "writing-forced.png", full_page=True)
    line = "['Line', 'Style', 'Thickness'].map((part) => style[`textDecoration${part}`]).join()"
    style = "getComputedStyle(document.querySelector('.legend .level%d'))"
    levels = [page.evaluate(f"((style) => {line})({style % level})") for level in range(5)]
    assert len(set(levels)) == 5
    on = page.locator("#think").screenshot()
    page.uncheck("#think")
    assert page.locator("#think").screenshot() != on


def test_text_of_either_direction_runs_its_way(open_page, address):
    page = open_page(f"{address}#length=3&prompt=%D7%A9%D7%9C%D7%95%D7%9D")
    written(page)
    assert page.evaluate("getComputedStyle(document.getElementById('text')).direction") == "rtl"
    assert page.evaluate("getComputedStyle(document.getElementById('prompt')).direction") == "rtl"


def test_a_page_without_javascript_says_so_at_the_top(open_page, address):
    page = open_page(address, java_script_enabled=False)
    assert page.inner_text("body").startswith("This page needs JavaScript")
    assert page.locator(".notice").bounding_box()["y"] < page.locator("header").bounding_box()["y"]
