"""The learning page: what is read of runs, whatever lies in their files, and a run that is training, in a browser."""

import json
import os
import socket
import threading
import time
import tracemalloc
import urllib.error
import urllib.request

import pytest

from slm.cli import main, read_flags
from slm.files import replacing
from tests.pages.conftest import serious_faults, serving, until

watch = pytest.importorskip("slm.server.watch", reason="the server's packages are not installed")

HEADER = "step,seconds,train_loss,val_loss,val_bits_per_byte,val_accuracy,learning_rate,gradient_norm,tokens_per_second"


def metrics(count):
    rows = [f"{10 * n},{30 * n},{5 - n / 10},{5.5 - n / 10},{2 - n / 20},{n / 50},0.001,1.5,2000" for n in range(count)]
    return "\n".join([HEADER, *rows, ""])


def sample(step, text):
    return json.dumps({"step": step, "seconds": 3.0 * step, "val_loss": 3.2, "prompt": "Once", "text": text}) + "\n"


def make_run(folder, count=5, samples=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.csv").write_text(metrics(count))
    if samples:
        (folder / "samples.jsonl").write_text(samples)


@pytest.fixture
def address(tmp_path):
    """Where the test's folder is watched."""
    with serving(watch.make_app(tmp_path)) as address:
        yield address


def test_runs_are_found_in_a_folder_and_below_it(tmp_path):
    make_run(tmp_path / "runs" / "a", 2, sample(0, " upon"))
    make_run(tmp_path / "runs" / "old" / "b", 1)
    make_run(tmp_path / "runs" / "old" / "b" / "deeper", 1)  # three below: left out
    found = watch.read_runs(tmp_path / "runs")
    assert [run["name"] for run in found] == ["a", "old/b"]
    assert [row["step"] for row in found[0]["rows"]] == [0, 10]
    assert found[0]["rows"][1]["val_loss"] == 5.4
    assert found[0]["samples"] == [{"step": 0, "seconds": 0, "val_loss": 3.2, "prompt": "Once", "text": " upon"}]
    assert found[1]["samples"] == []
    assert [run["name"] for run in watch.read_runs(tmp_path / "runs" / "a")] == ["a"]
    assert watch.read_runs(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"", []),
        (b"step,val_loss\n1,2.5\n2,", [{"step": 1, "val_loss": 2.5}, {"step": 2, "val_loss": None}]),
        (b"step,val_loss\n1,nan\n2,inf\nx,3\n,4\n", [{"step": 1, "val_loss": None}, {"step": 2, "val_loss": None}]),
        (b"step,val_loss\r\n7,1\r\n\r\n8,1,9,9\r\n", [{"step": 7, "val_loss": 1}, {"step": 8, "val_loss": 1}]),
        (b"step,new column\n3,4\n", [{"step": 3, "new column": 4}]),
        (b"name,price\nbread,3\n", []),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", []),
        (b'step,val_loss\n1,2\n"2,3\n', [{"step": 1, "val_loss": 2}]),
        (b"step\n1\n" + b"9" * 200_000, [{"step": 1}]),
    ],
)
def test_rows_that_are_none_are_left_out(tmp_path, content, rows):
    (tmp_path / "metrics.csv").write_bytes(content)
    (run,) = watch.read_runs(tmp_path)
    assert run["rows"] == rows


def test_samples_that_are_none_are_left_out(tmp_path):
    lines = ['{"step": 1', "[1]", "null", '{"step": "x", "text": "a"}', '{"step": 2, "text": 3}', "[" * 100_000, "\x00"]
    make_run(tmp_path, 1, "\n".join(lines) + "\n" + sample(5, "good") + '{"step": 6, "te')
    (run,) = watch.read_runs(tmp_path)
    assert [each["text"] for each in run["samples"]] == ["good"]


def answer_of(folder):
    """What the page is told of a folder, within ten seconds."""
    with serving(watch.make_app(folder)) as address:
        return json.load(urllib.request.urlopen(f"{address}/watch/runs", timeout=10))["runs"]


