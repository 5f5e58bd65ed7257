"""What `slm generate` shows: a text that grows in the terminal as the model writes it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence

from slm.config.use import GenerateConfig
from slm.cores import fast_threads
from slm.data.source import END_OF_TEXT
from slm.errors import UserError
from slm.files import user_path
from slm.inference.continuation import Token
from slm.inference.text import BATCH, TextModel, load

ALTERNATIVES = 5  # that --logprobs prints with each token


def main(config: GenerateConfig) -> None:
    """`slm generate`: one text is shown as it grows, several when whole, and with --logprobs a line of JSON each."""
    prompts = [config.prompt] if config.prompt_file is None else read_prompts(config.prompt_file)
    count = len(prompts) * config.num_samples
    model = load(config.model_path, device=config.device, threads=config.threads or fast_threads(count))
    if model.caution:
        print(model.caution, file=sys.stderr)
    if config.interactive:
        interactive(model, config)
        return
    for prompt in prompts:
        tokens = len(model.read(prompt).ids)
        if tokens > model.context_length:
            note = f"note: of the prompt's {tokens} tokens the model reads the last {model.context_length}"
            print(note, file=sys.stderr)
    if count > 1 or config.logprobs:
        whole(model, prompts, config)
    else:
        grow(model, prompts[0], config)


def read_prompts(prompt_file: str) -> list[str]:
    """The lines of a UTF-8 file that are not empty. Raises UserError where it cannot be read or has none."""
    path = user_path(prompt_file)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"cannot read --prompt_file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"--prompt_file {path} is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}"
        ) from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompt_file {path} holds no prompt: write one on each line")
    return prompts


def grow(model: TextModel, prompt: str, config: GenerateConfig) -> None:
    """Show one text as it is written."""
    _show(shown(model, prompt))
    for _, piece in model.write([prompt], config):
        _show(piece.text)
    _show("\n")


def whole(model: TextModel, prompts: Sequence[str], config: GenerateConfig) -> None:
    """Show each text when all of its batch are written.

    With --logprobs, the tokens that a text ends before are listed too: those of a stop string, and the end of text.
    """
    count = len(prompts) * config.num_samples
    texts = [""] * count
    tokens: list[list[Token]] = [[] for _ in range(count)]

    def show(numbers: Iterable[int]) -> None:
        for number in numbers:
            prompt, text = shown(model, prompts[number // config.num_samples]), texts[number]
            if config.logprobs:
                line = json.dumps({"prompt": prompt, "text": text, "tokens": explained(model, tokens[number])})
                _show(f"{line}\n")
            else:
                _show(f"--- {number + 1} of {count} ---\n{prompt}{text}\n\n")

    done = 0
    for number, piece in model.write(prompts, config, ALTERNATIVES if config.logprobs else None):
        batch_begins = number // BATCH * BATCH
        show(range(done, batch_begins))
        done = max(done, batch_begins)
        texts[number] += piece.text
        tokens[number].append(piece.token)
    show(range(done, count))


def explained(model: TextModel, tokens: Sequence[Token]) -> list[dict[str, object]]:
    """Tokens for JSON, with probabilities from 0 to 1; half a character is shown as U+FFFD."""
    tokenizer = model.tokenizer

    def entry(id: int, logprob: float | None) -> dict[str, object]:
        name = END_OF_TEXT if id == tokenizer.end_of_text else tokenizer.decode([id])
        return {"token": name, "id": id, "probability": math.exp(logprob or 0.0)}

    return [
        {**entry(token.id, token.logprob), "alternatives": [entry(*other) for other in token.alternatives]}
        for token in tokens
    ]


def interactive(model: TextModel, config: GenerateConfig) -> None:
    """Ask for a prompt, show a story, and ask again, until the input ends; Ctrl-C ends a story early."""
    print("type the beginning of a story and press Enter; an empty line ends", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            prompt = ""
        if not prompt:
            return
        try:
            grow(model, prompt, config)
        except KeyboardInterrupt:
            _show("\n")


def shown(model: TextModel, prompt: str) -> str:
    """`prompt` as the model reads it, whatever bytes it came in."""
    return model.tokenizer.decode(model.tokenizer.encode(prompt).tolist())


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
