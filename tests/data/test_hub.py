"""Data sets of the Hugging Face hub: `datasets` and `huggingface_hub` themselves read from a hub on this machine."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from slm.cli import main
from slm.data import hub_file
from slm.data.source import END_OF_TEXT
from slm.data.sources import open_source, validation_source
from slm.errors import UserError
from tests.data.conftest import joined, read, refusal


def table(row_group_size=None, **columns):
    """A Parquet file, not compressed."""
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file, row_group_size=row_group_size, compression="none")
    return file.getvalue()


def lines(*rows, field="text"):
    return "".join(json.dumps({field: row}) + "\n" for row in rows)


CONFIGS = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/*.jsonl}
- config_name: large
  data_files:
  - {split: train_sft, path: large/a.jsonl}
  - {split: dev, path: large/b.jsonl}
---
"""


@pytest.fixture
def owner(hub, here):
    """The hub with owner/name, which has three splits, and owner/configs with two configs; the current folder empty."""
    hub.push(
        "owner/name",
        {
            "README.md": "# Tales",
            "data/train-00000-of-00002.parquet": table(id=["a", "b", "c"], text=["one", None, "two"]),
            "data/train-00001-of-00002.parquet": table(id=["d", "e"], text=["three", "four"]),
            "data/validation-00000-of-00001.parquet": table(id=["f"], text=["five"]),
            "data/test-00000-of-00001.parquet": table(id=["g"], text=["six"]),
        },
    )
    hub.push(
        "owner/configs",
        {
            "README.md": CONFIGS,
            "small/1.jsonl": lines("s1", "s2"),
            "large/a.jsonl": lines("l1"),
            "large/b.jsonl": lines("l2"),
        },
    )
    return hub


SHAPE = (
    "--n_layer 1 --n_head 2 --n_embd 16 --context_length 16 --vocab_size 400 --batch_size 4 --export none --out_dir run"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Each test has a cache of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".cache/slm"


def cats(count):
    return lines(*[f"Once upon a time there was a cat number {number}. The end." for number in range(count)])


def files_asked_for(hub):
    return [line.rpartition("/")[2] for line in hub.requests if line.startswith("GET /datasets/")]


# --- What is read ---


def test_a_split_and_its_validation(owner):
    source = open_source("owner/name")
    revision = owner.sha("owner/name", 0)
    assert source.description == f"hub data set owner/name@{revision}, split train; field: text"
    assert joined(source.pieces()) == ["one", "two", "three", "four"]
    validation = validation_source("owner/name")
    assert joined(validation.pieces()) == ["five"]
    assert validation.description == f"hub data set owner/name@{revision}, split validation; field: text"
    assert validation.fingerprint != source.fingerprint
    assert read("owner/name", held_out=True) == ["five"]


def test_a_text_is_read_whole_as_tinystories_has_it(hub, here):
    stories = f"One day.\n\n  Indented.\n{END_OF_TEXT}\nTwo.\r\nThe end.{END_OF_TEXT}\n"
    files = {"TinyStoriesV2-GPT4-train.txt": stories, "TinyStoriesV2-GPT4-valid.txt": "Three."}
    hub.push("roneneldan/TinyStories", files)
    assert read("tinystories") == ["One day.\n\n  Indented.", "Two.\nThe end."]
    assert joined(validation_source("tinystories").pieces()) == ["Three."]


def test_simplestories_by_name(hub, here):
    columns = {"story": ["Tale one.", "Tale two."], "topic": ["cats", "dogs"], "theme": ["love", "joy"]}
    hub.push("SimpleStories/SimpleStories", {"data/train-00000-of-00001.parquet": table(**columns)})
    assert read("simplestories") == read("SimpleStories/SimpleStories") == ["Tale one.", "Tale two."]
    assert read("simplestories", text_field="topic") == ["cats", "dogs"]
    assert validation_source("simplestories") is None


def test_a_config_a_split_and_both(owner):
    assert read("owner/configs:small") == ["s1", "s2"]
    assert read("owner/configs:large:dev") == ["l2"]
    assert read("owner/configs:large:train_sft") == read("owner/configs:large:train_sft[:9]") == ["l1"]
    assert read("owner/name:test") == ["six"]
    assert read("owner/name:validation", held_out=True) == ["five"]
    assert joined(validation_source("owner/configs:large:train_sft").pieces()) == ["l2"]
    assert joined(validation_source("owner/name:test").pieces()) == ["five"]
    assert validation_source("owner/name:validation") is None, "it is what is trained on"
    assert ", config small, split train; field: text" in open_source("owner/configs:small").description


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("owner/configs", "owner/configs has several configs, small, large: name one, as in owner/configs:small"),
        ("owner/configs:big", "has no config 'big', but small, large: name one, as in owner/configs:small"),
        ("owner/configs:large", "split train, but train_sft, dev: name one, as in owner/configs:large:train_sft"),
        ("owner/configs:small:test", "owner/configs has no split 'test', but train; its configs: small, large"),
        ("owner/name:tset", "owner/name has no split 'tset', but train, validation, test"),
        ("owner/name@nowhere", "it has no such revision"),
        ("owner/none", "it has no data set of that name, or a private one: log in with hf auth login"),
    ],
)  # fmt: skip
def test_what_there_is_to_choose_from_is_said(owner, dataset, said):
    assert said in refusal(dataset)


