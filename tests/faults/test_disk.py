"""A disk that is full, slow to say so, or taken away: what was saved stays, and the run says what happened."""

import builtins
import contextlib
import dataclasses
import errno
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from slm import files
from slm.checkpoint import file as checkpoint
from slm.cli import main as command
from slm.config.formats import EXPORT_FORMATS
from slm.config.model import ModelConfig
from slm.config.train import DataConfig, TrainConfig
from slm.data.stories import stories
from slm.errors import UserError
from slm.training import evaluator, folder, report
from slm.training.command import main
from slm.training.folder import LAST, PREVIOUS
from tests.runs import in_step, train


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("<|endoftext|>".join(stories(60)))
    return path


@pytest.fixture
def config(text, tmp_path, monkeypatch):
    """6 steps, evaluated at 0, 2, 4 and 6, and saved after each."""
    monkeypatch.setattr(evaluator, "SAMPLE_LENGTH", 2)
    monkeypatch.setattr(report, "draw", lambda path, *_: write_picture(path))
    return TrainConfig(
        data=DataConfig(dataset=str(text), cache_dir=str(text.parent / "cache"), val_fraction=0.1),
        model=ModelConfig(vocab_size=300, context_length=16, n_layer=1, n_head=2, n_embd=16),
        batch_size=4, max_steps=6, eval_every=2, eval_batches=1, precision="fp32", device="cpu", save_every=1e-9,
        export="none", out_dir=str(tmp_path / "run"),
    )  # fmt: skip


def write_picture(path):
    """What stands for a picture here, as a real one takes most of the time."""
    with files.replacing(path) as file:
        file.write(b"picture")


@pytest.fixture(scope="module")
def expected(text, tmp_path_factory):
    """The last weights of a run without faults."""
    with pytest.MonkeyPatch.context() as patch:
        run = config.__wrapped__(text, tmp_path_factory.mktemp("expected"), patch)
        assert main(run) == 0
    return checkpoint.load(Path(run.out_dir) / LAST).weights


class Failing:
    """Calls that go well until number `first`, and from there on `times` times raise `error`."""

    def __init__(self, error, first, times):
        self.error, self.first, self.times, self.calls = error, first, times, 0

    def __call__(self):
        self.calls += 1
        if self.first <= self.calls < self.first + self.times:
            raise OSError(self.error, os.strerror(self.error))


class File:
    """A file whose writes may fail."""

    def __init__(self, file, failing):
        self.file, self.failing = file, failing

    def write(self, data):
        self.failing()
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def inject(patch, where, failing):
    if where == "write":
        fdopen = os.fdopen
        patch.setattr(files.os, "fdopen", lambda *a, **k: File(fdopen(*a, **k), failing))
    elif where == "fsync":
        fsync = os.fsync
        patch.setattr(files.os, "fsync", lambda descriptor: (failing(), fsync(descriptor)))
    elif where == "open":
        mkstemp = files.tempfile.mkstemp
        patch.setattr(files.tempfile, "mkstemp", lambda *a, **k: (failing(), mkstemp(*a, **k))[1])
    else:
        replace = Path.replace
        patch.setattr(Path, "replace", lambda self, target: (failing(), replace(self, target))[1])


def whole(out_dir):
    """The steps of the states that lie in `out_dir`; whatever has its final name is whole."""
    if (out_dir / "best_model.pt").exists():
        checkpoint.load(out_dir / "best_model.pt")
    return [checkpoint.load(out_dir / name).facts["step"] for name in (LAST, PREVIOUS) if (out_dir / name).exists()]


def calls_of(where, config, monkeypatch):
    counting = Failing(errno.EIO, 10**9, 0)
    with monkeypatch.context() as patch:
        inject(patch, where, counting)
        assert main(dataclasses.replace(config, out_dir=config.out_dir + "-counted")) == 0
    return counting.calls


