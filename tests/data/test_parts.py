"""A large text is worked on in parts: the same corpus, whoever makes which part, and nothing is made twice."""

import dataclasses
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config.train import DataConfig
from slm.data import cache, encoding
from slm.data.corpus import prepare
from slm.data.encoding import encode
from slm.data.source import END_OF_TEXT
from slm.data.sources import open_source
from slm.data.stories import stories
from slm.data.tokenizer import gpt2
from slm.errors import UserError

GPT2 = gpt2()


def write(folder):
    """Files of several formats, two of them empty, one of many documents."""
    texts = list(stories(80))
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text("\n\n".join(texts[10 * number : 10 * number + 10]))
    (folder / "1.txt").write_text(END_OF_TEXT.join(texts[10:20]))
    (folder / "2.txt").write_text("")
    (folder / "3.txt").rename(folder / "3.md")
    (folder / "4.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[40:50]))
    (folder / "4.txt").unlink()
    (folder / "5.txt.gz").write_bytes(gzip.compress((folder / "5.txt").read_bytes()))
    (folder / "5.txt").write_text(" \n")
    return folder


@pytest.fixture
def config(tmp_path):
    return DataConfig(str(write(tmp_path / "texts")), val_fraction=0.1, cache_dir=str(tmp_path / "whole"))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(encoding, "PART_BYTES", 2000)  # less than a file


def in_parts(config, tmp_path, name="parts"):
    return dataclasses.replace(config, cache_dir=str(tmp_path / name))


def assert_same(one, other):
    assert one.fingerprint == other.fingerprint
    assert one.tokenizer.tokens == other.tokenizer.tokens
    for mine, others in ((one.train, other.train), (one.val, other.val)):
        assert mine.ids.dtype == others.ids.dtype
        np.testing.assert_array_equal(mine.ids, others.ids)
        assert (mine.documents, mine.text_bytes) == (others.documents, others.text_bytes)


@pytest.mark.parametrize(("kind", "vocab_size"), [("gpt2", 50_257), ("gpt2", 700), ("bpe", 500)])
@pytest.mark.parametrize("own_validation", [False, True])
def test_parts_give_the_same_corpus(config, tmp_path, monkeypatch, kind, vocab_size, own_validation):
    if kind == "bpe":
        pytest.importorskip("tokenizers")
    val = str(write(tmp_path / "val")) if own_validation else None
    config = dataclasses.replace(config, tokenizer=kind, val_dataset=val)
    whole = prepare(config, vocab_size)
    assert len(list((tmp_path / "whole").iterdir())) == 1
    monkeypatch.setattr(encoding, "PART_BYTES", 2000)
    assert_same(prepare(in_parts(config, tmp_path), vocab_size), whole)
    assert len(list((tmp_path / "parts").iterdir())) > 5


def test_a_text_to_measure_on_is_read_in_parts(config, tmp_path, monkeypatch):
    source = open_source(config.dataset)
    whole = encode(source, GPT2, config.cache_dir)
    monkeypatch.setattr(encoding, "PART_BYTES", 2000)
    parts = encode(open_source(config.dataset), GPT2, str(tmp_path / "parts"))
    np.testing.assert_array_equal(parts.ids, whole.ids)
    assert (parts.documents, parts.text_bytes) == (whole.documents, whole.text_bytes)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([END_OF_TEXT, "a", "\r", "\n", " ", "\ufeff", "é", "Once upon", "<|endof"]), max_size=60),
    st.integers(1, 80),
)
def test_a_file_is_cut_at_ends_of_documents(tmp_path_factory, words, size):
    path = tmp_path_factory.mktemp("cut") / "text.txt"
    path.write_text("".join(words), encoding="utf-8", newline="")
    source = open_source(str(path))
    try:
        expected = list(source.pieces())
    except UserError:
        expected = []
    parts = source.parts(size)
    assert bool(parts) == (path.stat().st_size > size)
    if parts:
        assert [piece for part in parts for piece in part.pieces()] == expected


def test_an_error_in_a_later_part_names_the_byte_of_the_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(END_OF_TEXT.encode() * 3 + b"abc\xff")
    first, *_, last = open_source(str(path)).parts(5)
    assert list(first.pieces()) == []
    with pytest.raises(UserError, match=r"byte 42 is 0xff"):
        list(last.pieces())


def test_small_files_are_gathered_and_a_new_one_changes_one_part(tmp_path):
    for number in range(400):
        (tmp_path / f"{number:03d}.txt").write_text(f"This is text number {number}. " * 10)
    before = [part.fingerprint for part in open_source(str(tmp_path)).parts(2_000)]
    assert 20 < len(before) < 100  # some 270 bytes each: 54 parts if all were full
    (tmp_path / "200a.txt").write_text("A new text. " * 20)
    after = [part.fingerprint for part in open_source(str(tmp_path)).parts(2_000)]
    assert len(set(after) - set(before)) <= 2


