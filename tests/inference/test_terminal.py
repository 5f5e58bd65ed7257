"""`slm generate` in a terminal: what is shown, and when."""

import pytest
import torch

from slm.cli import main
from slm.config import GenerateConfig, ModelConfig
from slm.data.tokenizer import Tokenizer
from slm.inference import terminal
from slm.model import checkpoint
from slm.model.checkpoint import Checkpoint
from slm.model.gpt import GPT

BYTES = Tokenizer("bytes", [bytes([byte]) for byte in range(256)])


@pytest.fixture
def model_path(tmp_path):
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=257, context_length=16, n_layer=1, n_head=1, n_embd=8)
    path = tmp_path / "best_model.pt"
    checkpoint.save(path, Checkpoint(shape, GPT(shape).state_dict(), BYTES, {}))
    return str(path)


def says(monkeypatch, text):
    """Let every sample be `text`, a byte a token."""
    monkeypatch.setattr(terminal, "generate", lambda *_, num_samples, **__: ([b] * num_samples for b in text.encode()))


def test_the_prompt_and_its_continuation_are_shown(model_path, capsys):
    assert main(["generate", "--model_path", model_path, "--prompt", "Once", "--max_length", "30", "--seed", "3"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("Once")
    assert first.endswith("\n")
    assert len(first) > 20
    main(["generate", "--model_path", model_path, "--prompt", "Once", "--max_length", "30", "--seed", "3"])
    assert capsys.readouterr().out == first


def test_the_text_grows_and_never_shows_half_a_character(model_path, monkeypatch):
    says(monkeypatch, "né 日")
    shown = []
    monkeypatch.setattr(terminal, "_show", shown.append)
    terminal.main(GenerateConfig(model_path=model_path, prompt="A"))
    assert shown == ["A", "n", "", "é", " ", "", "", "日", "\n"]


def test_a_text_cut_inside_a_character_ends_with_the_replacement(model_path, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "generate", lambda *_, **__: ([b] for b in "né".encode()[:2]))
    terminal.main(GenerateConfig(model_path=model_path))
    assert capsys.readouterr().out == "n\ufffd\n"


def test_several_samples_are_told_apart(model_path, monkeypatch, capsys):
    says(monkeypatch, "xy")
    terminal.main(GenerateConfig(model_path=model_path, prompt="A", num_samples=2))
    assert capsys.readouterr().out == "--- 1 of 2 ---\nAxy\n\n--- 2 of 2 ---\nAxy\n\n"


@pytest.mark.parametrize("samples", ["1", "2"])
@pytest.mark.parametrize("prompt", ["", " ", "x" * 500, "日本 \ud800", "a\0b", "<|endoftext|>"])
def test_odd_prompts_are_taken(model_path, prompt, samples, capsys):
    flags = ["--max_length", "20", "--seed", "0", "--num_samples", samples]
    assert main(["generate", "--model_path", model_path, f"--prompt={prompt}", *flags]) == 0
    assert capsys.readouterr().err == ""


def test_a_story_longer_than_the_context_goes_on(model_path, monkeypatch, capsys):
    main(["generate", "--model_path", model_path, "--max_length", "100", "--seed", "1", "--temperature", "2"])
    assert len(capsys.readouterr().out) > 60


def test_a_missing_model_is_one_line(capsys, tmp_path):
    assert main(["generate", "--model_path", str(tmp_path / "none.pt")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no checkpoint ")
    assert error.count("\n") == 1