def run_with_faults(config, expected, monkeypatch, capsys, where, error, first, times):
    """A run with faults ends with a warning, or with an error that says what and where; and then goes on to its end."""
    out_dir = Path(config.out_dir)
    with monkeypatch.context() as patch:
        failing = Failing(error, first, times)
        inject(patch, where, failing)
        try:
            assert main(config) == 0
            said = "".join(capsys.readouterr())
        except UserError as problem:
            said = str(problem)
    if failing.calls >= first:
        assert os.strerror(error) in said
        assert str(out_dir) in said
    whole(out_dir)
    assert not list(out_dir.glob("*.link")), "a half-made name is left"
    main(dataclasses.replace(config, **({"resume": True} if (out_dir / LAST).exists() else {"overwrite": True})))
    capsys.readouterr()
    for name, weight in expected.items():
        assert torch.equal(weight, checkpoint.load(out_dir / LAST).weights[name]), name


@pytest.mark.parametrize("where", ["write", "fsync", "open", "replace"])
def test_a_fault_of_the_disk_costs_nothing_that_was_saved(where, config, expected, monkeypatch, capsys):
    calls, chance = calls_of(where, config, monkeypatch), random.Random(0)
    for number in range(4):
        error = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS)[number]
        first, times = chance.randint(1, calls), chance.choice([1, 1, 3, 10**9])
        each = dataclasses.replace(config, out_dir=f"{config.out_dir}-{number}")
        run_with_faults(each, expected, monkeypatch, capsys, where, error, first, times)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 10**9])
@pytest.mark.parametrize("where", ["write", "fsync", "open", "replace"])
def test_a_fault_at_every_write(where, times, config, expected, monkeypatch, capsys):
    """At some thirty of a run's writes, fsyncs, openings and changes of a name; once, or from then on."""
    calls = calls_of(where, config, monkeypatch)
    for first in range(1, calls + 1, max(1, calls // 20)):
        error = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS)[first % 4]
        each = dataclasses.replace(config, out_dir=f"{config.out_dir}-{first}")
        run_with_faults(each, expected, monkeypatch, capsys, where, error, first, times)


def test_a_run_goes_on_where_one_save_fails(config, expected, monkeypatch, capsys):
    saves = iter(range(100))
    save = folder.save

    def refused(*arguments):
        if next(saves) == 2:
            raise UserError("cannot write last.pt: No space left on device; what was there stays")
        save(*arguments)

    monkeypatch.setattr(folder, "save", refused)
    assert main(config) == 0
    said = "".join(capsys.readouterr())
    assert "warning: cannot write last.pt: No space left on device; what was there stays; the run goes on" in said
    for name, weight in expected.items():
        assert torch.equal(weight, checkpoint.load(Path(config.out_dir) / LAST).weights[name])


def test_a_best_model_that_could_not_be_saved_is_saved_at_the_next_evaluation(config, capsys):
    saves = iter(range(100))

    def befall(run):
        save_best = run.keeper.save_best

        def refused(*arguments):
            if next(saves) == 1:
                raise UserError("cannot write best_model.pt: No space left on device; what was there stays")
            save_best(*arguments)

        run.keeper.save_best = refused

    train(config, befall)
    assert "warning: cannot write best_model.pt" in "".join(capsys.readouterr())
    assert checkpoint.load(Path(config.out_dir) / "best_model.pt").facts["step"] > 2


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of so many kilobytes and returns its folder."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(kilobytes):
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here: that takes root")
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], capture_output=True)  # also where a file in it was left open


@pytest.mark.parametrize("kilobytes", [40, 80, 120, 160, 200, 240, 280, 320, 360, 400, 2000])
def test_a_full_disk(kilobytes, config, small_disk, capsys):
    """Some of these hold nothing, some the first states, and the last all: 100 kB a state, 60 kB a model."""
    config = dataclasses.replace(config, out_dir=str(small_disk(kilobytes) / "run"))
    try:
        assert main(config) == 0
    except UserError as error:
        assert "No space left on device" in str(error)  # noqa: PT017
        assert kilobytes < 2000
    steps = whole(Path(config.out_dir))
    assert kilobytes < 120 or steps


def fill(disk):
    """Write a file `other` until nothing more fits."""
    with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_a_disk_that_is_full_from_the_beginning(config, small_disk, capsys):
    disk = small_disk(200)
    config = dataclasses.replace(config, out_dir=str(disk / "run"))
    fill(disk)
    with pytest.raises(UserError, match=r"cannot write .*last\.pt: No space left on device"):
        main(config)


