"""What README and docs show can be pasted and followed: commands, flags, tables and links."""

import re
import shlex
from pathlib import Path

import pytest

from slm.cli import COMMANDS, read_flags
from slm.config.fields import build, flags
from slm.config.model import PRESETS, ModelConfig
from slm.config.use import GenerateConfig
from tests.model.test_gpt import parameters

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in FILES}
STANDS_FOR = {"NAME": "onnx", "RATE": "0.001", "N": "20"}  # what a page leaves to the reader
OF_OTHERS = {  # flags of torchrun, lm_eval, pip, and of the scripts in benchmarks/ and tests/
    "max-restarts", "nnodes", "nproc_per_node", "rdzv-backend", "rdzv-endpoint", "rdzv-id", "standalone",
    "model", "model_args", "tasks", "index-url", "no-deps",
    "corpora", "files", "kills", "minutes", "nanogpt", "parts", "repeats", "results", "rounds", "train", "windows",
}  # fmt: skip


def shown(page):
    """The commands of a page: lines of its shell blocks, and what stands between backquotes."""
    block = ""  # the line that opened the block here
    for line in page.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            block = "" if block else line
        for text in [line] if block in ("```", "```bash") else re.findall(r"`([^`]+)`", line):
            for command in re.sub(r"\s+#.*", "", text).split(" && "):
                if re.match(r"(python3?|slm|make|torchrun|pytest) ", command):
                    yield command


def test_every_page_is_in_the_manual():
    listed = set(re.findall(r"\]\((\w+\.md)\)", PAGES["docs/README.md"]))
    assert listed == {Path(name).name for name in PAGES} - {"README.md"}


@pytest.mark.parametrize("name", PAGES)
def test_commands_are_understood(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for line in shown(PAGES[name]):
        understand(re.sub(r"^torchrun .*?(\w+\.py)", r"python \1", line))


def understand(line):
    """Fails unless `line` names a command, module, file or target that there is, with flags that it takes."""
    program, *words = shlex.split(line)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        return
    if program.startswith("python") and words[0] == "-m":
        program, *words = words[1:]
    if program == "pytest":
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), line
    elif program.startswith("tests."):
        assert (ROOT / f"{program.replace('.', '/')}.py").exists(), line
    elif words and words[0].startswith("benchmarks/"):
        script = (ROOT / words[0]).read_text()
        assert all(f'"{word}"' in script for word in words if word.startswith("--")), line
    elif program in ("python", "slm"):
        command, *rest = words
        command = command.removesuffix(".py")
        assert command in COMMANDS, line
        text = re.sub(r"--resume|--init_from \S+|--help", "", shlex.join(rest))  # the first two ask files
        if rest:
            read_flags(command, [STANDS_FOR.get(word, word) for word in shlex.split(text)])
    else:
        assert program in ("venv", "pip", "http.server"), line


@pytest.mark.parametrize("name", PAGES)
def test_flags_exist(name):
    known = {flag for config, _ in COMMANDS.values() for flag in flags(config)} | OF_OTHERS | {"help"}
    assert {flag.replace("max-minutes", "max_minutes") for flag in re.findall(r"--(\w[\w-]*)", PAGES[name])} <= known


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings], target


def test_the_table_of_presets_is_that_of_the_code():
    rows = re.findall(r"^\| `([\w-]+)`(?: \(default\))? \| ([\d, |]*) \|$", PAGES["docs/training.md"], re.MULTILINE)
    table = {name: [int(cell.replace(",", "")) for cell in cells.split(" | ")] for name, cells in rows}
    assert table.keys() == PRESETS.keys()
    for name, cells in table.items():
        shape = build(ModelConfig, PRESETS[name])
        assert cells == [
            shape.n_layer, shape.n_head, shape.n_embd, shape.context_length, shape.vocab_size, parameters(shape),
        ]  # fmt: skip


def test_the_table_of_sampling_is_that_of_the_code():
    rows = re.findall(r"^\| `--(\w+)` \| `([^`]*)` \| (.*) \|$", PAGES["docs/writing.md"], re.MULTILINE)
    assert len(rows) == 7
    for name, default, meaning in rows:
        flag = flags(GenerateConfig)[name]
        assert (default, meaning) == (str(flag.default), flag.help)
