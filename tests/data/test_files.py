"""Local files as a source: which are found, their description and fingerprint."""

import os
from pathlib import Path

import pytest

from slm.data.sources import open_source, validation_source
from tests.data.conftest import joined, read, refusal


def test_a_source_can_be_read_again(here):
    Path("a.txt").write_text("one<|endoftext|>two")
    source = open_source("a.txt")
    assert joined(source.pieces()) == joined(source.pieces()) == ["one", "two"]


def test_a_document_ends_with_its_file(here):
    Path("a.txt").write_text("one<|endof")
    Path("b.txt").write_text("text|>two")
    assert read("*.txt") == ["one<|endof", "text|>two"]


def test_a_folder_is_read_in_order_without_hidden_and_foreign_files(here):
    for name in ["b/2.txt", "b/1.md", "a.text", "c.JSONL", ".hidden.txt", ".git/a.txt", "d.pdf", "e.bin"]:
        file = here / "set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{"text": "rows"}' if name == "c.JSONL" else name)
    assert read("set") == read(here / "set") == ["a.text", "b/1.md", "b/2.txt", "rows"]
    assert open_source("set").description == ("4 files, 35 bytes: a.text, b/1.md, b/2.txt, 1 more; field: text")


def test_globs(here):
    for name in ["a.txt", "b.txt", "c.md", "d/e.txt"]:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)
    assert read("*.txt") == ["a.txt", "b.txt"]
    assert read("**/*.txt") == ["a.txt", "b.txt", "d/e.txt"]
    assert read("?.md") == ["c.md"]


def test_a_file_of_unknown_kind_is_read_as_text(here):
    Path("LICENSE").write_text("one")
    Path("story.en").write_text("two")
    Path("a[1].txt").write_text("three")
    assert [read(name) for name in ("LICENSE", "story.en", "a[1].txt")] == [["one"], ["two"], ["three"]]


def test_descriptions_and_sizes(here):
    Path("a.txt").write_text("a" * 13_900_000)
    Path("b.txt").write_text("b")
    assert open_source("*.txt").description == "2 files, 13.9 MB: a.txt, b.txt"
    assert open_source("*.txt").size_bytes == 13_900_001
    assert open_source(str(here / "b.txt")).description == "1 file, 1 bytes: b.txt"


def test_a_fingerprint_tells_contents_of_equal_size_and_time_apart(here):
    def fingerprint(text):
        Path("a.txt").write_text(text)
        os.utime("a.txt", (1, 1))
        return open_source("a.txt").fingerprint

    assert int(fingerprint("one"), 16)
    assert fingerprint("one") == fingerprint("one") != fingerprint("two")


def test_a_fingerprint_tells_how_a_file_is_read(here):
    Path("a.txt").write_text('{"text": "one"}')
    fingerprint = open_source("a.txt").fingerprint
    Path("a.txt").rename("a.jsonl")
    assert open_source("a.jsonl").fingerprint != fingerprint


def test_a_fingerprint_stays_when_a_folder_moves(here):
    Path("one").mkdir()
    Path("one/a.txt").write_text("text")
    fingerprint = open_source("one").fingerprint
    Path("one").rename("two")
    assert open_source(str(here / "two")).fingerprint == fingerprint


@pytest.mark.parametrize("text", ["", " \n\t\n", "<|endoftext|>\n<|endoftext|>"])
def test_files_without_text(here, text):
    Path("a.txt").write_text(text)
    assert "no text in 1 file, " in refusal("a.txt")


def test_folders_without_anything_to_read(here):
    Path("set").mkdir()
    Path("set/a.pdf").write_text("text")
    message = "nothing to read in the folder set: the formats are text (.txt, .text, .md), .jsonl"
    assert refusal("set").startswith(message)


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.zip", "a.tar.gz"])
def test_formats_that_cannot_be_read(here, name):
    Path(name).write_text("text")
    start = f"cannot read {name}: .{name.split('.')[1]} is not among the formats, which are text ("
    assert refusal(name).startswith(start)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are Unix's")
