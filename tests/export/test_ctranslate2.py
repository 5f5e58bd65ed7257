"""CTranslate2: the same logits and the same greedy tokens, from a folder that stands alone."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from ctranslate2 import Generator

from slm.errors import UserError
from slm.export import ctranslate2
from slm.export.command import export
from slm.export.parts import expected_logits

FORMATS = ["ctranslate2", "ctranslate2-int8"]


def load(path):
    return Generator(str(path), device="cpu", intra_threads=1)


@torch.inference_mode()
def greedy(loaded, prompt, length):
    """The ids of `prompt` after an `<|endoftext|>`, and those that we add to `length` in all; an end is not added."""
    model, end = loaded.model(), loaded.tokenizer.end_of_text
    start = [end, *loaded.tokenizer.encode(prompt).tolist()]
    ids = list(start)
    while len(ids) < length:
        chosen = int(model(torch.tensor([ids]))[0, -1].argmax())
        if chosen == end:
            break
        ids.append(chosen)
    return start, ids[len(start) :]


def altered(loaded):
    """`loaded` with the rows of one matrix in another order."""
    name = "blocks.1.mlp.up.weight"
    return dataclasses.replace(loaded, weights={**loaded.weights, name: loaded.weights[name].flip(0)})


def test_fp32_writes_our_greedy_story(each_model, tmp_path):
    ctranslate2.write(each_model, tmp_path / "m", "ctranslate2")
    names, context = each_model.tokenizer.printable(), each_model.config.context_length
    prompt, ours = greedy(each_model, "Once upon a time", context)
    assert len(ours) > 5
    [result] = load(tmp_path / "m").generate_batch(
        [[names[i] for i in prompt]], beam_size=1, max_length=context - len(prompt), include_prompt_in_result=False
    )
    assert result.sequences_ids == [ours]
    assert result.sequences == [[names[i] for i in ours]]


def test_fp32_has_our_logits_at_every_length(each_model, tmp_path):
    ctranslate2.write(each_model, tmp_path / "m", "ctranslate2")
    generator, context = load(tmp_path / "m"), each_model.config.context_length
    for length in (1, 7, context):
        ids = np.random.default_rng(length).integers(each_model.config.vocab_size, size=(2, length))
        logits = np.array(generator.forward_batch(ids.tolist(), return_log_probs=False))
        np.testing.assert_allclose(logits, expected_logits(each_model, ids), rtol=0, atol=1e-4)


def test_int8_agrees_with_our_greedy_story_where_our_choice_leads_by_half_a_nat(trained_model, tmp_path):
    ctranslate2.write(trained_model, tmp_path / "m", "ctranslate2-int8")
    prompt, added = greedy(trained_model, "Once upon a time", 64)
    ids = np.array([prompt + added])
    ours = expected_logits(trained_model, ids)[0]
    theirs = np.array(load(tmp_path / "m").forward_batch(ids.tolist(), return_log_probs=False))[0]
    second, first = np.sort(ours, axis=-1)[:, -2:].T
    sure = first - second > 0.5
    assert sure.sum() > 20
    np.testing.assert_array_equal(theirs.argmax(-1)[sure], ours.argmax(-1)[sure])


def test_int8_is_a_quarter_of_the_size(trained_model, tmp_path):
    for format in FORMATS:
        ctranslate2.write(trained_model, tmp_path / format, format)
    fp32, int8 = ((tmp_path / format / "model.bin").stat().st_size for format in FORMATS)
    assert int8 < 0.35 * fp32  # scales, vectors and positions are not rounded


def test_rounding_leaves_the_checkpoint_alone(trained_model, tmp_path):
    before = {name: weight.clone() for name, weight in trained_model.weights.items()}
    ctranslate2.write(trained_model, tmp_path / "m", "ctranslate2-int8")
    assert all(torch.equal(before[name], weight) for name, weight in trained_model.weights.items())


def test_the_folder_holds_the_tokenizer(trained_model, tmp_path):
    ctranslate2.write(trained_model, tmp_path / "m", "ctranslate2")
    assert {file.name for file in (tmp_path / "m").iterdir()} == {
        "config.json",
        "model.bin",
        "tokenizer.json",
        "vocabulary.json",
    }
    assert json.loads((tmp_path / "m" / "vocabulary.json").read_text()) == trained_model.tokenizer.printable()
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    text = "Once upon a time, 日本 🙂<|endoftext|>The  end"
    assert tokenizer.encode(text).ids == trained_model.tokenizer.encode(text).tolist()


@pytest.mark.parametrize("format", FORMATS)
def test_export_tries_the_folder(each_model, tmp_path, capfd, format):
    said = export(each_model, format, tmp_path / "m")
    assert said.startswith(f"{format:12} {tmp_path / 'm'}-{format} (")
    assert ": matches PyTorch" in said
    assert "\n" not in said
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_with_wrong_weights_is_not_kept(trained_model, tmp_path, monkeypatch, format):
    write = ctranslate2.write
    monkeypatch.setattr(ctranslate2, "write", lambda loaded, *where: write(altered(loaded), *where))
    with pytest.raises(UserError, match=f"^{format}: the exported model is not the same: "):
        export(trained_model, format, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_without_ctranslate2_the_mend_is_named(trained_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(UserError, match=r"python -m pip install ctranslate2$"):
        export(trained_model, "ctranslate2", tmp_path / "m")
