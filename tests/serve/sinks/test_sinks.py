"""Lines of results: what they say, where they go, and that no sink holds up what brings them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from films import PATIENCE, wait_for

from rightbatch._errors import UsageError
from rightbatch._serve.sinks.in_process import CallbackSink
from rightbatch._serve.sinks.json_lines import JsonLinesSink
from rightbatch._serve.sinks.line import Line
from rightbatch._serve.sinks.open import open_sink
from rightbatch._serve.sinks.sink import ReaderGoneError
from rightbatch._serve.sinks.writer import Writer


def line(frame: int = 0, result: Any = "fine", source: str = "belt") -> Line:
    return Line(source, frame, 1700000000.25, 12.5, 3, result)


def frames_in(text: str) -> list[int]:
    return [json.loads(one)["frame"] for one in text.splitlines()]


class Gate:
    """A sink that takes nothing until it is opened, as a disk or a broker that hangs."""

    def __init__(self, name: str = "gate") -> None:
        self.name = name
        self.open = threading.Event()
        self.asked: list[int] = []
        self.taken: list[int] = []
        self.closed_with: list[float] = []
        self.error: str | None = None
        self.lost = 0

    def put(self, line: Line) -> None:
        self.asked.append(line.frame)
        assert self.open.wait(PATIENCE)
        self.taken.append(line.frame)

    def close(self, timeout: float = 5.0) -> int:
        self.closed_with.append(timeout)
        self.open.set()
        return self.lost


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def test_a_line_has_what_the_contract_names_and_stays_one_line() -> None:
    text = line(7, {"label": "two\nlines", "box": np.array([1, 2], np.float32)}).to_json()
    assert "\n" not in text
    assert json.loads(text) == {
        "source": "belt",
        "frame": 7,
        "captured": 1700000000.25,
        "latency_ms": 12.5,
        "batch_size": 3,
        "result": {"label": "two\nlines", "box": [1.0, 2.0]},
        "reason": None,
        "error": None,
    }


def test_a_frame_without_a_result_has_a_line_that_says_why() -> None:
    dropped = Line("belt", 3, 1.0, None, None, None, error="a fresher one came")
    said = json.loads(dropped.to_json())
    assert (said["result"], said["latency_ms"], said["error"]) == (None, None, "a fresher one came")


def test_numbers_that_json_does_not_have_are_null() -> None:
    result = {"a": float("nan"), "b": np.array([1.0, np.inf]), "c": "NaN"}
    said = json.loads(line(result=result).to_json(), parse_constant=pytest.fail)
    assert said["result"] == {"a": None, "b": [1.0, None], "c": "NaN"}


def circular() -> list[Any]:
    result: list[Any] = []
    result.append(result)
    return result


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (object(), "a result contains a object, which JSON cannot represent"),
        ({(1, 2): 3}, "keys must be str"),
        (circular(), "Circular reference"),
    ],
)
def test_a_result_that_json_cannot_hold_costs_the_result_and_not_the_line(
    result: Any, says: str
) -> None:
    said = json.loads(line(4, result).to_json())
    assert (said["frame"], said["result"]) == (4, None)
    assert says in said["error"]


def test_a_file_is_created_with_its_folders_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.jsonl"
    for frame in (1, 2):
        sink = open_sink(path)
        sink.put(line(frame))
        assert frames_in(path.read_text()) == [1, 2][:frame]  # there before it is closed
        assert sink.close() == sink.close() == 0
    assert sink.name == str(path)


def test_half_a_line_of_a_run_that_was_killed_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"source": "be')
    sink = open_sink(path)
    sink.put(line(7))
    sink.close()
    assert frames_in(path.read_text().partition("\n")[2]) == [7]


def test_a_file_that_cannot_be_written_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot be written: Is a directory"):
        open_sink(tmp_path)
    with pytest.raises(UsageError, match=r"cannot be written: (Not a directory|File exists)"):
        open_sink(str(tmp_path / "file" / "out.jsonl"))


def test_a_line_that_a_full_disk_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    """The file may grow to a limit only, as on a disk that fills; then there is room again."""
    code = f"""
import resource, signal
from pathlib import Path
from rightbatch._serve.sinks.json_lines import JsonLinesSink
from rightbatch._serve.sinks.line import Line
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sink = JsonLinesSink(Path({str(tmp_path / "out.jsonl")!r}))
def put(frame, result):
    sink.put(Line("belt", frame, 0.0, None, None, result))
