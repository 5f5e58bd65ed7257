"""Texts: stop strings, whole characters, many at once, and the same from a checkpoint, an ONNX file and a folder."""

import functools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.checkpoint import file as checkpoint
from slm.config.use import GenerateConfig
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.export.command import export
from slm.inference.continuation import Continuation
from slm.inference.sampling import Sampling
from slm.inference.text import TextModel, load
from tests import check_story
from tests.server.conftest import alphabet

BYTES = Tokenizer("bytes", [bytes([byte]) for byte in range(256)])
GREEDY = {"temperature": 0.0, "max_length": 40}


class Recite:
    """Says the bytes of a text after any prompt, then the end of text."""

    context_length = 64

    def __init__(self, text):
        self.ids = [*text.encode("utf-8", "surrogateescape"), BYTES.end_of_text]

    def prefill(self, prompts):
        self.position = 0
        return self.next(len(prompts))

    def decode(self, ids):
        self.position += 1
        return self.next(len(ids))

    def next(self, batch):
        return np.tile(np.eye(257, dtype=np.float32)[self.ids[self.position]], (batch, 1))

    def keep(self, rows):
        pass


def pieces(text, **how):
    return list(TextModel(Recite(text), BYTES, {}).stream("", temperature=0.0, **how))


def test_pieces_are_whole_characters():
    assert pieces("né 日") == ["n", "é", " ", "日"]


def test_a_text_cut_inside_a_character_ends_with_the_replacement():
    assert pieces("né", max_length=2) == ["n", "\ufffd"]


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        (("end",), "The "),
        (("The",), ""),
        (("xyz",), "The end of the story."),
        (("story", " of"), "The end"),
        (("the s",), "The end of "),
        ((".",), "The end of the story"),
        (("story.!",), "The end of the story."),
    ],
)
def test_stop_strings_end_a_text_before_them(stop, shown):
    assert "".join(pieces("The end of the story.", stop=stop)) == shown


def test_what_may_become_a_stop_string_is_held_back():
    assert pieces("ababc.", stop=("abc",)) == ["ab"]
    assert pieces("aab", stop=("ab", "b!")) == ["a"]
    assert pieces("ab", stop=("abc",)) == ["ab"]
    assert pieces("ab, ab", stop=("abc",)) == ["ab,", " ", "ab"]


@given(st.text(min_size=1, max_size=20), st.lists(st.text(min_size=1, max_size=3), max_size=3), st.booleans())
def test_the_shown_text_is_cut_at_the_first_stop_string(text, stop, ends_by_itself):
    whole = text.encode("utf-8", "replace")
    text = whole.decode()
    continuation = Continuation(
        [0], BYTES, len(whole) + ends_by_itself, Sampling(temperature=0), np.random.default_rng(0), stop
    )
    for token in [*whole, BYTES.end_of_text]:
        if not continuation.ended:
            continuation.grow(np.eye(257, dtype=np.float32)[token])
    first = min((text.find(each) for each in stop if each in text), default=len(text))
    assert "".join(piece.text for piece in continuation.take()) == text[:first]
    stopped = ends_by_itself or any(each in text for each in stop)
    assert continuation.finish_reason == ("stop" if stopped else "length")


def test_one_stop_string_may_be_given_by_itself():
    assert pieces("The end.", stop="end") == pieces("The end.", stop=("end",))


def test_keywords_are_checked_as_flags_are():
    with pytest.raises(UserError) as error:
        TextModel(Recite("x"), BYTES, {}).generate("", top_p=0.0, min_p=2.0)
    assert error.value.problems == (
        "--top_p must be above 0 and at most 1, not 0.0",
        "--min_p must be from 0 to 1, not 2.0",
    )
    for how, problem in (
        ({"max_length": "9"}, "max_length must be INTEGER, not '9'"),
        ({"temperature": None}, "temperature must be NUMBER, not None"),
        ({"stop": [3]}, "stop must be TEXT, not (3,)"),
        ({"prompt": 3}, "prompt must be TEXT, not 3"),
    ):
        with pytest.raises(UserError) as error:
            TextModel(Recite("x"), BYTES, {}).generate(**how)
        assert error.value.problems == (problem,)
    for keyword in ("topp", "num_samples", "model_path"):
        with pytest.raises(TypeError, match=f"no keyword '{keyword}': there are stop, max_length"):
            TextModel(Recite("x"), BYTES, {}).generate("", **{keyword: 2})


