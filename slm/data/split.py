"""Which part of a text is held out for validation: a function of hashes and sizes alone.

Whole documents are held out, each by the hash of its text: so equal documents stay together, and documents that are
added later move no other. A document longer than all that is to be held out is divided into its pieces.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

RULE = 2  # raise it when the same text would be divided otherwise
LEAST_BYTES = 1_500  # some hundred tokens: with fewer, a validation loss is mostly chance

Hashes = npt.NDArray[np.uint64]
Sizes = npt.NDArray[np.int64]


def bytes_to_hold_out(total: int, fraction: float) -> tuple[float, float, float]:
    """How many of `total` bytes are to be held out, and the fewest and the most that are good enough.

    That is `fraction` of them, in a short text LEAST_BYTES, though for this no more than a quarter.
    """
    wanted = max(fraction * total, min(LEAST_BYTES, total / 4))
    most = min(2 * wanted, max(2 * fraction * total, total / 4), (wanted + total) / 2)
    return wanted, wanted / 2, most


def choose(hashes: Hashes, sizes: Sizes, starts: npt.NDArray[np.int8], fraction: float) -> npt.NDArray[np.bool_]:
    """Which pieces are held out, (pieces,): none where all choices are too coarse, so that the end should be.

    hashes, sizes: of each piece. starts: 1 where a piece begins a document, else 0.

    Held out is what hashes below a threshold. Only where the bytes of that are outside the bounds of
    `bytes_to_hold_out`, documents are taken in the order of their hashes, those left out that are too long.
    """
    wanted, fewest, most = bytes_to_hold_out(int(sizes.sum()), fraction)
    first = np.flatnonzero(starts)  # (documents,)
    document = np.cumsum(starts, dtype=np.int64) - 1  # (pieces,): the document of each piece
    is_long = (np.add.reduceat(sizes, first) > min(wanted, most - fewest))[document]
    keys = np.where(is_long, hashes, np.add.reduceat(hashes, first)[document])  # the sum wraps around
    chosen = keys < np.uint64(fraction * 2.0**64)
    if fewest <= sizes[chosen].sum() <= most:
        return chosen

    units, unit = np.unique(keys, return_inverse=True)  # in the order of their hashes; equal documents are one unit
    unit_sizes = np.bincount(unit, weights=sizes)
    taken, held_out = np.zeros(len(units), dtype=np.bool_), 0.0
    for number, size in enumerate(unit_sizes.tolist()):
        if held_out >= wanted:
            break
        if held_out + size <= most:
            taken[number] = True
            held_out += size
    if held_out < fewest:
        taken[:] = False
        end_is_alone = sizes[-1] >= wanted and np.count_nonzero(unit == unit[-1]) == 1
        if not end_is_alone and 1 < len(units) < np.count_nonzero(starts | is_long):
            taken[np.abs(unit_sizes - wanted).argmin()] = True  # the end may hold a copy of what is trained on
    return taken[unit]
