"""Files that were cut short, or changed in a bit or a stretch: found out, made again, or the same as before.

`pytest tests/test_damage.py -m slow -s` tries a thousand of each kind of file, and prints what came of them.
"""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from slm.checkpoint import file as checkpoint
from slm.checkpoint import transformers as pretrained
from slm.checkpoint.file import Checkpoint
from slm.config.model import ModelConfig
from slm.config.train import DataConfig
from slm.data.corpus import prepare
from slm.data.source import END_OF_TEXT
from slm.data.stories import stories
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.export import huggingface
from slm.export.command import export
from slm.inference.onnx_engine import OnnxEngine
from slm.model.gpt import GPT

SHAPE = ModelConfig(vocab_size=260, context_length=8, n_layer=2, n_head=2, n_embd=16)
TOKENIZER = Tokenizer("toy", [*(bytes([byte]) for byte in range(256)), b"ab", b" a", b"abab"])


def damaged(content, random):
    """`content` cut short, with one bit changed, or with up to a tenth of it zeros; half the time near its end.

    There an archive has its table, and other files their checksum.
    """
    place = int(random.integers(random.choice([0, len(content) * 9 // 10]), len(content)))
    match random.choice(["cut", "bit", "zeros"]):
        case "cut":
            return content[:place]
        case "bit":
            changed = content[place] ^ 1 << int(random.integers(8))
            return content[:place] + bytes([changed]) + content[place + 1 :]
        case _:
            end = min(len(content), place + int(random.integers(1, max(2, len(content) // 10))))
            return content[:place] + bytes(end - place) + content[end:]


def plain(value):
    """A loaded thing as values that compare bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.fixture(params=[100, pytest.param(1000, marks=pytest.mark.slow)])
def count(request):
    """Damages of each kind of file."""
    return request.param


def try_damages(kind, files, load, count):
    """Damage one of `files` after another, `count` times, and `load`: an error of one line, or the same as before."""
    random = np.random.default_rng(0)
    whole = {file: file.read_bytes() for file in files}
    expected, came = load(), Counter()
    for _ in range(count):
        file = files[random.integers(len(files))]
        content = damaged(whole[file], random)
        file.write_bytes(content)
        found, said = None, ""
        try:
            found = load()
        except UserError as error:
            said = str(error)
        if said:
            assert "\n" not in said
            assert (str(file) in said) or (str(file.parent) in said and file.name in said)
            came["refused"] += 1
        else:
            assert found == expected, f"{file.name} was damaged, and something else was loaded"
            came["made again" if file.read_bytes() != content else "without effect"] += 1
        for each, its_content in whole.items():
            if each.read_bytes() != its_content:
                each.write_bytes(its_content)
    print(f"{kind:20} {count:,} damages: {', '.join(f'{times:,} {what}' for what, times in sorted(came.items()))}")
    return came


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Checkpoint(SHAPE, GPT(SHAPE).state_dict(), TOKENIZER, {"val": {"loss": 1.5}, "text": "a text"})


@pytest.mark.parametrize("name", ["best_model.pt", "last.pt"])
def test_checkpoints(model, name, count, tmp_path):
    path = tmp_path / name
    moments = {"state": {0: {"exp_avg": torch.randn(64, 16), "step": torch.tensor(5.0)}}, "param_groups": [{"lr": 0.1}]}
    training = {"state": {"step": 5, "rows": [{"loss": 2.5}]}, "optimizers": [moments]} if name == "last.pt" else None
    checkpoint.save(path, Checkpoint(SHAPE, model.weights, TOKENIZER, model.facts, training))

    def load():
        loaded = checkpoint.load(path)
        return plain(
            [loaded.config, loaded.weights, loaded.tokenizer.to_state(), loaded.facts, loaded.training]
        )  # fmt: skip

    assert try_damages(name, [path], load, count)["refused"] > count / 2


def test_no_field_of_an_archive_is_trusted(model, tmp_path):
    """PyTorch reads a record with the attribute of a folder as one without content."""
    path = tmp_path / "best_model.pt"
    checkpoint.save(path, Checkpoint(SHAPE, model.weights, TOKENIZER, {}))
    whole = path.read_bytes()
    entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"/data/3"))
    path.write_bytes(whole[: entry + 38] + b"\x10" + whole[entry + 39 :])
    with pytest.raises(UserError, match="may be truncated or damaged"):
        checkpoint.load(path)


@pytest.mark.slow
def test_each_bit_of_an_archives_table(model, tmp_path):
    """That of the last entries, and of what says where the table is: refused, or the same weights."""
    path = tmp_path / "best_model.pt"
    checkpoint.save(path, Checkpoint(SHAPE, model.weights, TOKENIZER, {}))
    whole, expected, came = path.read_bytes(), plain(checkpoint.load(path).weights), Counter()
    for place in range(len(whole) - 300, len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            try:
                found = plain(checkpoint.load(path).weights)
            except UserError:
                came["refused"] += 1
                continue
            assert found == expected, f"bit {bit} of byte {place - len(whole)} from the end"
            came["without effect"] += 1
    assert came["refused"] > 1000
    assert came["without effect"] > 100


def test_pickled_weights_from_transformers(model, count, tmp_path):
    huggingface.write(model, tmp_path / "model", "huggingface")
    weights = tmp_path / "model" / "pytorch_model.bin"
    torch.save(pretrained._weights(str(tmp_path / "model")), weights)
    (tmp_path / "model" / "model.safetensors").unlink()
    came = try_damages(weights.name, [weights], lambda: plain(pretrained.load(str(tmp_path / "model")).weights), count)
    assert came["refused"] > count / 2


@pytest.mark.parametrize("format", ["onnx", "onnx-int8", "onnx-int4"])
def test_onnx(model, format, count, tmp_path):
    export(model, format, tmp_path / "m")
    (path,) = tmp_path.iterdir()

    def load():
        engine = OnnxEngine(path, threads=1)
        logits = [engine.prefill([np.array([1, 2, 259])]), engine.decode(np.array([3]))]
        return plain([*logits, engine.tokenizer.to_state(), engine.facts, engine.context_length])

    came = try_damages(path.name, [path], load, count)
    assert came["refused"] > 0.9 * count


def test_token_files(count, tmp_path):
    (tmp_path / "text.txt").write_text(END_OF_TEXT.join(stories(40)))
    config = DataConfig(str(tmp_path / "text.txt"), val_fraction=0.2, cache_dir=str(tmp_path / "cache"))

    def load():
        corpus = prepare(config, TOKENIZER.vocab_size, TOKENIZER)
        splits = [[split.ids, split.documents, split.text_bytes] for split in (corpus.train, corpus.val)]
        return plain([*splits, corpus.tokenizer.to_state(), corpus.fingerprint])

    load()
    files = sorted((tmp_path / "cache").glob("*/*"))
    assert len(files) == 6
    assert json.loads((files[0].parent / "train.json").read_text())["dtype"] == "uint16"
    came = try_damages("token files", files, load, count)
    assert came["made again"] > 0.9 * count
    assert "refused" not in came
