"""Which part of the project may know which: the arrows of imports, as CONTRIBUTING.md draws them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "slm").rglob("*.py"))}


def imports(name):
    """The modules of the project that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {each for each in found if each in MODULES} - {name, "slm"}


IMPORTS = {name: imports(name) for name in MODULES}


def within(name, *parts):
    return any(name == part or name.startswith(f"{part}.") for part in parts)


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("slm.model", ["slm.data", "slm.checkpoint", "slm.learner", "slm.training", "slm.files"]),
        ("slm.data", ["slm.model", "slm.checkpoint", "slm.learner", "slm.training", "slm.inference", "slm.export"]),
        ("slm.checkpoint", ["slm.learner", "slm.training", "slm.inference", "slm.export", "slm.server"]),
        ("slm.learner", ["slm.training", "slm.checkpoint", "slm.files", "slm.data.corpus", "slm.inference"]),
        ("slm.evaluation.measure", ["slm.training", "slm.checkpoint", "slm.files", "slm.inference"]),
        ("slm.training.plan", ["slm.learner", "slm.training.folder", "slm.files"]),
        ("slm.training.guard", ["slm.training.folder", "slm.files", "slm.checkpoint"]),
        ("slm.training.evaluator", ["slm.training.keeper", "slm.training.folder", "slm.files"]),
        ("slm.training.keeper", ["slm.training.evaluator", "slm.training.loop", "slm.export"]),
        ("slm.inference", ["slm.training", "slm.server", "slm.export", "slm.learner"]),
        ("slm.export", ["slm.training", "slm.server", "slm.learner"]),
        ("slm.server", ["slm.training", "slm.learner", "slm.export"]),
    ],
)
def test_parts_that_know_nothing_of_each_other(part, forbidden):
    wrong = {
        (name, each) for name in IMPORTS if within(name, part) for each in IMPORTS[name] if within(each, *forbidden)
    }
    assert wrong == set()


def test_settings_know_only_errors_and_cores():
    known = {each for name in IMPORTS if within(name, "slm.config") for each in IMPORTS[name]}
    assert {each for each in known if not within(each, "slm.config")} <= {"slm.errors", "slm.cores"}


def test_only_the_command_line_and_the_python_api_know_commands():
    wrong = {(name, each) for name in IMPORTS for each in IMPORTS[name] if each.endswith(".command")}
    assert {each for each in wrong if each[0] != "slm.api"} <= {("slm.training.command", "slm.export.command")}
    assert [name for name in IMPORTS if "slm.api" in IMPORTS[name]] == ["slm", "slm.export"]  # when they are called


def test_there_are_no_circles():
    """Modules can be taken away one after another, each when none of those left imports it."""
    left = dict(IMPORTS)
    while free := [name for name in left if not any(name in left[other] for other in left)]:
        for name in free:
            del left[name]
    assert sorted(left) == []


def test_importing_the_package_loads_no_framework():
    code = "import slm, sys; print(sorted({'torch', 'numpy', 'tiktoken', 'datasets'} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT) == "[]\n"


def test_the_model_loads_no_compiler():
    """Which takes a second of every command's start."""
    code = "import slm.learner.learner, slm.inference.text, sys; print('torch._dynamo' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT) == "False\n"


def test_files_and_functions_can_be_read_at_once():
    long = []
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 400:
            long.append(name)
        long += [
            f"{name}.{node.name}, {node.end_lineno - node.lineno + 1} lines"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60
        ]
    assert long == []


def test_public_definitions_say_what_they_are():
    silent = [
        f"{name}.{node.name}"
        for name, path in MODULES.items()
        for owner in [ast.parse(path.read_text(encoding="utf-8"))]
        for each in [owner, *(node for node in owner.body if isinstance(node, ast.ClassDef) and node.name[0] != "_")]
        for node in each.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert silent == []
