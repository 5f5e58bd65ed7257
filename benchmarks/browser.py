"""How fast is the page that runs in the browser alone: from opening it to the first story, and tokens a second?

Exports the model as a page, serves the folder from this machine and writes with it in headless Chromium, greedily and
drawing as by default. Prints a table and one JSON line.

    python benchmarks/browser.py --model_path best_model.pt
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from slm.checkpoint.open import open_model
from slm.export.command import export
from slm.files import find_model, user_path


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Python's file server, without its log."""

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", default="best_model.pt")
    parser.add_argument("--tokens", type=int, default=100, help="length of a story, if it does not end before")
    parser.add_argument("--stories", type=int, default=5, help="stories of each kind; the median is told")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no browser: chromium is not installed")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        print(export(open_model(find_model(user_path(arguments.model_path))), "web", Path(folder) / "model"))
        handler = functools.partial(Quiet, directory=f"{folder}/model-web")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        began = time.perf_counter()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_selector("#write:enabled", timeout=300_000)
        result = {"version": browser.version, "seconds_to_ready": round(time.perf_counter() - began, 1)}
        page.fill("#length", str(arguments.tokens))
        for name, temperature in (("greedy", "0"), ("drawn", "0.8")):
            page.locator("#temperature").fill(temperature)
            rates = []
            for seed in range(arguments.stories + 1):
                page.fill("#seed", str(seed))
                page.click("#write")
                page.wait_for_selector("#after:not([hidden])", timeout=300_000)
                said = re.search(r"([\d,]+) a second", page.inner_text("#status"))
                assert said is not None
                rates.append(int(said[1].replace(",", "")))
            result[name] = statistics.median(rates[1:])  # the first one warms up
        browser.close()
        server.shutdown()
    print(f"ready after {result['seconds_to_ready']} s in Chromium {result['version']}")
    print(f"tokens a second: greedily {result['greedy']}, drawn {result['drawn']}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
