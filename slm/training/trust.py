"""Whether the paths in a run's state are its user's own words: a folder with a last.pt may come from a stranger.

A state names the text to read and the folder for its tokens. It carries a stamp of these, made with a key that never
leaves the user's home; without one of this user's, a resumed run asks for the paths again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress

from slm.files import user_path

PATHS = ("dataset", "val_dataset", "cache_dir")
KEY = "~/.config/slm/key"


def stamp(settings: Mapping[str, object]) -> str:
    """Of the paths among the flags of a run, in hex; empty where this user's key cannot be kept."""
    key = _key()
    if key is None:
        return ""
    paths = json.dumps({name: settings.get(name) for name in PATHS}, sort_keys=True, default=str)
    return hmac.new(key, paths.encode(), hashlib.sha256).hexdigest()


def is_own(settings: Mapping[str, object], given: object) -> bool:
    """Whether `given` is the stamp that this user's runs have for these flags."""
    expected = stamp(settings)
    return bool(expected) and isinstance(given, str) and hmac.compare_digest(expected.encode(), given.encode())


def _key() -> bytes | None:
    """The user's key, drawn when it is first needed; None where it cannot be read and written."""
    path = user_path(KEY)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(descriptor, secrets.token_hex(32).encode())
            os.close(descriptor)
        key = path.read_bytes()
        return key if len(key) == 64 else None
    return None