def test_files_without_permission(here, monkeypatch):
    Path("a.txt").write_text("text")
    if os.geteuid() == 0:  # whom nothing is denied

        def deny(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", deny)
    Path("a.txt").chmod(0)
    assert refusal("a.txt") == "cannot read a.txt: Permission denied; give yourself permission to read it"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.txt.gz"])
def test_git_lfs_pointers(here, name):
    Path(name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert refusal(name) == f"{name} is a Git LFS pointer, not the text itself: run git lfs pull in its folder"


def test_files_about_a_folder_and_of_a_run_are_left_out_and_named(here):
    Path("set").mkdir()
    for name in ("a.txt", "README.md", "readme.en.txt", "LICENSE.txt", "metrics.csv", "readmes.md", "my-license.md"):
        Path("set", name).write_text(name)
    assert read("set") == ["a.txt", "my-license.md", "readmes.md"]
    assert open_source("set").description == (
        "3 files, 28 bytes: a.txt, my-license.md, readmes.md; left out: LICENSE.txt, README.md, metrics.csv, 1 more"
    )
    assert read("set/*.md") == ["README.md", "my-license.md", "readmes.md"]


def test_a_model_beside_a_text_is_not_read(here):
    write_all(
        "a.txt", "m/config.json", "m/tokenizer_config.json", "m/merges.txt", "m/vocab.json", "cache/checksums.json"
    )
    assert read("set") == ["a.txt"]
    write_all("my-config.json", "vocab.txt")
    assert read("set") == ["a.txt", "my-config.json", "vocab.txt"]


def test_a_folder_of_nothing_but_a_readme_is_read(here):
    Path("set").mkdir()
    Path("set/README.md").write_text("one")
    assert read("set") == ["one"]
    assert "left out" not in open_source("set").description


def test_a_folder_of_code_says_how_to_read_it(here):
    Path("set").mkdir()
    Path("set/a.py").write_text("x = 1")
    assert refusal("set").endswith('to read other files as text, quote a pattern, such as "folder/**/*.py"')
    assert read("set/**/*.py") == ["x = 1"]


def write_all(*names):
    for name in names:
        Path("set", name).parent.mkdir(parents=True, exist_ok=True)
        Path("set", name).write_text(f'{{"text": "{name}"}}' if ".json" in name else name)


@pytest.mark.parametrize(
    ("validation", "train"),
    [
        ("valid.txt", "a.txt"),
        ("val.jsonl", "book.jsonl"),
        ("dev.txt", "train.txt"),
        ("Validation-00000-of-00001.txt", "more.txt"),
        ("TinyStoriesV2-GPT4-valid.txt", "TinyStoriesV2-GPT4-train.txt"),
        ("wiki_val_0001.txt", "wiki_train_0001.txt"),
        ("dev-clean.txt", "train-clean-100.txt"),
        ("data/val_set.jsonl", "data/more.jsonl"),
        ("validation/a.txt", "a.txt"),
        ("en/dev/a.txt", "en/train/a.txt"),
        ("dev2.text", "train2.text"),
        ("eval.jsonl", "train.jsonl"),
        ("evaluation/a.txt", "training/a.txt"),
        ("book_dev.txt", "book_training.txt"),
    ],
)
def test_files_of_a_folder_whose_names_say_validation_are_kept_for_it(here, validation, train):
    write_all(validation, train)
    assert read("set") == [train]
    assert read("set", held_out=True) == joined(validation_source("set").pieces()) == [validation]
    assert open_source("set").description.endswith(f"; left out: {Path(validation).name}")
    assert open_source("set").fingerprint != open_source("set", held_out=True).fingerprint


@pytest.mark.parametrize("test", ["test.txt", "test_2.md", "corpus-test.txt", "test/a.txt"])
def test_files_for_tests_are_left_out(here, test):
    write_all("train.txt", "data/train/b.txt", "README.md", test)
    assert read("set") == ["data/train/b.txt", "train.txt"]
    assert read("set", held_out=True) == ["data/train/b.txt", "train.txt"]
    assert validation_source("set") is None
    assert open_source("set").description.endswith(f"; left out: {Path(test).name}, README.md")


@pytest.mark.parametrize(
    "name",
    [
        "interval.txt", "devotion.txt", "testament.txt", "latest.txt", "valentine.txt", "contest.txt", "invalid.txt",
        "validity.txt", "evaluation.txt", "dev-diary.md", "test drive.txt", "Val d'Isere.txt", "a driving test.md",
        "valid points.txt", "dev/diary.md", "test/drive.md", "protest/test-match.txt", "väl.txt", "1984.txt",
    ],
)  # fmt: skip
def test_files_whose_names_only_look_like_a_split_are_trained_on(here, name):
    write_all(name, "a.txt")
    assert read("set") == sorted([name, "a.txt"])
    assert validation_source("set") is None


def test_files_of_a_single_split_are_read_as_they_are(here):
    write_all("validation/a.txt", "validation/b.txt")
    assert read("set") == read("set/validation") == read("set", held_out=True)
    assert validation_source("set") is None
    assert "left out" not in open_source("set").description


def test_linked_folders_are_read_once_and_circles_end(here):
    write_all("a.txt", "b/c.txt")
    Path("outside").mkdir()
    Path("outside/d.txt").write_text("d")
    for link, target in [("b/up", "set"), ("b/self", "set/b"), ("out", "outside"), ("z", "outside")]:
        Path("set", link).symlink_to(here / target, target_is_directory=True)
    Path("set/again.txt").symlink_to(here / "set/b/c.txt")
    Path("set/dead.txt").symlink_to("nowhere")
    assert read("set") == read("set/**/*.txt") == read("set/**") == ["a.txt", "b/c.txt", "d"]
    assert read("set/**/c.txt") == read("set/**/up/**/c.txt") == ["b/c.txt"]


def test_globs_in_folders_with_odd_names(here):
    write_all("a[1]/b.txt", ".hidden/c.txt", "d/.e.txt")
    assert read("set/**/*.txt") == read("**/*.txt") == read(here / "**" / "b.txt") == ["a[1]/b.txt"]
    assert refusal("none/**/*.txt").startswith("no file matches none/**/*.txt: ")
    assert refusal("set/a[[]1]/b.txt/**/*.txt").startswith("no file matches ")
