"""Flags: types, defaults, presets, and every bad one named at once."""

import importlib
import math
import shlex
import subprocess
import sys

import pytest

from slm.cli import COMMANDS, main, read_flags
from slm.config import fields, formats
from slm.config.fields import Bounds, flags
from slm.config.model import PRESETS, ModelConfig
from slm.config.train import TrainConfig
from slm.errors import UserError


def problems(*arguments, command="train"):
    with pytest.raises(UserError) as error:
        read_flags(command, arguments)
    return list(error.value.problems)


def test_without_flags_the_defaults_hold():
    assert read_flags("train", []) == TrainConfig()
    assert TrainConfig().model == ModelConfig(50_257, 128, 6, 6, 384)


def test_values_are_read_by_their_type():
    config = read_flags(
        "train",
        [
            "--n_layer",
            "2",
            "--learning_rate",
            "1e-4",
            "--bias",
            "false",
            "--overwrite",
            "--max_steps",
            "none",
            "--dataset=a.txt",
        ],
    )
    assert config.model.n_layer == 2
    assert config.learning_rate == 0.0001
    assert config.model.bias is False
    assert config.overwrite is True
    assert config.max_steps is None
    assert config.data.dataset == "a.txt"


def test_flags_may_be_written_with_hyphens():
    config = read_flags("train", ["--batch-size", "3", "--max-steps=5", "--val-fraction=0.5"])
    assert (config.batch_size, config.max_steps, config.data.val_fraction) == (3, 5, 0.5)
    assert problems("--batch-sise", "3") == ["no flag --batch-sise: did you mean --batch_size?"]


def test_the_main_values_need_no_names():
    assert read_flags("train", ["book.txt", "--n_layer", "2"]).data.dataset == "book.txt"
    config = read_flags("generate", ["--seed", "1", "runs/story", "Once upon a time"])
    assert (config.model_path, config.prompt, config.seed) == ("runs/story", "Once upon a time", 1)
    assert read_flags("evaluate", ["--model_path=a.pt", "book.txt"]).dataset == "book.txt"
    assert read_flags("import", ["gpt2"]).from_ == "gpt2"


@pytest.mark.parametrize(
    ("bounds", "words", "inside", "outside"),
    [
        (Bounds(None, None, None, None), None, [math.inf, -1], []),
        (Bounds(1, None, None, None), "at least 1", [1, 1e9], [0, math.inf, math.nan]),
        (Bounds(0, None, None, None), "0 or more", [0], [-1e-9, math.inf]),
        (Bounds(None, 0, None, None), "above 0", [1e-9], [0, math.nan]),
        (Bounds(None, 0, None, 1), "between 0 and 1", [0.5], [0, 1]),
        (Bounds(None, 0, 1, None), "above 0 and at most 1", [1], [0, 1.1]),
        (Bounds(0, None, None, 1), "from 0 to under 1", [0], [1, -1]),
        (Bounds(0, None, 65_535, None), "from 0 to 65,535", [0, 65_535], [-1, 65_536]),
    ],
)
def test_bounds(bounds, words, inside, outside):
    assert words is None or str(bounds) == words
    assert all(map(bounds.admit, inside))
    assert not any(map(bounds.admit, outside))


def test_explicit_flags_win_over_the_preset_in_any_order():
    config = read_flags("train", ["--n_head", "8", "--preset", "gpt2"])
    assert (config.model.n_layer, config.model.n_head, config.model.n_embd) == (12, 8, 768)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_real_flags_and_are_sound(preset):
    assert PRESETS[preset].keys() <= flags(TrainConfig).keys()
    read_flags("train", ["--preset", preset])


