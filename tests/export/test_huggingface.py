"""The folder for transformers: the same logits, tokens and greedy text there, and a card of what was measured."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.checkpoint.file import Checkpoint
from slm.config.model import ModelConfig
from slm.data.stories import stories
from slm.data.tokenizer import train_bpe
from slm.errors import UserError
from slm.export import huggingface, onnx
from slm.export.command import export
from slm.model.gpt import GPT

transformers = pytest.importorskip("transformers")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

AWKWARD = [
    "",
    " ",
    "\n",
    "Hello world",
    "we're they'll I'd she's it'T 'S ' s",
    "a  b   c    \t\t d \r\n\r\n e \n\n\n",
    "x\x00y\x1f\x7f\x85\u00a0\u2028\u3000z",
    "Zoe\u0308 a\u0301\u0301 ﬁ ½ ٣ Ⅷ 1e10 ３",
    "日本語 한국어 ภาษาไทย हिन्दी עברית",
    "👍🏽👩‍👩‍👧‍👦🇪🇺 \ufeff\u200d\U000e0067",
    "<|endoftext|>",
    "one<|endoftext|>two <|endoftext|> <|endoftext|><|endoftext|>\n",
    "<|endoftext| > <|end",
]
SAMPLE = {"loss": 1.23456, "accuracy": 0.4567, "bits_per_byte": 0.789, "tokens": 12345}


def in_transformers(folder):
    return (
        transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval(),
        transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True),
    )


@pytest.fixture(scope="module")
def written():
    """kind of model -> what transformers loads of it."""
    return {}


@pytest.fixture
def theirs(each_model, written, request, tmp_path):
    """The model and tokenizer that transformers loads of `each_model`'s export."""
    kind = request.node.callspec.params["each_model"]
    if kind not in written:
        huggingface.write(each_model, tmp_path / "out", "huggingface")
        written[kind] = in_transformers(tmp_path / "out")
    return written[kind]


@torch.inference_mode()
def test_the_logits_are_the_same_over_the_whole_context(each_model, theirs):
    shape = each_model.config
    ids = torch.from_numpy(np.random.default_rng(1).integers(shape.vocab_size, size=(2, shape.context_length)))
    torch.testing.assert_close(theirs[0](ids).logits, each_model.model()(ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_has_the_same_tokens_and_comes_back(each_model, theirs, text):
    ids = each_model.tokenizer.encode(text).tolist()
    assert theirs[1](text)["input_ids"] == ids
    assert theirs[1].decode(ids) == text
    assert theirs[1].decode(ids, skip_special_tokens=True) == each_model.tokenizer.decode(ids)


@torch.inference_mode()
def test_greedy_text_is_the_same(each_model, theirs):
    model, end = each_model.model(), each_model.tokenizer.end_of_text
    prompt = [end, *each_model.tokenizer.encode("Once upon a time").tolist()]
    expected = torch.tensor([prompt])
    for _ in range(each_model.config.context_length - len(prompt)):
        expected = torch.cat([expected, model(expected)[:, -1:].argmax(-1)], dim=1)
        if expected[0, -1] == end:
            break
    actual = theirs[0].generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=expected.size(1) - len(prompt))
    assert actual.tolist() == expected.tolist()


@torch.inference_mode()
def test_a_batch_of_prompts_is_padded_and_continued_as_each_alone(theirs):
    model, tokenizer = theirs
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("<|endoftext|>", "left")
    prompts, how = ["One", "Once upon a time, there was"], {"do_sample": False, "max_new_tokens": 5}
    together = model.generate(**tokenizer(prompts, padding=True, return_tensors="pt"), **how)[:, -5:]
    for prompt, found in zip(prompts, together, strict=True):
        assert found.tolist() == model.generate(**tokenizer(prompt, return_tensors="pt"), **how)[0, -5:].tolist()


def test_the_pipeline_with_its_defaults_ends_with_the_context(trained_model, tmp_path):
    huggingface.write(trained_model, tmp_path / "out", "huggingface")
    write = transformers.pipeline("text-generation", model=str(tmp_path / "out"), device="cpu")
    (found,) = write("Once upon a time")
    assert found["generated_text"].startswith("Once upon a time")
    context = trained_model.config.context_length
    assert 4 < len(trained_model.tokenizer.encode(found["generated_text"])) <= context
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["max_length"] == context


@pytest.fixture(scope="module")
def tokenizers(trained_model, tmp_path_factory):
    """Pairs of our tokenizer and transformers': a cut one, and one trained here."""
    pytest.importorskip("tokenizers")
    pairs = []
    for ours in (trained_model.tokenizer, train_bpe(stories(200), 700)):
        shape = ModelConfig(ours.vocab_size, context_length=8, n_layer=1, n_head=1, n_embd=4)
        folder = tmp_path_factory.mktemp("tokenizer") / "out"
        huggingface.write(Checkpoint(shape, GPT(shape).state_dict(), ours, {}), folder, "huggingface")
        pairs.append((ours, in_transformers(folder)[1]))
    return pairs


# A character without a category is newer than Python's tables, and the libraries' tables may differ in age too.
WORDS = st.sampled_from(
    ["<|endoftext|>", " the", "ing", "'s", "'ll", " ", "  ", "\n", "\r\n", "\t", "2024", "é", "e\u0301"]
)
TEXT = st.lists(WORDS | st.text(st.characters(exclude_categories=["Cs", "Cn"]))).map("".join)


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_any_text_has_the_same_tokens(tokenizers, text):
    for ours, theirs in tokenizers:
        ids = ours.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 398)))
