"""GGUF: what is in the file, and that llama.cpp reads the same tokens and chooses the same ones."""

import contextlib
import dataclasses
import io
import sys

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize

from slm.checkpoint.file import Checkpoint
from slm.config.model import ModelConfig
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.export import gguf
from slm.export.command import export
from slm.export.parts import weights
from slm.model.gpt import GPT

FORMATS = ["gguf", "gguf-q8_0"]
BLOCK = {
    "attention_norm": "attn_norm",
    "attention.qkv": "attn_qkv",
    "attention.projection": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
TEXTS = [
    " ", "   ", "a  b   c ", "trailing  ", "\n\n\n a\n", "\t\tx\r\n y", "I'll we've it's don't", "'S 'LL ''ll 're",
    "日本語 テスト", "🙂👩‍👩‍👧 🇫🇷", "é e\u0301 ñ", "\u00a0\u3000 x\u2003\u2028", "12345 3.14 ½ ² Ⅷ", "مرحبا हिन्दी",
    "a\x00b\x85\x1c", "\ufeff\u200b\u200d", "<|endoftext|>Once<|endoftext|>", "<|endoftext", "__init__(*args)==!=",
]  # fmt: skip


@contextlib.contextmanager
def llama(path):
    """The model in llama.cpp, whose notices are kept from the terminal."""
    llama_cpp = pytest.importorskip("llama_cpp")
    if gguf._llama_logits(path, np.zeros((1, 4), dtype=np.int64)) is None:
        pytest.skip("llama.cpp itself crashes on this machine with such a file")
    with contextlib.redirect_stderr(io.StringIO()):
        model = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False)
        yield model
        model.close()


def altered(loaded):
    """`loaded` with one weight changed."""
    name = "blocks.1.mlp.up.weight"
    weight = loaded.weights[name].clone()
    weight[3, 5] += 0.1
    return dataclasses.replace(loaded, weights={**loaded.weights, name: weight})


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_holds_every_weight_as_llama_cpp_names_it(each_model, tmp_path, format):
    path = tmp_path / "m.gguf"
    gguf.write(each_model, path, format)
    ours = weights(each_model)
    names = {"token_embd": "token_embedding", "position_embd": "position_embedding", "output_norm": "final_norm"}
    for n in range(each_model.config.n_layer):
        names |= {f"blk.{n}.{theirs}": f"blocks.{n}.{our}" for our, theirs in BLOCK.items()}
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    assert len(tensors) == len(ours)
    for name, tensor in tensors.items():
        module, role = name.rsplit(".", 1)
        expected = ours[f"{names[module]}.{role}"]
        actual = dequantize(tensor.data, tensor.tensor_type)
        matrix = expected.ndim == 2 and module != "position_embd"
        if not matrix:
            assert tensor.tensor_type.name == "F32"
            np.testing.assert_array_equal(actual, expected)
        elif format == "gguf" or expected.shape[1] % 32:
            assert tensor.tensor_type.name == "F16"
            np.testing.assert_array_equal(actual, expected.astype(np.float16))
        else:
            assert tensor.tensor_type.name == "Q8_0"
            blocks = np.abs(expected).reshape(-1, 32)
            assert (np.abs(actual - expected).reshape(-1, 32) <= 0.6 * blocks.max(1, keepdims=True) / 127).all()


