"""OpenAI's completions API: what a request may hold, what it asks for, and the shapes of answers and errors.

Our own are `top_k`, `min_p` and `repetition_penalty`, what a model's entry says beyond its id, and in `logprobs` the
fields that begin with `token_` or `top_token_`: a token can be half a character, so its id and bytes are given too.
"""

from __future__ import annotations

import codecs
import json
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from slm.config.use import ServeConfig
from slm.data.source import END_OF_TEXT
from slm.data.tokenizer import Tokenizer
from slm.inference.continuation import Continuation, Token
from slm.inference.sampling import Sampling
from slm.inference.text import Prompt, TextModel, random_for
from slm.server.batcher import Text

# One wrong entry is reported, not each of the hundred thousand that a body may hold.
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]
Strings = Annotated[list[str], Field(fail_fast=True)]
MOST_BIASES = 1024
MOST_LOGPROBS = 65_536  # tokens whose probability one answer reports
MOST_STOPS, LONGEST_STOP = 16, 500  # strings, characters


class StreamOptions(BaseModel):
    """What a stream says besides its text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = Field(False, description="one more chunk at the end, with the number of tokens")
    include_obfuscation: bool = Field(False, description="accepted and without effect")


class CompletionRequest(BaseModel):
    """The body of POST /v1/completions, as OpenAI defines it; top_k, min_p and repetition_penalty are our own."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str = Field(description="the id that GET /v1/models reports")
    prompt: str | Strings | Ids | Annotated[list[Ids], Field(fail_fast=True)] | None = Field(
        END_OF_TEXT, description="text, token ids, or a list of either; default: a new story"
    )
    max_tokens: int | None = Field(16, ge=0, description="tokens to add at most")
    temperature: float | None = Field(1.0, ge=0, le=2, description="0: always the likeliest token")
    top_p: float | None = Field(1.0, ge=0, le=1, description="choose among the likeliest that have this probability")
    n: int | None = Field(1, ge=1, description="texts to write for each prompt")
    stop: str | Strings | None = Field(None, description=f"up to {MOST_STOPS} strings before which a text ends")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="the same seed writes the same text")
    logprobs: int | None = Field(
        None, ge=0, le=5, description="report each token's probability and that many of the likeliest"
    )
    echo: bool | None = Field(False, description="begin each text with its prompt")
    stream: bool | None = Field(False, description="send tokens as server-sent events, as they are made")
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="accepted and without effect")
    top_k: int | None = Field(0, ge=0, description="choose among the k likeliest; 0: all")
    min_p: float | None = Field(0.0, ge=0, le=1, description="choose among those at least this share as likely")
    repetition_penalty: float | None = Field(1.0, ge=0.01, le=100, description="above 1: what was there is less likely")
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2, description="taken for each time a token was written")
    presence_penalty: float | None = Field(0.0, ge=-2, le=2, description="taken where a token was written")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MOST_BIASES, description="what is added to the logits of tokens, by id"
    )
    # What the API has and this server has not is taken where it asks for nothing.
    best_of: int | None = Field(None, ge=1, description="only as n")
    suffix: str | None = Field(None, description="only empty")


class ErrorDetails(BaseModel):
    """What went wrong, in the words of OpenAI's API."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer from 400 up."""

    error: ErrorDetails


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Choice(BaseModel):
    """A text."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: dict[str, Any] | None


class Completion(BaseModel):
    """The answer of POST /v1/completions without `stream`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    """What is known of the model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parameters: int
    context_length: int
    vocab_size: int
    end_of_text: int
    tokenizer: str
    facts: dict[str, Any]


class Models(BaseModel):
    """The answer of GET /v1/models."""

    object: Literal["list"]
    data: list[Model]


class Refused(Exception):
    """An answer from 400 up, in the shape of OpenAI's API."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        types = {429: "rate_limit_error", 500: "server_error", 503: "server_error", 504: "timeout_error"}
        self.status = status
        error = {"message": message, "type": types.get(status, "invalid_request_error"), "param": param, "code": code}
        self.body = {"error": error}

    def response(self) -> Response:
        """As a whole answer."""
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}
        # Escaped, since a name that the client made up may be no Unicode.
        content = json.dumps(self.body).encode()
        return Response(content, self.status, headers.get(self.status), media_type="application/json")


