"""Measures of a model on a text."""

import math

import numpy as np
import pytest
import torch

from slm.checkpoint import file as checkpoint
from slm.checkpoint.file import Checkpoint
from slm.cli import main
from slm.config.model import ModelConfig
from slm.data.encoding import Tokens
from slm.data.stories import stories
from slm.data.tokenizer import Tokenizer, gpt2
from slm.evaluation import measure as measuring
from slm.evaluation.measure import evaluate
from slm.export.command import export
from slm.model.gpt import GPT

BYTES = Tokenizer("bytes", [bytes([byte]) for byte in range(256)])
SHAPE = ModelConfig(vocab_size=257, context_length=16, n_layer=1, n_head=1, n_embd=8)


def even_model(shape=SHAPE):
    """All weights zero: every token is equally likely, and id 0 is the guess."""
    model = GPT(shape)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    return model


def tokens_of(text):
    ids = BYTES.encode(text)
    return Tokens(ids.astype(np.uint16), 1, len(text))


def measure(model, text, **options):
    return evaluate(model, tokens_of(text), BYTES, **{"batch_size": 3, "dtype": torch.float32, **options})


def test_an_even_model_has_the_loss_of_guessing():
    measured = measure(even_model(), "a" * 100)
    assert measured.tokens == 99
    assert measured.loss == pytest.approx(math.log(257), rel=1e-6)
    assert measured.perplexity == pytest.approx(257, rel=1e-5)
    assert measured.bits_per_byte == pytest.approx(math.log2(257), rel=1e-6)
    assert measured.accuracy == 0


def test_the_end_of_text_costs_bits_and_has_no_bytes():
    measured = measure(even_model(), "ab<|endoftext|>")
    assert measured.tokens == 2
    assert measured.bits_per_byte == pytest.approx(2 * math.log2(257), rel=1e-6)


def test_accuracy_counts_the_likeliest():
    assert measure(even_model(), "x\0\0y\0").accuracy == 3 / 4


def test_batches_do_not_matter_and_the_mode_is_kept():
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=257, context_length=16, n_layer=1, n_head=1, n_embd=8, dropout=0.5)).train()
    text = "The quick brown fox jumps over the lazy dog, again and again and again."
    one, other = measure(model, text, batch_size=1), measure(model, text, batch_size=100)
    assert one.loss == pytest.approx(other.loss, rel=1e-6)
    assert one.tokens == other.tokens == len(text) - 1
    assert model.training


def guessed(ids, targets):
    """The loss of a model to which an "a" costs 1 nat, and anything else 3."""
    return float(np.where(targets == ord("a"), 1, 3).sum()), 0


def test_a_part_of_a_text_has_a_standard_error():
    tokens = tokens_of("a" * 501 + "b" * 500)  # 100 windows of 10 targets: 50 cost 10 nats each, and 50 cost 30
    part = measuring.measure(guessed, 10, tokens, BYTES, batch_size=1, limit=8)
    assert part.tokens == 80
    assert part.bits_per_byte == pytest.approx(2 / math.log(2))
    assert part.error == pytest.approx(math.sqrt(8 * 10**2 * 8 / 7 * 0.92) / 80 / math.log(2))
    assert "token accuracy 0.0%, 2.8854 +- 0.5230 bits per byte, over 80 tokens" in str(part)
    whole = measuring.measure(guessed, 10, tokens, BYTES, batch_size=3, limit=100)
    assert whole.error == 0
    assert "2.8854 bits per byte, over 1,000 tokens" in str(whole)


def test_the_whole_text_lies_within_two_errors_of_a_part():
    """In 91 of 100 cases by theory, for eight groups; equal letters stand together, as a text's topics do."""
    random, within = np.random.default_rng(0), 0
    for _ in range(100):
        letters = random.random(400).repeat(20) < 0.5
        tokens = tokens_of("".join("ab"[letter] for letter in letters.astype(int)))
        part = measuring.measure(guessed, 16, tokens, BYTES, batch_size=8, limit=64)
        whole = measuring.measure(guessed, 16, tokens, BYTES, batch_size=8)
        within += abs(part.bits_per_byte - whole.bits_per_byte) < 2 * part.error
    assert within >= 90


def test_the_command_measures_a_file(tmp_path, capsys):
    shape = ModelConfig(context_length=16, n_layer=1, n_head=1, n_embd=4)
    checkpoint.save(tmp_path / "m.pt", Checkpoint(shape, even_model(shape).state_dict(), gpt2(), {}))
    (tmp_path / "t.txt").write_text("Hello world<|endoftext|>Hello")
    arguments = ["evaluate", "--model_path", str(tmp_path / "m.pt"), "--cache_dir", str(tmp_path / "c")]
    assert main([*arguments, "--dataset", str(tmp_path / "t.txt"), "--precision", "fp32"]) == 0
    said = capsys.readouterr().out
    assert "5 tokens, 2 documents" in said
    assert "loss 10.8249, perplexity 50,257.0" in said
    assert "over 4 tokens" in said


def test_a_text_without_two_tokens_is_refused(tmp_path, capsys):
    shape = ModelConfig(context_length=16, n_layer=1, n_head=1, n_embd=4)
    checkpoint.save(tmp_path / "m.pt", Checkpoint(shape, even_model(shape).state_dict(), gpt2(), {}))
    (tmp_path / "t.txt").write_text("  ")
    assert main(["evaluate", "--model_path", str(tmp_path / "m.pt"), "--dataset", str(tmp_path / "t.txt")]) == 2
    assert "no text in" in capsys.readouterr().err


def says(capsys, *flags):
    assert main(["evaluate", *flags]) == 0
    return capsys.readouterr().out


def test_a_text_is_scored_without_the_end_of_text_before_it(tmp_path, capsys):
    path = tmp_path / "best_model.pt"
    checkpoint.save(path, Checkpoint(SHAPE, even_model().state_dict(), BYTES, {}))
    said = says(capsys, "--model_path", str(path), "--text", "Once upon", "--precision", "fp32")
    assert f"loss {math.log(257):.4f}, perplexity 257.00, token accuracy 0.0%" in said
    assert f"{math.log2(257):.4f} bits per byte, over 9 tokens" in said


def test_a_checkpoint_and_its_onnx_file_measure_alike(trained, tmp_path, capsys):
    export(checkpoint.load(trained), "onnx", tmp_path / "m")
    (tmp_path / "text.txt").write_text("<|endoftext|>".join(stories(5, seed=3)))
    flags = ["--dataset", str(tmp_path / "text.txt"), "--cache_dir", str(tmp_path / "cache")]
    first, second = (
        says(capsys, "--model_path", str(path), *flags).split(": ")[-1] for path in (trained, tmp_path / "m.onnx")
    )
    assert "token accuracy" in first
    assert first == second


@pytest.mark.parametrize("flag", ["--device=cuda", "--precision=bf16"])
def test_an_onnx_file_is_measured_as_it_is(flag, tmp_path, capsys):
    assert main(["evaluate", "--model_path", str(tmp_path / "m.onnx"), flag]) == 2
    assert "measured on the CPU, in the precision that it has" in capsys.readouterr().err


def test_contradictory_texts(capsys):
    assert main(["evaluate", "--text", "a", "--dataset", "b"]) == 2
    assert main(["evaluate", "--text="]) == 2
    assert capsys.readouterr().err == (
        "error: --text and --dataset exclude each other\nerror: --text must not be empty\n"
    )
