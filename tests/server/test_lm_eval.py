"""lm-evaluation-harness itself scores a model through the server as it does the model's export for transformers."""

import json
import os
import subprocess
import sys

import pytest

from slm.checkpoint import file as checkpoint
from slm.data.stories import stories
from slm.export.command import export
from slm.inference.text import load
from tests.server.conftest import running

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

# A choice between two ends of a story, and whole stories, in bits per byte.
TASKS = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager

folder, base_url, exported = sys.argv[1:]
files = {"data_files": {"test": folder + "/docs.jsonl"}}
data = {"dataset_path": "json", "test_split": "test", "dataset_kwargs": files}
ends = {**data, "task": "ends", "output_type": "multiple_choice", "doc_to_text": "{{begin}}", "target_delimiter": "",
        "doc_to_choice": ["{{right}}", "{{wrong}}"], "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
whole = {**data, "task": "whole", "output_type": "loglikelihood_rolling", "doc_to_text": "",
         "doc_to_target": "{{text}}", "metric_list": [{"metric": "bits_per_byte"}]}
models = {
    "local-completions": {"model": "m", "base_url": base_url + "/v1/completions", "max_length": 65},
    "hf": {"pretrained": exported, "device": "cpu"},
}
found = {}
for name, arguments in models.items():
    results = lm_eval.simple_evaluate(
        name, model_args=arguments, tasks=[ends, whole], bootstrap_iters=0, log_samples=True, batch_size=1
    )
    found[name] = {
        "bits": results["results"]["whole"]["bits_per_byte,none"],
        "scores": [float(choice[0]) for each in results["samples"]["ends"] for choice in each["filtered_resps"]],
    }
print(json.dumps(found))
"""


@pytest.mark.slow
def test_scores_are_those_of_the_export_for_transformers(trained, tmp_path):
    """The last token counts, though the model would end the text after it; the harness cuts what was generated."""
    export(checkpoint.load(trained), "huggingface", tmp_path / "m")
    docs = [story[:120].rsplit(" ", 1)[0] for story in stories(12, seed=5)]
    (tmp_path / "docs.jsonl").write_text(
        "".join(
            json.dumps({"text": doc, "begin": doc[:50], "right": doc[50:], "wrong": docs[number - 1][50:]}) + "\n"
            for number, doc in enumerate(docs)
        )
    )
    with running(load(trained)) as url:
        run = subprocess.run(
            [sys.executable, "-c", TASKS, str(tmp_path), url, str(tmp_path / "m-huggingface")],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OPENAI_API_KEY": "any"},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    served, exported = found["local-completions"], found["hf"]
    assert len(served["scores"]) == 24
    assert served["scores"] == pytest.approx(exported["scores"], abs=1e-3)
    assert served["bits"] == pytest.approx(exported["bits"], abs=1e-3)
