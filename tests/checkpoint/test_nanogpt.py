"""nanoGPT's ckpt.pt: the same text from it here as there."""

import pickle
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import slm
from slm.checkpoint import nanogpt
from slm.checkpoint.open import model_config, open_model
from slm.cli import main
from slm.config.formats import EXPORT_FORMATS
from slm.errors import UserError
from slm.export.command import export

C, H, T, LAYERS, ROWS = 8, 2, 16, 2, 50_304
IDS = torch.tensor([[5, 50_256, 31, 7, 5], [0, 1, 2, 50_000, 4]])


class Net(nn.Module):
    """A network with the names and shapes that nanoGPT's has, and its exact GELU, unless `gelu` says another."""

    def __init__(self, bias, rows=ROWS, gelu="none"):
        super().__init__()
        self.gelu = gelu

        def block():
            attention = nn.ModuleDict({"c_attn": nn.Linear(C, 3 * C, bias), "c_proj": nn.Linear(C, C, bias)})
            mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C, bias), "c_proj": nn.Linear(4 * C, C, bias)})
            norms = {f"ln_{n}": nn.LayerNorm(C, bias=bias) for n in (1, 2)}
            return nn.ModuleDict({**norms, "attn": attention, "mlp": mlp})

        parts = {"wte": nn.Embedding(rows, C), "wpe": nn.Embedding(T, C), "ln_f": nn.LayerNorm(C, bias=bias)}
        self.transformer = nn.ModuleDict({**parts, "h": nn.ModuleList(block() for _ in range(LAYERS))})
        self.lm_head = nn.Linear(C, rows, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, ids):
        net = self.transformer
        x = net["wte"](ids) + net["wpe"](torch.arange(ids.size(1)))
        for block in net["h"]:
            q, k, v = (
                part.unflatten(-1, (H, C // H)).transpose(1, 2)
                for part in block["attn"]["c_attn"](block["ln_1"](x)).split(C, dim=-1)
            )
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + block["attn"]["c_proj"](seen)
            x = x + block["mlp"]["c_proj"](F.gelu(block["mlp"]["c_fc"](block["ln_2"](x)), approximate=self.gelu))
        return self.lm_head(net["ln_f"](x))


def written(path, bias=True, prefix="", rows=ROWS, gelu="none", **changes):
    """A checkpoint as nanoGPT's train.py saves it, and its network."""
    torch.manual_seed(0)
    net = Net(bias, rows, gelu).eval()
    for name, parameter in net.named_parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 0.1)
        if "ln_" in name and name.endswith("weight"):
            nn.init.normal_(parameter, mean=1, std=0.1)
    arguments = {"n_layer": LAYERS, "n_head": H, "n_embd": C, "block_size": T, "bias": bias, "vocab_size": rows}
    content = {
        "model": {prefix + name: weight for name, weight in net.state_dict().items()},
        "optimizer": torch.optim.AdamW(net.parameters()).state_dict(),
        "model_args": {**arguments, "dropout": 0.1, **changes},
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "openwebtext", "wandb_log": False},
    }
    torch.save(content, path)
    return net


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_the_logits_are_those_of_its_network(tmp_path, bias, prefix):
    net = written(tmp_path / "ckpt.pt", bias, prefix)
    loaded = open_model(tmp_path / "ckpt.pt")
    with torch.inference_mode():
        expected, found = net(IDS)[..., :50_257], loaded.model()(IDS)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)  # the two forms of GELU
    assert (found.argmax(-1) == expected.argmax(-1)).all()
    assert (loaded.config.vocab_size, loaded.config.dropout) == (50_257, 0.1)
    assert model_config(tmp_path / "ckpt.pt") == loaded.config
    assert loaded.facts == {"text": "imported from ckpt.pt, which nanoGPT trained for 2000 steps"}


