"""Reads the grammar of the built-in stories: stories.txt, whose first lines explain the format -> words and plots."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from string import Formatter
from typing import NamedTuple

from slm.errors import UserError

GENDERS = GIRL, BOY = "girl", "boy"
BEINGS = CHILD, ANIMAL = "child", "animal"
STEPS = ("wish", "trouble", "attempt", "help", "rescue", "ending")
CHARACTERS = {"hero", "friend", "a_friend", "he", "his"}  # slots of every plot that are not drawn from a list of words

Line = tuple[int, str]  # its number in the file, and its text
Entries = dict[str, tuple[str, ...]]  # words by the name of their list or slot


class Friend(NamedTuple):
    """What a friend can be to the hero: introduced as "her cousin Ben" or "her mom", and then called "Ben" or "Mom"."""

    gender: str
    introduced_as: str
    called: str


class Plot(NamedTuple):
    """Who may play the hero and the friend, when the story happens, the words for its slots, and how to tell it."""

    heroes: tuple[str, ...]
    friends: tuple[str, ...]
    times: tuple[str, ...]
    slots: dict[str, Entries]  # for each kind of hero
    steps: tuple[tuple[str, ...], ...]  # six, each with the ways to tell it


class Grammar(NamedTuple):
    """What stories.txt holds."""

    names: Entries  # by "child girl", "child boy", "animal girl" and "animal boy"
    friends: dict[str, tuple[Friend, ...]]
    lists: Entries
    openings: tuple[str, ...]
    plots: dict[str, Plot]


def parse(text: str) -> Grammar:
    """The grammar that `text` describes, in the format that stories.txt explains.

    Raises UserError, with the line, where it is malformed.
    """
    sections = _sections(text)

    def lines(name: str) -> list[Line]:
        if name not in sections:
            raise UserError(f"stories.txt has no section [{name}]: add it")
        return [line for block in sections[name] for line in block]

    lists = _entries(lines("lists"), ("hero animal", "a not an"), {})
    names = _entries(lines("names"), [f"{being} {gender}" for being in BEINGS for gender in GENDERS], {})
    times, words = _entries(lines("times"), (), lists), _entries(lines("words"), (), lists)
    slots = {being: words | _entries(lines(f"words {being}"), (), lists) for being in BEINGS}
    friends = _friends(lines("friends"), words)
    openings = _templates(lines("openings"), slots[CHILD].keys() & slots[ANIMAL].keys(), {"hero", "kind", "when"})
    plots = {
        heading.removeprefix("plot "): _plot(blocks, friends, times, slots, lists)
        for heading, blocks in sections.items()
        if heading.startswith("plot ")
    }
    return Grammar(names, friends, lists, openings, plots)


def _sections(text: str) -> dict[str, list[list[Line]]]:
    """The blocks of lines that blank lines part, by the heading of their section; comments are left out."""
    sections: dict[str, list[list[Line]]] = {}
    blocks: list[list[Line]] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            continue
        if heading := re.fullmatch(r"\[(.+)\]\s*", line):
            if heading[1] in sections:
                raise _malformed(number, f"there already is a section [{heading[1]}]: join them, or rename one")
            blocks = sections[heading[1]] = [[]]
        elif blocks is None:
            if line.strip():
                raise _malformed(number, "text before the first section: begin a comment with #")
        elif line.strip():
            blocks[-1].append((number, line.rstrip()))
        elif blocks[-1]:
            blocks.append([])
    if empty := [name for name, blocks in sections.items() if not blocks[0]]:
        raise UserError(f"stories.txt has nothing in its section [{empty[0]}]: write its lines, or delete it")
    return {name: [block for block in blocks if block] for name, blocks in sections.items()}


def _entries(lines: Iterable[Line], required: Iterable[str], lists: Entries) -> Entries:
    """The entries "name: word, word" of these lines, among them those `required`; "@name" is a list of `lists`."""
    whole: list[Line] = []  # with the indented lines that go on with each
    for number, line in lines:
        if line[0].isspace() and whole:
            first, begun = whole.pop()
            whole.append((first, f"{begun} {line.strip()}"))
        else:
            whole.append((number, line.strip()))
    entries: Entries = {}
    for number, line in whole:
        name, _, listed = line.partition(":")
        words = [word.strip() for word in listed.split(",")]
        if "" in words:
            raise _malformed(number, f'{line[:40]!r} is no list of words: write "name: word, word"')
        if name in entries:
            raise _malformed(number, f"there already is an entry {name!r}: join them, or rename one")
        entries[name] = ()
        for word in words:
            if word.startswith("@") and word[1:] not in lists:
                raise _malformed(number, f"no list {word[1:]!r}: the lists are {', '.join(lists)}")
            entries[name] += lists[word[1:]] if word.startswith("@") else (word,)
    if missing := [name for name in required if name not in entries]:
        raise _malformed(whole[-1][0], f"no entry {missing[0]!r} up to here: add it")
    return entries


def _friends(lines: Iterable[Line], words: Entries) -> dict[str, tuple[Friend, ...]]:
    friends: dict[str, tuple[Friend, ...]] = {}
    for number, line in lines:
        role, *columns = (column.strip() for column in line.split("|"))
        if len(columns) != 3 or columns[0] not in GENDERS:
            raise _malformed(number, f'{line!r} is no friend: write "kind | girl or boy | introduced as | called"')
        _templates([(number, column) for column in columns[1:]], words, {"his", "name"})
        friends[role] = (*friends.get(role, ()), Friend(*columns))
    if "creature" not in friends:
        raise UserError("stories.txt has no creature among its [friends], and animals need one: add it")
    return friends


def _plot(
    blocks: list[list[Line]], friends: Collection[str], times: Entries, slots: dict[str, Entries], lists: Entries
) -> Plot:
    entries = _entries(blocks[0], ("heroes", "friends", "time"), lists)
    first = blocks[0][0][0]
    for name, known in (("heroes", slots), ("friends", friends), ("time", times)):
        if unknown := [word for word in entries[name] if word not in known]:
            raise _malformed(first, f"{name} has {unknown[0]!r}: choose among {', '.join(known)}")
    heroes, roles, when = (entries.pop(name) for name in ("heroes", "friends", "time"))
    if len(blocks) != 1 + len(STEPS):
        problem = f"a plot of {len(blocks) - 1} steps: write six, parted by blank lines: {', '.join(STEPS)}"
        raise _malformed(first, problem)
    own = {being: slots[being] | entries for being in heroes}
    steps = tuple(_templates(lines, set.intersection(*map(set, own.values())), CHARACTERS) for lines in blocks[1:])
    if not all(wish.startswith("{hero}") for wish in steps[0]):
        raise _malformed(blocks[1][0][0], "a wish has to begin with {hero}, since the time may come before it")
    if any(help_.startswith("{") for help_ in steps[3]):
        raise _malformed(blocks[4][0][0], "a name begins the second paragraph: put a word before it, such as Then")
    text = "".join(template for step in steps for template in step)
    if unused := [slot for slot in entries if f"{{{slot}}}" not in text and f"{{a_{slot}}}" not in text]:
        raise _malformed(first, f"no step uses {{{unused[0]}}}: use it, or delete its entry")
    return Plot(heroes, roles, tuple(time for name in when for time in times[name]), own, steps)


def _templates(lines: Iterable[Line], words: Iterable[str], others: set[str]) -> tuple[str, ...]:
    """These lines, in which there are no slots but those of `words`, also with their article, and `others`."""
    known, templates = others.union(words, (f"a_{word}" for word in words)), []
    for number, line in lines:
        templates.append(line.strip())
        try:
            unknown = {slot for _, slot, _, _ in Formatter().parse(line) if slot is not None} - known
        except ValueError as error:
            raise _malformed(number, f"braces without their match ({error}): write slots as {{hero}}") from error
        if unknown:
            raise _malformed(number, f"no words for {{{min(unknown)}}}: add an entry for them, or mend the name")
        if '"{hero}' in line or '"{friend}' in line:
            raise _malformed(number, "a name begins a quotation: put a word before it")
    return tuple(templates)


def _malformed(number: int, problem: str) -> UserError:
    return UserError(f"stories.txt, line {number}: {problem}")
