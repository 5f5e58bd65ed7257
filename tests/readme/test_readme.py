"""The README keeps its word: its commands run to the letter, its flags and figures are those of the project."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slm.checkpoint import file as checkpoint
from slm.config.fields import flags
from slm.config.formats import EXPORT_FORMATS
from slm.config.train import TrainConfig
from slm.data.stories import stories
from slm.export.command import export
from tests.readme.flags import PAGE, page

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands():
    """The lines of the README's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


DOCUMENTED = [line for line in commands() if line.startswith("python ")][:4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the commands beside two small texts of the README's names."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("train.py", "generate.py", "evaluate.py", "export.py"):
        shutil.copy(ROOT / name, folder)
    (folder / "slm").symlink_to(ROOT / "slm")
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "dataset.txt").write_text("<|endoftext|>".join(stories(16)))
    (folder / "path" / "to" / "other.txt").write_text("<|endoftext|>".join(stories(4, seed=2)))
    return folder


def run(folder, line):
    arguments = shlex.split(line)
    assert arguments[0] == "python"
    done = subprocess.run([sys.executable, *arguments[1:]], cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_documented_commands_stand_in_the_readme():
    assert DOCUMENTED == [
        "python train.py --dataset path/to/dataset.txt --epochs 10 --batch_size 32",
        'python generate.py --model_path best_model.pt --prompt "Once upon a time" --max_length 100',
        "python evaluate.py --model_path best_model.pt --dataset path/to/other.txt",
        "python export.py --model_path best_model.pt --format onnx-int8,torchscript",
    ]


@pytest.mark.slow
def test_the_documented_commands_work_to_the_letter(folder):
    train, generate, evaluate, export = DOCUMENTED
    said = run(folder, train)
    assert "29,995,392 parameters" in said
    left = {path.name for path in folder.iterdir()}
    assert {"best_model.pt", "best_model.onnx", "last.pt", "metrics.csv", "training.png"} <= left
    last = said.strip().splitlines()[-1]
    assert last == f"next       {generate}"
    assert run(folder, generate).startswith("Once upon a time")
    assert run(folder, generate.replace(".pt", ".onnx")).startswith("Once upon a time")
    assert re.search(r"loss \d.*perplexity.*token accuracy.*bits per byte", run(folder, evaluate))
    assert run(folder, export).count("matches PyTorch") == 2
    assert (folder / "best_model.torchscript.pt").exists()
    for text in (README, (ROOT / "docs" / "writing.md").read_text()):
        example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
        assert len(run(folder, f"python -c {shlex.quote(example)}")) > 200


def examples():
    """The Python blocks of the page on exports, with the package each needs."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    assert len(blocks) == 6
    return [pytest.param(block, id=re.findall(r"(?:import|from) (\w+)", block)[-1]) for block in blocks]


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A folder with a model in all formats."""
    base = tmp_path_factory.mktemp("exported") / "best_model"
    for format in EXPORT_FORMATS.keys() - {"web"}:  # for which npm must be there
        export(checkpoint.load(trained), format, base)
    return base.parent


@pytest.mark.slow
@pytest.mark.parametrize("example", examples())
def test_the_examples_of_the_page_on_exports_run(exported, example):
    for package in re.findall(r"^(?:import|from) (\w+)", example, re.MULTILINE):
        pytest.importorskip(package)
    command = [sys.executable, "-c", example]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=exported, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_the_page_on_exports_lists_every_format():
    page = (ROOT / "docs" / "export.md").read_text()
    for format, (_, ending) in EXPORT_FORMATS.items():
        assert f"`{format}`" in page
        assert f"`best_model{ending}" in page


def test_the_page_of_flags_is_made_from_the_code():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make flags`"


def test_the_table_of_flags_gives_the_defaults():
    table = re.findall(r"^\| `--(\w+)` \| ([^|]*) \|", README, re.MULTILINE)
    assert 1 <= len(table) <= 10
    for name, shown in table:
        default = flags(TrainConfig)[name].default
        assert shown.strip("` ") == {None: "", False: "off"}.get(default, str(default)), name


def test_the_readme_can_be_read_in_a_few_minutes():
    assert len(README.split()) < 1500


def test_figures_stand_in_the_results():
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    expectations = README.split("## What to expect")[1].split("\n## ")[0]
    (small_and_fast,) = re.findall(r"\*\*Small and fast.\*\*.*?\n- ", README, re.DOTALL)
    figures = re.findall(r"\d[\d.,]*\d|\d", expectations + small_and_fast)
    assert len(figures) > 20
    assert [figure for figure in figures if not holds(results, figure)] == []
    rows = re.findall(r"\| ([\d.]+) \| ([\d.]+) \|", expectations)
    assert len(rows) == 4
    for minutes, bits in rows:
        assert any(holds(part, minutes) and holds(part, bits) for part in results.split("\n\n"))


def holds(text, figure):
    return re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d]|[.,]\d)", text)