def test_the_command_writes_a_checkpoint_of_ours(tmp_path, capsys):
    written(tmp_path / "ckpt.pt")
    assert main(["import", str(tmp_path / "ckpt.pt"), "--out_dir", str(tmp_path / "out")]) == 0
    assert "vocabulary of 50,257" in capsys.readouterr().out
    assert not nanogpt.is_one(tmp_path / "out/best_model.pt")
    assert open_model(tmp_path / "out/best_model.pt").config == open_model(tmp_path / "ckpt.pt").config


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"vocab_size": 65}, "its 65 tokens are not GPT-2's, and single letters must be fewer than its width of 8"),
        ({"vocab_size": 5}, "it has 5 tokens, so its letters are in nanoGPT's data folder: copy the meta.pkl there to"),
        ({"n_layer": 3}, "the weight 'h.2.ln_1.weight' is missing"),
        ({"n_layer": 1}, "there is no place for the weight 'h.1."),
        ({"n_head": 3}, "n_embd 8 is not divisible by"),
        ({"n_embd": "8"}, "its model_args are"),
        ({"block_size": 10**12}, "its model_args are"),
        ({"block_size": 17}, "the weight 'wpe.weight' is missing, or has another shape than (17, 8)"),
    ],
)
def test_what_is_not_taken_is_one_line(tmp_path, changes, part):
    written(tmp_path / "ckpt.pt", **changes)
    with pytest.raises(UserError) as error:
        open_model(tmp_path / "ckpt.pt")
    assert part in str(error.value)
    assert str(error.value).startswith(f"cannot import {tmp_path / 'ckpt.pt'}: ")


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


def test_code_in_it_never_runs(tmp_path):
    marks = {"model_args": 1, "iter_num": 2, "best_val_loss": 3, "model": Evil()}
    torch.save(marks, tmp_path / "ckpt.pt", pickle_module=pickle)
    with pytest.raises(UserError, match="hold code, none of which was run"):
        open_model(tmp_path / "ckpt.pt")


