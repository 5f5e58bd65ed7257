"""A text that grows token by token: how the next token is chosen, what of the text can be shown, and where it ends.

Legend: V vocabulary.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.inference.sampling import Logits, Sampling, biased, choose, likeliest, log_probabilities, penalise

NAN = "the model computes NaN: its file is damaged, or its training failed"


class Token(NamedTuple):
    """What was chosen. Where asked for: its log-probability, in nats, and the likeliest tokens with theirs."""

    id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


class Piece(NamedTuple):
    """What one more token adds to a text: nothing, where a character or a stop string may go on in the next token.

    The last piece of a text may have the end of text as its token, which stands for no characters.
    """

    text: str
    token: Token


@dataclass(eq=False)
class Continuation:
    """A prompt of at least one token that is being continued, and how.

    It ends before the end of text, before the first of the strings `stop`, and after `max_length` tokens; from outside,
    by setting `ended`. alternatives: how many likely tokens to report with each chosen one, besides its probability;
    None: neither is computed. after_space: the prompt's last space was left off, since tokens begin with their space:
    the first token must begin with one, and its text is shown without it.
    """

    ids: list[int]  # the prompt and what was added
    tokenizer: Tokenizer
    max_length: int  # tokens still to add
    sampling: Sampling
    random: np.random.Generator
    stop: Sequence[str] = ()
    alternatives: int | None = None
    after_space: bool = False
    ended: bool = False
    finish_reason: Literal["stop", "length"] | None = None  # None: not finished, or ended from outside
    begin: int = 0  # the model's window is ids[begin:]

    def __post_init__(self) -> None:
        self._pieces: list[Piece] = []  # that were not taken yet
        self._error: Exception | None = None
        self._seen: npt.NDArray[np.bool_] | None = None  # which tokens there are, (V,), where that counts
        self._written: npt.NDArray[np.int32] | None = None  # how often each token was added, (V,), where that counts
        self._held = ""  # the end of the text, while it may become a stop string
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self) -> list[Piece]:
        """The pieces that were added since the last call. Raises what the text failed with."""
        if self._error is not None:
            raise self._error
        pieces, self._pieces = self._pieces, []
        return pieces

    def fail(self, error: Exception) -> None:
        """End the text with an error."""
        self.ended, self._error = True, error

    def grow(self, logits: Logits) -> None:
        """Add the next token, chosen by its logits (V,)."""
        if not np.isfinite(logits.max()):
            self.fail(UserError(NAN))
            return
        id = choose(self._adjusted(logits), self.sampling, self.random)
        if id == self.tokenizer.end_of_text:
            self.finish_reason = "stop"
            text = self._shown(b"", final=True)
        else:
            self.ids.append(id)
            self.max_length -= 1
            if self._seen is not None:
                self._seen[id] = True
            if self._written is not None:
                self._written[id] += 1
            data = self.tokenizer.tokens[id]
            text = self._shown(data[1:] if self.after_space else data, final=not self.max_length)
            if self.finish_reason is None and not self.max_length:
                self.finish_reason = "length"
        self.after_space = False
        self.ended = self.ended or self.finish_reason is not None
        token = Token(id) if self.alternatives is None else explained(id, logits, self.alternatives)
        self._pieces.append(Piece(text, token))

    def _adjusted(self, logits: Logits) -> Logits:
        """The logits to choose by, (V,): after penalties and biases, and without what may not come first."""
        end_of_text = self.tokenizer.end_of_text
        how = self.sampling
        if self._written is None and (how.frequency_penalty or how.presence_penalty or how.logit_bias):
            self._written = np.zeros(len(logits), dtype=np.int32)
        if how.repetition_penalty != 1:
            if self._seen is None:
                self._seen = np.zeros(len(logits), dtype=bool)
                self._seen[self.ids] = True
                self._seen[end_of_text] = False  # an end is no repetition
            logits = penalise(logits, self._seen, how.repetition_penalty)
        if self._written is not None:
            logits = biased(logits, self._written, how)
        if self.after_space:
            allowed = self.tokenizer.begin_with_space.copy()
            allowed[end_of_text] = True
            logits = np.where(allowed, logits, np.float32(-np.inf))
        return logits

    def _shown(self, data: bytes, *, final: bool) -> str:
        """What can be shown once these bytes are added; nothing is held back where they are the last ones."""
        text = self._held + self._decoder.decode(data, final)
        found = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        if found:
            self.finish_reason = "stop"
            return text[: min(found)]
        end = len(text) if final else len(text) - self._doubtful(text)
        self._held = text[end:]
        return text[:end]

    def _doubtful(self, text: str) -> int:
        """How many characters at the end of `text` begin one of the stop strings."""
        lengths = (n for stop in self.stop for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
        return max(lengths, default=0)


def explained(id: int, logits: Logits, alternatives: int) -> Token:
    """Token `id` with its probability among logits (V,), and the likeliest tokens with theirs."""
    best = likeliest(logits, alternatives)
    best = best[np.argsort(-logits[best], kind="stable")]
    logprob, *others = log_probabilities(logits, [id, *best.tolist()])
    return Token(id, logprob, tuple(zip(best.tolist(), others, strict=True)))
