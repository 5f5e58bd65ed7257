"""Whatever is given - flags, files, prompts - there is a result or a UserError, and no other exception."""

import csv
import io
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import slm
from slm.checkpoint import file as checkpoint
from slm.checkpoint.file import Checkpoint
from slm.cli import COMMANDS, read_flags
from slm.config.fields import flags
from slm.config.model import PRESETS, ModelConfig
from slm.config.train import DataConfig
from slm.config.use import GenerateConfig
from slm.data.corpus import prepare
from slm.data.source import END_OF_TEXT
from slm.data.tokenizer import Tokenizer, gpt2
from slm.errors import UserError
from slm.export.command import export
from slm.model.gpt import GPT

TOKENS = [*(bytes([byte]) for byte in range(256)), b"ab", b" a", b"abab"]
TOY = Tokenizer("toy", TOKENS)
ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates and zeros too
WORDS = st.sampled_from(
    [END_OF_TEXT, "<|endof", "Once", " upon", "\n\n", "\r", "\0", "\ufeff", "é", "日本", "\ud800", " "]
)
LONG_TEXT = st.builds(lambda words, times: "".join(words) * times, st.lists(WORDS, max_size=9), st.integers(0, 300))
TEXTS = ANY_TEXT | LONG_TEXT


def cases(normal, slow):
    """How many cases a test tries, and how many when the slow ones are asked for."""
    return pytest.mark.parametrize("count", [normal, pytest.param(slow, marks=pytest.mark.slow)])


def tries(count):
    """The same `count` cases each time."""
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


def result_or_problems(function, *arguments, **options):
    """What `function` returns; None where it raises a UserError, which has something to say."""
    try:
        return function(*arguments, **options)
    except UserError as error:
        problems = error.problems
    assert all(problems)
    return None


# --- Flags ---

NUMBERS = st.integers().map(str) | st.floats().map(str) | st.sampled_from(["0", "-1", "1", "1e400", "9" * 5000, "1_0"])
CHOICES = ["true", "false", "none", "auto", "cpu", "bpe", "muon", "onnx,gguf", "stories", *PRESETS]
VALUES = NUMBERS | st.sampled_from(CHOICES) | ANY_TEXT


@st.composite
def command_lines(draw):
    command = draw(st.sampled_from(sorted(COMMANDS)))
    names = st.sampled_from(sorted(flags(COMMANDS[command][0])))
    flag = st.builds("--{}".format, names | ANY_TEXT)
    both = st.tuples(flag, VALUES)
    part = (
        both.map(list)
        | both.map(lambda pair: ["=".join(pair)])
        | flag.map(lambda name: [name])
        | VALUES.map(lambda v: [v])
    )
    return command, [word for part in draw(st.lists(part, max_size=6)) for word in part]


@cases(140, 3000)
def test_flags(count, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    @tries(count)
    @given(command_lines())
    def check(line):
        command, arguments = line
        config, exited = None, 0
        try:
            config = result_or_problems(read_flags, command, arguments)
        except SystemExit as error:  # --help
            exited = error.code
        assert exited == 0
        if config is not None:
            assert not list(config.problems())

    check()
    assert not list(tmp_path.iterdir())


# --- Data sets ---

ROWS = st.lists(
    st.dictionaries(st.sampled_from(["text", "title", "é", ""]), TEXTS | st.none() | st.integers(), max_size=3)
    | TEXTS | st.none() | st.integers() | st.lists(TEXTS, max_size=2),
    max_size=8,
)  # fmt: skip


def as_json(rows):
    return json.dumps(rows).encode()


def as_json_lines(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode(errors="surrogatepass")


def as_csv(rows):
    text = io.StringIO()
    csv.writer(text).writerows([row if isinstance(row, list) else [row, "x"] for row in rows])
    return text.getvalue().encode(errors="replace")


def as_parquet(rows):
    import pyarrow as pa
    from pyarrow import parquet

    texts = [str(row).encode(errors="replace").decode() for row in rows]
    file = io.BytesIO()
    parquet.write_table(pa.table({"text": texts, "title": list(range(len(texts)))}), file)
    return file.getvalue()


def as_text(rows):
    return END_OF_TEXT.join(map(str, rows)).encode(errors="surrogatepass")


WRITERS = {".json": as_json, ".jsonl": as_json_lines, ".csv": as_csv, ".parquet": as_parquet, ".txt": as_text}


EXTREMES = st.builds(
    lambda part, times, end: part * times + end,
    st.sampled_from([b"[", b'{"text": ', b"9", b'"', b"\n", b",", b"a,", b"PAR1", b"\x1f\x8b\x08", b"\xef\xbb\xbf"]),
    st.integers(1, 9000),
    st.binary(max_size=9),
)


@st.composite
def data_files(draw):
    """A name and bytes: anything, or a file that is sound but for some bytes."""
    suffix = draw(st.sampled_from(sorted(WRITERS)))
    content = draw(st.binary() | ROWS.map(WRITERS[suffix]) | EXTREMES)
    for place, byte in draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3)):
        if content:
            place %= len(content)
            content = content[:place] + bytes([byte]) + content[place + 1 :]
    cut = draw(st.none() | st.integers(0, 10**6))
    return suffix, content[: cut % len(content)] if cut and content else content