@pytest.mark.parametrize("freed", [True, False])
def test_a_disk_that_fills_up_on_the_way(freed, config, expected, small_disk, capsys):
    """The run goes on without saving; where there is room again it saves as ever, else it ends with an error."""
    disk = small_disk(2000)
    config = dataclasses.replace(config, out_dir=str(disk / "run"))

    def befall(run):
        in_step(4, lambda: fill(disk))(run)
        if freed:
            in_step(6, (disk / "other").unlink)(run)

    if freed:
        assert train(config, befall) == 0
        assert whole(Path(config.out_dir)) == [6, 6]
    else:
        with pytest.raises(UserError, match=r"cannot write .*last\.pt: No space left on device; what was there stays"):
            train(config, befall)
        assert whole(Path(config.out_dir)) == [3, 2]
    assert "last.pt: No space left on device; what was there stays; the run goes on" in "".join(capsys.readouterr())


def test_nothing_opens_a_file_to_write_but_by_the_one_helper(config, monkeypatch):
    """Each file in the folder came through `replacing`, but for the lock: so the faults above are all there are."""
    opened = []
    real = builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda file, mode="r", *a, **k: opened.append((file, mode)) or real(file, mode, *a, **k)
    )
    main(config)
    written = [file for file, mode in opened if set(mode) & set("wax+") and str(config.out_dir) in str(file)]
    assert [file for file in written if not str(file).endswith(".lock")] == []


@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_an_export_on_a_full_disk_is_one_line_and_leaves_nothing(format, trained, small_disk, capsys):
    folder = small_disk(60)  # the smallest export has 100 kB
    assert command(["export", "--model_path", str(trained), "--format", format, "--out_dir", str(folder)]) == 2
    said = capsys.readouterr().err
    if "python -m pip install" in said or "npm" in said:
        pytest.skip(said)
    reason = "not all of it could be written, as on a full disk" if "gguf" in format else "No space left on device"
    assert re.fullmatch(rf"error: cannot write {folder}/best_model\S*: {reason}\n", said)
    assert list(folder.iterdir()) == []


@pytest.fixture
def read_only(trained, small_disk):
    """A file system that cannot be written to, with a model in it and an empty folder `run`."""
    disk = small_disk(2000)
    (disk / "run").mkdir()
    shutil.copy(trained, disk / "best_model.pt")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    return disk


@pytest.mark.parametrize("out_dir", [[], ["run"], ["new"]])
@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_an_export_to_a_read_only_file_system_is_one_line(format, out_dir, read_only, capsys):
    where = [f"--out_dir={read_only / name}" for name in out_dir]
    assert command(["export", "--model_path", str(read_only / "best_model.pt"), "--format", format, *where]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"error: cannot (write|make --out_dir) {read_only}/\S+: Read-only file system\n", said)


def test_training_and_import_to_a_read_only_file_system_are_one_line_and_what_only_reads_works(
    read_only, config, tmp_path, capsys
):
    model = str(read_only / "best_model.pt")
    for name, problem in (
        ("run", f"cannot write to --out_dir {read_only}/run: it is read-only for this user"),
        ("new", f"cannot make --out_dir {read_only}/new: Read-only file system"),
    ):
        with pytest.raises(UserError) as error:
            main(dataclasses.replace(config, out_dir=str(read_only / name)))
        assert error.value.problems == (problem,)
    pytest.importorskip("safetensors")
    assert command(["export", "--model_path", model, "--format", "huggingface", "--out_dir", str(tmp_path)]) == 0
    capsys.readouterr()
    source = str(tmp_path / "best_model-huggingface")
    assert command(["import", source, "--out_dir", str(read_only / "run")]) == 2
    assert capsys.readouterr().err == f"error: cannot write {read_only}/run/best_model.pt: Read-only file system\n"
    assert command(["generate", "--model_path", model, "--prompt", "One", "--max_length", "4"]) == 0
    assert sorted(path.name for path in read_only.rglob("*")) == ["best_model.pt", "run"]
