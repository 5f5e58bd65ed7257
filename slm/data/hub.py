"""A data set of the Hugging Face hub as a source, streamed by `datasets`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slm.data.readers import OTHER_FORMATS, ROWS, TEXT_SUFFIXES, suffix, text_of_rows
from slm.data.source import Piece, Source, digest, not_empty, pieces_of_rows, reason
from slm.errors import UserError

TINY_STORIES = "roneneldan/TinyStories"


def hub_name(dataset: str) -> str | None:
    """The hub's name for `dataset`, None where that looks like a path, as data/story.txt or folder/anything does."""
    if dataset == "tinystories":
        return TINY_STORIES
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", dataset) or Path(dataset).parent.is_dir():
        return None
    return None if suffix(Path(dataset)) in (*TEXT_SUFFIXES, *ROWS, *OTHER_FORMATS) else dataset


def hub_source(name: str, split: str, text_field: str) -> Source:
    """A split of the data set `name`. The hub is first contacted by `pieces()`."""
    description = f"hub data set {name}, split {split}"

    def rows() -> Iterator[object]:
        with _hub_errors(name):
            yield from _load(name, split=split)

    def pieces() -> Iterator[Piece]:
        texts = text_of_rows(rows(), text_field, description)
        return not_empty(pieces_of_rows(texts, description), description)

    return Source(description, digest("hub", name, split, text_field).hexdigest(), None, pieces)


def hub_validation(name: str) -> str | None:
    """The name of the data set's validation split, None where it has none.

    TinyStories is known to have one, and the hub is not asked. Raises UserError where the hub cannot be asked.
    """
    if name == TINY_STORIES:
        return "validation"
    with _hub_errors(name):
        splits = list(_load(name))
    return next((split for split in ("validation", "valid", "val") if split in splits), None)


def _load(name: str, **options: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    for library in ("datasets", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    _check_connection()
    return datasets.load_dataset(name, streaming=True, **options)


def _check_connection() -> None:
    """Contact the hub once: where it does not answer, `load_dataset` would try again for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:  # chosen by the user; `load_dataset` knows what is in the cache
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:
        raise UserError(f"the hub does not answer ({reason(error)})") from error


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn whatever goes wrong with the hub, for which there are many exceptions, into a UserError."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"cannot read {name} from the hub, and there is no such path here: {reason(error)};"
            " download a text file elsewhere and pass its path, or pass --dataset stories"
        ) from error
