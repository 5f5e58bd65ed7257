"""The measures of benchmarks/quality.py, on texts small enough to count."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from slm.data.stories import stories

PATH = Path(__file__).parents[2] / "benchmarks" / "quality.py"
spec = importlib.util.spec_from_file_location("quality", PATH)
quality = importlib.util.module_from_spec(spec)
spec.loader.exec_module(quality)


def test_words():
    assert quality.words("The cat's  toy-box,\n№5 — «Été»!") == ["the", "cat's", "toy", "box", "5", "été"]


def test_distinct():
    assert quality.distinct([["a", "b", "a"], ["a"]], 1) == 2 / 4
    assert quality.distinct([["a", "b", "a", "b"], ["a"]], 2) == 2 / 3
    assert quality.distinct([], 1) == 0


def test_repeated():
    loop = ["a", "b", "a", "b", "a", "b"]  # ab ba ab ba ab
    assert quality.repeated([loop, ["a", "b", "c"], ["a"]], 2) == pytest.approx((3 / 5 + 0) / 2)


def test_copied():
    groups = {"one": [list("abcd"), list("xyz")], "other": [list("bcd")], "none": [["a"]]}
    known = iter([list("zabc"), list("bcd")])
    assert quality.copied(groups, known, 3) == {"one": 2 / 3, "other": 1.0, "none": 0.0}


def test_begin():
    story = "One two, three four five six seven eight. Nine ten."
    assert quality.begin(story) == ("One two, three four five six seven eight", ". Nine ten.")
    assert "".join(quality.begin("Short.")) == "Short."


def test_the_whole_of_it(trained, tmp_path):
    texts = {"train.txt": stories(30), "held_out.txt": stories(12, seed=9)}
    for name, of in texts.items():
        (tmp_path / name).write_text("<|endoftext|>".join(of))
    command = [sys.executable, str(PATH), f"--model_path={trained}", f"--train={tmp_path / 'train.txt'}"]
    command += [f"--held_out={tmp_path / 'held_out.txt'}", "--stories=5", "--max_length=60"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"HOME": str(tmp_path)})
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["stories"] == 5
    assert 0 < figures["bits_per_byte"] < 4
    assert figures["words in a story"][0] == figures["words in a story"][1] > 5
    done = subprocess.run([*command, "--model_path=none.pt"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no checkpoint")
