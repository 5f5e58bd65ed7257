"""The built-in stories: always the same, all different, and told in sound English."""

import hashlib
import random
import re
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.data.grammar import GIRL, parse
from slm.data.stories import FILE, grammar, stories, story, tell
from slm.errors import UserError

NAMES, PLOTS = grammar().names, grammar().plots

PRONOUNS = {"he": "boy", "him": "boy", "his": "boy", "himself": "boy", "she": "girl", "her": "girl", "herself": "girl"}
AN_BEFORE_CONSONANTS = {"hour", "honest", "honor", "heir", "herb"}
A_BEFORE_VOWELS = {"unicorn", "ukulele", "uniform", "unique", "unicycle", "useful", "used", "usual", "one", "European"}
FAMILY = {"Mom", "Dad", "Grandma", "Grandpa"}
CAPITALIZED = {
    *(name for names in NAMES.values() for name in names),
    *FAMILY,
    *("Aunt", "Susan", "Uncle", "George", "Miss", "Wendy", "Farmer", "Joe"),
    *("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "French"),
}


@pytest.fixture(scope="module")
def corpus():
    return list(stories(10_000))


@pytest.fixture(scope="module")
def casts():
    """Stories, each with its cast."""
    return [tell(grammar(), 3, index) for index in range(4_000)]


def test_a_story_is_the_same_everywhere_and_always():
    assert story(0, 0) == (
        "Once upon a time, there was a little girl named Mia who loved giraffes. One day, Mia had a jar full "
        "of figs. Then Mia met her friend Sam, who had no lunch. Mia wanted all the figs and hid the jar.\n"
        '"My lunch fell into the mud," said Sam. So Mia felt bad. "Please take some of my figs," said Mia. '
        "Mia learned that food tastes better when you share it."
    )
    assert story(7, 123) == (
        "Once upon a time, there was a merry little goat named Penny. One autumn afternoon, Penny had a pail "
        "full of cherries. Soon a quiet frog named Bruno sat down with nothing to eat. Penny looked away and "
        "kept the cherries.\n"
        '"My lunch fell into the mud," said Bruno. So Penny felt bad. "Please take some of my cherries," '
        "said Penny. Bruno gave Penny a hug, and Penny was grateful."
    )


@pytest.mark.parametrize(
    ("seed", "digest"),
    [
        (0, "e2e928f339393e629053f9b27e296dd67a9bdc8bf7709c8e3e8f213fd4514ee5"),
        (1, "862073acf86c1ab143dabd4bc114baed52a1e99095bbef1586b8e0b2adc6454c"),
    ],
)
def test_three_thousand_stories_are_the_same_everywhere_and_always(seed, digest):
    assert hashlib.sha256("".join(f"{text}\0" for text in stories(3_000, seed)).encode()).hexdigest() == digest


def test_a_story_needs_neither_the_stories_before_it_nor_the_global_random_numbers(corpus):
    random.seed(1)
    state = random.getstate()
    assert story(0, 9_999) == corpus[9_999]
    assert random.getstate() == state


def test_stories_come_lazily_and_in_order():
    assert list(islice(stories(10**12, seed=5), 3)) == [story(5, 0), story(5, 1), story(5, 2)]
    assert list(stories(0)) == []


@pytest.mark.parametrize("seed", [0, 1])
def test_no_two_stories_of_ten_thousand_are_alike(seed):
    assert len(set(stories(10_000, seed))) == 10_000


def test_another_seed_tells_other_stories(corpus):
    assert not set(corpus) & set(stories(10_000, seed=1))
    assert not set(corpus) & set(stories(1_000, seed=-1))


def test_the_stories_are_rich_in_words(corpus):
    assert len(set(re.findall("[a-z]+", " ".join(corpus).lower()))) >= 1_500


def test_there_are_many_plots_each_with_several_ways_to_tell_a_step():
    assert len(PLOTS) >= 14
    assert all(len(plot.steps) == 6 for plot in PLOTS.values())
    assert min(len(set(step)) for plot in PLOTS.values() for step in plot.steps) >= 3


def test_an_opening_repeats_no_adjective(corpus):
    for text in corpus:
        words = re.findall("[a-z]{4,}", text.partition(".")[0])
        assert len(set(words)) == len(words), text


def test_a_third_or_more_begin_once_upon_a_time_and_the_others_in_several_ways(corpus):
    beginnings = [" ".join(text.split()[:2]) for text in corpus]
    assert len(corpus) / 3 <= beginnings.count("Once upon") <= len(corpus) * 2 / 3
    assert {"There was", "One day,", "One sunny", "In a"} <= set(beginnings)


def test_a_story_has_two_paragraphs_of_middling_length(corpus):
    for text in corpus[:2_000]:
        assert 40 <= len(text.split()) <= 120
        assert len(text.split("\n")) == 2


@given(seed=st.integers(), index=st.integers(min_value=0, max_value=2**40 - 1))
def test_the_spelling_is_sound(seed, index):
    check_spelling(story(seed, index))


def test_the_spelling_is_sound_in_a_whole_corpus(corpus):
    for text in corpus:
        check_spelling(text)


def check_spelling(text):
    assert re.fullmatch(r"""[A-Z][A-Za-z ,.!?"'\n-]*[.!"]""", text), text  # plain ASCII without slots or <|endoftext|>
    assert not re.search(r"\s\s|\s[,.!?]|[,.!?]{2}|^\s|\s$", text), text
    for paragraph in text.split("\n"):
        outside, inside = paragraph.split('"')[::2], paragraph.split('"')[1::2]
        assert len(outside) == len(inside) + 1, text
        assert all(re.fullmatch(r"[A-Z].*[,.!?]", quotation) for quotation in inside), text
        for sentence in re.split(r"(?<=[.!?]) (?=[^ ])", " ".join(outside)):
            words = re.findall(r"[A-Za-z']+", sentence)
            assert all(w in CAPITALIZED for word in words[1:] if (w := word.removesuffix("'s"))[0].isupper()), text
    for article, word in re.findall(r"\b([Aa]n?) (\w+)", text):
        vowel = word in AN_BEFORE_CONSONANTS or (word[0] in "aeiou" and word not in A_BEFORE_VOWELS)
        assert article.lower() == ("an" if vowel else "a"), text


def test_sentences_begin_with_capitals(corpus):
    for text in corpus:
        assert not re.search(r"""[.!]"? "?[a-z]""", re.sub(r'!" (said|cried|called|whispered) ', "", text)), text


def test_a_name_always_follows_a_space(corpus):
    names = "|".join(name for names in NAMES.values() for name in names)
    for text in corpus:
        assert not re.search(rf"(?<! )\b({names})\b", text), text


def test_the_characters_of_a_story_have_different_names(casts):
    for text, cast in casts:
        assert cast.hero != cast.friend
        assert cast.hero in text
        assert re.search(rf"\b{cast.friend.split()[-1]}\b", text, re.IGNORECASE)


def test_both_genders_meet_both_genders(casts):
    pairs = {(cast.hero_gender, cast.friend_gender) for _, cast in casts}
    assert pairs == {("girl", "girl"), ("girl", "boy"), ("boy", "girl"), ("boy", "boy")}


def test_a_story_among_girls_has_no_word_for_boys_and_the_other_way_round(casts):
    of_boys, of_girls = {"he", "him", "his", "himself", "boy"}, {"she", "her", "hers", "herself", "girl"}
    for text, cast in casts:
        if cast.hero_gender == cast.friend_gender:
            assert not set(re.findall(r"\w+", text.lower())) & (of_boys if cast.hero_gender == GIRL else of_girls), text


def test_a_pronoun_means_the_hero_who_was_named_last(casts):
    pronouns = 0
    for text, cast in casts:
        friend = {cast.friend.split()[-1]} | ({cast.friend.lower()} if cast.friend in FAMILY else set())
        named_last = None
        for word in re.findall(r"\w+", text):
            if word == cast.hero or word in friend:
                named_last = word
            elif gender := PRONOUNS.get(word.lower()):
                assert (named_last, gender) == (cast.hero, cast.hero_gender), text
                pronouns += 1
    assert pronouns > len(casts) / 2


# --- stories.txt ---

PLOT = """
[plot snow]
heroes: child
friends: family
time: night
color: @color
snowman: snowman, snow bear,
    igloo

{hero} wanted to build {a_color} {snowman}.

But there was no snow.

{hero} waited, but {he} only saw the rain.

Then {a_friend} came. "Look outside," said {friend}.

{hero} ran out and built the {color} {snowman}.

{hero} was {glad}.
"""


def test_a_plot_is_added_by_text_alone():
    grown = parse(FILE.read_text() + PLOT)
    assert grown.plots.keys() - PLOTS.keys() == {"snow"}
    told = [tell(grown, 0, index)[0] for index in range(500)]
    ours = [text for text in told if "But there was no snow." in text]
    assert 5 <= len(ours) <= 50
    assert {word for word in ("snowman", "snow bear", "igloo") if any(word in text for text in ours)} == {
        "snowman", "snow bear", "igloo",
    }  # fmt: skip
    for text in ours:
        check_spelling(text)


def malformed(text):
    with pytest.raises(UserError) as raised:
        parse(text)
    assert "\n" not in str(raised.value)
    return str(raised.value)


PLOT_LINE = FILE.read_text().count("\n") + 2  # where the added plot begins


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("heroes: child\n", "", 4, "no entry 'heroes' up to here"),
        ("heroes: child", "heroes: robot", 1, "heroes has 'robot': choose among child, animal"),
        ("friends: family", "friends: foe", 1, "friends has 'foe': choose among playmate, creature, family, neighbor"),
        ("time: night", "time: noon", 1, "time has 'noon': choose among day, windy day, night"),
        ("@color", "@colour", 4, "no list 'colour': the lists are color, look,"),
        ("@color", "red,, blue", 4, "'color: red,, blue' is no list of words"),
        ("color: @color", "color red", 4, "'color red' is no list of words"),
        ("color: @color", "time: day", 4, "there already is an entry 'time'"),
        ("{snowman}", "{snowmen}", 8, "no words for {snowmen}"),
        ("{a_color}", "{a_color", 8, "braces without their match ("),
        ("{hero} wanted", "One day, {hero} wanted", 8, "a wish has to begin with {hero}"),
        ("Then {a_friend} came.", "{friend} came.", 14, "a name begins the second paragraph"),
        ('"Look outside', '"{hero}, look outside', 14, "a name begins a quotation"),
        ("{hero} was {glad}.\n", "", 1, "a plot of 5 steps: write six, parted by blank lines: wish, trouble, attempt"),
        ("color: @color", "color: @color\nsize: big, small", 1, "no step uses {size}"),
        ("[plot snow]", "[plot toy]", 0, "there already is a section [plot toy]"),
    ],
)
def test_a_malformed_plot_is_refused_with_its_line(old, new, line, problem):
    assert old in PLOT
    said = malformed(FILE.read_text() + PLOT.replace(old, new, 1))
    assert said.startswith(f"stories.txt, line {PLOT_LINE + line}: {problem}"), said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[openings]", "[beginnings]", "stories.txt has no section [openings]: add it"),
        ("# Every", "Every", "stories.txt, line 3: text before the first section: begin a comment with #"),
        ("child boy:", "child boys:", "no entry 'child boy' up to here: add it"),
        ("| Grandma", "", 'is no friend: write "kind | girl or boy | introduced as | called"'),
        ("{his} mom", "{her} mom", "no words for {her}: add an entry for them, or mend the name"),
        ("[plot kite]", "[plot kites]\n\n[plot kite]", "stories.txt has nothing in its section [plot kites]"),
        ("creature |", "writer |", "stories.txt has no creature among its [friends]"),
        ("named {hero}.", "named {name}.", "no words for {name}"),
    ],
)
def test_a_malformed_file_is_refused(old, new, said):
    text = FILE.read_text()
    assert old in text
    assert said in malformed(text.replace(old, new))
