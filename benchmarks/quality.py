"""How good is what a model writes: does it end, does it repeat itself, does it copy its training text?

The model continues the beginnings (the first 8 words) of stories that it has not seen. Its continuations are measured
beside those stories' own, cut to the same lengths, for a share of new words falls with the length. A word is a run of
letters, digits and apostrophes in lower case. Prints a table and one JSON line.

    python benchmarks/quality.py --model_path best_model.pt --train train.txt --held_out valid.txt
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from slm.checkpoint.open import open_model
from slm.config.use import EvaluateConfig, GenerateConfig
from slm.data.sources import open_source
from slm.device import pick_device, pick_precision
from slm.errors import UserError
from slm.evaluation.command import tokens_of
from slm.evaluation.measure import Measures, evaluate
from slm.files import find_model, user_path
from slm.inference import text

BEGINNING, MEMORY, REPEAT = 8, 8, 4  # words of a beginning; words in a row that count as copied, as repeated
Words = list[str]


def words(text: str) -> Words:
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower())


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def distinct(stories: Iterable[Words], n: int) -> float:
    """Different n-grams, as a share of all."""
    all_ = [gram for story in stories for gram in ngrams(story, n)]
    return len(set(all_)) / max(1, len(all_))


def repeated(stories: Iterable[Words], n: int) -> float:
    """Share of a story's n-grams that stood in it before, on average over the stories that have any."""
    shares = [1 - len(set(grams)) / len(grams) for story in stories if (grams := ngrams(story, n))]
    return statistics.fmean(shares) if shares else 0.0


def copied(groups: Mapping[str, Sequence[Words]], known: Iterable[Words], n: int) -> dict[str, float]:
    """Share of each group's n-grams that occur in the documents `known`, which are read once and never held."""
    grams = {name: [gram for story in stories for gram in ngrams(story, n)] for name, stories in groups.items()}
    asked = {gram for of in grams.values() for gram in of}
    found: set[tuple[str, ...]] = set()
    for document in known:
        found.update(asked.intersection(ngrams(document, n)))
    return {name: sum(gram in found for gram in of) / max(1, len(of)) for name, of in grams.items()}


def documents(dataset: str) -> Iterable[str]:
    """The documents of a text, whole."""
    parts: list[str] = []
    for piece in open_source(dataset, text_field="text", errors="strict", held_out=True).pieces():
        parts.append(piece.text)
        if piece.ends_document:
            yield "".join(parts)
            parts = []
    if parts:
        yield "".join(parts)


def begin(story: str) -> tuple[str, str]:
    """The first words of a story, and what follows them."""
    ends = [match.end() for match in re.finditer(r"[^\W_]+(?:['’][^\W_]+)*", story)][:BEGINNING]
    return (story[: ends[-1]], story[ends[-1] :]) if ends else ("", story)


def write(model_path: str, prompts: Sequence[str], flags: argparse.Namespace) -> tuple[list[str], int]:
    """What the model writes after each prompt, and how many of these end by themselves."""
    model = text.load(model_path)
    config = GenerateConfig(
        max_length=flags.max_length, temperature=flags.temperature, top_p=flags.top_p, seed=flags.seed
    )
    written, lengths = ["" for _ in prompts], [0 for _ in prompts]
    for number, piece in tqdm(model.write(prompts, config), desc="writing", unit=" tokens", leave=False):
        written[number] += piece.text
        lengths[number] += piece.token.id != model.tokenizer.end_of_text
    return written, sum(length < flags.max_length for length in lengths)


def held_out_measures(model_path: str, dataset: str) -> Measures:
    loaded, device = open_model(find_model(user_path(model_path))), pick_device("auto")
    tokens = tokens_of(EvaluateConfig(dataset=dataset), loaded.tokenizer)
    dtype = pick_precision("auto", device)
    return evaluate(loaded.model(device), tokens, loaded.tokenizer, batch_size=32, dtype=dtype)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", default="best_model.pt")
    parser.add_argument("--train", required=True, help="the text that the model was trained on")
    parser.add_argument("--held_out", required=True, help="a text of the same kind that it has not seen")
    parser.add_argument("--stories", type=int, default=200)
    parser.add_argument("--max_length", type=int, default=400, help="tokens of a continuation at most")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top_p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    try:
        stories = [story for story in documents(flags.held_out) if len(words(story)) > BEGINNING]
        stories = stories[:: max(1, len(stories) // flags.stories)][: flags.stories]
        begun = [begin(story) for story in stories]
        measured = held_out_measures(flags.model_path, flags.held_out)
        texts, ended = write(flags.model_path, [prompt for prompt, _ in begun], flags)
    except UserError as error:
        print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        return 2
    pairs = [(words(text), words(rest)) for text, (_, rest) in zip(texts, begun, strict=True)]
    ours = [own[: len(theirs)] for own, theirs in pairs]
    held = [theirs[: len(own)] for own, theirs in pairs]
    known = tqdm(documents(flags.train), desc="reading the training text", unit=" documents", leave=False)
    copies = copied({"model": ours, "held out": held}, map(words, known), MEMORY)
    rows: dict[str, tuple[float, float]] = {
        "words in a story": (statistics.fmean(map(len, ours)), statistics.fmean(map(len, held))),
        **{f"distinct {n}-grams": (distinct(ours, n), distinct(held, n)) for n in (1, 2, 3)},
        f"repeated {REPEAT}-grams": (repeated(ours, REPEAT), repeated(held, REPEAT)),
        f"{MEMORY}-grams of the training text": (copies["model"], copies["held out"]),
    }
    print(f"{flags.model_path}: {measured}")
    print(f"{ended} of {len(texts)} stories end by themselves within {flags.max_length} tokens\n")
    print(f"{'':32} {'model':>8} {'held out':>9}")
    for name, values in rows.items():
        print(f"{name:32} " + " ".join(f"{value:>8.1f}" if value > 1 else f"{value:>8.1%}" for value in values))
    figures = {
        "bits_per_byte": round(measured.bits_per_byte, 4),
        "loss": round(measured.loss, 4),
        "accuracy": round(measured.accuracy, 4),
        "stories": len(texts),
        "ended": round(ended / max(1, len(texts)), 4),
        **{name: [round(value, 4) for value in values] for name, values in rows.items()},
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