def test_all_bad_flags_are_reported_together():
    found = problems(
        "--n_hed", "4", "--epochs", "many", "--attention", "fast", "--seed", "--n_head", "5", "--dropout", "1"
    )
    assert found == [
        "no flag --n_hed: did you mean --n_head?",
        "--attention must be flash|math, not 'fast'",
        "--epochs must be NUMBER, not 'many'",
        "--seed needs a value",
        "--dropout must be from 0 to under 1, not 1.0",
        "--n_embd 384 is not divisible by --n_head 5: try --n_head 4",
    ]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("--batch_size 0", "--batch_size must be at least 1, not 0"),
        ("--n_layer -1", "--n_layer must be at least 1, not -1"),
        ("--vocab_size 256", "at least 257"),
        ("--vocab_size 60000", "above GPT-2's 50,257"),
        ("--val_fraction 1", "--val_fraction must be between 0 and 1"),
        ("--epochs nan", "--epochs must be above 0, not nan"),
        ("--learning_rate 0", "--learning_rate must be above 0"),
        ("--max_minutes inf", "--max_minutes must be above 0, not inf"),
        ("--grad_clip -1", "--grad_clip must be 0 or more"),
        ("--beta2 1", "--beta2 must be from 0 to under 1"),
        ("--learning_rate 1e-4 --min_lr 1e-3", "--min_lr 0.001 is above --learning_rate 0.0001"),
        ("--seed -1", "--seed must be from 0"),
        ("--max_steps 5 --max_minutes 5", "exclude each other"),
        ("--resume --overwrite", "exclude each other"),
        ("--export onnx,gguff", "--export 'gguff' is not an export format: did you mean gguf?"),
        ("--preset huge", "--preset must be one of tiny, small, gpt2, gpt2-medium, not 'huge'"),
        ("--n_embd 1000000000000 --n_head 7", "--n_embd 1000000000000 is not divisible by --n_head 7: try --n_head 8"),
        ("--n_embd 8 --n_head 5000", "is not divisible by --n_head 5000: try --n_head 1"),
        ("--batch_size 1.5", "--batch_size must be INTEGER, not '1.5'"),
        ("--bias perhaps", "--bias must be true|false"),
        ("book.txt stray", "unexpected argument 'stray': every value follows its flag; quote a pattern, as in '*.txt'"),
        ("--dataset a.txt stray", "unexpected argument 'stray'"),
        ("-Hello", "write a value that begins with - as --flag=-value"),
        ("--zzz", "no flag --zzz; --help lists all"),
    ],
)
def test_each_bad_value_has_one_line(arguments, part):
    (problem,) = problems(*arguments.split())
    assert part in problem


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("--max_length 0", "--max_length"),
        ("--num_samples 0", "--num_samples"),
        ("--temperature -1", "--temperature"),
        ("--top_k -1", "--top_k"),
        ("--top_p 0", "--top_p"),
        ("--top_p 1.1", "--top_p"),
        ("--seed -1", "--seed"),
        ("--min_p 1.5", "--min_p must be from 0 to 1, not 1.5"),
        ("--repetition_penalty 0", "--repetition_penalty must be from 0.01 to 100, not 0.0"),
        ("--threads 100000", "--threads 100000 is more than the"),
        ("--stop=", "--stop must not be empty"),
        ("--threads 0", "--threads must be at least 1"),
        ("--temperature 0 --num_samples 3", "3 samples need a higher one"),
        ("--prompt x --prompt_file y", "--prompt and --prompt_file exclude each other"),
        ("--interactive --logprobs", "leave out --logprobs"),
        ("--stop", "--stop needs a value"),
    ],
)
def test_bad_sampling_flags(arguments, part):
    (problem,) = problems(*arguments.split(), command="generate")
    assert part in problem


def test_a_flag_that_may_be_given_several_times():
    assert read_flags("generate", []).stop == ()
    assert read_flags("generate", ["--stop", "a", "--stop=b", "--seed", "1"]).stop == ("a", "b")


@pytest.mark.parametrize("arguments", ["--seed 1 --seed 2", "--seed=1 --seed=1", "--seed 1 --num_samples 2 --seed"])
def test_the_same_flag_twice(arguments):
    assert problems(*arguments.split(), command="generate") == ["--seed is given 2 times: keep one of them"]
    assert problems("--resume", "--epochs", "3", "--resume", "--resume", "--epochs=5") == [
        "--epochs is given 2 times: keep one of them",
        "--resume is given 3 times: keep one of them",
    ]
    assert problems("--batch-size=1", "--batch_size", "2") == ["--batch_size is given 2 times: keep one of them"]


@pytest.mark.parametrize("arguments", ["a.txt b.txt c.txt d.txt", "--dataset a.txt b.txt c.txt d.txt"])
def test_a_pattern_that_the_shell_expanded_is_one_line(arguments):
    mend = "every value follows its flag; quote a pattern, as in '*.txt'"
    assert problems(*arguments.split()) == [f"unexpected argument 'b.txt' and 2 more: {mend}"]


@pytest.mark.parametrize(
    ("formats", "part"),
    [
        ("onx", "did you mean onnx?"),
        ("onnx,zip", "'zip' is not an export format: choose from onnx, "),
        (",", "names no format"),
    ],
)
def test_unknown_export_formats(formats, part):
    (problem,) = problems(f"--format={formats}", command="export")
    assert part in problem


def test_formats_may_have_spaces_between_them_and_count_once():
    assert formats.format_list("onnx, gguf,,onnx") == ["onnx", "gguf"]


def test_resume_brings_its_own_weights(tmp_path):
    (problem,) = problems("--resume", "--init_from", "best_model.pt", "--out_dir", str(tmp_path))
    assert "--resume and --init_from exclude each other" in problem
    assert read_flags("train", ["--init_from", "none"]).init_from is None


