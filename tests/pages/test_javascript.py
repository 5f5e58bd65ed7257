"""The page's tokenizer and sampling in Node, against Python's."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from slm.export.huggingface import TEXTS, tokenizer_json
from slm.inference.sampling import Sampling, choose

STATIC = Path(__file__).parents[2] / "slm" / "server" / "static"
node = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")


def run(script, data, tmp_path):
    """What `script`, with the functions of the page's modules and `data`, returns."""
    (tmp_path / "package.json").write_text('{"type": "module"}')
    for name in ("tokenizer.js", "generator.js"):
        shutil.copy(STATIC / name, tmp_path)
    (tmp_path / "data.json").write_text(json.dumps(data))
    (tmp_path / "run.js").write_text(
        'import fs from "fs";\nimport { Tokenizer } from "./tokenizer.js";\n'
        'import { choose, generate, randomNumbers } from "./generator.js";\n'
        'const data = JSON.parse(fs.readFileSync("data.json"));\n'
        f"const result = await (async () => {{ {script} }})();\nconsole.log(JSON.stringify(result));\n"
    )
    done = subprocess.run(["node", "run.js"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@node
def test_the_tokenizer_is_that_of_python(each_model, tmp_path):
    pieces = [
        *"aZé日🙂\u0301١½²'\"-_ \n\t\r\x85\xa0\ufeff\u2003\u3000\u200b\x00\x7f", " the", "'ll", "'S", "  ", "\n\n",
        "123", "once upon", "<|endoftext|>", "<|endoftext", "ĠÀ",
    ]  # fmt: skip
    rolls = random.Random(0)
    texts = ["", *TEXTS, *("".join(rolls.choices(pieces, k=rolls.randrange(1, 30))) for _ in range(300))]
    tokenizer = each_model.tokenizer
    expected = [tokenizer.encode(text).tolist() for text in texts]
    script = """
      const tokenizer = new Tokenizer(data.tokenizer);
      const ids = data.texts.map((text) => tokenizer.encode(text));
      return [ids, ids.map((each) => tokenizer.decode(each)), tokenizer.encode("a\\ud800b")];
    """
    ids, decoded, surrogate = run(script, {"tokenizer": tokenizer_json(tokenizer), "texts": texts}, tmp_path)
    assert ids == expected
    assert decoded == [text.replace("<|endoftext|>", "") for text in texts]
    assert surrogate == tokenizer.encode("a\ufffdb").tolist()


class Fixed:
    """A generator of random numbers that always draws one."""

    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


@node
def test_a_token_is_chosen_as_in_python(tmp_path):
    rng = np.random.default_rng(0)
    rows = [np.round(rng.normal(size=47) * 3, 1).astype(np.float32).tolist() for _ in range(5)]  # with equal ones
    rows.append([1.0] * 47)
    cases = [
        [row, temperature, top_p, value]
        for row in rows
        for temperature in (0, 0.5, 1, 3)
        for top_p in (0.05, 0.5, 0.9, 1)
        for value in (0.0, 0.2, 0.55, 0.83, 0.999)
    ]
    expected = [
        choose(np.array(row, dtype=np.float32), Sampling(temperature, top_p=top_p), Fixed(value))
        for row, temperature, top_p, value in cases
    ]
    script = "return data.map(([row, temperature, topP, value]) => choose(row, temperature, topP, () => value));"
    assert run(script, cases, tmp_path) == expected
    assert len(set(expected)) > 20


@node
def test_random_numbers_follow_from_the_seed_and_are_even(tmp_path):
    script = """
      const draws = (seed) => { const next = randomNumbers(seed); return Array.from({ length: 10000 }, next); };
      return [draws(1), draws(1), draws(2)];
    """
    one, again, other = run(script, None, tmp_path)
    assert one == again != other
    assert 0 <= min(one) < 0.01 < 0.99 < max(one) < 1
    assert np.histogram(one, bins=10, range=(0, 1))[0] == pytest.approx([1000] * 10, abs=120)


@node
def test_a_text_ends_at_its_length_or_at_the_stop_token_and_slides_past_the_context(tmp_path):
    # The engine's likeliest token is one more than the last it read; it notes what it was asked to read.
    script = """
      const likeliest = (id) => Float32Array.from({ length: 10 }, (_, i) => Number(i === id));
      const engine = { contextLength: 4, asked: [],
        decode(ids) { this.asked.push(ids); return likeliest(ids.at(-1) + 1); },
        prefill(ids) { return this.decode([...ids]); } };
      const made = [];
      const how = { maxTokens: data, temperature: 0, topP: 1, seed: 0, stopToken: 9 };
      const tokens = generate(engine, [0, 0, 0, 0, 1, 2], how);
      for (;;) {
        const { value, done } = await tokens.next();
        if (done) return [made, value, engine.asked];
        made.push(value.id);
      }
    """
    assert run(script, 3, tmp_path) == [[3, 4, 5], "length", [[0, 0, 1, 2], [2, 3], [4]]]
    whole = [[0, 0, 1, 2], [2, 3], [4], [5], [5, 6], [7], [8]]
    assert run(script, 99, tmp_path) == [[3, 4, 5, 6, 7, 8], "stop", whole]
