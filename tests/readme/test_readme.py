"""The README keeps its word: its commands run to the letter, its flags and figures are the program's."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slm.checkpoint import file as checkpoint
from slm.cli import COMMANDS
from slm.config.fields import flags
from slm.config.formats import EXPORT_FORMATS
from slm.config.model import PRESETS
from slm.config.use import ServeConfig
from slm.data.stories import stories
from slm.export.command import export

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def commands():
    """The lines of the README's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


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
    assert [line for line in commands() if line.startswith("python ")] == [
        "python train.py --dataset path/to/dataset.txt --epochs 10 --batch_size 32",
        'python generate.py --model_path best_model.pt --prompt "Once upon a time" --max_length 100',
        "python evaluate.py --model_path best_model.pt --dataset path/to/other.txt",
        "python export.py --model_path best_model.pt --format onnx-int8,torchscript",
    ]


@pytest.mark.slow
def test_the_documented_commands_work_to_the_letter(folder):
    train, generate, evaluate, export = (line for line in commands() if line.startswith("python "))
    said = run(folder, train)
    assert "29,995,392 parameters" in said
    left = {path.name for path in folder.iterdir()}
    assert {"best_model.pt", "best_model.onnx", "last.pt", "metrics.csv", "training.png"} <= left
    last = said.strip().splitlines()[-1]
    assert last == f"next       {generate}"
    assert run(folder, generate).startswith("Once upon a time")
    assert run(folder, generate.replace(".pt", ".onnx")).startswith("Once upon a time")
    assert re.search(r"loss \d.*perplexity.*token accuracy.*bits per byte", run(folder, evaluate))
    assert run(folder, export).count("of PyTorch's on") == 2
    assert (folder / "best_model.torchscript.pt").exists()
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
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
        assert f"`{format}`" in README


def test_the_page_on_the_server_lists_every_flag_with_its_default():
    page = (ROOT / "docs" / "server.md").read_text()
    table = re.findall(r"^\| `--(\w+)` \| ([^|]*) \|", page, re.MULTILINE)
    assert [(name, shown.strip("` ")) for name, shown in table] == [
        (name, "" if default in (None, ()) else str(default)) for name, (_, _, default) in flags(ServeConfig).items()
    ]


def test_every_flag_the_readme_names_exists():
    known = {name for config, _ in COMMANDS.values() for name in flags(config)} | {"help"}
    known |= {"standalone", "nproc_per_node"}  # torchrun's
    assert set(re.findall(r"--(\w+)", README.split("## Development")[0])) <= known


def test_the_tables_of_flags_give_the_defaults():
    table = re.findall(r"^\| `--(\w+)` \| ([^|]*) \|", README, re.MULTILINE)
    defaults = {
        name: default for config, _ in reversed(COMMANDS.values()) for name, (_, _, default) in flags(config).items()
    }
    assert len(table) >= 15
    for name, shown in table:
        value = defaults[name]
        if value in (None, ()) or isinstance(value, bool):
            value = {None: "", (): "", False: "off", True: "on"}[value]
        assert shown.strip("` ").split(":")[0] == str(value).replace("50257", "50,257"), name


def test_the_table_of_presets_is_that_of_the_code():
    rows = re.findall(r"^\| `([\w-]+)`(?: \(default\))? \| (.*) \|$", README, re.MULTILINE)
    table = {
        name: [int(cell.replace(",", "")) for cell in cells.split(" | ")] for name, cells in rows if name in PRESETS
    }
    assert table.keys() == PRESETS.keys()
    from slm.config.fields import build
    from slm.config.model import ModelConfig
    from tests.model.test_gpt import parameters

    for name, cells in table.items():
        shape = build(ModelConfig, PRESETS[name])
        assert cells == [
            shape.n_layer, shape.n_head, shape.n_embd, shape.context_length, shape.vocab_size, parameters(shape),
        ]  # fmt: skip


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in target or (ROOT / target).exists(), target