def test_a_new_file_is_the_only_one_that_is_read(config, tmp_path, small_parts, monkeypatch):
    config = in_parts(config, tmp_path)
    prepare(config, 50_257)
    (tmp_path / "texts" / "6a.txt").write_text("A new text. " * 200)
    made, tokenise = [], encoding._tokenise

    def noted(folder, source, *more, **others):
        made.append(source.description)
        tokenise(folder, source, *more, **others)

    monkeypatch.setattr(encoding, "_tokenise", noted)
    prepare(config, 50_257)
    assert made == [str(tmp_path / "texts" / "6a.txt")]


@pytest.mark.parametrize("part_bytes", [2000, 1 << 24])
def test_a_file_that_changes_after_its_fingerprint_was_taken_is_refused(config, tmp_path, monkeypatch, part_bytes):
    """Its tokens would lie under the fingerprint of another text."""
    monkeypatch.setattr(encoding, "PART_BYTES", part_bytes)
    source = open_source(config.dataset)
    encoding.parts_of(source)
    (tmp_path / "texts" / "6.txt").write_text("Another text.")
    with pytest.raises(UserError, match=r"6\.txt changed while it was read: run again"):
        encode(source, GPT2, config.cache_dir)
    key = cache._key({"source": source.fingerprint, "vocabulary": GPT2.fingerprint})
    assert not (tmp_path / "whole" / key).exists()


def test_no_text_in_any_file(tmp_path, small_parts):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(" \n")
    with pytest.raises(UserError, match="no text in 3 files"):
        prepare(DataConfig(str(tmp_path), cache_dir=str(tmp_path / "cache")), 50_257)


def test_a_damaged_part_is_made_again(config, tmp_path, small_parts, capfd):
    whole = prepare(in_parts(config, tmp_path), 50_257)
    train, val = whole.train.ids.copy(), whole.val.ids.copy()
    shutil.rmtree(tmp_path / "parts" / whole.fingerprint)
    file = next(file for file in (tmp_path / "parts").glob("*/train.bin") if file.stat().st_size > 100)
    file.write_bytes(b"\0" * 100 + file.read_bytes()[100:])
    again = prepare(in_parts(config, tmp_path), 50_257)
    np.testing.assert_array_equal(again.train.ids, train)
    np.testing.assert_array_equal(again.val.ids, val)
    (said,) = capfd.readouterr().err.splitlines()
    assert said.endswith(f"{file.parent} are damaged (train.bin has changed): making them again")


WORKER = """
import os, sys, time
from pathlib import Path
from slm.config.train import DataConfig
from slm.data import corpus, encoding

_, texts, cache, log, hangs_at = sys.argv
encoding.PART_BYTES = 1
tokenise, made = encoding._tokenise, 0

def noted(folder, source, *more, **others):
    global made
    made += 1
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {source.fingerprint}\\n")
    while made <= 2 and len(Path(log).read_text().splitlines()) < 3 * made:  # so that each has two
        time.sleep(0.01)
    if made == int(hangs_at):
        time.sleep(600)
    tokenise(folder, source, *more, **others)

encoding._tokenise = noted
made_of = corpus.prepare(DataConfig(texts, val_fraction=0.1, cache_dir=cache), 50_257)
print(made_of.fingerprint)
"""


def test_processes_share_the_work_and_one_that_is_killed_leaves_it_to_the_others(tmp_path, monkeypatch):
    texts = list(stories(60))
    (tmp_path / "texts").mkdir()
    for number in range(12):
        (tmp_path / "texts" / f"{number:02d}.txt").write_text("\n\n".join(texts[5 * number : 5 * number + 5]))
    config = DataConfig(str(tmp_path / "texts"), val_fraction=0.1, cache_dir=str(tmp_path / "whole"))
    whole = prepare(config, 50_257)
    shared, log = tmp_path / "shared", tmp_path / "log"
    command = [sys.executable, "-c", WORKER, config.dataset, str(shared), str(log)]
    started = [
        subprocess.Popen([*command, hangs_at], stdout=subprocess.PIPE, text=True) for hangs_at in ("2", "0", "0")
    ]
    victim, *others = started
    try:
        until = time.monotonic() + 120
        while not log.exists() or log.read_text().split().count(str(victim.pid)) < 2:
            assert time.monotonic() < until, "the first process came to no second part"
            time.sleep(0.02)
        os.kill(victim.pid, signal.SIGKILL)
        said = [process.communicate(timeout=120)[0].split() for process in others]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert said == [[whole.fingerprint]] * 2
    assert [process.returncode for process in started] == [-signal.SIGKILL, 0, 0]
    lines = [line.split() for line in log.read_text().splitlines()]
    hung_at = [part for pid, part in lines if pid == str(victim.pid)][1]
    times = Counter(part for _, part in lines)
    assert len(times) == 12
    assert times == {part: 2 if part == hung_at else 1 for part in times}
    assert min(Counter(pid for pid, _ in lines).values()) == 2
    assert not [path for path in shared.iterdir() if path.name.startswith(".") or path.suffix == ".lock"]
    monkeypatch.setattr(encoding, "_tokenise", lambda *_, **__: pytest.fail("made again"))
    assert_same(prepare(dataclasses.replace(config, cache_dir=str(shared)), 50_257), whole)
