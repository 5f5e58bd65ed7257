"""What `--dataset` names -> a source: local files, the built-in stories, or a data set of the Hugging Face hub."""

from __future__ import annotations

import codecs
import difflib
import re
from encodings import aliases

from slm.data import stories
from slm.data.files import files_source, is_local
from slm.data.hub import hub_name, hub_source, hub_validation
from slm.data.source import Source, digest, pieces_of_rows, unreadable
from slm.errors import UserError
from slm.files import user_path


def open_source(
    dataset: str, *, text_field: str = "text", errors: str = "strict", encoding: str = "utf-8", held_out: bool = False
) -> Source:
    """Find `dataset`: a path, a glob, `stories`, `stories:N`, `tinystories` or the hub's owner/name, a path first.

    text_field: the field or column of JSON, CSV, Parquet and hub data sets that holds the text.
    errors: "strict", "replace" or "ignore" for bytes that are not in `encoding`, the name of one that Python knows.
    held_out: the text is for measuring a model: the hub's validation split if it has one, other built-in stories.

    Raises UserError where there is no such data set, or its files cannot be read. The hub is only contacted for the
    names of splits; whether it has the data set shows when `pieces()` is called.
    """
    if errors not in ("strict", "replace", "ignore"):
        raise UserError(f"errors is {errors!r}: choose strict, replace or ignore")
    try:
        if re.match("https?://", dataset):
            raise UserError(f"{dataset} is an address, not a path: download the file first, and pass its path")
        if is_local(dataset):
            return files_source(dataset, text_field, errors, _encoding(encoding))
        if dataset == "stories" or dataset.startswith("stories:"):
            return _stories_source(dataset, seed=int(held_out))
        if name := hub_name(dataset):
            split = hub_validation(name) if held_out else None
            return hub_source(name, split or "train", text_field)
        raise _missing(dataset)
    except OSError as error:
        raise unreadable(dataset, error) from error


def _encoding(name: str) -> str:
    """Python's own name of an encoding of text. Raises UserError where there is none."""
    try:
        found = codecs.lookup(name)
    except (LookupError, ValueError):
        names = {*aliases.aliases, *aliases.aliases.values()}
        close = difflib.get_close_matches(name.lower().replace("-", "_"), names)
        mend = f"did you mean {' or '.join(close)}?" if close else "give a name like utf-16, cp1252 or gb18030"
        raise UserError(f"no encoding {name!r}: {mend}") from None
    try:
        "".encode(name)
        text = codecs.getincrementaldecoder(name)().decode(b"", final=True)
    except (LookupError, UnicodeError):
        text = None
    if text != "":
        raise UserError(f"{name!r} is not an encoding of text in files: give a name like utf-16, cp1252 or gb18030")
    return found.name


def validation_source(dataset: str, *, text_field: str = "text") -> Source | None:
    """The validation split that `dataset` itself has; None for files, built-in stories and where it has none.

    Raises UserError where the hub cannot be asked for the splits; `tinystories` is known to have one.
    """
    name = None if is_local(dataset) else hub_name(dataset)
    if name is None:
        return None
    split = hub_validation(name)
    return hub_source(name, split, text_field) if split else None


def _stories_source(dataset: str, seed: int) -> Source:
    number = dataset.partition(":")[2] if ":" in dataset else "10000"
    if not re.fullmatch("0*[1-9][0-9]*", number):
        raise UserError(f"cannot write {number!r} stories: give a whole number from 1 on, as in stories:10000")
    count = int(number)
    description = f"built-in stories ({count:,})"
    fingerprint = digest("stories", count, seed, stories.fingerprint()).hexdigest()
    return Source(description, fingerprint, None, lambda: pieces_of_rows(stories.stories(count, seed), description))


def _missing(dataset: str) -> UserError:
    path = user_path(dataset)
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    names += ["stories", "tinystories"] if path.name == dataset else []
    close = [str(path.parent / name) for name in difflib.get_close_matches(path.name, names)]
    mend = f"did you mean {' or '.join(close)}?" if close else "give the path of a text, or pass --dataset stories"
    return UserError(f"no file or folder {dataset}: {mend}")
