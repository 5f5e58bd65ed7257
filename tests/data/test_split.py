"""What is held out for validation: properties of thousands of random corpora."""

import json

import numpy as np
import pytest

from slm.data.corpus import choose_validation
from slm.data.source import END_OF_TEXT
from slm.data.sources import open_source
from slm.data.split import bytes_to_hold_out, choose
from slm.data.stories import stories
from tests.data.conftest import source_of

FRACTIONS = (0.001, 0.02, 0.05, 0.1, 0.3, 0.5, 0.9)


def random_corpus(random):
    """Hashes, sizes and starts of pieces of up to 300 documents, some of several pieces, some of them equal."""
    count = int(random.choice([1, 2, 3, 5, 20, 300]))
    typical = random.choice([5, 300, 5_000, 60_000])
    distinct = []
    for _ in range(count):
        pieces = int(random.choice([1, 1, 1, 4, 40]))
        sizes = np.maximum(1, random.exponential(typical, pieces).astype(np.int64)).clip(max=65_536)
        distinct.append((random.integers(2**64, size=pieces, dtype=np.uint64), sizes))
    copies = random.choice([1, 1, 1, 2, 5], count)
    order = random.permutation(np.repeat(np.arange(count), copies))
    starts = np.concatenate([np.arange(len(distinct[i][0])) == 0 for i in order]).astype(np.int8)
    hashes = np.concatenate([distinct[i][0] for i in order])
    return hashes, np.concatenate([distinct[i][1] for i in order]), starts


def test_bytes_to_hold_out():
    assert bytes_to_hold_out(1_000_000, 0.05) == (50_000, 25_000, 100_000)
    assert bytes_to_hold_out(20_000, 0.05) == (1_500, 750, 3_000)
    assert bytes_to_hold_out(4_000, 0.05) == (1_000, 500, 1_000)
    assert bytes_to_hold_out(1_000, 0.9) == (900, 450, 950)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_random_corpora(fraction):
    random = np.random.default_rng(int(fraction * 1000))
    divided = 0
    for _ in range(600):
        hashes, sizes, starts = random_corpus(random)
        chosen = choose(hashes, sizes, starts, fraction)
        wanted, fewest, most = bytes_to_hold_out(int(sizes.sum()), fraction)
        assert not chosen.all()
        for side in (chosen, ~chosen):
            assert not np.isin(hashes[side], hashes[~side]).any()  # equal pieces, so equal documents, stand together
        document = np.cumsum(starts) - 1
        lengths = np.bincount(document, weights=sizes)
        parts = np.bincount(document, weights=chosen) / np.bincount(document)
        assert (
            lengths[(parts > 0) & (parts < 1)] > min(wanted, most - fewest)
        ).all()  # only a long document is divided
        has_copies = len(np.unique(hashes)) < len(hashes)
        if chosen.any() and not has_copies:
            assert fewest <= sizes[chosen].sum() <= most
        if not chosen.any() and not has_copies:  # the end of the text is held out instead
            assert sizes.max() >= most - fewest
        divided += bool(chosen.any())
    assert divided > 200


@pytest.mark.parametrize("fraction", [0.02, 0.05, 0.3])
def test_added_documents_move_no_other(fraction):
    random = np.random.default_rng(7)
    for _ in range(100):
        before, added = (int(count) for count in random.integers(1_000, 2_000, 2))
        hashes = random.integers(2**64, size=before + added, dtype=np.uint64)
        sizes = random.integers(200, 2_000, before + added)
        starts = np.ones(before + added, dtype=np.int8)
        expected = choose(hashes, sizes, starts, fraction)[:before]
        np.testing.assert_array_equal(choose(hashes[:before], sizes[:before], starts[:before], fraction), expected)


def test_the_order_of_the_documents_does_not_matter():
    random = np.random.default_rng(1)
    for _ in range(200):
        count = int(random.integers(2, 200))
        hashes = random.integers(2**64, size=count, dtype=np.uint64)
        sizes, starts = random.integers(1, 9_000, count), np.ones(count, dtype=np.int8)
        order = random.permutation(count)
        if (chosen := choose(hashes, sizes, starts, 0.1)).any():
            np.testing.assert_array_equal(choose(hashes[order], sizes[order], starts, 0.1), chosen[order])


def test_literal_choices():
    def chosen(hashes, sizes, fraction=0.1):
        choice = choose(np.array(hashes, np.uint64), np.array(sizes), np.ones(len(sizes), np.int8), fraction)
        return np.flatnonzero(choice).tolist()

    high = 2**63
    assert chosen([1, *range(high, high + 9)], [5_000] * 10) == [0]  # below the threshold, and enough
    assert chosen([*range(high, high + 10)], [5_000] * 10) == [0]  # none is: the first of all in hash order
    assert chosen([1, high + 1, high], [60_000, 6_000, 8_000]) == [2]  # the long one is left out
    assert chosen([high, high, high + 1, high + 1, high + 1], [1_000] * 5, 0.5) == [0, 1]  # equal ones together
    assert chosen([high], [5_000]) == []
    assert chosen([high, high], [5_000, 5_000]) == []


def test_all_formats_choose_the_same(tmp_path):
    texts = [text.replace("\n", " ") for text in stories(200)] * 2
    (tmp_path / "a.txt").write_text(END_OF_TEXT.join(texts))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    (tmp_path / "a.csv").write_text("text\n" + "\n".join(quoted) + "\n")
    for fraction in FRACTIONS[1:]:
        expected = choose_validation(source_of(*texts), fraction)
        assert expected.any()
        for name in ("a.txt", "a.jsonl", "a.csv"):
            np.testing.assert_array_equal(choose_validation(open_source(str(tmp_path / name)), fraction), expected)
