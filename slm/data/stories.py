"""The built-in stories: children's stories told by a small grammar, so that training needs no download.

The words and the plots are in stories.txt, whose first lines explain how to add to them; slm/data/grammar.py reads it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TypeVar

from slm.data.grammar import ANIMAL, BOY, CHILD, GIRL, Grammar, Plot, parse

FILE = Path(__file__).with_name("stories.txt")
ENGINE = 1  # raise it when the same file gives other stories
PRONOUNS = {GIRL: {"he": "she", "his": "her"}, BOY: {"he": "he", "his": "his"}}

T = TypeVar("T")


class Cast(NamedTuple):
    """The two characters of a story; `hero` and `friend` are the names the text uses."""

    hero: str
    hero_gender: str
    friend: str
    friend_gender: str


def story(seed: int, index: int) -> str:
    """Story number `index` of the corpus that `seed` names: the same text each time, on every version of Python."""
    return tell(grammar(), seed, index)[0]


def stories(count: int, seed: int = 0) -> Iterator[str]:
    """The first `count` stories of the corpus that `seed` names, each written when it is read."""
    return (story(seed, index) for index in range(count))


@cache
def grammar() -> Grammar:
    """The grammar of the built-in stories. Raises UserError where stories.txt is malformed."""
    return parse(FILE.read_text(encoding="utf-8"))


def fingerprint() -> str:
    """A hash of everything that determines the stories."""
    return blake2b(f"{ENGINE} {FILE.read_text(encoding='utf-8')}".encode(), digest_size=16).hexdigest()


def tell(grammar: Grammar, seed: int, index: int) -> tuple[str, Cast]:
    """The text of story number `index` of the corpus that `seed` names, and who is in it."""
    # A digest, because integers with bits in common seed related generators: those of 257 and 2**40 + 257 are the same.
    rng = random.Random(int.from_bytes(blake2b(f"{seed} {index}".encode(), digest_size=16).digest(), "big"))
    plot = _pick(rng, tuple(grammar.plots.values()))
    being = _pick(rng, plot.heroes)
    words = {slot: _pick(rng, options) for slot, options in plot.slots[being].items()}
    words |= {f"a_{slot}": _with_article(word, grammar.lists["a not an"]) for slot, word in words.items()}
    words["when"] = _pick(rng, plot.times)
    cast = _add_characters(rng, grammar, plot, being, words)

    opening = _pick(rng, grammar.openings)
    wish, trouble, attempt, help_, rescue, ending = (_pick(rng, step) for step in plot.steps)
    if "{when}" not in opening:
        wish = "{when}, " + wish
    text = f"{opening} {wish} {trouble} {attempt}\n{help_} {rescue} {ending}"
    return text.format_map(words), cast


def _add_characters(rng: random.Random, grammar: Grammar, plot: Plot, being: str, words: dict[str, str]) -> Cast:
    """Choose the hero and the friend, and add what the templates call them to `words`."""
    gender = _pick(rng, (GIRL, BOY))
    hero = _pick(rng, grammar.names[f"{being} {gender}"])
    words |= PRONOUNS[gender]
    words["hero"] = hero
    words["kind"] = gender if being == CHILD else _pick(rng, grammar.lists["hero animal"])

    role = _pick(rng, plot.friends)
    if being == ANIMAL and role != "family":
        role = "creature"
    friend = _pick(rng, grammar.friends[role])
    names = grammar.names[f"{ANIMAL if role == 'creature' else CHILD} {friend.gender}"]
    words["name"] = _pick(rng, [name for name in names if name != hero])
    words["friend"] = friend.called.format_map(words)
    words["a_friend"] = friend.introduced_as.format_map(words)
    return Cast(hero, gender, words["friend"], friend.gender)


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    # `Random.random` is the one method whose sequence Python promises never to change.
    return options[int(rng.random() * len(options))]


@cache
def _with_article(word: str, a_not_an: tuple[str, ...]) -> str:
    vowel = word[0] in "aeiou" and not word.startswith(a_not_an)
    return f"{'an' if vowel else 'a'} {word}"