def test_the_file_says_what_the_model_is(trained_model, tmp_path):
    gguf.write(trained_model, tmp_path / "m.gguf", "gguf-q8_0")
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "m.gguf").fields.items()}
    expected = {
        "general.architecture": "gpt2",
        "general.description": "text: built-in stories; step: 300",
        "general.file_type": 7,  # LLAMA_FTYPE_MOSTLY_Q8_0 in llama.h
        "gpt2.context_length": 64,
        "gpt2.embedding_length": 64,
        "gpt2.block_count": 2,
        "gpt2.feed_forward_length": 256,
        "gpt2.attention.head_count": 4,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 399,
        "tokenizer.ggml.eos_token_id": 399,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.token_type": [1] * 399 + [3],  # normal, and control
    }
    assert {name: fields[name] for name in expected} == expected
    assert fields["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert fields["tokenizer.ggml.tokens"] == trained_model.tokenizer.printable()
    assert fields["tokenizer.ggml.tokens"][0] == "!"
    assert fields["tokenizer.ggml.merges"][:2] == ["Ġ t", "Ġ a"]
    assert len(fields["tokenizer.ggml.merges"]) == 400 - 257


def test_llama_cpp_reads_the_same_tokens(each_model, tmp_path):
    gguf.write(each_model, tmp_path / "m.gguf", "gguf")
    end = each_model.tokenizer.end_of_text
    with llama(tmp_path / "m.gguf") as model:
        for text in TEXTS:
            ours = each_model.tokenizer.encode(text).tolist()
            assert model.tokenize(text.encode(), add_bos=False, special=True) == ours, text
            assert model.detokenize(ours, special=True).decode() == text
        assert model.tokenize(b"Once") == [end, *each_model.tokenizer.encode("Once")]
        assert model.token_eos() == end


@pytest.mark.parametrize(("format", "lead"), [("gguf", 0.05), ("gguf-q8_0", 0.5)])
def test_llama_cpp_chooses_our_tokens_where_rounding_cannot_decide(trained_model, tmp_path, format, lead):
    """Token by token along the story that we write greedily: wherever our first choice leads by so many nats."""
    gguf.write(trained_model, tmp_path / "m.gguf", format)
    ours, tokenizer = trained_model.model(), trained_model.tokenizer
    ids = [tokenizer.end_of_text, *tokenizer.encode("Once upon a time").tolist()]
    sure = 0
    with llama(tmp_path / "m.gguf") as model, torch.inference_mode():
        model.eval(ids)
        while len(ids) < 60:
            logits = ours(torch.tensor([ids]))[0, -1]
            first, second = logits.topk(2).values
            if first - second > lead:
                assert model.scores[model.n_tokens - 1].argmax() == logits.argmax(), tokenizer.decode(ids)
                sure += 1
            ids.append(int(logits.argmax()))
            model.eval(ids[-1:])
    assert sure > 20


@pytest.mark.parametrize("format", FORMATS)
def test_export_tries_the_file_in_silence(each_model, tmp_path, capfd, format):
    pytest.importorskip("llama_cpp")
    said = export(each_model, format, tmp_path / "m")
    ending = {"gguf": ".gguf", "gguf-q8_0": ".q8_0.gguf"}[format]
    assert said.startswith(f"{format:12} {tmp_path / 'm'}{ending} (")
    crashed = "not compared, as llama.cpp crashes on this machine with such a file"  # Q8_0 on CPUs with AMX
    assert " tensors read back; matches PyTorch" in said or (format == "gguf-q8_0" and said.endswith(crashed))
    assert "\n" not in said
    assert capfd.readouterr() == ("", "")


def test_without_llama_cpp_the_tensors_are_still_compared(trained_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    assert export(trained_model, "gguf", tmp_path / "m").endswith(
        ": 28 tensors read back; not run, as llama_cpp is not installed"
    )


def test_a_crash_of_llama_cpp_does_not_end_the_export(trained_model, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp")
    monkeypatch.setattr(gguf, "_LLAMA", "import os; os.abort()")
    said = export(trained_model, "gguf", tmp_path / "m")
    assert said.endswith("28 tensors read back; not compared, as llama.cpp crashes on this machine with such a file")
    assert (tmp_path / "m.gguf").exists()


def test_without_gguf_the_mend_is_named(trained_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(
        UserError, match=r"^gguf needs the Python package 'gguf', which is not installed: python -m pip install gguf$"
    ):
        export(trained_model, "gguf", tmp_path / "m")


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_with_a_wrong_weight_is_not_kept(trained_model, tmp_path, monkeypatch, format):
    write = gguf.write
    monkeypatch.setattr(gguf, "write", lambda loaded, *where: write(altered(loaded), *where))
    with pytest.raises(UserError, match=r"not the same: blk\.1\.ffn_up\.weight is off by 0\.(1|099)"):
        export(trained_model, format, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_weight_that_fp16_cannot_hold_is_refused(trained_model, tmp_path):
    large = {"token_embedding.weight": trained_model.weights["token_embedding.weight"] * 1e6}
    with pytest.raises(UserError, match=r"token_embd\.weight is off by inf, more than F16"):
        export(dataclasses.replace(trained_model, weights={**trained_model.weights, **large}), "gguf", tmp_path / "m")


def test_a_vocabulary_of_bytes_alone(tmp_path):
    shape = ModelConfig(vocab_size=257, context_length=1, n_layer=1, n_head=1, n_embd=6)
    tokenizer = Tokenizer("bytes", [bytes([byte]) for byte in range(256)])
    gguf.write(Checkpoint(shape, GPT(shape).state_dict(), tokenizer, {}), tmp_path / "m.gguf", "gguf-q8_0")
    with llama(tmp_path / "m.gguf") as model:
        assert model.tokenize(b" the") == [256, 32, 116, 104, 101]