def test_another_field(owner):
    assert read("owner/name", text_field="id") == ["a", "b", "c", "d", "e"]
    assert read("owner/name") == ["one", "two", "three", "four"]
    no_field = "no field 'body' in owner/name/data/train-00000-of-00002.parquet; it has: id, text; choose one"
    assert refusal("owner/name", text_field="body").startswith(no_field)


def test_a_limit(owner):
    source = open_source("owner/name[:3]")
    assert joined(source.pieces()) == ["one", "two", "three"]
    assert ", split train, the first 3 documents; field: text" in source.description
    assert read("owner/name[:1]") == ["one"]
    assert read("owner/name[:1_000]") == ["one", "two", "three", "four"]
    assert joined(validation_source("owner/name[:1]").pieces()) == ["five"]


def test_a_limit_ends_the_reading(hub, here, monkeypatch):
    monkeypatch.setattr(hub_file, "REQUEST", 100_000)
    rows = [f"{number:06} " + "word " * 400 + "end" for number in range(2_000)]
    hub.push("owner/lines", {"train.jsonl": lines(*rows)})
    hub.push("owner/text", {"train.txt": END_OF_TEXT.join(rows)})
    for dataset, file in {"owner/lines": "train.jsonl", "owner/text": "train.txt"}.items():
        assert read(f"{dataset}[:150]") == rows[:150]
        assert 300_000 < hub.sent[file] < 1_200_000 < 4_000_000 < sum(map(len, rows))
    assert read("owner/text[:2000]") == rows


def test_packed_files(hub, here):
    import gzip

    hub.push(
        "owner/packed",
        {
            "train.jsonl.gz": gzip.compress(lines("one", "two").encode()),
            "valid.jsonl": "\ufeff" + lines("three"),
        },
    )
    assert read("owner/packed") == ["one", "two"]
    assert joined(validation_source("owner/packed").pieces()) == ["three"]


def test_arrow_files(hub, here):
    file = io.BytesIO()
    with pa.ipc.new_stream(file, pa.schema({"text": pa.string()})) as writer:
        writer.write_table(pa.table({"text": ["one", "two"]}))
    hub.push("owner/saved", {"data-00000-of-00001.arrow": file.getvalue()})
    assert read("owner/saved") == ["one", "two"]


def test_other_formats_are_refused(hub, here):
    hub.push("owner/pictures", {"train/a.png": b"png", "train/b.png": b"png"})
    assert "train/a.png is not among the formats, which are text (.txt" in refusal("owner/pictures")


def test_a_nested_field_and_one_with_a_point_in_its_name(hub, here):
    rows = {"doc": [{"text": "inner", "n": 1}], "a.b": ["dotted"], "z": ["other"]}
    hub.push("owner/nested", {"train.parquet": table(**rows)})
    assert read("owner/nested", text_field="doc.text") == ["inner"]
    assert read("owner/nested", text_field="a.b") == ["dotted"]


def test_half_a_surrogate_pair(hub, here):
    hub.push("owner/odd", {"train.jsonl": '{"text": "a\\ud83d b"}\n'})
    assert read("owner/odd") == ["a\ufffd b"]


