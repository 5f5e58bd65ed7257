"""A data set of the Hugging Face hub as a source.

The package `datasets` says which files make up a split; they are read as local files are, once, and their text is kept
in the cache. What the hub said is kept, too, so that a later run needs it only to learn whether the data set changed.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from slm.data.cache import Facts, Make, get_folders
from slm.data.files import ROWS_VERSION, VALIDATION, source_of_texts
from slm.data.hub_file import HubFile, explained
from slm.data.readers import OTHER_FORMATS, ROWS, read_file
from slm.data.source import END_OF_TEXT, Source, digest, note
from slm.data.text_file import READABLE, TEXT_SUFFIXES, suffix
from slm.data.tokenizer import without_surrogates
from slm.errors import UserError
from slm.files import replacing

KNOWN = {"tinystories": "roneneldan/TinyStories", "simplestories": "SimpleStories/SimpleStories"}
FIELDS = {"SimpleStories/SimpleStories": "story"}  # where the text is in another field than the usual one
TIMEOUT = 10  # seconds that the hub has to answer

_NAME = re.compile(
    r"(?P<name>tinystories|simplestories|[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?"
    r"(:(?P<part>[\w.+-]+))?(:(?P<split>[\w.+-]+))?(\[:(?P<limit>[1-9](_?[0-9]){0,14})\])?"
)


@dataclass(frozen=True)
class HubName:
    """What `owner/name@revision:config:split[:limit]` stands for, all but the name optional."""

    name: str
    revision: str | None = None
    part: str | None = None  # a config, or where there is none of that name, a split
    split: str | None = None
    limit: int | None = None  # of documents in each split, the first ones

    @property
    def revised(self) -> str:
        """The name, with the revision that was asked for."""
        return f"{self.name}@{self.revision}" if self.revision else self.name


@dataclass(frozen=True)
class _Found:
    """What the hub says of a data set."""

    sha: str  # of the revision
    config: str | None  # None: the only one
    splits: dict[str, list[str]]  # the paths of each split's files
    split: str | None  # the one that was asked for by name


def hub_name(dataset: str) -> HubName | None:
    """What `dataset` means on the hub, None where it looks like a path.

    As data/story.txt does by its suffix, and data/sotry where there is a data/story here.
    """
    match = _NAME.fullmatch(dataset)
    if match is None:
        return None
    limit = int(match["limit"]) if match["limit"] else None
    found = HubName(KNOWN.get(match["name"], match["name"]), match["revision"], match["part"], match["split"], limit)
    path = Path(dataset)
    if match["name"] in KNOWN or match["name"] != dataset:
        return found
    beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    if difflib.get_close_matches(path.name, beside):
        return None
    return None if suffix(path) in (*TEXT_SUFFIXES, *ROWS, *OTHER_FORMATS) else found


def hub_source(
    asked: HubName, text_field: str, errors: str, encoding: str, cache: Path, *, held_out: bool = False
) -> Source:
    """The text of a split: the one that was asked for, else the training split.

    held_out: the text is for measuring a model: the validation split if there is one, unless another was asked for.
    Raises UserError where the hub does not have it, or it cannot be read.
    """
    found = _find(asked, cache)
    split = found.split or (held_out and _validation(found)) or _training(asked, found)
    return _source(asked, found, split, text_field, errors, encoding, cache)


def hub_validation(asked: HubName, text_field: str, errors: str, encoding: str, cache: Path) -> Source | None:
    """The validation split of the data set, None where it has none or that is what was asked for."""
    found = _find(asked, cache)
    split = _validation(found)
    if split is None or split == found.split:
        return None
    return _source(asked, found, split, text_field, errors, encoding, cache)


def _validation(found: _Found) -> str | None:
    return next((split for split in VALIDATION if split in found.splits), None)


def _training(asked: HubName, found: _Found) -> str:
    splits = list(found.splits)
    if "train" in splits or len(splits) == 1:
        return "train" if "train" in splits else splits[0]
    config = f":{found.config}" if found.config else ""
    mend = f"name one, as in {asked.revised}{config}:{splits[0]}"
    raise UserError(f"{asked.name} has no split train, but {', '.join(splits)}: {mend}")


# --- What the hub says ---


def _find(asked: HubName, cache: Path) -> _Found:
    """What the hub says of the data set; where it does not answer, what it said before."""
    key = digest("hub", asked.name, asked.revision, asked.part, asked.split).hexdigest()
    record = cache / f"hub-{key}.json"
    before = _read_record(record)
    if before and before.sha == asked.revision:  # a revision with a hash for its name never changes
        return before
    try:
        found = _ask(asked, before)
    except Exception as error:
        if before is None:
            raise _refusal(asked.name, error) from error
        note(f"the hub did not say whether {asked.name} changed ({explained(error)}): taking revision {before.sha[:7]}")
        return before
    if found != before:
        with replacing(record, "w") as file:
            json.dump(asdict(found), file)
    return found


def _ask(asked: HubName, before: _Found | None) -> _Found:
    """What the hub says; of a revision that is known, nothing more is asked."""
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(asked.name, revision=asked.revision, timeout=TIMEOUT)
    sha = str(info.sha)
    if before and before.sha == sha:
        return before

    import datasets  # takes seconds

    datasets.disable_progress_bars()
    for library in ("datasets", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    configs = datasets.get_dataset_config_names(asked.name, revision=sha)
    config = asked.part if asked.part in configs else None
    split = asked.split if config or asked.split else asked.part
    if (config is None and asked.part and asked.split) or (
        config is None and len(configs) > 1 and "default" not in configs
    ):
        has = f"{asked.name} has no config {asked.part!r}, but" if asked.part else f"{asked.name} has several configs,"
        raise UserError(f"{has} {', '.join(configs[:20])}: name one, as in {asked.revised}:{configs[0]}")
    builder = datasets.load_dataset_builder(asked.name, config, revision=sha)
    files = builder.config.data_files or {}
    splits = {str(split): [str(path).partition(f"@{sha}/")[2] for path in paths] for split, paths in files.items()}
    if split and split not in splits:
        others = f"; its configs: {', '.join(configs[:20])}" if len(configs) > 1 else ""
        raise UserError(f"{asked.name} has no split {split!r}, but {', '.join(splits)}{others}")
    return _Found(sha, config, splits, split)


def _read_record(path: Path) -> _Found | None:
    """What a record says, None where there is none or it is damaged: then the hub is asked again."""
    try:
        found = _Found(**json.loads(path.read_text(encoding="utf-8")))
        paths = [path for paths in found.splits.values() for path in paths]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return found if all(isinstance(text, str) for text in (found.sha, *found.splits, *paths)) else None


def _refusal(name: str, error: Exception) -> UserError:
    """What the user reads where the hub refuses a data set, for which there are many exceptions."""
    if isinstance(error, UserError):
        return error
    return UserError(
        f"cannot read {name} from the hub, and there is no such path here: {explained(error)};"
        " download a text file elsewhere and pass its path, or pass --dataset stories"
    )


# --- The text ---


def _source(
    asked: HubName, found: _Found, split: str, text_field: str, errors: str, encoding: str, cache: Path
) -> Source:
    """The text of a split, which is fetched unless the cache has it."""
    paths = found.splits[split]
    for path in paths:
        if suffix(Path(path)) not in (*TEXT_SUFFIXES, *ROWS):
            raise UserError(f"cannot read {asked.name}: {path} is not among the formats, which are {READABLE}")
    if text_field == "text":
        text_field = FIELDS.get(asked.name, text_field)
    how = (text_field, errors, encoding)
    jobs: list[tuple[Facts, Make]] = []
    for group in [paths] if asked.limit else [[path] for path in paths]:
        facts = {"hub": [asked.name, found.sha, *how, ROWS_VERSION, group, asked.limit]}
        kept = cache / f"hub-{digest(facts).hexdigest()}"
        files = [
            HubFile(asked.name, found.sha, path, kept.with_name(f"{kept.name}.{number}.part"))
            for number, path in enumerate(group)
        ]
        jobs.append((facts, partial(_fetch, files, asked.limit, how)))
    folders = get_folders(cache, jobs)
    fields = dict.fromkeys(filter(None, ((folder / "field.txt").read_text(encoding="utf-8") for folder in folders)))
    parts = [
        f"hub data set {asked.name}@{found.sha}",
        *([f"config {found.config}"] if found.config else []),
        f"split {split}",
        *([f"the first {asked.limit:,} documents"] if asked.limit else []),
    ]
    description = ", ".join(parts) + (f"; field: {', '.join(fields)}" if fields else "")
    fingerprint = digest("hub", [facts for facts, _ in jobs], found.config, split).hexdigest()
    return source_of_texts([folder / "text.txt" for folder in folders], description, fingerprint)


def _fetch(files: list[HubFile], limit: int | None, how: tuple[str, str, str], folder: Path) -> None:
    """Write the text of `files` to text.txt in `folder`, each document closed by END_OF_TEXT, and its field.

    limit: of documents. how: the field of text, what to do about bytes not in the encoding, and the encoding.
    """
    left = limit
    fields: dict[str, None] = {}
    with (folder / "text.txt").open("w", encoding="utf-8", newline="") as out:
        for file in files:
            if left == 0:
                break
            with file:
                file.fetch(how[0], left)
                text = read_file(file, *how, most=left)
                fields[text.field] = None
                for piece in text.pieces:
                    out.write(without_surrogates(piece.text))
                    if piece.ends_document:
                        out.write(END_OF_TEXT)
                        left = left and left - 1
                        if left == 0:
                            break
    (folder / "field.txt").write_text(", ".join(filter(None, fields)), encoding="utf-8")
