"""The package as it is published: what is in it, and that it works outside of a clone of the repository."""

import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

import slm
from slm.data.stories import stories
from tests.readme.test_readme import DOCUMENTED

ROOT = Path(__file__).parents[1]
ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # nothing is imported from here


def test_the_changelog_has_the_version_with_a_date():
    versions = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert any(re.fullmatch(rf"{re.escape(slm.__version__)} \(\d{{4}}-\d\d-\d\d\)", each) for each in versions)


def test_the_workflow_tries_what_the_package_promises():
    yaml = pytest.importorskip("yaml")
    project = (ROOT / "pyproject.toml").read_text()
    oldest, newest = re.search(r"torch>=([\d.]+),<([\d.]+)", (ROOT / "requirements.txt").read_text()).groups()
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert f'requires-python = ">={matrix["python"][0]}"' in project
    assert matrix["python"] == [f"3.{minor}" for minor in range(10, 15)]
    assert {each["os"].split("-")[0] for each in matrix["include"]} == {"ubuntu", "macos", "windows"}
    assert {each["torch"] for each in matrix["include"]} == {oldest} < {newest, oldest}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The wheel and the source archive. The wheel is made from what the archive holds."""
    made = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", made, ROOT], check=True, capture_output=True)
    (wheel,), (source,) = made.glob("*.whl"), made.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def scripts(archives, tmp_path_factory):
    """The programs of an environment with the wheel, and this one's other packages."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, with_pip=True)
    paths = sysconfig.get_paths(vars={"base": str(home), "platbase": str(home)})
    install(Path(paths["scripts"]), archives[0])
    others = f"{sysconfig.get_paths()['purelib']}\n"  # only as a path: its own .pth files are not read
    (Path(paths["purelib"]) / "others.pth").write_text(others)
    return Path(paths["scripts"])


def install(scripts, archive, *more):
    command = [scripts / "python", "-m", "pip", "install", "--no-deps", *more, archive]
    subprocess.run(command, env=ALONE, check=True, capture_output=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two small texts, of the README's names."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "dataset.txt").write_text("<|endoftext|>".join(stories(16)))
    (folder / "path" / "to" / "other.txt").write_text("<|endoftext|>".join(stories(4, seed=2)))
    return folder


def run(scripts, folder, line, program="slm"):
    command = [scripts / program, *shlex.split(line)]
    activated = ALONE | {"PATH": f"{scripts}{os.pathsep}{ALONE['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=activated, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_is_in_the_archives(archives):
    wheel, source = archives
    assert wheel.name == f"small_language_model-{slm.__version__}-py3-none-any.whl"
    tracked = subprocess.check_output(["git", "ls-files", "slm"], cwd=ROOT, text=True).split()
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    assert {"slm/data/stories.txt", "slm/server/static/page.js", "slm/py.typed"} < set(tracked) <= in_wheel
    assert {name.split("/")[0] for name in in_wheel} == {"slm", f"small_language_model-{slm.__version__}.dist-info"}
    with tarfile.open(source) as opened:
        in_source = {name.partition("/")[2] for name in opened.getnames()}
    assert {*tracked, "README.md", "LICENSE", "CHANGELOG.md", "requirements.txt"} <= in_source
    assert not any(name.startswith("tests") for name in in_source)


@pytest.mark.slow
def test_the_readmes_commands_work_anywhere_as_slm(scripts, folder):
    where = run(scripts, folder, '-c "import slm; print(slm.__file__)"', "python").strip()
    assert Path(where).is_relative_to(scripts.parent)
    for line in DOCUMENTED:
        said = run(scripts, folder, re.sub(r"^python (\w+)\.py", r"\1", line))
        if "train.py" in line:
            assert said.splitlines()[-1] == (
                'next       slm generate --model_path best_model.pt --prompt "Once upon a time" --max_length 100'
            )
    assert (folder / "best_model.torchscript.pt").exists()
    assert run(scripts, folder, "generate best_model.onnx 'The fox'").startswith("The fox")


@pytest.mark.slow
def test_the_pages_are_served_from_the_wheel(scripts, tmp_path):
    run(scripts, tmp_path, "train --preset tiny --max_steps 1 --eval_batches 1 --export none")
    for line, names in (("serve best_model.pt --port 0", ("", "static/style.css")), ("watch . --port 0", ("watch",))):
        command = [scripts / "slm", *line.split()]
        server = subprocess.Popen(command, cwd=tmp_path, env=ALONE, text=True, stdout=subprocess.PIPE)
        try:
            address = next(found[0] for said in server.stdout if (found := re.findall(r"http://[\d.:]+", said)))
            for name in names:
                assert urllib.request.urlopen(f"{address}/{name}", timeout=60).status == 200
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=60)


@pytest.mark.slow
def test_the_source_archive_installs(archives, scripts, folder):
    install(scripts, archives[1], "--force-reinstall")
    assert run(scripts, folder, "version") == f"slm {slm.__version__}\n"
    assert run(scripts, folder, '-c "from slm.data.stories import stories; print(*stories(1))"', "python")
