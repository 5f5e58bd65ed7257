"""Nothing in a file runs: each kind of file that is opened, with a payload that would make a folder."""

import base64
import json
import pickle

import numpy as np
import pytest
import torch

from slm.cli import main
from slm.config.train import DataConfig
from slm.data import cache, encoding
from slm.data.corpus import prepare
from slm.data.source import END_OF_TEXT
from slm.data.stories import stories
from slm.errors import UserError
from slm.export import huggingface


class Payload:
    """Makes the folder `ran` where it is unpickled."""

    def __reduce__(self):
        import os

        return os.mkdir, ("ran",)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder of its own, in which nothing may have run in the end."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "ran").exists()


def refused(capfd, *arguments):
    """The one line with which a command refuses a file."""
    assert main([*arguments]) == 2
    said = capfd.readouterr().err
    assert said.count("error: ") == 1  # which field is read may be noted before it
    return said


def test_the_payload_is_one(here):
    pickle.loads(pickle.dumps(Payload()))
    (here / "ran").rmdir()


def as_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


def as_old_file(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [torch.save, as_old_file, as_pickle])
@pytest.mark.parametrize("place", ["all", "training", "weights"])
@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--max_length", "1", "--model_path", "run/best_model.pt"],
        ["generate", "--max_length", "1", "--model_path", "run"],
        ["evaluate", "--text", "a", "--model_path", "run/last.pt"],
        ["export", "--format", "onnx", "--model_path", "run/best_model.pt"],
        ["train", "--init_from", "run/best_model.pt", "--max_steps", "1", "--out_dir", "new"],
        ["train", "--resume", "--out_dir", "run"],
    ],
)
def test_checkpoints(command, place, write, trained, here, capfd):
    content = torch.load(trained, weights_only=True)
    if place == "weights":
        content["weights"] = {**content["weights"], "final_norm.bias": Payload()}
    if place == "training":
        content["training"] = {"config": Payload()}
    content = Payload() if place == "all" else content
    (here / "run").mkdir()
    for name in ("best_model.pt", "last.pt"):
        write(content, here / "run" / name)
    assert "none of which was run" in refused(capfd, *command)
    assert not (here / "new" / "best_model.pt").exists()


def test_a_program_in_a_checkpoints_place(here, capfd):
    """A TorchScript archive holds code."""

    class Module(torch.nn.Module):
        def forward(self, x):
            return x + 1

    torch.jit.script(Module()).save(here / "best_model.pt")
    assert "none of which was run" in refused(capfd, "generate")


@pytest.mark.parametrize("write", [torch.save, as_old_file, as_pickle])
def test_weights_to_import(write, trained_model, here, capfd):
    huggingface.write(trained_model, here / "theirs", "huggingface")
    (here / "theirs" / "model.safetensors").unlink()
    write({"wte.weight": Payload()}, here / "theirs" / "pytorch_model.bin")
    assert "none of which was run" in refused(capfd, "import", "--from", "theirs")
    assert not (here / "best_model.pt").exists()


def objects():
    return np.array([Payload()], dtype=object)


def sealed(folder):
    """Checksums that fit, as whoever put the payload there would write."""
    found = cache._checksums(folder, [file.name for file in folder.iterdir() if file.name != cache.CHECKSUMS])
    (folder / cache.CHECKSUMS).write_text(json.dumps({"files": found, "checksum": cache._crc(found)}))


@pytest.mark.parametrize("name", ["lengths", "bytes", "gpt2_ids", "name"])
def test_a_tokenizer_in_the_cache(name, here):
    config = DataConfig("stories:50", cache_dir="cache")
    folder = here / "cache" / prepare(config, 300).fingerprint
    with np.load(folder / "tokenizer.npz") as state:
        changed = {**state, name: objects()}
    np.savez(folder / "tokenizer.npz", **changed)
    sealed(folder)
    with pytest.raises(UserError, match="damaged: delete that folder"):
        prepare(config, 300)


@pytest.mark.parametrize("name", ["hashes", "starts", "counts"])
def test_parts_in_the_cache(name, here, monkeypatch):
    monkeypatch.setattr(encoding, "PART_BYTES", 2000)
    (here / "text.txt").write_text(END_OF_TEXT.join(stories(40)))
    config = DataConfig("text.txt", cache_dir="cache")
    prepare(config, 300)
    files = list((here / "cache").glob(f"*/{name}.npy"))
    assert files
    for file in files:
        np.save(file, objects(), allow_pickle=True)
        sealed(file.parent)
    with pytest.raises(UserError, match="damaged: delete that folder"):
        prepare(config, 301)


@pytest.mark.parametrize("location", ["../secret.bin", "{here}/secret.bin", "link.bin", "model/../../secret.bin"])
def test_onnx_with_weights_outside_its_folder(location, here, capfd):
    onnx = pytest.importorskip("onnx")
    np.full(4, 7, dtype=np.float32).tofile(here / "secret.bin")
    (here / "model").mkdir()
    (here / "model" / "link.bin").symlink_to(here / "secret.bin")
    outside = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location.format(here=here), "offset": "0", "length": "16"}.items():
        outside.external_data.add(key=key, value=value)
    names = ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key"]
    values = [onnx.helper.make_tensor_value_info(name, 1, [4]) for name in names]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Concat", [*names, "w"], ["logits"], axis=0)],
        "g", values, [onnx.helper.make_tensor_value_info("logits", 1, [4])], [outside],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    (here / "model" / "m.onnx").write_bytes(model.SerializeToString())
    assert "its graph has weights in another file" in refused(capfd, "generate", "--model_path", "model/m.onnx")


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.txt.gz"])
@pytest.mark.parametrize("protocol", [0, 4])
def test_pickles_as_data_sets(name, protocol, here, capfd):
    """They are read as what their name says, or refused."""
    (here / name).write_bytes(pickle.dumps(Payload(), protocol))
    arguments = ["--dataset", name, "--cache_dir", "cache", "--max_steps", "1", "--context_length", "1000"]
    refused(capfd, "train", *arguments)


def test_a_parquet_file_whose_schema_asks_for_a_python_class(here):
    import pyarrow as pa
    from pyarrow import parquet

    field = pa.field(
        "text", pa.string(), metadata={
            "ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Payload()),
            "PANDAS": base64.b64encode(pickle.dumps(Payload())),
        },
    )  # fmt: skip
    parquet.write_table(pa.table([list(stories(30))], schema=pa.schema([field])), here / "a.parquet")
    corpus_of_it = prepare(DataConfig("a.parquet", cache_dir="cache"), 50_257)
    assert corpus_of_it.train.documents + corpus_of_it.val.documents == 30