def test_one_bad_run_breaks_nothing_else(tmp_path):
    make_run(tmp_path / "good", 2, sample(0, "good"))
    for name in ("fifo", "fifo2", "socket", "folder", "link", "link2", "loop", "device", "surrogate"):
        make_run(tmp_path / name, 1)
    for path in (tmp_path / "fifo" / "metrics.csv", tmp_path / "fifo2" / "samples.jsonl"):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    (tmp_path / "socket" / "metrics.csv").unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket" / "metrics.csv"))
    (tmp_path / "folder" / "samples.jsonl").mkdir()
    outside = tmp_path.parent / f"{tmp_path.name}-private"
    make_run(outside, 4, sample(0, "private"))
    for name, target in (("link", outside / "metrics.csv"), ("device", "/dev/zero"), ("loop", "metrics.csv")):
        (tmp_path / name / "metrics.csv").unlink()
        (tmp_path / name / "metrics.csv").symlink_to(target)
    (tmp_path / "link2" / "samples.jsonl").symlink_to(outside / "samples.jsonl")
    (tmp_path / "linked").symlink_to(outside)
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "surrogate" / "samples.jsonl").write_text(sample(0, "\ud800"))
    make_run(tmp_path / os.fsdecode(b"name-\xff"), 1)
    found = {run["name"]: run for run in answer_of(tmp_path)}
    assert [row["step"] for row in found["good"]["rows"]] == [0, 10]
    assert [each["text"] for each in found["good"]["samples"]] == ["good"]
    assert found["surrogate"]["samples"][0]["text"] == "\ud800"
    assert len(found["name-\ufffd"]["rows"]) == len(found["fifo2"]["rows"]) == len(found["folder"]["rows"]) == 1
    for name in ("fifo", "socket", "link", "loop", "device"):
        assert found[name]["rows"] == found[name]["samples"] == [], name
    assert found["link2"]["samples"] == found["fifo2"]["samples"] == found["folder"]["samples"] == []
    assert "private" not in json.dumps(list(found.values()))
    assert "linked" not in found


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", "step\n" + "1\n" * 10_000_000),
        ("metrics.csv", ",".join(["step", *(f"{n:0100000}" for n in range(40))]) + "\n" + "1,2,3\n" * 500_000),
        ("metrics.csv", "step," + "a," * 1_000_000 + "\n" + "1," * 1_000_000),
        ("samples.jsonl", '{"step":1,"text":""}\n' * 1_000_000),
        ("samples.jsonl", '{"step":1,"text":"' + "a" * 20_000_000 + '"}\n'),
        ("samples.jsonl", "\n" * 20_000_000),
    ],
)
def test_what_is_told_of_a_run_is_bounded(tmp_path, name, content):
    make_run(tmp_path)
    (tmp_path / name).write_text(content)
    tracemalloc.start()
    content = json.dumps(watch.read_runs(tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(content) < 10_000_000
    assert peak < 100_000_000


def test_of_many_rows_some_are_told_and_always_the_last(tmp_path):
    (tmp_path / "metrics.csv").write_text("step\n" + "".join(f"{n}\n" for n in range(30_001)))
    steps = [row["step"] for row in watch.read_runs(tmp_path)[0]["rows"]]
    assert steps == [*range(0, 30_000, 16), 30_000][: len(steps)]
    assert steps[-1] == 30_000
    for number in range(60):
        (tmp_path / "more" / str(number)).mkdir(parents=True)
        (tmp_path / "more" / str(number) / "metrics.csv").write_text("step," * 40 + "\n" + ("1," * 40 + "\n") * 1500)
    assert len(json.dumps(watch.read_runs(tmp_path))) < 40_000_000
    assert watch.read_runs(tmp_path)[0]["rows"]


def test_an_unchanged_run_is_not_sent_again(tmp_path):
    make_run(tmp_path)
    with serving(watch.make_app(tmp_path)) as address:
        answer = urllib.request.urlopen(f"{address}/watch/runs")
        assert json.load(answer)["runs"] == watch.read_runs(tmp_path)
        again = urllib.request.Request(f"{address}/watch/runs", headers={"If-None-Match": answer.headers["ETag"]})
        with pytest.raises(urllib.error.HTTPError, match="304"):
            urllib.request.urlopen(again)
        make_run(tmp_path, 6)
        assert urllib.request.urlopen(again).status == 200


def test_the_command_takes_its_folder_with_or_without_the_flag(tmp_path, capsys):
    assert read_flags("watch", ["--run_dir", "runs"]).run_dir == "runs"
    for arguments in (["watch", str(tmp_path / "none")], ["watch", "--run_dir", str(tmp_path / "none")]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.startswith(f"error: no folder {tmp_path / 'none'}: give that of a run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["watch", str(tmp_path), "--port", str(port)]) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot listen on 127.0.0.1:{port}: Address already in use")


@pytest.mark.slow
def test_a_run_that_is_training_is_followed(address, open_page, tmp_path):
    page = open_page(address)
    page.wait_for_selector("#empty:not([hidden])")

    def train():
        (tmp_path / "new").mkdir()
        samples = ""
        for count in range(1, 6):
            samples += sample(10 * count - 10, f" story {count} <img src=x onerror=alert(1)>")
            for name, content in (("metrics.csv", metrics(count)), ("samples.jsonl", samples + '{"half')):
                with replacing(tmp_path / "new" / name, "w") as file:
                    file.write(content)
            time.sleep(0.5)

    training = threading.Thread(target=train)
    training.start()
    until(page, "document.querySelectorAll('#cards article').length === 5")
    training.join()
    assert page.inner_text("#status") == "1 run, the latest at step 40."
    assert "story 5 <img src=x onerror=alert(1)>" in page.inner_text("#cards article:last-child")
    assert page.locator("#cards img").count() == 0
    points = page.locator("#charts figure").first.locator("polyline").first.get_attribute("points")
    assert len(points.split()) == 5
    assert page.locator(".reading").first.inner_text() == "now: 5.1, training 4.6"
    assert page.locator("nav").is_hidden()


@pytest.mark.slow
def test_several_runs_lie_over_one_another(address, open_page, tmp_path):
    make_run(tmp_path / "a", 5, sample(0, " a story"))
    make_run(tmp_path / "b", 3, sample(0, " b story"))
    page = open_page(address)
    page.wait_for_selector("#charts figure")
    loss = page.locator("#charts figure").first
    assert loss.locator("polyline").count() == 4  # validation and training of each
    described = loss.locator("desc").text_content()
    assert "a, val loss: from 5.5 to 5.1" in described
    assert "b, val loss: from 5.5 to 5.3" in described
    assert "over steps" in loss.locator("title").text_content()
    box = loss.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.14, box["y"] + box["height"] / 2)  # near the first points
    assert loss.locator(".reading").inner_text() == "step 0: a 5.5, a training 5, b 5.5, b training 5"
    page.get_by_label("minutes").check()
    assert "over minutes" in loss.locator("title").text_content()
    loss.get_by_text("As a table").click()
    rows = loss.locator("tbody tr")
    assert rows.nth(1).inner_text().split("\t") == ["a", "0.5", "val loss", "5.4"]
    page.get_by_label("b", exact=True).uncheck()
    assert loss.locator("polyline").count() == 2
    assert rows.count() == 10
    page.locator("#run").select_option("b")
    assert page.inner_text("#cards").endswith("Once b story")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_it_fits_and_can_be_used_by_all(address, open_page, tmp_path, axe, artefacts, width, scheme):
    story = " there was a little girl who loved kittens. One dark night she could not sleep."
    make_run(tmp_path / "a", 12, "".join(sample(10 * n, story[: 8 * n]) for n in range(12)))
    make_run(tmp_path / "b", 7)
    page = open_page(address, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.wait_for_selector("#cards article")
    page.locator("summary").first.click()
    page.screenshot(path=artefacts / f"watching-{width}-{scheme}.png", full_page=True)
    assert serious_faults(page, axe) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