put(0, "x")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for frame in (1, 2):
    try:
        put(frame, "x" * 2000)
    except OSError as error:
        print(error.strerror)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
put(3, "x")
put(4, "x")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\n" * 2
    written = (tmp_path / "out.jsonl").read_text().splitlines()
    whole = [json.loads(one)["frame"] for one in written if one.endswith("}")]
    assert whole == [0, 3, 4]


def test_a_stream_is_written_line_by_line_and_left_open() -> None:
    stream = io.StringIO()
    sink = open_sink(stream)
    sink.put(line(1))
    sink.put(line(2))
    sink.close()
    assert frames_in(stream.getvalue()) == [1, 2]


def test_a_dash_is_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    open_sink("-").put(line(5))
    assert frames_in(capsys.readouterr().out) == [5]


def test_a_function_gets_the_line_itself() -> None:
    seen: list[Line] = []
    sink = open_sink(seen.append)
    sink.put(line(3))
    assert seen == [line(3)]
    assert sink.name == "append"


@pytest.mark.parametrize("to", ["kafka://host/topic", 7, None])
def test_what_is_no_sink_is_refused_with_those_that_are_known(to: Any) -> None:
    with pytest.raises(UsageError, match=r"mqtt://HOST/TOPIC"):
        open_sink(to)


def test_a_writer_gives_every_sink_every_line_in_order(tmp_path: Path) -> None:
    seen: list[int] = []
    path = tmp_path / "out.jsonl"
    writer = Writer([JsonLinesSink(path), CallbackSink(lambda one: seen.append(one.frame))])
    for frame in range(500):
        writer.put(line(frame), patient=frame % 2 == 0)
    assert writer.close() == 0
    assert frames_in(path.read_text()) == seen == list(range(500))
    assert writer.status() == {"lines": 500, "left_out": 0, "error": None}


def test_a_sink_that_hangs_blocks_nobody_and_a_line_without_room_is_counted(gate: Gate) -> None:
    writer = Writer([gate], depth=3)
    for frame in range(10):
        writer.put(line(frame), patient=False)
    assert writer.status()["left_out"] == 7
    gate.open.set()
    assert writer.close() == 0
    assert gate.taken == [0, 1, 2]  # and the order is kept


def test_patient_lines_are_all_taken_however_many_wait(gate: Gate) -> None:
    writer = Writer([gate], depth=3)
    for frame in range(10):
        writer.put(line(frame), patient=True)
    assert writer.status()["left_out"] == 0
    gate.open.set()
    assert writer.close() == 0
    assert gate.taken == list(range(10))


def test_a_files_reader_waits_until_there_is_room(gate: Gate) -> None:
    writer = Writer([gate], depth=2)
    assert writer.wait_for_room()
    writer.put(line(0), patient=True)
    writer.put(line(1), patient=True)
    assert not writer.wait_for_room(timeout=0.05)
    waited = threading.Thread(target=writer.wait_for_room)
    waited.start()
    gate.open.set()
    waited.join(PATIENCE)
    assert not waited.is_alive()
    writer.close()


def test_closing_lets_a_waiting_reader_go(gate: Gate) -> None:
    writer = Writer([gate], depth=1)
    writer.put(line(0), patient=True)
    waited = threading.Thread(target=writer.wait_for_room)
    waited.start()
    writer.close(timeout=0.05)
    waited.join(PATIENCE)
    assert not waited.is_alive()


def test_a_sink_that_hangs_does_not_hold_up_another_one(gate: Gate) -> None:
    seen: list[int] = []
    writer = Writer([gate, CallbackSink(lambda one: seen.append(one.frame))], depth=2)
    for frame in range(20):
        writer.put(line(frame), patient=True)
    wait_for(lambda: len(seen) == 20)
    assert writer.status()["lines"] == 0  # not at both yet
    gate.open.set()
    writer.close()


def test_closing_ends_in_time_and_says_how_many_lines_are_left(gate: Gate) -> None:
    writer = Writer([gate])
    for frame in range(5):
        writer.put(line(frame), patient=True)
    wait_for(lambda: gate.asked == [0])
    began = time.monotonic()
    assert writer.close(timeout=0.2) >= 4
    assert 0.2 <= time.monotonic() - began < PATIENCE
    assert gate.closed_with[0] == 0.0  # which is what lets the one under way end
    assert len(gate.taken) <= 1


