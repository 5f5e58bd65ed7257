"""What a name of a data set stands for: a path, the built-in stories or the hub."""

from pathlib import Path

import pytest

from slm.data import sources
from slm.data.sources import open_source, validation_source
from tests.data.conftest import read, refusal


def test_a_path_is_preferred_to_a_name(here):
    Path("stories").write_text("mine")
    Path("roneneldan").mkdir()
    Path("roneneldan/TinyStories").write_text("mine too")
    assert read("stories") == ["mine"]
    assert read("roneneldan/TinyStories") == ["mine too"]
    assert validation_source("stories") is validation_source("roneneldan/TinyStories") is None


def test_a_fingerprint_tells_what_else_changes_the_text(here, hub):
    rows = '{"text": "one", "story": "two"}'
    hub.push("roneneldan/TinyStories", {"train.jsonl": rows, "valid.jsonl": rows})
    cache = {"cache_dir": str(here / "cache")}
    Path("a.txt").write_text("one")
    Path("b.txt").write_text("two")
    seen = [
        open_source("a.txt"),
        open_source("a.txt", text_field="story"),
        open_source("a.txt", errors="replace"),
        open_source("*.txt"),
        open_source("stories"),
        open_source("stories:3"),
        open_source("stories:3", held_out=True),
        open_source("tinystories", **cache),
        open_source("tinystories", held_out=True, **cache),
        open_source("tinystories", text_field="story", **cache),
        open_source("tinystories[:1]", **cache),
    ]
    Path("a.txt").rename("c.txt")  # now after b
    seen.append(open_source("*.txt"))
    assert len({source.fingerprint for source in seen}) == len(seen)


def test_missing_paths(here):
    Path("data").mkdir()
    Path("data/story.txt").write_text("text")
    assert refusal("data/stroy.txt") == "no file or folder data/stroy.txt: did you mean data/story.txt?"
    assert refusal("data/storys") == "no file or folder data/storys: did you mean data/story.txt?"
    assert refusal("storis").endswith("did you mean stories or tinystories or simplestories?")
    nothing_like_it = "no file or folder no/such/file: give the path of a text, or pass --dataset stories"
    assert refusal("no/such/file") == nothing_like_it
    assert refusal("*.txt") == "no file matches *.txt: fix the pattern, or give a folder"
    assert refusal("") == "'' is neither a file nor a folder: give the path of one"


@pytest.fixture
def tales(monkeypatch):
    def tell(count, seed=0):
        yield from (f"tale {number} of {seed}" for number in range(count))

    monkeypatch.setattr(sources.stories, "stories", tell, raising=False)


def test_built_in_stories(here, tales):
    assert read("stories:2") == ["tale 0 of 0", "tale 1 of 0"]
    assert read("stories:1", held_out=True) == ["tale 0 of 1"]
    assert open_source("stories").description == "built-in stories (10,000)"
    assert len(read("stories")) == 10_000
    assert open_source("stories").fingerprint == open_source("stories:10000").fingerprint
    assert validation_source("stories") is validation_source("stories:5") is None


@pytest.mark.parametrize("number", ["", "0", "-1", "many", "1.5"])
def test_numbers_of_stories_that_cannot_be(here, number):
    assert refusal(f"stories:{number}").startswith(f"cannot write {number!r} stories: give a whole number from 1 on")


@pytest.mark.parametrize("address", ["https://example.org/a.txt", "http://example.org/a?b=[1]"])
def test_addresses(here, address):
    assert refusal(address) == f"{address} is an address, not a path: download the file first, and pass its path"


@pytest.mark.parametrize(
    "name", ["o/a:en@main", "o/a[:0]", "o/a[3:]", "o/a[:1k]", "o/a[:3]:test", "tinystories[:0]", "o/a:b:c:d", "o/a@"]
)
def test_a_name_of_the_hub_in_another_order_is_told_the_right_one(here, name):
    order = "the order is owner/name@revision:config:split[:100000], and all but the name may be left out"
    assert refusal(name) == f"cannot make out {name}: {order}"


def test_a_pattern_that_looks_like_the_hub_is_a_pattern_where_it_matches(here):
    Path("o").mkdir()
    Path("o/a0").write_text("one")
    assert read("o/a[:0]") == ["one"]
