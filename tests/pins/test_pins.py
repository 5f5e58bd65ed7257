"""A run as it was saved on 2026-11-26: its files must load, write and resume as they did then, whatever moves.

`run/` is what this left, in the root of the project:

    python train.py --dataset tests/pins/train.txt --val_dataset tests/pins/val.txt --vocab_size 400 \
      --context_length 64 --n_layer 2 --n_head 4 --n_embd 32 --dropout 0.05 --batch_size 8 --grad_accum 2 \
      --max_steps 200 --eval_every 50 --eval_batches 4 --learning_rate 0.02 --schedule wsd --precision fp32 \
      --device cpu --export none --out_dir tests/pins/run
"""

import shutil
from pathlib import Path

import pytest

import slm
from slm.cli import main
from slm.run_files import read_rows

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    return shutil.copytree(HERE / "run", tmp_path / "run")


# Of the training losses, those until step 200 were measured on a part of the text, the others are means over the steps.
def test_it_resumes_to_the_same_numbers(run, tmp_path):
    # The run is not this user's, so that its paths must be given again.
    paths = ["--dataset", "tests/pins/train.txt", "--val_dataset", "tests/pins/val.txt"]
    flags = ["--resume", "--max_steps", "230", "--eval_every", "10", "--cache_dir", str(tmp_path / "cache"), *paths]
    assert main(["train", *flags, "--out_dir", str(run)]) == 0
    rows = [(row["step"], row["train_loss"], row["val_loss"]) for row in read_rows(run)]
    assert rows == [
        (step, pytest.approx(train, abs=2e-4), pytest.approx(val, abs=2e-4))
        for step, train, val in [
            (0, 5.99109, 5.99425), (50, 3.36750, 3.34783), (100, 2.99414, 3.00765), (150, 2.86590, 2.93237),
            (200, 2.70731, 2.76538), (210, 2.73217, 2.73537), (220, 2.7102, 2.71180), (230, 2.6620, 2.69709),
        ]
    ]  # fmt: skip


def test_the_model_writes_the_same_story(run):
    model = slm.load(run / "best_model.pt", device="cpu")
    assert model.generate("", temperature=0, max_length=40) == (
        "Once upon a time, there was a ply little girl named ply. One play afternoon, Simoneeticy a st"
    )
    assert model.generate("One day", seed=5, max_length=40) == (
        ", in a coighft afternoon, a trle named Sum. One sm came. One lilayap, Ruig"
    )