# --- What is fetched ---


def test_the_text_is_fetched_once(owner):
    first = joined(open_source("owner/name").pieces())
    assert sorted(set(files_asked_for(owner)) - {"README.md"}) == [
        "train-00000-of-00002.parquet", "train-00001-of-00002.parquet",
    ]  # fmt: skip
    owner.clear()
    assert joined(open_source("owner/name").pieces()) == first
    assert owner.requests == ["GET /api/datasets/owner/name"], "whether it has changed"


def test_only_the_column_of_text_is_fetched(hub, here, monkeypatch):
    monkeypatch.setattr(hub_file, "FOOTER", 1_000)
    monkeypatch.setattr(hub_file, "GAP", 100)
    monkeypatch.setattr(hub_file, "REQUEST", 3_000)
    texts = [f"{number:06}" * 10 for number in range(900)]
    data = table(row_group_size=300, a=["a" * 2_000 + t for t in texts], text=texts, z=["z" * 900 + t for t in texts])
    hub.push("owner/wide", {"train.parquet": data})
    assert read("owner/wide") == texts
    assert hub.sent["train.parquet"] < 80_000 < len(data) / 30
    hub.clear()
    assert read("owner/wide[:10]") == texts[:10]
    assert hub.sent["train.parquet"] < 50_000


def test_a_changed_data_set_is_another_text(owner):
    before = open_source("owner/name:test")
    owner.push("owner/name", {"test.jsonl": lines("new")})
    after = open_source("owner/name:test")
    assert joined(after.pieces()) == ["new"]
    assert after.fingerprint != before.fingerprint
    old = open_source(f"owner/name@{owner.sha('owner/name', 0)}:test")
    assert joined(old.pieces()) == ["six"]
    assert old.fingerprint == before.fingerprint


def test_an_interruption_costs_no_more_than_one_request(hub, here, cache, monkeypatch):
    monkeypatch.setattr(hub_file, "REQUEST", 10_000)
    rows = [f"{number:08}" * 12 for number in range(1_000)]
    hub.push("owner/two", {"train-0.txt": END_OF_TEXT.join(rows), "train-1.txt": "the end"})
    copy = hub_file._copy
    calls = []

    def breaks_off(remote, kept, start, end):
        calls.append(start)
        if start == 50_000:
            hub.gated.add("owner/two")
        return copy(remote, kept, start, end)

    monkeypatch.setattr(hub_file, "_copy", breaks_off)
    said = refusal("owner/two")
    assert said.startswith("cannot fetch datasets/owner/two@")
    assert said.endswith("then log in with hf auth login; run again to go on from there")
    assert calls == [0, 10_000, 20_000, 30_000, 40_000, 50_000]
    monkeypatch.setattr(hub_file, "_copy", copy)
    hub.gated.clear()
    hub.clear()
    assert read("owner/two") == [*rows, "the end"]
    total = len(END_OF_TEXT.join(rows))
    assert hub.sent["train-0.txt"] == total - 50_000
    assert list(cache.glob("*.part")) == []


# --- A hub that does not answer ---


def test_a_second_run_needs_no_hub(owner, capsys):
    source, validation = open_source("owner/name"), validation_source("owner/name")
    owner.is_down = True
    again = open_source("owner/name")
    assert again.fingerprint == source.fingerprint
    assert joined(again.pieces()) == ["one", "two", "three", "four"]
    assert validation_source("owner/name").fingerprint == validation.fingerprint
    said = capsys.readouterr().err
    assert said.count("note: the hub did not say whether owner/name changed (") == 1


def test_a_pinned_revision_is_not_asked_about_again(owner):
    dataset = f"owner/name@{owner.sha('owner/name', 0)}"
    first = read(dataset)
    owner.clear()
    assert read(dataset) == first
    assert owner.requests == []


