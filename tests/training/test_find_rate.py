"""`slm find-lr`."""

import dataclasses
import re

import pytest

from slm.cli import read_flags
from slm.errors import UserError
from slm.training.find_rate import main

TINY = [
    "--dataset=stories", "--vocab_size=400", "--context_length=16", "--n_layer=2", "--n_head=2", "--n_embd=16",
    "--batch_size=4", "--precision=fp32", "--device=cpu", "--trial_steps=40", "--learning_rate=0.01",
]  # fmt: skip


@pytest.fixture
def config(tmp_path, text_of_stories):
    arguments = [f"--dataset={text_of_stories}", f"--cache_dir={tmp_path / 'cache'}", f"--out_dir={tmp_path / 'out'}"]
    return read_flags("find-lr", [*TINY[1:], *arguments])


@pytest.fixture
def text_of_stories(tmp_path):
    from slm.data.stories import stories

    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join(stories(80)))
    return path


def test_finds_the_best_of_the_rates(config, tmp_path, capsys):
    main(dataclasses.replace(config, trials=3, learning_rate=0.01))
    said = capsys.readouterr().out
    tried = {float(rate): float(loss) for rate, loss in re.findall(r"rate (\S+)   validation loss (\S+)", said)}
    assert list(tried) == [0.005, 0.01, 0.02]
    best = float(re.search(r"best       ([\d.e+-]+)", said)[1])
    assert tried[best] == min(tried.values())
    assert f"--learning_rate {best:.2g}" in said
    assert (tmp_path / "out" / "learning_rate.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_twice(config, capsys):
    config = dataclasses.replace(config, trials=2)
    main(config)
    first = capsys.readouterr().out
    main(config)
    assert capsys.readouterr().out == first


def test_rates_that_break_the_model(config):
    with pytest.raises(UserError, match="no rate gave a finite loss"):
        main(dataclasses.replace(config, trials=2, learning_rate=1e30))


@pytest.mark.parametrize("flag", ["--trials=0", "--trial_steps=0", "--resume"])
def test_bad_flags(flag):
    with pytest.raises(UserError, match=flag.split("=")[0]):
        read_flags("find-lr", [flag])
