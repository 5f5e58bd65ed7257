"""`slm generate` in a terminal: what is shown, and when."""

import json
import re
from pathlib import Path

import pytest
import torch

from slm.checkpoint import file as checkpoint
from slm.checkpoint.file import Checkpoint
from slm.cli import main
from slm.config.model import ModelConfig
from slm.config.use import GenerateConfig
from slm.data.tokenizer import Tokenizer
from slm.inference import command as terminal
from slm.model.gpt import GPT

BYTES = Tokenizer("bytes", [bytes([byte]) for byte in range(256)])


@pytest.fixture
def model_path(tmp_path):
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=257, context_length=16, n_layer=1, n_head=1, n_embd=8)
    path = tmp_path / "best_model.pt"
    checkpoint.save(path, Checkpoint(shape, GPT(shape).state_dict(), BYTES, {}))
    return str(path)


def test_the_prompt_and_its_continuation_are_shown(model_path, capsys):
    assert main(["generate", "--model_path", model_path, "--prompt", "Once", "--max_length", "30", "--seed", "3"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("Once")
    assert first.endswith("\n")
    assert len(first) > 20
    main(["generate", "--model_path", model_path, "--prompt", "Once", "--max_length", "30", "--seed", "3"])
    assert capsys.readouterr().out == first


def test_one_text_is_shown_as_it_grows(model_path, monkeypatch):
    shown = []
    monkeypatch.setattr(terminal, "_show", shown.append)
    terminal.main(GenerateConfig(model_path=model_path, prompt="A", max_length=12, seed=3, top_k=90, stop=("\0",)))
    assert shown[0] == "A"
    assert shown[-1] == "\n"
    assert len(shown) >= 14


def test_several_texts_are_told_apart(model_path, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("First\n\nSecond \n")
    flags = ["--max_length", "4", "--seed", "2", "--top_k", "1", "--model_path", model_path]
    assert main(["generate", *flags, "--prompt_file", str(tmp_path / "prompts.txt"), "--num_samples", "2"]) == 0
    shown = capsys.readouterr().out
    headings = [line for line in shown.splitlines() if line.startswith("---")]
    assert headings == [f"--- {n} of 4 ---" for n in (1, 2, 3, 4)]
    assert re.findall("First|Second ", shown) == ["First", "First", "Second ", "Second "]


def test_texts_are_shown_batch_by_batch(model_path, monkeypatch, capsys):
    write = terminal.TextModel.write

    def failing(*arguments):
        for number, piece in write(*arguments):
            if number == 33:
                raise KeyboardInterrupt
            yield number, piece

    monkeypatch.setattr(terminal.TextModel, "write", failing)
    flags = ["--model_path", model_path, "--num_samples", "40", "--max_length", "2", "--seed", "1"]
    assert main(["generate", *flags]) == 130
    assert capsys.readouterr().out.count("--- ") == 32


def test_a_prompt_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffOne\r\nTwo\x0cthree\n".encode())
    assert terminal.read_prompts(str(tmp_path / "prompts.txt")) == ["One", "Two\x0cthree"]


def test_logprobs_are_json_lines(model_path, capsys):
    flags = ["--model_path", model_path, "--prompt", "Once", "--logprobs", "--max_length", "5", "--seed", "1"]
    assert main(["generate", *flags, "--num_samples", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["Once", "Once"]
    for line in lines:
        assert len(line["tokens"]) == 5
        for token in line["tokens"]:
            assert token.keys() == {"token", "id", "probability", "alternatives"}
            chances = [other["probability"] for other in token["alternatives"]]
            assert chances == sorted(chances, reverse=True)
            assert len(chances) == 5
            assert 0 < token["probability"] <= chances[0] < 1


def test_the_prompt_loop(model_path, monkeypatch, capsys):
    answers = iter(["One", "Two"])

    def ask(_):
        try:
            return next(answers)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", ask)
    assert main(["generate", "--model_path", model_path, "--interactive", "--max_length", "5", "--top_k", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("One")
    assert "\nTwo" in shown


def test_ctrl_c_ends_the_story_but_not_the_loop(model_path, monkeypatch, capsys):
    answers = iter(["One", "Two", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    grow = terminal.grow

    def interrupted(model, prompt, config):
        if prompt == "One":
            raise KeyboardInterrupt
        grow(model, prompt, config)

    monkeypatch.setattr(terminal, "grow", interrupted)
    assert main(["generate", "--model_path", model_path, "--interactive", "--max_length", "5", "--top_k", "1"]) == 0
    assert capsys.readouterr().out.startswith("\nTwo")


def test_a_prompt_beyond_the_context_is_noted(model_path, capsys):
    assert main(["generate", "--model_path", model_path, "--prompt", "x" * 30, "--max_length", "2"]) == 0
    assert capsys.readouterr().err == "note: of the prompt's 31 tokens the model reads the last 16\n"


@pytest.mark.parametrize(
    ("content", "part"),
    [(None, "cannot read --prompt_file"), (b" \n\n", "holds no prompt"), (b"a\n\xff", "is not UTF-8: byte 0xff at 2")],
)
def test_a_prompt_file_that_cannot_be_used(model_path, content, part, tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    assert main(["generate", "--model_path", model_path, "--prompt_file", str(path)]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("samples", ["1", "2"])
@pytest.mark.parametrize("prompt", ["", " ", "x" * 500, "日本 \ud800", "a\0b", "<|endoftext|>"])
def test_odd_prompts_are_taken(model_path, prompt, samples, capsys):
    flags = ["--max_length", "20", "--seed", "0", "--num_samples", samples]
    assert main(["generate", "--model_path", model_path, f"--prompt={prompt}", *flags]) == 0
    error = capsys.readouterr().err
    assert error == "" or error.startswith("note: of the prompt's 501 tokens")


def test_a_story_longer_than_the_context_goes_on(model_path, monkeypatch, capsys):
    main(["generate", "--model_path", model_path, "--max_length", "100", "--seed", "1", "--temperature", "2"])
    assert len(capsys.readouterr().out) > 60


def test_a_missing_model_is_one_line(capsys, tmp_path):
    assert main(["generate", "--model_path", str(tmp_path / "none.pt")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no checkpoint ")
    assert error.count("\n") == 1


def test_a_model_that_has_barely_trained_says_so_once_and_not_in_the_text(model_path, tmp_path, capsys):
    fresh = tmp_path / "fresh.pt"
    model = checkpoint.load(Path(model_path))
    checkpoint.save(fresh, Checkpoint(model.config, model.weights, model.tokenizer, {"barely_trained": True}))
    for path, times in ((model_path, 0), (str(fresh), 1)):
        assert main(["generate", path, "Once", "--max_length=3", "--device=cpu"]) == 0
        said = capsys.readouterr()
        assert said.err.count("note: this model has barely trained") == times
        assert "barely" not in said.out