class Explanation:
    """The `logprobs` of one text, chunk after chunk: strings as OpenAI writes them, and exactly, as ids and bytes."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._offset = tokenizer, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """Those of `tokens`; an offset counts the characters before a token that are whole."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(self._tokenizer.tokens[token.id]))
        table = self._tokenizer.tokens
        return {
            "tokens": [self._name(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._likeliest(token) for token in tokens],
            "text_offset": offsets,
            "token_ids": [token.id for token in tokens],
            "token_bytes": [list(table[token.id]) for token in tokens],
            "top_token_ids": [[id for id, _ in token.alternatives] for token in tokens],
            "top_token_logprobs": [[p for _, p in token.alternatives] for token in tokens],
            "top_token_bytes": [[list(table[id]) for id, _ in token.alternatives] for token in tokens],
        }

    def _likeliest(self, token: Token) -> dict[str, float] | None:
        """The alternatives by name, and the chosen one; of those with one name the likeliest."""
        if token.logprob is None:
            return None
        found: dict[str, float] = {}
        for id, logprob in (*token.alternatives, (token.id, token.logprob)):
            found.setdefault(self._name(id), logprob)
        return found

    def _name(self, id: int) -> str:
        if id == self._tokenizer.end_of_text:
            return END_OF_TEXT
        data = self._tokenizer.tokens[id]
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(value: Any) -> Any:
    """`value` for JSON, which knows no NaN and no infinity."""
    if isinstance(value, dict):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return (
        value
        if isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value))
        else str(value)
    )


def check(body: CompletionRequest, config: ServeConfig, id: str) -> None:
    """Raises Refused where a request asks for what this server does not have."""

    def refuse(param: str, message: str) -> Refused:
        return Refused(400, message, param=param)

    check_model(body.model, id)
    count = (len(body.prompt) if isinstance(body.prompt, list) and not is_ids(body.prompt) else 1) * (body.n or 1)
    if body.prompt == []:
        raise refuse("prompt", "'prompt' is an empty list.")
    if count > config.max_choices:
        raise refuse("n", f"{count} texts are asked for, prompts times 'n'; {config.max_choices} are the most here.")
    if (body.max_tokens or 0) > config.max_tokens:
        raise refuse("max_tokens", f"'max_tokens' is {body.max_tokens}; {config.max_tokens} is the most here.")
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stop) > MOST_STOPS or not all(1 <= len(each) <= LONGEST_STOP for each in stop):
        raise refuse("stop", f"'stop' takes up to {MOST_STOPS} strings, each of 1 to {LONGEST_STOP} characters.")
    if body.stream_options and not body.stream:
        raise refuse("stream_options", "'stream_options' is for a 'stream' only.")
    if body.best_of not in (None, body.n or 1):
        raise refuse("best_of", "'best_of' must be as 'n' here, or left out.")
    if body.suffix:
        raise refuse("suffix", "'suffix' is not supported here: leave it out.")


def check_model(asked: str, id: str) -> None:
    """Raises Refused where the model asked for is another one."""
    if asked != id:
        raise Refused(
            404, f"The model '{asked}' does not exist: this server has '{id}'.", param="model", code="model_not_found"
        )


def is_ids(prompt: list[Any]) -> bool:
    """Whether a list of prompts is one prompt, as token ids."""
    return bool(prompt) and isinstance(prompt[0], int)


