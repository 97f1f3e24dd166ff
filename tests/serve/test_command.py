"""`rightbatch serve` and `bench serve` as people meet them: processes, signals, pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from films import PATIENCE, encode, film
from PIL import Image

MODEL = """
import os, sys, time

def detect(images):
    print("PRINTED by the model")
    os.write(1, b"PRINTED past Python\\n")
    return [{"mean": round(float(image.mean()), 3)} for image in images]

def slow(images):
    time.sleep(0.05 * len(images))
    return [0 for _ in images]

def steady(images):
    time.sleep(0.02 * len(images))
    return [0 for _ in images]

def long(images):
    return ["x" * 10_000 for _ in images]

def broken(images):
    raise ValueError("the weights are missing")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    encode(tmp_path / "belt.mp4", film(20))
    return tmp_path


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rightbatch", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )


def rightbatch(folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def serve(model: str, *arguments: str) -> list[str]:
    return ["serve", f"model.py:{model}", "--latency", "10s", "--no-page", *arguments]


@pytest.mark.parametrize("to", [[], ["--to", "-"], ["--to=-"]])
def test_stdout_has_a_line_of_json_for_every_frame_and_nothing_else(
    folder: Path, to: list[str]
) -> None:
    code, out, err = rightbatch(folder, *serve("detect", "--source", "belt.mp4", *to))
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0, err
    assert [line["frame"] for line in lines] == list(range(20))
    fields = {"source", "frame", "captured", "latency_ms", "batch_size", "result"}
    assert all(fields <= line.keys() for line in lines)
    assert "PRINTED by the model" in err
    assert "PRINTED past Python" in err
    assert "frames/s" in err  # what this machine can do


def test_with_a_file_for_the_lines_json_is_one_document(folder: Path) -> None:
    asked = serve("detect", "--source", "belt.mp4", "--to", "out/lines.jsonl", "--json")
    code, out, err = rightbatch(folder, *asked)
    assert code == 0, err
    document = json.loads(out)
    assert document["total"]["served"] == document["written"]["lines"] == 20
    assert document["left"] == 0
    assert len((folder / "out/lines.jsonl").read_text().splitlines()) == 20


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_said_and_is_no_success(folder: Path) -> None:
    asked = serve("detect", "--source", "belt.mp4", "--to", "/dev/full")
    code, _, err = rightbatch(folder, *asked)
    assert code == 2
    assert "20 line(s) were not written: /dev/full: No space left on device" in err
    assert "no result was written" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (serve("broken", "--source", "belt.mp4"), 3, "failed on every frame"),
        (serve("detect", "--source", "nothing.mp4"), 2, "nothing.mp4 does not exist"),
        (serve("detect", "--source", "model.py"), 2, "model (model.py):"),  # no video
        (serve("nothing", "--source", "belt.mp4"), 2, "no function 'nothing'"),
        (serve("detect", "--source", "belt.mp4", "--memory", "much"), 2, "not a memory size"),
        (["bench", "serve", "model.py:detect", "--latency", "100"], 2, "100ms"),
        (serve("detect"), 2, "pass --source, or --http PORT"),
        (["serve", "model.py:detect", "--latency", "100", "--source", "belt.mp4"], 2, "100ms"),
        (serve("detect", "--on", "ray", "--source", "belt.mp4"), 2, "requests only"),
        (
            serve("detect", "--source", "belt.mp4", "--to", "http://x/y"),
            2,
            "unsupported URL scheme http://",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(
    folder: Path, arguments: list[str], code: int, says: str
) -> None:
    found, out, err = rightbatch(folder, *arguments)
    assert (found, says in err) == (code, True), err
    assert "Traceback" not in err or code == 3
    if code == 3:
        assert "the weights are missing" in err
        assert all(json.loads(line)["error"] for line in out.splitlines())


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_it_finish_what_was_accepted(folder: Path, number: int, code: int) -> None:
    # the default of 5 s is not enough for a busy machine: each frame takes 50 ms
    asked = serve("slow", *["--source", "belt.mp4"] * 20, "--stop-within", "60s")
    process = start(folder, *asked)
    assert process.stdout is not None
    assert process.stderr is not None
    first = process.stdout.readline()
    process.send_signal(number)
    # `communicate` would lose what `readline` has read behind the first line.
    out, err = process.stdout.read(), process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(PATIENCE) == code, err
    lines = [json.loads(line) for line in [first, *out.splitlines()]]
    for source in {line["source"] for line in lines}:  # without a gap
        frames = [line["frame"] for line in lines if line["source"] == source]
        assert frames == list(range(len(frames)))
    assert len(lines) < 400
    assert "unfinished" not in err


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_bound_on_the_time_to_finish_says_what_was_left(folder: Path) -> None:
    asked = serve("slow", *["--source", "belt.mp4"] * 20, "--stop-within", "10ms")
    process = start(folder, *asked)
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "accepted frame(s) unfinished" in err


def test_it_ends_when_reader_gone_its_lines(folder: Path) -> None:
    process = start(folder, *serve("slow", *["--source", "belt.mp4"] * 20))
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(PATIENCE) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_reader_that_has_stopped_does_not_keep_it_from_ending(folder: Path) -> None:
    process = start(folder, *serve("long", *["--source", "belt.mp4"] * 20, "--stop-within", "1s"))
    assert process.stdout is not None
    process.stdout.read(1)
    time.sleep(3.0)  # the pipe is full by now
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60) if process.wait(60) else ("", "")
    assert process.returncode == 130
    assert "unfinished" in err


def test_pictures_that_cannot_be_read_are_said_and_keep_their_numbers(folder: Path) -> None:
    (folder / "parts").mkdir()
    for number, frame in enumerate(film(4)):
        Image.fromarray(frame).save(folder / "parts" / f"{number}.png")
    (folder / "parts" / "1.png").write_bytes(b"none")
    code, out, err = rightbatch(folder, *serve("detect", "--source", "parts"))
    assert code == 0, err
    assert [json.loads(line)["frame"] for line in out.splitlines()] == [0, 2, 3]
    assert "parts: 1 file(s) or frame(s) could not be read; last error: 1.png" in err


def test_the_bench_compares_batches_with_one_by_one(folder: Path) -> None:
    asked = [
        "bench",
        "serve",
        "model.py:steady",
        "--latency",
        "200ms",
        "--seconds",
        "0.5",
        "--json",
    ]
    code, out, err = rightbatch(folder, *asked)
    assert code == 0, err
    document = json.loads(out)
    for found in document["rates"].values():
        # 20 ms an item, in batches or not: 50 a second, and batches save the cost of calls only
        batched, single = (found[key]["items_per_second"] for key in ("batched", "one_by_one"))
        # (a pause of this machine during one of the two is a gain or a loss that was measured)
        assert batched <= 55
        assert single <= 55
    verdicts = document["reason"].split("; ")
    for verdict, found in zip(verdicts, document["rates"].values(), strict=True):
        gain = found["batched"]["items_per_second"] / (found["one_by_one"]["items_per_second"] or 1)
        assert ("times as many" in verdict and f"{gain:.2f}" in verdict) or "in time" in verdict
