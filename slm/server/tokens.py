"""The tokenizer over HTTP, as vLLM has it, so that a client can count and score tokens: lm-evaluation-harness does."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from slm.data.source import END_OF_TEXT
from slm.inference.text import TextModel
from slm.server.protocol import ErrorBody, Ids, Refused

ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}}


class TokenizeRequest(BaseModel):
    """The body of POST /tokenize."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="accepted and without effect")
    prompt: str = Field(description="text, in which <|endoftext|> is a token")
    add_special_tokens: bool = Field(True, description="put an end of text before it, where a text begins")


class DetokenizeRequest(BaseModel):
    """The body of POST /detokenize."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="accepted and without effect")
    tokens: Ids


def router(model: TextModel) -> APIRouter:
    """The routes for the tokenizer of `model`."""
    routes, tokenizer = APIRouter(), model.tokenizer

    @routes.post("/tokenize", responses=ERRORS)
    async def tokenize(body: TokenizeRequest) -> Response:
        """The ids of a text."""
        prompt = await asyncio.to_thread(model.read, body.prompt, whole=True)
        ids = prompt.ids if body.add_special_tokens else prompt.ids[prompt.added :]
        return JSONResponse({"count": len(ids), "max_model_len": model.context_length, "tokens": ids})

    @routes.post("/detokenize", responses=ERRORS)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of ids."""
        if max(body.tokens, default=0) >= tokenizer.vocab_size:
            raise Refused(400, f"There is no token {max(body.tokens)}: ids are below {tokenizer.vocab_size}.")
        names = (END_OF_TEXT.encode() if id == tokenizer.end_of_text else tokenizer.tokens[id] for id in body.tokens)
        return JSONResponse({"prompt": b"".join(names).decode("utf-8", "replace")})

    @routes.get("/tokenizer_info")
    async def tokenizer_info() -> Response:
        """The end of text, which also stands before each text, and the number of tokens."""
        names = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
        return JSONResponse({**names, "vocab_size": tokenizer.vocab_size, "model_max_length": model.context_length})

    return routes
