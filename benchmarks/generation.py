"""How fast does a model write, from how cold a start, and how near is that to what the memory allows?

The default model with random weights continues prompts of 8 tokens by 110, greedily, in this project's engines and in
transformers, CTranslate2 and llama.cpp (`pip install transformers ctranslate2 safetensors gguf llama-cpp-python`), in
one process, alternating, each on one core and on all; medians. Then each in a process of its own for its peak memory
(Linux only), and `generate.py` from its start to the end of one token. Prints a table and one JSON line.

    python benchmarks/generation.py
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from slm.cores import usable_cores
from slm.data.tokenizer import Tokenizer
from slm.inference.continuation import Continuation
from slm.inference.generator import Batch
from slm.inference.sampling import Sampling

PROMPT, NEW, LONG_PROMPT = 8, 110, 120
VOCABULARY = 50_257
Run = Callable[[list[list[int]], int], list[list[int]]]  # prompts, new tokens -> the new ids of each

# name -> the file or folder that it runs, beside best_model.pt
MODELS = {
    "PyTorch": "best_model.pt",
    "ONNX Runtime fp32": "best_model.onnx",
    "ONNX Runtime int8": "best_model.int8.onnx",
    "ONNX Runtime int4": "best_model.int4.onnx",
    "transformers": "best_model-huggingface",
    "CTranslate2 fp32": "best_model-ctranslate2",
    "CTranslate2 int8": "best_model-ctranslate2-int8",
    "llama.cpp F16": "best_model.gguf",
    "llama.cpp Q8_0": "best_model.q8_0.gguf",
}
PACKAGES = {"transformers": "transformers", "CTranslate2": "ctranslate2", "llama.cpp": "llama_cpp"}
OURS = tuple(name for name in MODELS if name.startswith(("PyTorch", "ONNX")))


def make_models(folder: Path) -> None:
    """The default model with random weights in all formats."""
    import torch

    from slm.checkpoint import file as checkpoint
    from slm.checkpoint.file import Checkpoint
    from slm.config.model import ModelConfig
    from slm.data.tokenizer import gpt2
    from slm.export.command import export
    from slm.model.gpt import GPT

    torch.manual_seed(0)
    shape = ModelConfig()
    loaded = Checkpoint(shape, GPT(shape).state_dict(), gpt2(), {})
    checkpoint.save(folder / "best_model.pt", loaded)
    for format in (
        "onnx",
        "onnx-int8",
        "onnx-int4",
        "huggingface",
        "ctranslate2",
        "ctranslate2-int8",
        "gguf",
        "gguf-q8_0",
    ):
        export(loaded, format, folder / "best_model")


def contender(name: str, path: Path, threads: int) -> Run:
    """A function that continues prompts of one length greedily by exactly so many tokens."""
    if name in OURS:
        return _ours(path, threads)
    peers = {"transformers": _transformers, "CTranslate2": _ctranslate2, "llama.cpp": _llama_cpp}
    return peers[name.split()[0]](path, threads)


def is_there(name: str) -> bool:
    """Whether a contender's package is installed, and works here: llama.cpp crashes with Q8_0 on CPUs with AMX."""
    package = PACKAGES.get(name.split()[0])
    crashes = name.endswith("Q8_0") and "amx_int8" in Path("/proc/cpuinfo").read_text()
    return not crashes and (package is None or importlib.util.find_spec(package) is not None)