def test_other_files_are_none(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04 model_args iter_num best_val_loss")
    assert not nanogpt.is_one(tmp_path / "a.pt")
    assert not nanogpt.is_one(tmp_path / "none.pt")
    assert not nanogpt.is_one(tmp_path)


# --- Models of single letters ---

CLOSE = {"rtol": 0, "atol": 1e-4}
LETTERS = "\nab é日😀"
TEXT = "ba\né 😀日aab é"


def meta(folder, protocol=4, **changes):
    """A meta.pkl as nanoGPT's prepare.py writes it."""
    content = {"vocab_size": len(LETTERS), "itos": dict(enumerate(LETTERS))}
    content["stoi"] = {letter: row for row, letter in content["itos"].items()}
    (folder / "meta.pkl").write_bytes(pickle.dumps({**content, **changes}, protocol))


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """The path of a model of 7 letters, and its network, of our GELU so that logits are equal."""
    folder = tmp_path_factory.mktemp("letters")
    meta(folder)
    return folder / "ckpt.pt", written(folder / "ckpt.pt", rows=7, gelu="tanh")


def theirs(net, ids):
    with torch.inference_mode():
        return net(torch.tensor([ids]))[0]


def places(tokenizer):
    """The id of each letter, and of all tokens that are none."""
    of_letters = [tokenizer.tokens.index(letter.encode()) for letter in LETTERS]
    return of_letters, [id for id in range(tokenizer.vocab_size) if id not in of_letters]


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_letters_have_their_logits_and_nothing_else_comes_near(tmp_path, bias, protocol):
    net = written(tmp_path / "ckpt.pt", bias, rows=7, gelu="tanh")
    meta(tmp_path, protocol)
    loaded = open_model(tmp_path / "ckpt.pt")
    of_letters, others = places(loaded.tokenizer)
    # Bytes, the beginnings of 日 and 😀 with the letters of several bytes themselves, and the end of text.
    assert loaded.config.vocab_size == 256 + 1 + 2 + 3 + 1
    ids = loaded.tokenizer.encode(TEXT).tolist()
    assert [of_letters.index(id) for id in ids] == [LETTERS.index(letter) for letter in TEXT]
    assert loaded.tokenizer.decode(ids) == TEXT
    with torch.inference_mode():
        found = loaded.model()(torch.tensor([ids]))[0]
    torch.testing.assert_close(found[:, of_letters], theirs(net, [LETTERS.index(letter) for letter in TEXT]), **CLOSE)
    newline = found[:, of_letters[:1]]
    assert ((newline - found[:, others]) > 0.75 * nanogpt.BELOW).all()


@pytest.mark.parametrize("size", [0.01, 1, 50])
def test_whatever_the_weights_no_other_token_ever_wins(tmp_path, size):
    net = written(tmp_path / "ckpt.pt", rows=7)
    content = torch.load(tmp_path / "ckpt.pt")
    content["model"]["transformer.ln_f.weight"] *= size
    content["model"]["transformer.ln_f.bias"] += size
    torch.save(content, tmp_path / "ckpt.pt")
    meta(tmp_path)
    loaded = open_model(tmp_path / "ckpt.pt")
    net.load_state_dict(content["model"])
    of_letters, others = places(loaded.tokenizer)
    torch.manual_seed(0)
    ids = torch.randint(loaded.config.vocab_size, (64, T))
    with torch.inference_mode():
        logits = loaded.model()(ids)
    best = logits[..., of_letters].amax(-1)
    assert (best - logits[..., others].amax(-1) > 0.75 * nanogpt.BELOW).all()


@pytest.mark.parametrize("format", [name for name in EXPORT_FORMATS if name != "web"])
def test_exports_write_its_letters_too(letters, tmp_path, format):
    """Each is compared with PyTorch by the program it is for, as far as that is installed."""
    loaded = open_model(letters[0])
    try:
        said = export(loaded, format, tmp_path / "model")
    except UserError as error:
        pytest.skip(str(error)) if "pip install" in str(error) else pytest.fail(str(error))
    assert "matches PyTorch" in said or "not " in said


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx", "model.int4.onnx", "model-huggingface"])
def test_no_engine_ever_writes_another_letter(letters, tmp_path, name):
    format = next(format for format, (_, ending) in EXPORT_FORMATS.items() if name == "model" + ending)
    pytest.importorskip("safetensors")
    export(open_model(letters[0]), format, tmp_path / "model")
    model = slm.load(str(tmp_path / name))
    for seed in range(3):
        text = model.generate("ab", max_length=60, temperature=2.0, seed=seed)
        assert set(text) <= set(LETTERS)
        assert len(text) == 60


def test_the_command_takes_letters(letters, tmp_path, capsys):
    assert main(["import", str(letters[0]), "--out_dir", str(tmp_path)]) == 0
    model = ["--model_path", str(tmp_path / "best_model.pt"), "--seed", "1"]
    assert main(["generate", *model, "--prompt", "aé", "--max_length", "30"]) == 0
    text = capsys.readouterr().out.splitlines()
    assert set("".join(text[3:])) <= set(LETTERS), text


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (pickle.dumps(Evil()), "but also STACK_GLOBAL"),
        (pickle.dumps(Evil(), 0), "but also GLOBAL"),
        (pickle.dumps({"stoi": ["a"]}), "but also EMPTY_LIST"),
        (pickle.dumps({"itos": {0: "a"}}), "KeyError"),
        (pickle.dumps({"stoi": {"a": 0}}), "it has not one letter for each of 7 rows"),
        (pickle.dumps({"stoi": dict.fromkeys(LETTERS, 0)}), "it has not one letter for each of 7 rows"),
        (pickle.dumps({"stoi": {letter: letter for letter in LETTERS}}), "it has not one letter for each of 7 rows"),
        (pickle.dumps({"stoi": {"a" + letter: row for row, letter in enumerate(LETTERS)}}), "it has not one letter"),
        (pickle.dumps({"stoi": {"\ud800abcdef"[row]: row for row in range(7)}}), "UnicodeEncodeError"),
        (pickle.dumps("abcdefg"), "TypeError"),
        (pickle.dumps({"stoi": {"a": 0}})[:-5], "ValueError"),
        (b"", "ValueError"),
        (b"\x80\x04.", "IndexError"),
        (b"\x80\x04s.", "IndexError"),
        (b"\x80\x04h\x05.", "KeyError"),
        (b"\x80\x04}}K\x01s.", "TypeError"),
        (b"not a pickle", "ValueError"),
    ],
)
def test_another_meta_is_one_line_and_never_run(letters, tmp_path, content, part):
    shutil.copy(letters[0], tmp_path / "ckpt.pt")
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(UserError) as error:
        open_model(tmp_path / "ckpt.pt")
    (problem,) = error.value.problems
    assert problem.startswith(f"cannot import {tmp_path / 'ckpt.pt'}: {tmp_path / 'meta.pkl'} holds no letters: ")
    assert part in problem
    assert "\n" not in problem