@pytest.fixture(scope="module")
def paths(trained, tmp_path_factory):
    """The trained model as a checkpoint, as ONNX and as a folder for transformers."""
    base = tmp_path_factory.mktemp("exported") / "best_model"
    loaded = checkpoint.load(trained)
    for format in ("onnx", "huggingface"):
        export(loaded, format, base)
    return {
        "pt": trained,
        "onnx": base.with_name("best_model.onnx"),
        "folder": base.with_name("best_model-huggingface"),
    }


PROMPTS = ["Once upon a time", "", "The", "One sunny morning, a brave girl named Mia" * 3, "Once upon a time"]


@pytest.mark.parametrize("kind", ["pt", "onnx", "folder"])
def test_each_prompt_of_a_batch_is_continued_as_it_is_alone(paths, kind):
    """Far beyond the context of 64 tokens, each row at another time."""
    model = load(paths[kind])
    how = GenerateConfig(temperature=0.0, max_length=150)
    together = [""] * len(PROMPTS)
    for number, piece in model.write(PROMPTS, how):
        together[number] += piece.text
    assert together == [model.generate(prompt, temperature=0.0, max_length=150) for prompt in PROMPTS]
    reference = load(paths["pt"])
    assert together == [reference.generate(prompt, temperature=0.0, max_length=150) for prompt in PROMPTS]


@pytest.mark.parametrize("kind", ["pt", "onnx"])
def test_samples_are_the_same_whatever_else_is_written(paths, kind):
    model = load(paths[kind])
    how = GenerateConfig(seed=4, num_samples=17, max_length=30)  # 34 texts: more than are written together
    texts = [""] * 34
    for number, piece in model.write(["Once", "The"], how):
        texts[number] += piece.text
    assert texts[0] == model.generate("Once", seed=4, max_length=30)
    assert texts[17] == model.generate("The", seed=4, max_length=30)
    assert len(set(texts)) > 30


def test_an_onnx_model_writes_without_pytorch(paths):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from slm.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "print([name for name in ('transformers', 'datasets', 'matplotlib', 'onnx') if name in sys.modules])\n"
        "sys.exit(code)"
    )
    how = [
        "--model_path",
        str(paths["onnx"]),
        "--prompt",
        "Once upon a time",
        "--temperature",
        "0",
        "--max_length",
        "40",
    ]
    run = subprocess.run([sys.executable, "-c", code, "generate", *how], capture_output=True, text=True, check=True)
    expected = load(paths["pt"]).generate("Once upon a time", **GREEDY)
    assert run.stdout == f"Once upon a time{expected}\n[]\n"


def test_a_folder_stands_for_the_model_in_it(trained, tmp_path):
    assert load(trained.parent).generate("A", **GREEDY) == load(trained).generate("A", **GREEDY)
    with pytest.raises(UserError, match=r"holds no model: neither best_model\.pt nor best_model\.onnx"):
        load(tmp_path)


def test_an_onnx_file_is_for_the_cpu(paths):
    with pytest.raises(UserError, match=r"--device cuda: an \.onnx file runs on the CPU here"):
        load(paths["onnx"], device="cuda")


@pytest.mark.parametrize("kind", ["pt", "onnx"])
@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ({"device": "cuda:0"}, "device must be auto|cpu|cuda|mps, not 'cuda:0'"),
        ({"threads": 0}, "--threads must be at least 1, not 0"),
        ({"threads": 10_000}, "--threads 10000 is more than"),
        ({"threads": "2"}, "threads must be INTEGER, not '2'"),
    ],
)
def test_a_model_is_not_loaded_with_settings_that_cannot_be_used(paths, kind, how, problem):
    with pytest.raises(UserError) as error:
        load(paths[kind], **how)
    assert problem in str(error.value)