def test_training_measuring_and_resuming_without_the_hub(owner, monkeypatch, capsys):
    owner.push("owner/cats", {"train.jsonl": cats(300)})
    run = f"train --dataset owner/cats --max_steps 4 {SHAPE}".split()
    assert main(run) == 0
    assert f"hub data set owner/cats@{owner.sha('owner/cats', 0)}, split train" in capsys.readouterr().out
    owner.is_down = True
    assert main([*run, "--overwrite"]) == 0
    assert main(["train", "--resume", "--out_dir", "run", "--max_steps", "6"]) == 0
    assert main(["evaluate", "--model_path", "run/best_model.pt", "--dataset", "owner/cats"]) == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["evaluate", "--model_path", "run/best_model.pt", "--dataset", "owner/cats"]) == 0


def test_resuming_where_the_data_set_has_changed(owner, capsys):
    old = owner.push("owner/cats", {"train.jsonl": cats(300)})
    assert main(f"train --dataset owner/cats --max_steps 4 {SHAPE}".split()) == 0
    owner.push("owner/cats", {"train.jsonl": cats(301)})
    resumed = ["train", "--resume", "--out_dir", "run", "--max_steps", "6"]
    assert main(resumed) == 2
    assert f"(it was hub data set owner/cats@{old}, split train; field: text): give --dat" in capsys.readouterr().err
    assert main([*resumed, "--dataset", f"owner/cats@{old}"]) == 0


def test_a_hub_that_is_down_is_one_line(owner):
    owner.is_down = True
    said = refusal("owner/name")
    assert said.startswith("cannot read owner/name from the hub, and there is no such path here: ")
    assert said.endswith("; download a text file elsewhere and pass its path, or pass --dataset stories")


def test_what_the_hub_says_has_no_number_of_the_request():
    said = "(ProtocolError('Connection aborted.'), '(Request ID: 133ef789-9a74)')"
    assert hub_file.explained(OSError(said)) == "(ProtocolError('Connection aborted.'))"
    assert hub_file.explained(OSError("500 Server Error (Request ID: Root=1-6a;b7)")) == "500 Server Error"


def test_a_gated_data_set(owner):
    owner.gated.add("owner/name")
    assert "its owner gives access on request" in refusal("owner/name")


@pytest.mark.parametrize(
    "content",
    [
        '{"sha": 1}',
        "[" * 100_000,
        '{"sha": "1", "config": null, "splits": 3, "split": null}',
        '{"sha": "1", "config": null, "splits": {"train": [7]}, "split": null}',
    ],
)
def test_a_damaged_record_is_made_again(owner, cache, content):
    first = read("owner/name")
    (record,) = cache.glob("hub-*.json")
    record.write_text(content)
    assert read("owner/name") == first
    record.write_text(content)
    owner.is_down = True
    assert refusal("owner/name").startswith("cannot read owner/name from the hub")


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("file", ["train.jsonl", "train.parquet"])
def test_nothing_is_written_through_a_link_in_the_cache(hub, here, cache, link, file, monkeypatch):
    hub.push("owner/one", {file: table(text=["one"]) if file.endswith(".parquet") else lines("one")})
    copied = hub_file._copy

    def breaks_off(*_):
        raise UserError("cannot fetch it")

    monkeypatch.setattr(hub_file, "_copy", breaks_off)
    assert refusal("owner/one") == "cannot fetch it"
    monkeypatch.setattr(hub_file, "_copy", copied)
    (part,) = cache.glob("*.part")
    part.unlink()
    Path("precious").write_text("precious")
    link(part, here / "precious")
    assert refusal("owner/one").startswith("cannot ")
    assert Path("precious").read_text() == "precious"


# --- Names ---


def test_names_that_look_like_paths_are_not_looked_for_on_the_hub(hub, here):
    Path("data").mkdir()
    Path("data/storys").touch()
    for dataset in ("data/story", "other/story.txt", "./owner", "a/b/c"):
        assert refusal(dataset).startswith(f"no file or folder {dataset}: ")
    assert hub.requests == []


def test_paths_come_first_and_a_folder_named_as_an_owner_does_not_hide_the_hub(owner):
    Path("owner").mkdir()
    Path("owner/notes.txt").touch()
    assert read("owner/name") == ["one", "two", "three", "four"]
    Path("owner/name[:1]").write_text("here")
    assert read("owner/name[:1]") == ["here"]
    for limit in ("12a", "0", "_1", "1__0", "1_", "9" * 30):
        with pytest.raises(UserError, match="cannot make out"):
            open_source(f"owner/x[:{limit}]")
