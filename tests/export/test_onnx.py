"""ONNX in ONNX Runtime against PyTorch: lengths, batches, padding, caches, rounded weights, and bad files."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from slm.checkpoint.file import Checkpoint
from slm.cli import main
from slm.config.model import ModelConfig
from slm.data.stories import stories
from slm.data.tokenizer import Tokenizer, gpt2
from slm.errors import UserError
from slm.export.command import export
from slm.export.onnx import block_size, quantise
from slm.inference.onnx_engine import OnnxEngine
from slm.inference.onnx_file import describe, seal
from slm.model.gpt import GPT


@pytest.fixture(scope="module")
def default_model():
    """The default model with random weights, large enough to make logits differ."""
    torch.manual_seed(0)
    shape = ModelConfig()
    model = GPT(shape)
    for block in model.blocks:
        torch.nn.init.normal_(block.attention.qkv.weight, std=0.1)
        torch.nn.init.normal_(block.mlp.up.bias, std=0.5)
    torch.nn.init.normal_(model.token_embedding.weight, std=0.2)
    return Checkpoint(shape, model.state_dict(), gpt2(), {"val": {"loss": 1.5}})


@pytest.fixture(scope="module")
def path(default_model, tmp_path_factory):
    base = tmp_path_factory.mktemp("onnx") / "best_model"
    export(default_model, "onnx", base)
    return base.with_name("best_model.onnx")


@pytest.fixture(scope="module")
def session(path):
    return onnxruntime.InferenceSession(path)


def run(session, ids, mask=None, positions=None, past=None, **more):
    """logits, and the new past."""
    names = [each.name for each in session.get_inputs() if each.name.startswith("past")]
    if past is None:
        past = [np.zeros((len(ids), 6, 0, 64), dtype=np.float32)] * len(names)
    before = past[0].shape[2]
    mask = np.ones((len(ids), before + ids.shape[1]), dtype=np.int64) if mask is None else mask
    positions = np.tile(np.arange(before, before + ids.shape[1]), (len(ids), 1)) if positions is None else positions
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **dict(zip(names, past, strict=True))}
    logits, *present = session.run(None, {**feeds, **more})
    return logits, present


def expected(loaded, ids):
    with torch.no_grad():
        return loaded.model()(torch.from_numpy(ids)).numpy()


def random_ids(*shape):
    return np.random.default_rng(1).integers(50_257, size=shape)


def test_the_file_is_sound_and_has_optimums_names(path):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {domain.domain for domain in model.opset_import} == {""}  # nothing of ONNX Runtime's own
    inputs = {
        each.name: [d.dim_param or d.dim_value for d in each.type.tensor_type.shape.dim] for each in model.graph.input
    }
    batch, length, past = "batch_size", "sequence_length", "past_sequence_length"
    assert inputs["input_ids"] == inputs["position_ids"] == [batch, length]
    assert inputs["attention_mask"] == [batch, f"{past} + {length}"]
    assert inputs["past_key_values.5.value"] == [batch, 6, past, 64]
    outputs = [each.name for each in model.graph.output]
    assert outputs[:3] == ["logits", "present.0.key", "present.0.value"]
    assert len(outputs) == 13


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 7, 128])
def test_all_logits_without_a_past(session, default_model, batch, length):
    ids = random_ids(batch, length)
    logits, present = run(session, ids)
    assert np.abs(logits - expected(default_model, ids)).max() < 1e-4
    assert present[0].shape == (batch, 6, length, 64)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("past", "length"), [(1, 1), (7, 1), (1, 7), (121, 7), (127, 1), (64, 64)])
def test_logits_behind_a_past(session, default_model, batch, past, length):
    ids = random_ids(batch, past + length)
    _, cache = run(session, ids[:, :past])
    logits, _ = run(session, ids[:, past:], past=cache)
    assert np.abs(logits - expected(default_model, ids)[:, past:]).max() < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_ragged_batch_padded_on_either_side(session, default_model, side):
    """Rows of 2, 7 and 5 tokens are read together, then one more of each."""
    ids, lengths = random_ids(3, 8), np.array([2, 7, 5])
    columns = np.arange(7)
    mask = (columns >= 7 - lengths[:, None] if side == "left" else columns < lengths[:, None]).astype(np.int64)
    padded, positions = np.zeros((3, 7), dtype=np.int64), np.zeros((3, 7), dtype=np.int64)
    for row, length in enumerate(lengths):
        padded[row, mask[row] == 1], positions[row, mask[row] == 1] = ids[row, :length], np.arange(length)
    logits, cache = run(session, padded, mask, positions)
    mask = np.column_stack([mask, np.ones(3, dtype=np.int64)])
    after, _ = run(session, ids[[0, 1, 2], lengths][:, None], mask, lengths[:, None], cache)
    for row, length in enumerate(lengths):
        alone = expected(default_model, ids[row : row + 1, : length + 1])[0]
        assert np.abs(logits[row, mask[row, :7] == 1] - alone[:length]).max() < 1e-4
        assert np.abs(after[row, 0] - alone[length]).max() < 1e-4


def test_logits_are_computed_for_as_many_positions_as_are_asked_for(session):
    ids = random_ids(2, 9)
    every, _ = run(session, ids)
    for kept in (1, 4, 9):
        last, _ = run(session, ids, logits_to_keep=np.array([kept]))
        assert last.shape == (2, kept, 50_257)
        assert np.abs(last - every[:, -kept:]).max() < 1e-4


def test_each_kind_of_model(each_model, tmp_path):
    for format in ("onnx", "onnx-int8", "onnx-int4"):
        said = export(each_model, format, tmp_path / "m")
        assert "matches PyTorch" in said
    engine = OnnxEngine(tmp_path / "m.onnx")
    assert engine.tokenizer.tokens == each_model.tokenizer.tokens
    assert engine.context_length == each_model.config.context_length
    assert engine.facts == each_model.facts


def test_the_engine_reads_ragged_prompts_and_drops_and_repeats_rows(path, default_model):
    engine = OnnxEngine(path)
    ids = random_ids(4, 20)
    lengths = [3, 9, 3, 14]
    first = engine.prefill([row[:length] for row, length in zip(ids[:3], lengths, strict=False)])
    second = engine.prefill([ids[3, :14]])
    for row, logits in enumerate([*first, *second]):
        alone = expected(default_model, ids[row : row + 1, : lengths[row]])[0, -1]
        assert np.abs(logits - alone).max() < 1e-4
    engine.keep([2, 0, 2])  # the long ones go
    logits = engine.decode(np.array([5, 6, 7]))
    for row, (kept, token) in enumerate([(2, 5), (0, 6), (2, 7)]):
        alone = expected(default_model, np.array([[*ids[kept, :3], token]]))[0, -1]
        assert np.abs(logits[row] - alone).max() < 1e-4


def test_rounding_by_hand():
    weight = np.zeros((1, 32), dtype=np.float32)
    weight[0, :4] = [1.0, -0.3, 0.25, 1 / 7]
    whole, scale = quantise(weight, 8, 32)
    assert whole.shape == (1, 1, 32)
    assert whole[0, 0, :5].tolist() == [255, 90, 160, 146, 128]  # 128 + 127, - 38 (38.1), + 32 (31.75), + 18
    assert scale.tolist() == [[pytest.approx(1 / 127)]]
    whole, scale = quantise(weight, 4, 32)
    assert whole.shape == (1, 1, 16)
    assert whole[0, 0, :3].tolist() == [15 | 6 << 4, 10 | 9 << 4, 8 | 8 << 4]  # 8 + 7, - 2 (2.1), + 2 (1.75), + 1
    assert scale.tolist() == [[pytest.approx(1 / 7)]]
    assert quantise(np.zeros((2, 40), dtype=np.float32), 8, 32)[0].shape == (2, 2, 32)


def test_the_block_divides_the_row_where_it_can():
    assert [block_size(columns, 8) for columns in (384, 256, 192, 96, 40)] == [128, 128, 64, 32, 32]
    assert block_size(384, 4) == 32


def mean_loss(engine, ids, context):
    """Nats a token over windows of a text."""
    windows = ids[: (len(ids) - 1) // context * context + 1]
    inputs, targets = windows[:-1].reshape(-1, context), windows[1:].reshape(-1, context)
    logits = engine.all_logits(inputs).astype(np.float64)
    logits -= np.logaddexp.reduce(logits, axis=2, keepdims=True)
    return -np.take_along_axis(logits, targets[:, :, None], axis=2).mean()


@pytest.mark.parametrize(("format", "allowed"), [("onnx-int8", 0.01), ("onnx-int4", 0.05)])
def test_rounded_weights_cost_little_on_a_real_text(trained_model, format, allowed, tmp_path):
    ids = trained_model.tokenizer.encode("<|endoftext|>".join(stories(60, seed=9))).astype(np.int64)
    for each in ("onnx", format):
        export(trained_model, each, tmp_path / "m")
    exact = mean_loss(OnnxEngine(tmp_path / "m.onnx"), ids, 64)
    rounded = mean_loss(OnnxEngine(tmp_path / f"m{format.replace('onnx-', '.')}.onnx"), ids, 64)
    assert exact < 2.2
    assert 0 < abs(rounded - exact) < allowed


def test_rounded_files_are_small(default_model, path, tmp_path):
    for format in ("onnx-int8", "onnx-int4"):
        export(default_model, format, tmp_path / "m")
    whole = path.stat().st_size
    assert (tmp_path / "m.int8.onnx").stat().st_size < 0.3 * whole
    assert (tmp_path / "m.int4.onnx").stat().st_size < 0.25 * whole


def test_a_mismatch_is_an_error_and_leaves_no_file(trained_model, tmp_path, monkeypatch):
    from slm.export import onnx as module

    right = module.weights

    def wrong(loaded):
        found = right(loaded)
        return {**found, "blocks.1.mlp.down.weight": found["blocks.1.mlp.down.weight"] * 1.01}

    export(trained_model, "onnx", tmp_path / "m")
    before = (tmp_path / "m.onnx").read_bytes()
    monkeypatch.setattr(module, "weights", wrong)
    for format in ("onnx", "onnx-int8"):
        monkeypatch.setattr(module, "TOLERANCE", {8: 1e-5})
        with pytest.raises(UserError, match=f"{format}: the exported model is not the same"):
            export(trained_model, format, tmp_path / "m")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == before


def says(path, capsys):
    """The one line with which `slm generate` refuses a file."""
    assert main(["generate", "--model_path", str(path), "--max_length", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("kept", [0, 1, 1000, -1000])
def test_a_truncated_file(path, kept, tmp_path, capsys):
    (tmp_path / "m.onnx").write_bytes(path.read_bytes()[:kept])
    assert "is not an ONNX model that can be opened" in says(tmp_path / "m.onnx", capsys)


def test_flipped_bits_never_end_in_a_traceback(tmp_path):
    """Flips in weights may stay unseen; all others are one line."""
    shape = ModelConfig(vocab_size=257, context_length=4, n_layer=1, n_head=1, n_embd=8)
    tokenizer = Tokenizer("bytes", [bytes([byte]) for byte in range(256)])
    export(Checkpoint(shape, GPT(shape).state_dict(), tokenizer, {}), "onnx", tmp_path / "m")
    whole, said = (tmp_path / "m.onnx").read_bytes(), []
    random = np.random.default_rng(0)
    for place, bit in zip(random.integers(len(whole), size=250), random.integers(8, size=250), strict=True):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(bit)
        (tmp_path / "damaged.onnx").write_bytes(damaged)
        try:
            engine = OnnxEngine(tmp_path / "damaged.onnx", threads=1)
            engine.prefill([np.array([1, 2])])
            engine.decode(np.array([3]))
        except UserError as error:
            said.append(str(error))
    assert len(said) > 20
    assert not [line for line in said if "\n" in line]


def test_the_file_ends_with_its_own_checksum(path, tmp_path, capsys):
    """An entry of the metadata like others, which stays true where a program saves the file as it was."""
    model = onnx.load(path)
    last = model.metadata_props[-1]
    assert last.key == "checksum"
    assert path.read_bytes()[-20:] == b"\x0a\x08checksum\x12\x08" + last.value.encode()
    onnx.save(model, tmp_path / "again.onnx")
    assert OnnxEngine(tmp_path / "again.onnx").facts == {"val": {"loss": 1.5}}
    model.graph.node[0].name = "another"
    onnx.save(model, tmp_path / "changed.onnx")
    assert "is damaged, or another program has changed it: export it again" in says(tmp_path / "changed.onnx", capsys)
    del model.metadata_props[-1]
    onnx.save(model, tmp_path / "without.onnx")
    assert "has lost its checksum, or is of an early version: export it" in says(tmp_path / "without.onnx", capsys)


def test_a_damaged_file_never_reaches_the_runtime(path, tmp_path, monkeypatch):
    """A damaged graph could end the process."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "m.onnx").write_bytes(content)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UserError, match="is damaged"):
        OnnxEngine(tmp_path / "m.onnx")


