"""What `--dataset` names -> a source: local files, the built-in stories, or a data set of the Hugging Face hub."""

from __future__ import annotations

import codecs
import difflib
import glob
import re
from encodings import aliases
from typing import Any

from slm.config.train import DataConfig
from slm.config.use import EvaluateConfig
from slm.data import stories
from slm.data.cache import open_cache
from slm.data.files import files_source, has_validation_files, is_local
from slm.data.hub import KNOWN, HubName, hub_name, hub_source, hub_validation
from slm.data.source import Source, digest, pieces_of_rows, unreadable
from slm.errors import UserError
from slm.files import did_you_mean, user_path

# What looks like a data set of the hub with a revision, a config or a limit that is not written as it must be.
_LIKE_HUB = re.compile(rf"({'|'.join(KNOWN)}|[\w-][\w.-]*/[\w.-]+)(@|:|\[\d*:).*")
_ORDER = "the order is owner/name@revision:config:split[:100000], and all but the name may be left out"


def how_to_read(config: DataConfig | EvaluateConfig) -> dict[str, Any]:
    """The keywords of `open_source` and `validation_source` that a command's flags give."""
    return {name: getattr(config, name) for name in ("text_field", "errors", "encoding", "cache_dir")}


def open_source(
    dataset: str,
    *,
    text_field: str = "text",
    errors: str = "strict",
    encoding: str = "utf-8",
    cache_dir: str = DataConfig.cache_dir,
    held_out: bool = False,
) -> Source:
    """Find `dataset`: a path, a glob, `stories`, `stories:N`, or a data set of the hub, a path first.

    text_field: the field or column of JSON, CSV, Parquet and hub data sets that holds the text.
    errors: "strict", "replace" or "ignore" for bytes that are not in `encoding`, the name of one that Python knows.
    cache_dir: where the text of a data set of the hub is kept, which is fetched if it is not there.
    held_out: the text is for measuring a model: the hub's validation split if it has one, other built-in stories.

    Raises UserError where there is no such data set, or its files cannot be read.
    """
    if errors not in ("strict", "replace", "ignore"):
        raise UserError(f"errors is {errors!r}: choose strict, replace or ignore")
    try:
        if re.match("https?://", dataset):
            raise UserError(f"{dataset} is an address, not a path: download the file first, and pass its path")
        if name := _on_hub(dataset):
            how = (text_field, errors, _encoding(encoding), open_cache(cache_dir))
            return hub_source(name, *how, held_out=held_out)
        if _LIKE_HUB.fullmatch(dataset) and not user_path(dataset).exists() and not glob.glob(dataset):  # noqa: PTH207
            raise UserError(f"cannot make out {dataset}: {_ORDER}")
        if is_local(dataset):
            return files_source(dataset, text_field, errors, _encoding(encoding), held_out)
        if dataset == "stories" or dataset.startswith("stories:"):
            return _stories_source(dataset, seed=int(held_out))
        raise _missing(dataset)
    except OSError as error:
        raise unreadable(dataset, error) from error


def _on_hub(dataset: str) -> HubName | None:
    """What `dataset` means on the hub, None where it is a path here, or looks like one."""
    return None if user_path(dataset).exists() else hub_name(dataset)


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


def validation_source(
    dataset: str,
    *,
    text_field: str = "text",
    errors: str = "strict",
    encoding: str = "utf-8",
    cache_dir: str = DataConfig.cache_dir,
) -> Source | None:
    """The validation split that `dataset` itself has, a folder by the names of its files; None where it has none.

    Raises UserError where it cannot be read.
    """
    if name := _on_hub(dataset):
        return hub_validation(name, text_field, errors, _encoding(encoding), open_cache(cache_dir))
    if is_local(dataset) and has_validation_files(dataset):
        return open_source(dataset, text_field=text_field, errors=errors, encoding=encoding, held_out=True)
    return None


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
    mend = did_you_mean(path, ["stories", *KNOWN] if path.name == dataset else [])
    return UserError(f"no file or folder {dataset}: {mend or 'give the path of a text, or pass --dataset stories'}")