def test_messages_go_to_stderr_and_the_exit_code_is_2(capsys):
    assert main(["train", "--batch_size", "0", "--n_layer", "0"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --n_layer must be at least 1, not 0",
        "error: --batch_size must be at least 1, not 0",
    ]
    assert main(["tarin"]) == 2
    assert capsys.readouterr().err == "error: no command 'tarin': did you mean train?\n"
    assert main(["zzz"]) == 2
    assert "no command 'zzz': there are train, find-lr," in capsys.readouterr().err
    assert main(["version"]) == 0
    assert capsys.readouterr().out == "slm 0.1.0\n"


def test_help_lists_every_flag_with_meaning_and_default(capsys):
    for command, (config_class, _) in COMMANDS.items():
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        for name, (_, meaning, default) in flags(config_class).items():
            assert (f"--{name} " in text) == (name not in config_class.MEANINGLESS)
            if name in config_class.MEANINGLESS:
                continue
            assert " ".join(meaning.split()) in text
            shown = str(default).lower() if isinstance(default, bool) else default
            assert "default:" in meaning or default in (None, "") or f"(default: {shown})" in text
        assert "None" not in text
        assert set(config_class.HEADINGS) <= set(flags(config_class))
        for heading in config_class.HEADINGS.values():
            assert f" {heading}: --" in text


def test_the_example_of_each_command_can_be_read(capsys):
    for command, (config_class, _) in COMMANDS.items():
        read_flags(command, shlex.split(config_class.EXAMPLE))
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert f"slm {command} {config_class.EXAMPLE}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_no_framework(command):
    """The time itself is the benchmark's business; what makes it short is tested here."""
    code = (
        "import sys\nfrom slm.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'tiktoken', 'datasets', 'matplotlib') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [
        name
        for name in sys.modules
        if name.startswith("slm.") and not name.startswith(("slm.cli", "slm.config", "slm.errors"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["train"]) == 2
    error = capsys.readouterr().err
    assert error == f"error: the Python package 'torch' is not installed: {fields.python()} -m pip install torch\n"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 TB")])
def test_out_of_memory_is_one_line(error, monkeypatch, capsys):
    from slm.training import command

    def large(config):
        raise error

    monkeypatch.setattr(command, "main", large)
    assert main(["train"]) == 2
    assert "not enough memory: make --batch_size smaller" in capsys.readouterr().err


def test_other_errors_are_not_hidden(monkeypatch):
    from slm.training import command

    def broken(config):
        raise RuntimeError("a defect")

    monkeypatch.setattr(command, "main", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["train"])


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("slm ")


@pytest.mark.parametrize(
    ("called", "path", "hint"),
    [
        ("train.py", "project/.venv/bin", "python generate.py"),
        ("train.py", "elsewhere", ".venv/bin/python generate.py"),
        ("{}/project/.venv/bin/slm", "project/.venv/bin", "slm generate"),
        ("{}/project/.venv/bin/slm", "elsewhere", ".venv/bin/slm generate"),
        ("{}/other one/bin/slm", "elsewhere", "'{}/other one/bin/slm' generate"),
        ("/lib/slm/__main__.py", "elsewhere", ".venv/bin/python -m slm generate"),
        ("{}/other one/bin/gunicorn", "elsewhere", "slm generate"),
        ("{}/ipykernel_launcher.py", "project/.venv/bin", "python -m slm generate"),
    ],
)
def test_hints_can_be_pasted_where_the_command_was_called(called, path, hint, monkeypatch, tmp_path):
    """In an environment that is activated, as it is the first on the PATH, or is not."""
    for folder in ("project/.venv/bin", "elsewhere", "other one/bin"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("python", "slm"):
            (tmp_path / folder / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("PATH", str(tmp_path / path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "project/.venv/bin/python"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "project/.venv"))
    monkeypatch.setattr(sys, "argv", [called.format(tmp_path), "train"])
    assert fields.command("generate") == hint.format(tmp_path)


@pytest.mark.parametrize(("there", "hint"), [(["python", "python3"], "python"), (["python3"], "python3")])
def test_outside_of_an_environment_python_is_what_is_there(there, hint, monkeypatch, tmp_path):
    for name in there:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert fields.command("generate") == f"{hint} generate.py"
    assert fields.command("watch") == f"{hint} -m slm watch"  # which has no script


def test_outside_of_the_environment_it_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(importlib, "import_module", missing_torch)
    for environment in (False, True):
        if environment:
            (tmp_path / ".venv/bin").mkdir(parents=True)
            (tmp_path / ".venv/bin/activate").touch()
        assert main(["train"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: the Python package 'torch' is not installed: ")
        assert ("source .venv/bin/activate, for the environment here, or python" in said) is environment


def missing_torch(_):
    raise ModuleNotFoundError("No module named 'torch'", name="torch")


def test_names_that_cannot_be(capsys):
    assert main(["train", "--resume", "--out_dir", "x" * 300]) == 2
    assert main(["generate", ""]) == 2
    said = capsys.readouterr().err
    assert "error: cannot make --out_dir" in said
    assert "unexpected argument ''" in said