def foreign(path, names, **metadata):
    """An ONNX file that has nothing to do with ours."""
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [1, 2, 3, 4]) for name in names]
    output = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.INT64, [len(names), 2, 3, 4])
    nodes = [onnx.helper.make_node("Concat", names, ["logits"], axis=0)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", inputs, [output]),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=9,
    )
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


OURS = ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key"]


def test_a_graph_without_our_inputs(tmp_path, capsys):
    assert "its graph has no input attention_mask, past_key_values.0.key, position_ids" in says(
        foreign(tmp_path / "a.onnx", OURS[:1]), capsys
    )
    assert "has no input past_key_values.0.key" in says(foreign(tmp_path / "b.onnx", OURS[:3]), capsys)


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ({}, "holds no tokenizer"),
        ({"small-language-model": '{"version": 2}'}, "has format version 2; this program reads version 1"),
        ({"small-language-model": '{"version": 1}'}, "is damaged"),
        ({"small-language-model": "5"}, "is damaged"),
        ({"small-language-model": "{"}, "is damaged"),
    ],
)
def test_metadata_that_cannot_be_used(metadata, part, tmp_path, capsys):
    assert part in says(foreign(tmp_path / "m.onnx", OURS, **metadata), capsys)


def test_a_graph_whose_tokenizer_is_another(path, tmp_path, capsys):
    model = onnx.load(path)
    onnx.helper.set_model_props(model, describe(Tokenizer("b", [bytes([byte]) for byte in range(256)]), 128, {}))
    onnx.save(model, tmp_path / "m.onnx")
    assert "is damaged: ValueError: 50257 logits for 257 tokens" in says(tmp_path / "m.onnx", capsys)