def test_lines_that_a_sink_took_and_could_not_deliver_are_left_as_well(gate: Gate) -> None:
    gate.open.set()
    gate.lost = 3
    writer = Writer([gate])
    writer.put(line(), patient=True)
    assert writer.close(timeout=PATIENCE) == 3
    assert 0 < gate.closed_with[0] <= PATIENCE  # it is told how much time there is


def test_a_writer_is_idle_once_every_line_is_written(gate: Gate) -> None:
    writer = Writer([gate])
    assert writer.is_idle
    writer.put(line(), patient=True)
    wait_for(lambda: gate.asked)
    assert not writer.is_idle  # it is being written
    gate.open.set()
    wait_for(lambda: writer.is_idle)
    writer.close()


def test_a_sink_that_counts_nothing_when_it_closes_is_taken_at_its_word() -> None:
    class Simple:
        name = "simple"

        def put(self, line: Line) -> None:
            pass

        def close(self, timeout: float = 5.0) -> None:
            pass

    sink: Any = Simple()
    assert Writer([sink]).close() == 0


def test_what_comes_after_the_end_is_left_out_and_closing_again_is_harmless() -> None:
    seen: list[Line] = []
    writer = Writer([CallbackSink(seen.append)])
    writer.close()
    writer.put(line(), patient=True)
    assert writer.close() == 0
    assert seen == []
    assert writer.status()["left_out"] == 1
    assert writer.wait_for_room()


@pytest.mark.parametrize("error", [ValueError("http://me:secret@host is full"), SystemExit("no")])
def test_a_sink_that_raises_is_noted_without_passwords_and_goes_on(error: BaseException) -> None:
    seen: list[int] = []

    def store(one: Line) -> None:
        if one.frame == 1:
            raise error
        seen.append(one.frame)

    writer = Writer([CallbackSink(store)])
    for frame in range(3):
        writer.put(line(frame), patient=True)
    writer.close()
    assert seen == [0, 2]
    told = writer.status()
    assert (told["lines"], told["left_out"]) == (2, 1)
    assert told["error"].startswith("store: ")
    assert "secret" not in told["error"]


def test_what_holds_a_sink_up_now_is_its_error(gate: Gate) -> None:
    writer = Writer([gate])
    gate.error = "the broker has gone away"
    assert writer.status()["error"] == "gate: the broker has gone away"
    gate.error = None
    assert writer.status()["error"] is None
    writer.close()


def test_a_reader_that_goes_away_is_told_once_and_nothing_more_is_written() -> None:
    reading, writing = os.pipe()
    told: list[str] = []
    with os.fdopen(writing, "w") as stream:
        writer = Writer([JsonLinesSink(stream)], depth=1, on_broken=lambda: told.append("gone"))
        writer.put(line(0), patient=True)
        wait_for(lambda: writer.status()["lines"] == 1)
        os.close(reading)
        for frame in range(1, 5):
            writer.put(line(frame), patient=True)
        wait_for(lambda: told)
        assert writer.wait_for_room()
        writer.put(line(5), patient=True)
        assert writer.close() == 0
        assert told == ["gone"]
        assert writer.status() == {
            "lines": 1,
            "left_out": 5,
            "error": f"{stream.name}: Broken pipe",
        }
        with Path(os.devnull).open("w") as nowhere:  # what is in its buffer has to go
            os.dup2(nowhere.fileno(), writing)


def test_a_callback_whose_own_pipe_breaks_ends_nothing() -> None:
    told: list[str] = []

    def send(one: Line) -> None:
        raise BrokenPipeError

    writer = Writer([CallbackSink(send)], on_broken=lambda: told.append("gone"))
    writer.put(line(), patient=True)
    writer.close()
    assert told == []


@pytest.mark.parametrize("why", [ReaderGoneError, None])
def test_a_sink_may_close_its_own_writer(why: Callable[[], BaseException] | None) -> None:
    """As a user's function does that stops the server, and as `on_broken` does."""
    closed: list[int] = []

    def stop(one: Line) -> None:
        if why is not None:
            raise why()
        closed.append(writer.close(timeout=1.0))

    writer = Writer(
        [CallbackSink(stop)], on_broken=lambda: closed.append(writer.close(timeout=1.0))
    )
    writer.put(line(), patient=True)
    wait_for(lambda: closed)
    writer.close()