def prompts_of(body: CompletionRequest, config: ServeConfig, model: TextModel) -> list[Prompt]:
    """Each prompt as the model reads it: text as the beginning of a text, ids as they are.

    Raises Refused where an id is no token's, a prompt is too long to be scored, or the answer would be too long.
    """
    given: Any = END_OF_TEXT if body.prompt is None else body.prompt
    tokenizer, score = model.tokenizer, bool(body.echo) and body.logprobs is not None
    prompts = []
    for each in [given] if isinstance(given, str) or is_ids(given) else given:
        if isinstance(each, str):
            prompt = model.read(each, whole=score)
        elif max(each, default=0) < tokenizer.vocab_size:
            prompt = Prompt(tokenizer.decode(each) if body.echo else "", each) if each else model.read("")
        else:
            raise Refused(400, f"There is no token {max(each)}: ids are below {tokenizer.vocab_size}.", param="prompt")
        if score and len(prompt.ids) > model.context_length:
            most = model.context_length - prompt.added
            message = (
                f"'echo' with 'logprobs' takes prompts of up to {most} tokens, not {len(prompt.ids) - prompt.added}."
            )
            raise Refused(400, message, param="echo")
        prompts.append(prompt)
    copies = body.n or 1
    if body.echo and (size := copies * sum(len(each.text.encode()) for each in prompts)) > config.max_request_bytes:
        message = f"'echo' would repeat {size} bytes of prompts; {config.max_request_bytes} are the most here."
        raise Refused(400, message, param="echo")
    tokens = copies * sum((len(each.ids) if score else 0) + _or(body.max_tokens, 16) for each in prompts)
    if body.logprobs is not None and tokens > MOST_LOGPROBS:
        message = f"'logprobs' of up to {tokens} tokens are asked for; {MOST_LOGPROBS} are the most here."
        raise Refused(400, message, param="logprobs")
    return prompts


def texts_of(body: CompletionRequest, prompts: Sequence[Prompt], model: TextModel) -> Iterator[Text]:
    """What to write: `n` texts for each prompt."""
    cold = body.temperature == 0 or body.top_p == 0
    sampling = Sampling(
        temperature=0.0 if cold else _or(body.temperature, 1.0),
        top_k=body.top_k or 0,
        top_p=_or(body.top_p, 1.0),
        min_p=body.min_p or 0.0,
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias=bias_of(body, model.tokenizer),
    )
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    seed = None if body.seed is None else body.seed % 2**64
    for prompt in prompts:
        ids = prompt.ids[-model.context_length :]  # what the model reads; the repetition penalty, too, counts these
        for sample in range(body.n or 1):
            continuation = Continuation(
                list(ids),
                model.tokenizer,
                _or(body.max_tokens, 16),
                sampling,
                random_for(seed, sample),
                stop,
                body.logprobs,
                prompt.after_space,
            )
            scored_from = None if body.logprobs is None else prompt.added
            yield Text(continuation, prompt.text, scored_from) if body.echo else Text(continuation)


def bias_of(body: CompletionRequest, tokenizer: Tokenizer) -> dict[int, float]:
    """The biases by token id. Raises Refused where a key is no token's."""
    bias = {}
    for key, value in (body.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < tokenizer.vocab_size):
            message = f"'logit_bias' has the key {key!r}: keys are ids below {tokenizer.vocab_size}."
            raise Refused(400, message, param="logit_bias")
        bias[int(key)] = value
    return bias


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def heading(id: str) -> dict[str, Any]:
    """What a completion and each of its chunks begin with."""
    return {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": id,
    }


def usage(read: int, written: int) -> dict[str, int]:
    """Tokens of the prompts, each counted once, and of the texts."""
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def explain_problem(problem: dict[str, Any]) -> Refused:
    """The first of FastAPI's complaints about a body, as OpenAI's API words it."""
    place, kind = list(problem["loc"]), problem["type"]
    name = str(place[1]) if place[0] == "body" and len(place) > 1 and isinstance(place[1], str) else None
    if kind == "json_invalid":
        return Refused(400, "The body is not valid JSON.")
    if kind == "extra_forbidden":
        return Refused(400, f"Unrecognized request argument supplied: {'.'.join(map(str, place[1:]))}")
    if name is None:
        return Refused(400, "The body must be a JSON object, sent as application/json.")
    if kind == "missing":
        return Refused(400, f"You must provide a '{name}' parameter.", param=name)
    if name == "prompt":
        message = "'prompt' must be a string, a list of strings, a list of token ids or a list of such lists."
    elif name == "stop":
        message = "'stop' must be a string or a list of strings."
    else:
        message = f"'{name}': {problem['msg']}."
    return Refused(400, message, param=name)


def sent(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: %s\n\n" % encoded(data)


def encoded(data: dict[str, Any]) -> bytes:
    """JSON in UTF-8; with ? for half a surrogate pair, which a file's name may have."""
    return _compact(data).encode("utf-8", "replace")


_compact = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