def test_any_ids_have_the_same_text(tokenizers, ids):
    """Also where bytes form no character."""
    for ours, theirs in tokenizers:
        assert theirs.decode(ids) == ours.decode(ids)


@pytest.mark.parametrize("text", AWKWARD)
def test_tokenizer_json_alone_says_it_all(trained_model, text):
    """transformers reads no more than the vocabulary and the merges of it; others read the rest."""
    tokenizers = pytest.importorskip("tokenizers")
    alone = tokenizers.Tokenizer.from_str(json.dumps(huggingface.tokenizer_json(trained_model.tokenizer)))
    ids = trained_model.tokenizer.encode(text).tolist()
    assert alone.encode(text).ids == ids
    assert alone.decode(ids, skip_special_tokens=False) == text
    assert alone.decode(ids) == trained_model.tokenizer.decode(ids)


def test_vocab_and_merges_for_older_tools_say_the_same(trained_model, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    huggingface.write(trained_model, tmp_path / "out", "huggingface")
    old = tokenizers.Tokenizer(
        tokenizers.models.BPE.from_file(str(tmp_path / "out" / "vocab.json"), str(tmp_path / "out" / "merges.txt"))
    )
    old.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = " ".join(stories(5)) + "日本"
    assert old.encode(text).ids == trained_model.tokenizer.encode(text).tolist()
    assert old.token_to_id("<|endoftext|>") == 399


def test_the_output_layer_is_stored_once_and_the_files_can_be_read_by_others(trained_model, tmp_path):
    huggingface.write(trained_model, tmp_path / "out", "huggingface")
    tensors = safetensors_numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert len(tensors) == 2 + 2 * 12 + 2
    assert tensors["transformer.h.1.mlp.c_fc.weight"].shape == (64, 256)
    assert sum(tensor.size for tensor in tensors.values()) == sum(p.numel() for p in trained_model.model().parameters())
    (tmp_path / "ordinary").touch()
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len(files) == 10
    assert {file.stat().st_mode for file in files} == {(tmp_path / "ordinary").stat().st_mode}


def card(loaded, folder):
    huggingface.write(loaded, folder, "huggingface")
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_holds_what_was_measured(trained_model, tmp_path):
    facts = {
        "step": 300,
        "tokens_seen": 5000,
        "text": "my\nstories",
        "val": SAMPLE,
        "train": {"loss": 1.1, "accuracy": None},
    }
    text = card(dataclasses.replace(trained_model, facts=facts), tmp_path / "out")
    assert "| validation | 1.2346 | 45.7% | 0.7890 | 12,345 |" in text
    assert "| training | 1.1000 |  |  |  |" in text
    assert "- Text: my stories\n- Optimizer steps: 300\n- Tokens seen in training: 5000\n" in text
    assert "- Parameters: 129,792\n" in text


def test_a_card_without_facts_has_no_table(trained_model, tmp_path):
    assert "|---|" not in card(dataclasses.replace(trained_model, facts={}), tmp_path / "1")
    assert "|---|" not in card(dataclasses.replace(trained_model, facts={"val": 5, "train": None}), tmp_path / "2")


def test_the_usage_on_the_card_runs(trained_model, tmp_path, monkeypatch, capsys):
    (code,) = re.findall("```python\n(.*?)```", card(trained_model, tmp_path / "out"), re.DOTALL)
    assert len(code.splitlines()) == 3
    monkeypatch.chdir(tmp_path / "out")
    exec(code, {})
    assert capsys.readouterr().out.startswith("<|endoftext|>Once upon a time")


def test_the_export_is_tried(each_model, tmp_path):
    line = export(each_model, "huggingface", tmp_path / "model")
    assert re.search(r"model-huggingface \([\d.]+ MB\): matches PyTorch, the same tokens of 7 texts", line)
    assert [path.name for path in tmp_path.iterdir()] == ["model-huggingface"]


def test_a_model_too_large_for_one_onnx_file_is_written_without(trained_model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "LARGEST", 10_000)
    line = export(trained_model, "huggingface", tmp_path / "model")
    assert line.endswith("the same tokens of 7 texts; too large for transformers.js, so without onnx/")
    assert not (tmp_path / "model-huggingface/onnx").exists()


def with_weights(change):
    def tamper(folder):
        tensors = safetensors_numpy.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors_numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return tamper


def wrong_bias(tensors):
    tensors["transformer.h.1.mlp.c_fc.bias"][3] += 0.5


def wrong_shape(tensors):
    tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"][:-1].copy()


def wrong_merges(folder):
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["merges"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def wrong_graph(folder):
    other = GPT(ModelConfig(400, context_length=64, n_layer=2, n_head=4, n_embd=64)).state_dict()
    loaded = Checkpoint(ModelConfig(400, 64, 2, 4, 64), other, train_bpe(stories(200), 400), {})
    onnx.write(loaded, folder / "onnx/model_quantized.onnx", "web")


def no_special_token(folder):
    for file in folder.glob("*token*"):
        file.write_text(file.read_text(encoding="utf-8").replace("<|endoftext|>", "<|end|>"), encoding="utf-8")


@pytest.mark.parametrize(
    ("tamper", "part"),
    [
        (with_weights(wrong_bias), "the exported model is not the same: its logits differ by"),
        (with_weights(wrong_shape), "transformers cannot load it"),
        (wrong_graph, "the exported model is not the same: it diverges by"),
        (wrong_merges, "the exported tokenizer is not the same"),
        (no_special_token, "the exported tokenizer is not the same: it has other tokens for 'The end.<|endoftext|>"),
    ],
)
def test_what_is_not_the_same_is_refused_and_nothing_stays(trained_model, tmp_path, monkeypatch, tamper, part):
    write = huggingface.write

    def tampered(loaded, path, format):
        write(loaded, path, format)
        tamper(path)

    monkeypatch.setattr(huggingface, "write", tampered)
    with pytest.raises(UserError) as error:
        export(trained_model, "huggingface", tmp_path / "model")
    (problem,) = error.value.problems
    assert problem.startswith("huggingface: ")
    assert part in problem
    assert "\n" not in problem
    assert list(tmp_path.iterdir()) == []


def test_without_transformers_it_is_written_untried(trained_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "not tried, as transformers is not installed" in export(trained_model, "huggingface", tmp_path / "model")


def test_without_safetensors_the_mend_is_named(trained_model, tmp_path, monkeypatch):
    for module in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="python -m pip install safetensors"):
        export(trained_model, "huggingface", tmp_path / "model")
