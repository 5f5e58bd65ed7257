"""What a run keeps where the disk refuses."""

from pathlib import Path

import pytest

from slm.errors import UserError
from slm.training import report
from tests.runs import change, in_step, load, rows, train


def test_patience_does_not_count_from_a_model_that_could_not_be_saved(config):
    """Each model is better than the one before, but none can be saved after the first."""

    def befall(run):
        save_best = run.keeper.save_best

        def refused(*arguments):
            if run.state.step > 0:
                raise UserError("the disk is full")
            save_best(*arguments)

        run.keeper.save_best = refused

    with pytest.raises(UserError, match="the disk is full"):  # at the end
        train(change(config, max_steps=50, eval_every=10, patience=3, learning_rate=0.02), befall)
    assert [row["step"] for row in rows(config)] == [0, 10, 20, 30]


@pytest.mark.parametrize("how", [{"resume": True, "max_steps": 20}, {"overwrite": True}])
def test_a_disk_that_refuses_loses_nothing(config, how):
    """No file may grow beyond 40 kB, which best_model.pt and last.pt do."""
    resource = pytest.importorskip("resource")
    train(config)
    before = {name: (Path(config.out_dir) / name).read_bytes() for name in ("best_model.pt", "last.pt")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*: File too large; what was there stays"):
            train(change(config, **how))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert before == {name: (Path(config.out_dir) / name).read_bytes() for name in before}


def test_a_picture_that_cannot_be_written_does_not_stop_the_run(config, monkeypatch, capsys):
    def refused(*_):
        raise UserError("cannot write training.png: Permission denied")

    monkeypatch.setattr(report, "draw", refused)
    assert train(config) == 0
    assert "warning: cannot write training.png" in capsys.readouterr().out


def test_a_defect_ends_a_run_only_after_its_steps_are_saved(config, capsys):
    def defect():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(config, in_step(6, defect))
    assert "saved after step 5, before an error; to continue: python train.py --resume" in capsys.readouterr().out
    assert load(config, "last.pt").facts["step"] == 5


def test_a_step_that_broke_off_among_the_weights_is_not_saved(config, capsys):
    def befall(run):
        def broken(*_):
            raise MemoryError

        in_step(6, lambda: setattr(run.learner.optimizers[-1], "step", broken))(run)

    with pytest.raises(MemoryError):
        train(change(config, optimizer="muon"), befall)
    assert "the state of step 0 is the last one saved; to continue:" in capsys.readouterr().out
    assert load(config, "last.pt").facts["step"] == 0
