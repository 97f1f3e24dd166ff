"""The server: real films, real cameras over the network, models that know what they saw."""

from __future__ import annotations

import io
import itertools
import json
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from films import PATIENCE, SMALL, Camera, encode, film, pieces, places, shows, wait_for
from PIL import Image

import rightbatch as rb
from rightbatch._errors import UsageError
from rightbatch._serve.server import Server
from rightbatch._serve.snapshots import Snapshots


def mean(images):
    return [round(float(image.mean()), 4) for image in images]


def threads_of(source: str) -> list[threading.Thread]:
    return [
        one for one in threading.enumerate() if one.name in (f"feed {source}", f"reader {source}")
    ]


def numbered(count: int):
    """Frames whose first pixel says which they are."""
    for number in range(count):
        image = np.zeros((8, 8, 3), np.uint8)
        image[0, 0] = number // 256, number % 256, 0
        yield image


def read_number(images):
    return [int(image[0, 0, 0]) * 256 + int(image[0, 0, 1]) for image in images]


class Gate:
    """A model that holds all frames but the first until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()

    def __call__(self, images):
        if any(read_number(images)):
            self.entered.set()
            assert self.open.wait(PATIENCE)
        return read_number(images)


@pytest.fixture
def film_file(tmp_path: Path) -> Path:
    path = tmp_path / "belt.mp4"
    encode(path, film(30), crf="10")
    return path


def test_every_frame_of_a_file_has_its_result_in_order(film_file: Path) -> None:
    def keep(images):
        return [image for image in images]  # noqa: C416  a list of its own

    with rb.serve(keep, film_file, latency=5.0) as server:
        lines = list(server)
    shown = [line.result for line in lines]
    assert [line.frame for line in lines] == list(range(30))
    assert places(shown, film(30)) == list(range(30))
    assert {line.source for line in lines} == {"belt"}
    assert all(line.reason and line.batch_size and line.error is None for line in lines)
    assert all(abs(line.captured - time.time()) < 60 for line in lines)


def test_sources_of_all_kinds_run_together_each_in_its_order(film_file: Path) -> None:
    sources = {"film": film_file, "first": numbered(300), "second": numbered(500)}
    with rb.serve(read_number, sources, latency=1.0) as server:
        seen: dict[str, list[int]] = {}
        for line in server:
            seen.setdefault(line.source, []).append(line.frame)
            if line.source != "film":
                assert line.result == line.frame
    assert seen == {
        "film": list(range(30)),
        "first": list(range(300)),
        "second": list(range(500)),
    }


def test_a_camera_comes_and_goes_while_others_run(film_file: Path) -> None:
    lines: list[rb.Server] = []
    with (
        Camera(shows(pieces(200))) as camera,
        Server(mean, 1.0, to=lines.append, progress=False) as server,
    ):
        name = server.add(camera.url, name="door")
        wait_for(lambda: any(line.source == "door" for line in lines), "for the camera")
        assert server.status()["sources"][0]["contract"] == "freshest"
        server.add(film_file)
        wait_for(lambda: sum(line.source == "belt" for line in lines) == 30, "for the film")
        server.remove(name)
        assert [source["name"] for source in server.status()["sources"]] == ["belt"]
        wait_for(lambda: not threads_of("door"), "for its threads to end")
        wait_for(lambda: not server.batcher.waiting and not server.batcher._running)
        wait_for(lambda: server._writer.is_idle, "for the line of a frame that was with the model")
        count = len(lines)
        time.sleep(0.3)
        assert len(lines) == count
        with pytest.raises(UsageError, match="no source 'door'; sources: belt"):
            server.remove(name)


def test_a_camera_that_is_not_there_delays_nobody_and_is_seen(film_file: Path) -> None:
    with rb.serve(mean, {"gone": "rtsp://127.0.0.1:9/cam", "film": film_file}, 1.0) as server:
        found = list(itertools.islice(server, 30))
        gone = server.status()["sources"][0]
        assert not server.is_over  # a camera may come yet
    assert [line.source for line in found] == ["film"] * 30
    assert gone["state"] in ("connecting", "waiting")
    assert gone["frames"] == 0


def test_a_frame_that_the_model_fails_on_has_a_line_that_says_so() -> None:
    def picky(images):
        if 7 in read_number(images):
            raise ValueError("not this one")
        return read_number(images)

    with rb.serve(picky, numbered(20), latency=1.0) as server:
        lines = list(server)
    assert [line.result for line in lines] == [*range(7), None, *range(8, 20)]
    assert lines[7].error == "ValueError: not this one"
    assert (server.failures, server.first_failure[:2]) == (1, ("numbered", 7))


def test_a_file_waits_for_a_reader_and_a_stop_does_not() -> None:
    brought: list[int] = []

    def source():
        for number, image in enumerate(numbered(100_000)):
            brought.append(number)
            yield image

    server = rb.serve(read_number, source(), latency=1.0)
    wait_for(lambda: len(brought) > 1000, "for the queues to fill")
    count = 0
    while len(brought) != count:  # nobody iterates: it comes to a halt, now or a little later
        count = len(brought)
        assert count < 3000
        time.sleep(0.5)
    start = time.monotonic()
    server.stop(1000.0)
    assert time.monotonic() - start < PATIENCE
    assert [line.frame for line in server] == list(range(server.status()["total"]["served"]))
    assert len(brought) < 3000
    assert server.status()["state"] == "stopped"
    assert server.stop() == 0


def test_a_stop_finishes_what_was_accepted() -> None:
    model, lines = Gate(), []
    server = Server(model, 100.0, to=lines.append, max_batch=1, progress=False)
    server.add(numbered(10_000))
    assert model.entered.wait(PATIENCE)
    wait_for(lambda: server.status()["waiting"] == 2, "for the queue to fill")
    threading.Timer(0.3, model.open.set).start()
    assert server.stop(PATIENCE) == 0
    assert [line.result for line in lines] == list(range(len(lines)))
    assert len(lines) >= 3


def test_a_stop_that_runs_out_of_time_says_what_was_left() -> None:
    model, lines = Gate(), []
    server = Server(model, 100.0, to=lines.append, max_batch=1, progress=False)
    server.add(numbered(10_000))
    assert model.entered.wait(PATIENCE)
    wait_for(lambda: server.status()["waiting"] == 2, "for the queue to fill")
    wait_for(lambda: server.status()["written"]["lines"] == 1, "for the line of the first")
    assert server.stop(0.3) == 3  # one runs, two wait
    model.open.set()
    wait_for(lambda: not server.batcher.is_running, "for the model to return")


def test_names_are_told_apart_and_may_not_be_taken() -> None:
    with Server(mean, 1.0, progress=False) as server:
        assert server.add(numbered(1)) == "numbered"
        assert server.add(numbered(1)) == "numbered-2"
        assert server.add(numbered(1), name="mine") == "mine"
        with pytest.raises(UsageError, match="source 'mine' exists already"):
            server.add(numbered(1), name="mine")
        with pytest.raises(UsageError, match="source 'http' is not a valid name"):
            server.add(numbered(1), name="http")
        with pytest.raises(UsageError, match="unknown contract"):
            server.add(numbered(1), name="odd", contract="sometimes")
        assert "odd" not in [source["name"] for source in server.status()["sources"]]
    with pytest.raises(UsageError, match="stopped"):
        server.add(numbered(1))


def test_the_status_is_json_and_adds_up(film_file: Path) -> None:
    with rb.serve(mean, film_file, latency=5.0, to=lambda line: None) as server:
        assert server.wait(PATIENCE)
        # A batch is counted after its results have gone.
        wait_for(lambda: server.status()["total"]["served"] == 30, "for the last count")
        wait_for(lambda: sum(one["size"] for one in server.status()["batches"]) == 30)
        status = json.loads(json.dumps(server.status()))
    (source,) = status["sources"]
    assert (source["name"], source["state"], source["size"]) == ("belt", "ended", list(SMALL))
    assert source["frames"] == source["served"] == status["total"]["served"] == 30
    assert status["written"]["lines"] == 30
    assert sum(batch["size"] for batch in status["batches"]) == 30
    assert status["calibration"]["text"]
    with pytest.raises(UsageError, match="results are written to `to`"):
        next(iter(server))


def test_a_snapshot_is_the_newest_frame(film_file: Path) -> None:
    with rb.serve(mean, film_file, latency=5.0, to=lambda line: None) as server:
        assert server.wait(PATIENCE)
        picture = Image.open(io.BytesIO(server.snapshot("belt")))
        assert picture.format == "JPEG"
        assert np.abs(np.asarray(picture, float) - film(30)[-1]).mean() < 8
        with pytest.raises(UsageError, match="no source 'other'"):
            server.snapshot("other")


@pytest.mark.parametrize(
    ("shape", "size"),
    [((4000, 6000), (640, 427)), ((1, 5_000_000), (640, 1)), ((300, 100), (100, 300))],
)
def test_a_snapshot_is_small_and_costs_little(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    """However many ask for it at a time: the copies of all would be gigabytes."""
    frame = np.zeros((*shape, 3), np.uint8)
    frame[:, shape[1] // 2 :] = 200
    snapshots = Snapshots()
    tracemalloc.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            files = [*pool.map(lambda _: snapshots.of(frame), range(16))]
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert len({id(file) for file in files}) == 1
    found = Image.open(io.BytesIO(files[0]))
    assert found.size == size
    means = np.asarray(found, float).mean((0, 2))
    assert means[: size[0] // 3].mean() < 10
    assert abs(means[-size[0] // 3 :].mean() - 200) < 10
    assert snapshots.of(frame[:1, :1].copy()) != files[0]


def test_sources_are_one_or_several_or_named(film_file: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    for sources, names in (
        (film_file, ["belt"]),
        ([film_file, str(film_file)], ["belt", "belt-2"]),
        ({"a": film_file}, ["a"]),
        ([image, image], ["list"]),  # frames, not sources
        ((), []),
    ):
        with rb.serve(mean, sources, latency=1.0) as server:
            assert [source["name"] for source in server.status()["sources"]] == names


def test_what_cannot_be_opened_leaves_nothing_running(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with pytest.raises(UsageError, match=r"nothing\.mp4"):
        rb.serve(mean, [numbered(5), tmp_path / "nothing.mp4"], latency=1.0)
    with pytest.raises(UsageError, match="not a duration"):
        rb.serve(mean, numbered(5), latency="soon")
    with pytest.raises(UsageError, match="pass a token"):
        rb.serve(mean, latency=1.0, http=0, host="0.0.0.0")
    wait_for(lambda: set(threading.enumerate()) <= before, "for threads to end")


def test_a_source_in_a_process_of_its_own_gives_the_same(film_file: Path) -> None:
    with rb.serve(mean, film_file, latency=5.0) as server:
        here = [line.result for line in server]
    with rb.serve(mean, film_file, latency=5.0, isolated=True) as server:
        assert [line.result for line in server] == here


def test_where_nothing_fits_into_the_memory_it_says_so_once_and_ends() -> None:
    tried: list[int] = []

    def heavy(images):
        tried.append(len(images))
        raise MemoryError

    with rb.serve(heavy, numbered(50), latency=1.0, memory="100MiB") as server:
        with pytest.raises(rb.NothingFitsError, match="nothing fits"):
            list(server)
        assert server.is_over
    assert tried == []  # it ran in another process
    with pytest.raises(UsageError, match="not a memory size"):
        rb.serve(heavy, numbered(5), latency=1.0, memory="much")


def test_a_name_can_be_taken_again_once_its_source_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()

    def hangs():
        yield from numbered(3)
        release.wait(PATIENCE)

    def close_stream(name: str) -> None:
        closing.set()
        assert may_close.wait(PATIENCE)
        closes(name)

    closing, may_close = threading.Event(), threading.Event()
    with Server(read_number, 1.0, to=lambda line: None, progress=False) as server:
        server.add(hangs(), name="one")
        wait_for(lambda: server.status()["total"]["served"] == 3, "for its frames")
        closes = server.batcher.close_stream
        monkeypatch.setattr(server.batcher, "close_stream", close_stream)
        removal = threading.Thread(target=server.remove, args=["one"])
        removal.start()
        assert closing.wait(PATIENCE)
        assert not server.status()["sources"]
        with pytest.raises(UsageError, match="source 'one' exists already"):
            server.add(numbered(5), name="one")
        may_close.set()
        removal.join(PATIENCE)
        server.add(numbered(5), name="one")
        wait_for(lambda: server.status()["sources"][0]["served"] == 5, "for the new one")
        assert server.status()["total"]["served"] == 8
    release.set()


def test_a_model_is_closed_only_when_it_has_returned() -> None:
    class Slow(Gate):
        name, sizes, closed = "slow", None, False

        def close(self) -> None:
            assert self.open.is_set()
            self.closed = True

    model = Slow()
    server = Server(model, 100.0, to=lambda line: None, max_batch=1, progress=False)
    server.add(numbered(10))
    assert model.entered.wait(PATIENCE)
    server.stop(0.2)
    assert not model.closed
    model.open.set()
    wait_for(lambda: model.closed, "for the model to be closed")


@pytest.mark.slow
def test_memory_caps_the_batch_as_fit_measures_it() -> None:
    def heavy(images):
        held = [np.ones(2**25, np.uint8) for _ in images]  # 32 MiB for each
        time.sleep(0.2)  # so that larger batches serve more
        return [int(one[0]) for one in held]

    with rb.serve(heavy, numbered(3), latency=60.0, memory="200MiB") as server:
        assert len(list(server)) == 3
        assert max(server.batcher.calibration.samples) in (4, 5)
        assert server.batcher.calibration.stopped_by == "max_batch"