def test_a_space_at_the_prompts_end_is_the_first_tokens():
    """Words of these tokens begin with their space, so that nothing would follow a space alone but nonsense."""
    words = Tokenizer("words", [*BYTES.tokens[:-1], b" c", b" ca", b" cat", b" s", b" sa", b" sat"])

    class Says(Recite):
        def __init__(self, ids):
            self.ids, self.read = ids, []

        def prefill(self, prompts):
            self.read += [prompt.tolist() for prompt in prompts]
            return super().prefill(prompts)

        def next(self, batch):
            wanted = np.eye(words.vocab_size, dtype=np.float32)
            return np.tile(wanted[self.ids[self.position]] + wanted[ord("s")] / 2 + wanted[258] / 4, (batch, 1))

    engine = Says([*words.encode(" sat cat").tolist(), words.end_of_text])
    model = TextModel(engine, words, {})
    assert model.generate("A cat ", temperature=0.0, max_length=2) == "sat cat"
    assert model.generate("A cat", temperature=0.0, max_length=2) == " sat cat"
    assert engine.read == [[262, 65, 258]] * 2
    assert model.read("A  ").ids == [262, 65, 32]
    assert model.read("A ", whole=True) == ("A ", [262, 65, 32], 1, False)
    assert model.read("<|endoftext|>A").ids == [262, 65]
    engine.ids = [ord("x"), ord("y")]  # what may not come first, not even where it is the likeliest
    assert model.generate("A ", temperature=0.0, max_length=2) == "caty"
    assert TextModel(Recite("x"), BYTES, {}).read("A ").after_space is False


def test_texts_written_beside_each_other_are_what_each_is_alone(paths):
    model = load(paths["onnx"])
    alone = [model.generate(prompt, temperature=0.0, max_length=60) for prompt in PROMPTS]
    streams = [model.stream(prompt, temperature=0.0, max_length=60) for prompt in PROMPTS]
    texts = ["" for _ in PROMPTS]
    given_up = model.stream("The", temperature=0.0, max_length=60)
    next(given_up)
    given_up.close()
    while any(piece := [next(stream, "") for stream in streams]):
        texts = [text + more for text, more in zip(texts, piece, strict=True)]
    assert texts == alone
    with ThreadPoolExecutor(6) as threads:
        write = functools.partial(model.generate, temperature=0.0, max_length=60)
        assert list(threads.map(write, PROMPTS * 4)) == alone * 4


def test_penalties_and_biases_in_python():
    model = alphabet()
    assert model.generate("a", temperature=0, max_length=3) == "bcd"
    assert model.generate("a", temperature=0, max_length=3, logit_bias={98: -100, 120: 5.0}) == "xyz"
    assert model.generate("a", temperature=0, max_length=4, logit_bias={97: 22}) == "aaaa"
    assert model.generate("a", temperature=0, max_length=4, logit_bias={97: 21.5}) == "aaaa"
    assert model.generate("a", temperature=0, max_length=4, logit_bias={97: 21.5}, frequency_penalty=2) == "abcd"
    assert model.generate("a", temperature=0, max_length=4, logit_bias={97: 21}, presence_penalty=2) == "abcd"
    for bias in ({257: 1}, {-1: 1}, {"a": 1}, {97: float("nan")}, {97: "1"}):
        with pytest.raises(UserError, match=r"^logit_bias must be finite numbers by ids up to 256, not "):
            model.generate("a", logit_bias=bias)


def test_what_checks_the_stories_of_make_story(trained):
    texts, ended = check_story.stories(str(trained), 3)
    assert len(texts) == 3
    assert all(text.startswith("Once upon a time") for text in texts)
    assert any(len(text) > 20 for text in texts)
    assert 0 <= ended <= 3
