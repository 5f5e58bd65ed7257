"""transformers.js itself, in Node: it runs the transformers folder, with the same tokens as here."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch

from slm.export import huggingface
from slm.files import user_path
from slm.inference.onnx_engine import OnnxEngine

pytestmark = pytest.mark.slow
pytest.importorskip("safetensors")

PACKAGE = "@huggingface/transformers@4.3.1"
PROMPTS = ["<|endoftext|>One", "<|endoftext|>Once upon a time, there was a little"]
TEXTS = [*huggingface.TEXTS, "", " ", "\n", "<|endoftext|>", "we're they'LL   \t x", "日本語 한국어 👍🏽 e\u0301"]
SCRIPT = """
import { readFileSync } from "node:fs";
import { AutoModelForCausalLM, AutoTokenizer, env, pipeline } from "@huggingface/transformers";

const [root, dtype] = process.argv.slice(2);
const { prompts, texts } = JSON.parse(readFileSync(0));
env.allowRemoteModels = false;
env.localModelPath = root;
const options = dtype === "default" ? {} : { dtype };
const tokenizer = await AutoTokenizer.from_pretrained("out");
const model = await AutoModelForCausalLM.from_pretrained("out", options);
const generated = async (given) =>
  (await model.generate({ ...tokenizer(given, { padding: true }), do_sample: false }))
    .tolist().map((row) => row.map(Number));
const alone = [];
for (const prompt of prompts) alone.push((await generated([prompt]))[0]);
const ids = texts.map((text) => tokenizer.encode(text));
const write = await pipeline("text-generation", "out", options);
const [piped] = await write(prompts[0], { max_new_tokens: 8, do_sample: false });
console.log(JSON.stringify({
  alone, ids,
  together: await generated(prompts),
  decoded: ids.map((row) => row.length ? tokenizer.decode(row, { clean_up_tokenization_spaces: false }) : ""),
  piped: piped.generated_text,
}));
"""


@pytest.fixture(scope="module")
def project():
    """A Node project that has transformers.js. No script of a package is run: ONNX Runtime's downloads CUDA's parts."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    folder = user_path("~/.cache/slm/transformers-js")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}')
    command = [npm, "install", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund", PACKAGE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"npm could not install {PACKAGE}: {' '.join(done.stderr.split())[:200]}")
    (folder / "script.js").write_text(SCRIPT)
    return folder


def greedy(loaded, ids, quantized):
    """The ids of a prompt and of what follows until the end of text or of the context: PyTorch's, or of this file."""
    model = OnnxEngine(quantized) if quantized else loaded.model()
    while len(ids) < loaded.config.context_length and (len(ids) < 2 or ids[-1] != loaded.tokenizer.end_of_text):
        if quantized:
            model.keep([])
            (logits,) = model.prefill([np.array(ids)])
        else:
            logits = model(torch.tensor([ids]))[0, -1]
        ids = [*ids, int(logits.argmax())]
    return ids


@torch.inference_mode()
@pytest.mark.parametrize("dtype", ["default", "q8"])
def test_it_writes_the_same_tokens(project, each_model, tmp_path, dtype):
    huggingface.write(each_model, tmp_path / "out", "huggingface")
    given = json.dumps({"prompts": PROMPTS, "texts": TEXTS})
    command = ["node", "script.js", str(tmp_path), dtype]
    done = subprocess.run(command, cwd=project, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, tokenizer = json.loads(done.stdout), each_model.tokenizer

    assert found["ids"] == [tokenizer.encode(text).tolist() for text in TEXTS]
    assert found["decoded"] == TEXTS
    prompts = [tokenizer.encode(prompt).tolist() for prompt in PROMPTS]
    quantized = tmp_path / "out/onnx/model_quantized.onnx" if dtype == "q8" else None
    expected = [greedy(each_model, prompt, quantized) for prompt in prompts]
    assert found["alone"] == expected
    assert found["piped"] == tokenizer.decode(expected[0][: len(prompts[0]) + 8])
    padding = len(prompts[1]) - len(prompts[0])  # before the shorter one
    for ids, wanted, skipped in zip(found["together"], expected, (padding, 0), strict=True):
        length = min(len(ids) - skipped, len(wanted))
        assert ids[skipped:][:length] == wanted[:length]
        assert length >= each_model.config.context_length - padding or wanted[-1] == tokenizer.end_of_text