def with_a_loop(model):
    """One whose body would be run 10^12 times."""
    true = onnx.helper.make_node("Identity", ["on"], ["on_"])
    scalar = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [true],
        "body",
        [scalar("i", onnx.TensorProto.INT64, []), scalar("on", onnx.TensorProto.BOOL, [])],
        [scalar("on_", onnx.TensorProto.BOOL, [])],
    )
    model.graph.node.append(onnx.helper.make_node("Loop", ["trips", ""], [], body=body))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(10**12), "trips"))


def with_gigabytes(model):
    model.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["shape"], ["large"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1 << 40]), "shape"))


def with_an_operator_of_another_domain(model):
    model.graph.node.append(onnx.helper.make_node("Add", ["a", "b"], ["c"], domain="evil"))


def with_a_graph_in_an_operator_of_ours(model):
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("body", onnx.helper.make_graph([], "g", [], [])))


def with_a_function(model):
    node = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    model.functions.append(onnx.helper.make_function("d", "Add", ["x"], ["y"], [node], model.opset_import))


def with_weights_elsewhere(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secret"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (with_a_loop, "an operator with a graph of its own"),
        (with_gigabytes, "the operator 'ConstantOfShape'"),
        (with_an_operator_of_another_domain, "the operator 'evil.Add'"),
        (with_a_graph_in_an_operator_of_ours, "an operator with a graph of its own"),
        (with_a_function, "functions of its own"),
        (with_weights_elsewhere, "weights in another file"),
    ],
)
def test_a_graph_with_what_no_export_writes_never_reaches_the_runtime(change, part, path, tmp_path, monkeypatch):
    """It is sealed like ours: whoever makes such a file can do that, too."""
    model = onnx.load(path)
    del model.metadata_props[-1]
    change(model)
    onnx.save(model, tmp_path / "m.onnx")
    seal(tmp_path / "m.onnx")
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UserError, match="is no model of this project: its graph has") as error:
        OnnxEngine(tmp_path / "m.onnx")
    assert part in str(error.value)


def test_no_file(tmp_path, capsys):
    assert "no model" in says(tmp_path / "none.onnx", capsys)


def test_a_model_too_large_for_one_file_is_refused(trained_model, tmp_path, monkeypatch):
    from slm.export import onnx as module

    monkeypatch.setattr(module, "LARGEST", 10_000)
    with pytest.raises(UserError, match=r"one file holds .*: take onnx-int8"):
        export(trained_model, "onnx", tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_byte_tokenizer_travels_in_the_file(tmp_path):
    shape = ModelConfig(vocab_size=257, context_length=4, n_layer=1, n_head=1, n_embd=8)
    tokenizer = Tokenizer("bytes", [bytes([255 - n]) for n in range(256)])
    export(Checkpoint(shape, GPT(shape).state_dict(), tokenizer, {}), "onnx-int8", tmp_path / "m")
    assert OnnxEngine(tmp_path / "m.int8.onnx").tokenizer.encode("é").tolist() == [255 - 0xC3, 255 - 0xA9]