@cases(120, 2000)
def test_data_sets(count, tmp_path):
    @tries(count)
    @given(data_files(), st.sampled_from(["strict", "replace"]))
    def check(file, errors):
        suffix, content = file
        path = tmp_path / f"data{suffix}"
        path.write_bytes(content)
        config = DataConfig(str(path), errors=errors, val_fraction=0.3, cache_dir=str(tmp_path / "cache"))
        corpus = result_or_problems(prepare, config, TOY.vocab_size, TOY)
        if corpus is not None:
            assert len(corpus.train) + len(corpus.val) >= 2
            for split in (corpus.train, corpus.val):
                assert split.ids.max(initial=0) < TOY.vocab_size
                assert split.text_bytes == len(TOY.decode_bytes(split.ids.tolist()))

    check()


# --- Prompts ---


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A toy model in both engines, which writes any token."""
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=260, context_length=8, n_layer=1, n_head=2, n_embd=16)
    weights = {name: 10 * weight for name, weight in GPT(shape).state_dict().items()}
    folder = tmp_path_factory.mktemp("toy")
    checkpoint.save(folder / "m.pt", Checkpoint(shape, weights, TOY, {}))
    export(checkpoint.load(folder / "m.pt"), "onnx", folder / "m")
    return [slm.load(folder / name, device="cpu", threads=1) for name in ("m.pt", "m.onnx")]


SAMPLING = st.fixed_dictionaries(
    {"max_length": st.integers(1, 12) | st.integers(-1, 0)},
    optional={
        "temperature": st.floats() | st.floats(0, 5),
        "top_k": st.integers() | st.integers(0, 300),
        "top_p": st.floats() | st.floats(0, 1),
        "min_p": st.floats() | st.floats(0, 1),
        "repetition_penalty": st.floats() | st.floats(0.01, 100),
        "seed": st.none() | st.integers(),
        "stop": TEXTS | st.lists(TEXTS, max_size=3),
    },
)


@cases(140, 4000)
def test_prompts(count, models):
    @tries(count)
    @given(st.sampled_from(models), TEXTS, SAMPLING, st.booleans())
    def check(model, prompt, how, stream):
        if stream:
            pieces = result_or_problems(lambda: list(model.stream(prompt, **how)))
            text = None if pieces is None else "".join(pieces)
        else:
            text = result_or_problems(model.generate, prompt, **how)
        if text is None:
            return
        text.encode()  # no half characters
        stop = how.pop("stop", ())
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        assert not [each for each in stop if each in text]
        tokens = [piece.token.id for _, piece in model.write([prompt], GenerateConfig(stop=stop, **how))]
        assert len(tokens) <= how["max_length"]
        assert all(0 <= token < 260 for token in tokens)

    check()


# --- The tokenizer ---


@cases(100, 1000)
def test_any_text_comes_back(count):
    tokenizers = [TOY, gpt2()]

    @tries(count)
    @given(st.sampled_from(tokenizers), TEXTS)
    def check(tokenizer, text):
        ids = tokenizer.encode(text)
        assert (ids < tokenizer.vocab_size).all()
        readable = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert tokenizer.decode(ids.tolist()) == readable.replace(END_OF_TEXT, "")
        assert int(tokenizer.byte_counts[ids].sum()) == len(readable.replace(END_OF_TEXT, "").encode())

    check()