def _ours(path: Path, threads: int) -> Run:
    if path.suffix == ".onnx":
        from slm.inference.onnx_engine import OnnxEngine

        engine: Any = OnnxEngine(path, threads=threads)
    else:
        from slm.checkpoint import file as checkpoint
        from slm.inference.torch_engine import TorchEngine

        engine = TorchEngine(checkpoint.load(path).model())
    tokenizer = Tokenizer("any", [bytes([byte]) for byte in range(256)])
    tokenizer.tokens, tokenizer.end_of_text = [b"?"] * VOCABULARY, -1  # a token is a token, and nothing ends a text

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        if path.suffix == ".pt":
            import torch

            torch.set_num_threads(threads)
        random, batch = np.random.default_rng(0), Batch(engine)
        texts = [Continuation(list(prompt), tokenizer, new, Sampling(temperature=0), random) for prompt in prompts]
        batch.add(texts)
        while len(batch):
            batch.step()
        return [text.ids[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]

    return run


def _transformers(path: Path, threads: int) -> Run:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(path).eval()

    @torch.inference_mode()
    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        torch.set_num_threads(threads)
        ids = torch.tensor(prompts)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        return out[:, ids.shape[1] :].tolist()

    return run


def _ctranslate2(path: Path, threads: int) -> Run:
    import ctranslate2

    generator = ctranslate2.Generator(str(path), intra_threads=threads, inter_threads=1)
    names = json.loads((path / "vocabulary.json").read_text())

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        tokens = [[names[id] for id in prompt] for prompt in prompts]
        results = generator.generate_batch(
            tokens, max_length=new, min_length=new, beam_size=1, include_prompt_in_result=False, end_token=[]
        )
        return [result.sequences_ids[0] for result in results]

    return run


def _llama_cpp(path: Path, threads: int) -> Run:
    """llama.cpp's own functions, without the samplers of its Python package: the likeliest of the logits is taken."""
    import ctypes

    import llama_cpp as llama

    silent = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(silent, ctypes.c_void_p())
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        B, T = len(prompts), len(prompts[0])
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 128 * B, max(512, B * T), 512, B
        params.n_threads = params.n_threads_batch = threads
        context = llama.llama_init_from_model(model, params)
        batch, results = llama.llama_batch_init(B * T, 0, 1), [[] for _ in prompts]
        given, place = prompts, 0
        for _ in range(new):
            length = len(given[0])
            batch.n_tokens = B * length
            for sequence, ids in enumerate(given):
                for offset, id in enumerate(ids):
                    at = sequence * length + offset
                    batch.token[at], batch.pos[at], batch.logits[at] = id, place + offset, offset == length - 1
                    batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
            if llama.llama_decode(context, batch):
                raise RuntimeError("llama.cpp refused a batch")
            logits = (llama.llama_get_logits_ith(context, length * (sequence + 1) - 1) for sequence in range(B))
            given = [[int(np.ctypeslib.as_array(row, (VOCABULARY,)).argmax())] for row in logits]
            for result, (id,) in zip(results, given, strict=True):
                result.append(id)
            place += length
        llama.llama_batch_free(batch)
        llama.llama_free(context)
        return results

    run.silent = silent  # type: ignore[attr-defined]  # kept as long as it may be called
    return run


def prompts(batch: int, length: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(VOCABULARY, size=(batch, length)).tolist()


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(runs: dict[Any, Callable[[], object]], rounds: int) -> dict[Any, float]:
    """The median seconds of each, measured in turns after one warm-up."""
    times: dict[Any, list[float]] = {key: [] for key in runs}
    for round in range(rounds + 1):
        for key, run in runs.items():
            taken = seconds(run)
            if round:
                times[key].append(taken)
    return {key: statistics.median(values) for key, values in times.items()}


def bandwidth(threads: int) -> float:
    """Bytes a second at which memory can be read: a sum over an array far beyond the caches."""
    import torch

    torch.set_num_threads(threads)
    array = torch.ones(1 << 27)
    return array.nbytes / min(seconds(array.sum) for _ in range(5))


@contextlib.contextmanager
def folder_of_models(given: str | None) -> Iterator[Path]:
    if given:
        yield Path(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder))
        yield Path(folder)


def peak_memory(name: str, folder: Path) -> int:
    """Bytes of a process that writes 110 tokens with this model."""
    command = [sys.executable, __file__, "--models", str(folder), "--only", name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def cold_start(path: Path) -> Callable[[], object]:
    """`generate.py` from its start to its end after one token."""
    flags = ["--prompt", "Once upon a time", "--max_length", "1", "--temperature", "0"]
    command = [sys.executable, str(ROOT / "generate.py"), "--model_path", str(path), *flags]
    return lambda: subprocess.run(command, capture_output=True, check=True)


def size(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def machine() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", help="folder of a model in all formats; default: the default model is made anew")
    parser.add_argument("--only", help="write with this one and print the process's peak memory in bytes")
    flags = parser.parse_args()
    if flags.only:
        contender(flags.only, Path(flags.models) / MODELS[flags.only], usable_cores())(prompts(1, PROMPT), NEW)
        print(1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]))
        return

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with folder_of_models(flags.models) as folder:
        cores = sorted({1, usable_cores()})
        there = [name for name in MODELS if is_there(name)]
        runs = {(name, n): contender(name, folder / MODELS[name], n) for name in there for n in cores}
        first = {name: runs[name, cores[0]](prompts(1, PROMPT), NEW)[0] for name in there}
        for name in ("ONNX Runtime fp32", "transformers", "CTranslate2 fp32", "llama.cpp F16"):
            if name in there and first[name] != first["PyTorch"]:
                print(f"note: {name} does not write the same tokens as PyTorch")
        speeds: dict[str, dict[tuple[str, int], float]] = {}
        for what, batch, length, new in (
            ("batch 1", 1, PROMPT, NEW), ("batch 32", 32, PROMPT, NEW), ("prefill", 1, LONG_PROMPT, 1),
        ):  # fmt: skip
            asked = (prompts(batch, length), new)
            rounds = flags.rounds if batch == 1 else max(3, flags.rounds // 2)
            taken = alternate({key: functools.partial(run, *asked) for key, run in runs.items()}, rounds)
            count = batch * (length if new == 1 else new)
            speeds[what] = {key: count / value for key, value in taken.items()}
        del runs
        paths = [folder / MODELS[name] for name in OURS]
        starts = alternate({path.name: cold_start(path) for path in paths}, flags.rounds)
        memory = {name: peak_memory(name, folder) for name in there}
        sizes = {name: size(folder / MODELS[name]) for name in there}
        limits = {n: bandwidth(n) for n in cores}

    print(f"{machine()}, {cores[-1]} cores; tokens/s on {' / '.join(map(str, cores))} cores, medians\n")
    print(
        f"{'':18} {'batch 1':>13} {'batch 32':>15} {'prefill':>15} {'one token':>10} {'memory':>8} {'size':>7}  reads"
    )
    for name in there:
        columns = [" / ".join(f"{speeds[what][name, n]:,.0f}" for n in cores) for what in speeds]
        start = f"{starts[MODELS[name]]:.2f} s" if MODELS[name] in starts else ""
        read = max(speeds["batch 1"][name, n] for n in cores) * sizes[name]
        print(
            f"{name:18} {columns[0]:>13} {columns[1]:>15} {columns[2]:>15} {start:>10} {memory[name] / 1e6:>5,.0f} MB "
            f"{sizes[name] / 1e6:>4,.0f} MB  {read / 1e9:.1f} GB/s"
        )
    print(f"memory can be read at {' / '.join(f'{limits[n] / 1e9:.1f}' for n in cores)} GB/s (a sum over 0.5 GB)")

    def best(what: str, *names: str) -> float:
        return max((speeds[what][name, n] for name in names if name in there for n in cores), default=float("nan"))

    fp32 = ("PyTorch", "ONNX Runtime fp32")
    ratios = {
        "fp32, batch 1, to transformers": best("batch 1", *fp32) / best("batch 1", "transformers"),
        "int8, batch 1, to CTranslate2 int8": best("batch 1", "ONNX Runtime int8")
        / best("batch 1", "CTranslate2 int8"),
        "batch 1, 8 bits, to llama.cpp Q8_0": best("batch 1", "ONNX Runtime int8") / best("batch 1", "llama.cpp Q8_0"),
        "batch 1, fp32, to llama.cpp F16": best("batch 1", *fp32) / best("batch 1", "llama.cpp F16"),
        "batch 32, fp32, to llama.cpp F16": best("batch 32", *fp32) / best("batch 32", "llama.cpp F16"),
        "prefill, fp32, to llama.cpp F16": best("prefill", *fp32) / best("prefill", "llama.cpp F16"),
        "batch 32, to transformers": best("batch 32", *OURS) / best("batch 32", "transformers"),
        "batch 32, fp32, to transformers": best("batch 32", *fp32) / best("batch 32", "transformers"),
        "first token from .onnx, to .pt": starts["best_model.onnx"] / starts["best_model.pt"],
    }
    for what, ratio in ratios.items():
        print(f"{what:36} {ratio:.2f}")
    figures = {
        "machine": machine(),
        "tokens_per_second": {
            what: {f"{name}, {n} cores": round(value, 1) for (name, n), value in of.items()}
            for what, of in speeds.items()
        },
        "ratios": ratios,
        "seconds_to_one_token": starts,
        "peak_bytes": memory,
        "file_bytes": sizes,
        "bytes_per_second": limits,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
