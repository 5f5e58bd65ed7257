"""A data set -> training and validation tokens: how they are divided, and when they are made again."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from slm.config.train import DataConfig
from slm.data import cache, encoding
from slm.data import corpus as module
from slm.data.corpus import choose_validation, prepare
from slm.data.encoding import Encoded
from slm.data.source import END_OF_TEXT
from slm.data.stories import stories
from slm.data.tokenizer import gpt2
from slm.errors import UserError
from tests.data.conftest import source_of, texts

GPT2 = gpt2()


@pytest.fixture
def config(tmp_path):
    (tmp_path / "text.txt").write_text(END_OF_TEXT.join(stories(60)))
    return DataConfig(dataset=str(tmp_path / "text.txt"), val_fraction=0.2, cache_dir=str(tmp_path / "cache"))


def documents(tokens, tokenizer=None):
    tokenizer = tokenizer or gpt2()
    ends = np.flatnonzero(tokens.ids == tokenizer.end_of_text)
    return [tokenizer.decode(part[part != tokenizer.end_of_text]) for part in np.split(tokens.ids, ends + 1)][:-1]


def test_the_corpus_is_divided_by_document(config):
    corpus = prepare(config, 50_257)
    train, val = documents(corpus.train), documents(corpus.val)
    assert sorted(train + val) == sorted(stories(60))
    assert 4 <= len(val) <= 24  # of 60, at 0.2
    assert (len(train), len(val)) == (corpus.train.documents, corpus.val.documents)


def test_validation_does_not_move_when_documents_are_added(config, tmp_path):
    before = set(documents(prepare(config, 50_257).val))
    with (tmp_path / "text.txt").open("a") as file:
        file.write(END_OF_TEXT + END_OF_TEXT.join(stories(60, seed=9)))
    after = set(documents(prepare(config, 50_257).val))
    assert before < after


def test_about_the_asked_share_is_chosen():
    source = source_of(*stories(4000))
    for fraction in (0.02, 0.1, 0.5):
        assert choose_validation(source, fraction).mean() == pytest.approx(fraction, rel=0.2)


def test_a_document_in_several_pieces_is_chosen_whole():
    several = [[f"{text} ", f"{text} again ", "end"] for text in stories(100)]
    chosen = choose_validation(source_of(*several), 0.3).reshape(100, 3)
    assert (chosen == chosen[:, :1]).all()
    assert 0 < chosen[:, 0].sum() < 100


def test_a_file_without_separators_is_divided_by_piece(tmp_path):
    (tmp_path / "book.txt").write_text("\n\n".join(stories(400)))
    corpus = prepare(DataConfig(dataset=str(tmp_path / "book.txt"), cache_dir=str(tmp_path / "c")), 50_257)
    total = len(gpt2().encode("\n\n".join(stories(400))))
    for split in (corpus.train, corpus.val):
        assert split.ids[-1] == gpt2().end_of_text
    assert len(corpus.train) + len(corpus.val) == total + corpus.train.documents + corpus.val.documents
    assert 0 < len(corpus.val) < 0.2 * total


def prepared(tmp_path, text, **changes):
    (tmp_path / "t.txt").write_text(text)
    return prepare(DataConfig(dataset=str(tmp_path / "t.txt"), cache_dir=str(tmp_path / "c"), **changes), 50_257)


def test_two_documents_are_enough(tmp_path):
    corpus = prepared(tmp_path, "one<|endoftext|>two")
    assert (documents(corpus.train), documents(corpus.val)) == (["one"], ["two"])
    assert (corpus.train.documents, corpus.val.documents) == (1, 1)


def test_one_short_piece_keeps_at_most_a_quarter_at_its_end_for_validation(tmp_path):
    corpus = prepared(tmp_path, "one two three four five six seven eight nine ten")
    assert texts(corpus.train) == b"one two three four five six seven eight"
    assert texts(corpus.val) == b" nine ten"
    assert corpus.held_out == 9 / 48
    assert corpus.caution == (
        "the validation loss will be rough: 3 tokens are held out, 18.8% of the text;"
        " give more text, or some for validation with --val_dataset"
    )


def test_the_smallest_text_leaves_something_to_train_on(tmp_path):
    corpus = prepared(tmp_path, "a")
    assert (corpus.train.ids.tolist(), corpus.val.ids.tolist()) == ([64], [50256])


def test_a_poem_of_20_kb_is_mostly_trained_on(tmp_path):
    lines = "\n".join(stories(60))[:20_000].split(". ")
    corpus = prepared(tmp_path, ",\n".join(lines))  # no blank line: its pieces are 16 kB and 4 kB
    assert texts(corpus.train) + texts(corpus.val) == ",\n".join(lines).encode()
    assert 1_490 < corpus.val.text_bytes <= 1_500
    assert corpus.caution == ""


def test_a_book_and_its_notes_are_divided_by_bytes(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "book.txt").write_text("\n\n".join(stories(900)))
    for number, story in enumerate(stories(24, seed=1)):
        (tmp_path / "texts" / f"note{number}.txt").write_text(story)
    corpus = prepare(DataConfig(dataset=str(tmp_path / "texts"), cache_dir=str(tmp_path / "c")), 50_257)
    assert corpus.held_out == pytest.approx(0.05, rel=0.4)


def test_validation_of_its_own_has_no_share(config, tmp_path):
    assert 0.1 <= prepare(config, 50_257).held_out <= 0.4
    (tmp_path / "val.txt").write_text("A story of its own.")
    assert prepare(dataclasses.replace(config, val_dataset=str(tmp_path / "val.txt")), 50_257).held_out is None


def test_the_description_names_files_field_and_validation(config, tmp_path):
    folder = tmp_path / "clone" / "data"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = [json.dumps({"n": number, "story": f"{split} {number}"}) for number in range(3)]
        (folder / f"{split}-00000-of-00001.jsonl").write_text("\n".join(rows))
    config = dataclasses.replace(config, dataset=str(tmp_path / "clone"))
    corpus = prepare(config, 50_257)
    assert [documents(tokens)[-1] for tokens in (corpus.train, corpus.val)] == ["train 2", "validation 2"]
    assert (corpus.held_out, corpus.caution) == (None, "")
    train, val, test = (f"{split}-00000-of-00001.jsonl" for split in ("train", "validation", "test"))
    assert prepare(config, 50_257).description == (
        f"1 file, 86 bytes: {train}; field: story; left out: {val}, {test};"
        f" validation: 1 file, 101 bytes: {val}; field: story"
    )
    (tmp_path / "own.txt").write_text("A story of its own.")
    corpus = prepare(dataclasses.replace(config, val_dataset=str(tmp_path / "own.txt")), 50_257)
    assert documents(corpus.val) == ["A story of its own."]
    assert documents(corpus.train) == ["train 0", "train 1", "train 2"]


def test_a_validation_file_leaves_all_for_training(config, tmp_path):
    (tmp_path / "val.txt").write_text("A story of its own.")
    corpus = prepare(dataclasses.replace(config, val_dataset=str(tmp_path / "val.txt")), 50_257)
    assert corpus.train.documents == 60
    assert documents(corpus.val) == ["A story of its own."]


def test_the_vocabulary_is_cut_to_the_training_part(config, tmp_path):
    corpus = prepare(config, 1000)
    assert corpus.tokenizer.vocab_size == 1000
    assert sorted(documents(corpus.train, corpus.tokenizer) + documents(corpus.val, corpus.tokenizer)) == sorted(
        stories(60)
    )
    ids = np.concatenate([GPT2.encode(text) for text in documents(corpus.train, corpus.tokenizer)])
    common = np.bincount(ids).argmax()
    assert common in corpus.tokenizer.gpt2_ids


def test_bpe_is_trained_on_the_training_part(config):
    pytest.importorskip("tokenizers")
    corpus = prepare(dataclasses.replace(config, tokenizer="bpe"), 500)
    assert corpus.tokenizer.vocab_size == 500
    assert sorted(documents(corpus.train, corpus.tokenizer) + documents(corpus.val, corpus.tokenizer)) == sorted(
        stories(60)
    )


def test_bytes_are_those_of_the_text(config):
    corpus = prepare(config, 400)
    assert corpus.val.text_bytes == sum(len(text.encode()) for text in documents(corpus.val, corpus.tokenizer))


class TestCache:
    def test_a_second_run_reads_no_text(self, config, monkeypatch):
        first = prepare(config, 500)
        monkeypatch.setattr(encoding, "encode_all", lambda *_: pytest.fail("tokenised again"))
        monkeypatch.setattr(module, "choose_validation", lambda *_: pytest.fail("read again"))
        again = prepare(config, 500)
        np.testing.assert_array_equal(first.train.ids, again.train.ids)
        assert again.fingerprint == first.fingerprint
        assert again.tokenizer.tokens == first.tokenizer.tokens

    def test_a_changed_file_of_the_same_size_is_seen(self, config, tmp_path):
        first = prepare(config, 50_257)
        path = tmp_path / "text.txt"
        path.write_text(path.read_text().replace("Once", "0nce"))
        assert prepare(config, 50_257).fingerprint != first.fingerprint

    @pytest.mark.parametrize("change", [{"val_fraction": 0.3}, {"tokenizer": "bpe"}, {"errors": "replace"}])
    def test_other_settings_make_other_files(self, config, change):
        pytest.importorskip("tokenizers")
        assert prepare(config, 500).fingerprint != prepare(dataclasses.replace(config, **change), 500).fingerprint

    def test_a_run_that_dies_leaves_nothing_to_be_used(self, config, tmp_path, monkeypatch):
        def dies(*arguments):
            yield Encoded(0, np.arange(5, dtype=np.uint32), 5)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(encoding, "encode_all", dies)
            with pytest.raises(KeyboardInterrupt):
                prepare(config, 50_257)
        assert list((tmp_path / "cache").iterdir()) == []
        assert prepare(config, 50_257).train.documents > 30

    @pytest.mark.parametrize("name", ["tokenizer.npz", "train.json", "val.bin", "train.bin", "checksums.json"])
    @pytest.mark.parametrize(
        "damage",
        [Path.unlink, lambda path: path.write_bytes(b"x"), lambda path: path.write_bytes(path.read_bytes()[:-2])],
    )
    def test_a_damaged_file_is_said_and_made_again(self, config, tmp_path, name, damage, capfd):
        first = prepare(config, 50_257)
        expected = [first.train.ids.tolist(), first.val.ids.tolist()]
        (file,) = (tmp_path / "cache").glob(f"*/{name}")
        whole = file.read_bytes()
        damage(file)
        again = prepare(config, 50_257)
        assert [again.train.ids.tolist(), again.val.ids.tolist()] == expected
        assert again.fingerprint == first.fingerprint
        said = capfd.readouterr().err
        assert said.count("\n") == 1
        assert f"the token files in {file.parent} are damaged (" in said
        assert file.read_bytes() == whole
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.fingerprint]

    @pytest.mark.parametrize("name", ["file/cache", "file", "x" * 300, "\0"])
    def test_a_cache_that_cannot_be_written_is_named(self, config, tmp_path, name):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=r"cannot write token files in (?s:.*)--cache_dir"):
            prepare(dataclasses.replace(config, cache_dir=str(tmp_path / name)), 50_257)

    def test_a_file_of_another_programs_does_no_harm(self, config, tmp_path, capfd):
        folder = tmp_path / "cache" / prepare(config, 50_257).fingerprint
        (folder / ".nfs0001").write_text("a network file system's")
        prepare(config, 50_257)
        assert capfd.readouterr().err == ""
        assert (folder / ".nfs0001").exists()

    def test_what_lies_there_is_plain(self, config, tmp_path):
        prepare(config, 500)
        (folder,) = (tmp_path / "cache").iterdir()
        assert sorted(path.name for path in folder.iterdir()) == [
            "checksums.json", "tokenizer.npz", "train.bin", "train.json", "val.bin", "val.json",
        ]  # fmt: skip
        assert json.loads((folder / "train.json").read_text()).keys() == {"tokens", "documents", "text_bytes", "dtype"}


def test_tokens_that_the_vocabulary_lacks_are_one_line(config):
    """A cache that others can write to may hold anything, with checksums that are right."""
    corpus = prepare(config, 300)
    (path,) = Path(config.cache_dir).glob("*/train.bin")
    ids = np.fromfile(path, dtype=corpus.train.ids.dtype)
    ids[5] = 60_000
    ids.tofile(path)
    names = sorted(file.name for file in path.parent.iterdir() if file.name != cache.CHECKSUMS)
    sums = cache._checksums(path.parent, names)
    (path.parent / cache.CHECKSUMS).write_text(json.dumps({"files": sums, "checksum": cache._crc(sums)}))
    with pytest.raises(UserError, match=r"are damaged: .*train\.bin has the token 60000, and the vocabulary 300"):
        prepare(config, 300)
