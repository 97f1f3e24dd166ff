"""A study's runs on a real Ray on this machine, and what each asks of a cluster that is made up."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import rightbatch as rb
from rightbatch._device import open_device
from rightbatch._predict.overhead import CONTEXT
from rightbatch._study.config import StudyConfig
from rightbatch._study.options import StudyOptions
from rightbatch._study.records import Ended, Point, RunKey
from rightbatch._study.runs.plan import RunPlan
from rightbatch._study.runs.training import Reporter, train_run
from rightbatch._study.sweep import Sweep
from rightbatch._training.resolve import resolve
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch._worker.wire import Header, header_for
from rightbatch._workload.factory import FileFactory
from rightbatch.integrations.ray._resources import CPU_OVERHEAD, Need, Needs, Node, share_of
from rightbatch.integrations.ray._task import at_home, sources_of, train

pytest.importorskip("ray")

WORKLOAD = """
import os
import time

import torch
from torch import nn
from torch.utils.data import TensorDataset

import rightbatch as rb
from examples_beside import EXAMPLES


def loss(model, batch):
    x, y = batch
    time.sleep(0.03)
    return nn.functional.mse_loss(model(x), y)


def workload():
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(*torch.randn(2, EXAMPLES, 4, generator=generator))
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    tell = lambda model: {"process": os.getpid(), "threads": torch.get_num_threads()}
    return rb.Workload(model=model, loss=loss, optimizer=optimizer, data=data, evaluate=tell)


def broken():
    raise RuntimeError("there is no data here")
"""
GIB = 2**30
PREDICTED = Needs._predict
KEYS = [RunKey(size, seed) for seed in range(2) for size in (16, 32)]

pytestmark = [
    # Ray's own: files of its subprocesses and sockets that it leaves
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workload") / "work.py"
    path.write_text(WORKLOAD)
    path.with_name("examples_beside.py").write_text("EXAMPLES = 64\n")
    return path


def header_of(file: Path, function: str = "workload", device: str | None = "cpu") -> Header:
    return header_for(resolve(f"{file}:{function}"), device=device, margin=0.05, seed=0)


def plan_of(key: RunKey = KEYS[0], **changes: Any) -> RunPlan:
    about: dict[str, Any] = {"epochs": 10, "rule": "none"}
    options = StudyOptions(batches=(key.batch_size,), out="unused", **about | changes)
    return RunPlan(key, StudyConfig("digits", options, base_batch=16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where workers put what is temporary."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def ray(ray_token: Path, folder: Path) -> Iterator[Any]:
    """Two workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_MODE", raising=False)
        patch.delenv("RAY_AUTH_TOKEN", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.delenv("OMP_NUM_THREADS", raising=False)  # Ray says how many threads a run has
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(ray_token))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's own files stay where the names of sockets are short enough
        patch.setenv("RAY_TMPDIR", tempfile.gettempdir())
        patch.setenv("TMPDIR", str(folder))
        # what is asked for is tested by itself; here it is that Ray takes it
        patch.setattr(Needs, "_predict", lambda needs, batch_size: 2**26)
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            yield ray
        finally:
            ray.shutdown()


class Written:
    """The logs of a sweep; `on_points` is told of each delivery."""

    def __init__(self, on_points: Any = lambda key, points: None) -> None:
        self.logs: list[tuple[RunKey, list[Point], list[Ended]]] = []
        self.on_points = on_points

    def begin(self, plan: RunPlan) -> Any:
        log: tuple[RunKey, list[Point], list[Ended]] = (plan.key, [], [])
        self.logs.append(log)
        written = self

        class Log:
            def points(self, points: Sequence[Point]) -> None:
                log[1].extend(points)
                written.on_points(plan.key, points)

            def ended(self, ended: Ended, events: Sequence[dict[str, Any]]) -> None:
                log[2].append(ended)

        return Log()

    def began(self, key: RunKey) -> None: ...

    def went(self, key: RunKey, points: Sequence[Point]) -> None: ...

    def ended(self, key: RunKey, ended: Ended) -> None: ...


def processes_of(points: Sequence[Point]) -> set[int]:
    """Those that trained, as the workload says."""
    return {int(point.values["process"]) for point in points if "process" in point.values}


@contextmanager
def nothing_left_in(folder: Path) -> Iterator[set[int]]:
    """Whatever process is put into the set is gone in the end, and so is what was temporary."""
    before = set(folder.glob("rightbatch-*"))
    seen: set[int] = set()
    yield seen
    assert seen
    psutil.wait_procs([psutil.Process(pid) for pid in seen if psutil.pid_exists(pid)], timeout=30)
    assert not any(psutil.pid_exists(pid) for pid in seen)
    deadline = time.monotonic() + 30
    while set(folder.glob("rightbatch-*")) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(folder.glob("rightbatch-*")) == before


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_the_sweep_a_try_and_no_run(
    ray: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rightbatch.integrations.ray._study import place

    victim, lock = KEYS[1], threading.Lock()
    killed: list[int] = []

    def kill_once(key: RunKey, points: Sequence[Point]) -> None:
        with lock:
            if key == victim and not killed and (found := processes_of(points)):
                killed.append(psutil.Process(found.pop()).ppid())
                os.kill(killed[0], signal.SIGKILL)

    here = place(header_of(file))
    assert here.jobs == 2
    written = Written(kill_once)
    sweep = Sweep(here, written.begin, written, jobs=here.jobs)
    try:
        found = sweep.run([plan_of(key) for key in KEYS])
    finally:
        here.stop()
    assert {key: ended.status for key, ended in found.items()} == dict.fromkeys(KEYS, "finished")
    ends = [(key, [ended.status for ended in ends]) for key, _, ends in written.logs]
    expected = [(key, ["finished"]) for key in KEYS] + [(victim, ["stopped"])]
    assert sorted(ends) == sorted(expected)
    trained = [processes_of(points) for _, points, _ in written.logs]
    assert [len(processes) for processes in trained] == [1] * 5, "each try has its own process"
    assert len(set().union(*trained)) == 5
    assert not any(psutil.pid_exists(process) for process in set().union(*trained))
    threads = [point.values.get("threads", 1) for _, points, _ in written.logs for point in points]
    assert set(threads) == {1}, "Ray gave each run one processor"
    assert ray.is_initialized(), "what was joined before is left as it was"
    # the same run anywhere else: losses to the last digit, at the same steps
    monkeypatch.setattr(sys, "path", [*sys.path])
    said: list[dict[str, Any]] = []
    training = resolve(f"{file}:workload").load()
    reporter = Reporter(lambda **told: said.append(told))
    here_ended = train_run(training, plan_of(victim), open_device("cpu"), 8 * GIB, reporter)
    assert here_ended.steps == found[victim].steps == 20
    losses = {
        point["steps"]: point["values"]["loss"]
        for told in said
        for point in told.get("points", ())
        if "loss" in point["values"]
    }
    _, points, _ = next(log for log in reversed(written.logs) if log[0] == victim)
    there = {point.steps: point.values["loss"] for point in points if "loss" in point.values}
    assert there[20] == losses[20]


@pytest.mark.slow
def test_what_is_stopped_or_closed_leaves_nothing_behind(
    ray: Any, file: Path, folder: Path
) -> None:
    from rightbatch.integrations.ray._study import place

    here = place(header_of(file))
    forever = [plan_of(key, epochs=10_000) for key in KEYS[:2]]
    with nothing_left_in(folder) as seen:
        saying = here.stream_events(forever[0])
        while not seen:
            seen |= processes_of(next(saying).points)
        saying.close()  # type: ignore[attr-defined]

    stopped = threading.Event()

    def stop(key: RunKey, points: Sequence[Point]) -> None:
        seen.update(processes_of(points))
        if len(seen) == 2 and not stopped.is_set():
            stopped.set()
            raise KeyboardInterrupt

    written = Written(stop)
    with nothing_left_in(folder) as seen:
        with pytest.raises(KeyboardInterrupt):
            Sweep(here, written.begin, written, jobs=2).run(forever)
        assert not any(psutil.pid_exists(pid) for pid in seen), "it waits until they are gone"
    assert [ends for _, _, ends in written.logs] == [[], []]
    assert list(here.stream_events(forever[0])) == []


@pytest.mark.slow
def test_a_workload_that_cannot_be_loaded_ends_the_sweep_with_its_own_error(
    ray: Any, file: Path
) -> None:
    from rightbatch.integrations.ray._study import place

    here = place(header_of(file.with_name("examples_beside.py")))
    written = Written()
    try:
        with pytest.raises(
            rb.RightbatchError, match=r"examples_beside\.py has no function 'workload'"
        ):
            Sweep(here, written.begin, written).run([plan_of()])
    finally:
        here.stop()


def test_an_address_where_nothing_is_and_options_are_refused(file: Path) -> None:
    from rightbatch.integrations.ray._study import place

    with pytest.raises(rb.UsageError, match="Ray has no option adress"):
        place(header_of(file), adress="10.0.0.1:6379")
    with pytest.raises(rb.UsageError, match="ray job submit"):
        place(header_of(file), address="ray://10.0.0.1:10001")


@pytest.mark.slow
def test_a_machine_that_lacks_the_file_gets_it_and_its_neighbours(
    file: Path, tmp_path: Path
) -> None:
    sources = sources_of(FileFactory(file, "workload"))
    assert sources is not None
    assert set(sources.files) == {"work.py", "examples_beside.py"}
    header = header_of(file)
    with at_home(header, sources) as mine:
        assert mine == header, "this machine has it"
    gone = FileFactory(tmp_path / "elsewhere" / "work.py", "workload")
    missing = replace(
        header_for(WorkloadTraining(gone), device="cuda:3", margin=0, seed=0),
        folder=str(tmp_path / "x"),
    )
    with at_home(missing, replace(sources, factory=gone)) as mine:
        assert Path(mine.folder).is_dir()
        assert mine.device == "cuda", "which GPU is Ray's to say"
        said = list(train(replace(mine, device="cpu"), plan_of(epochs=1), None))
    ended = said[-1].ended
    assert ended is not None
    assert (ended.status, ended.steps) == ("finished", 4)
    assert not Path(mine.folder).exists()


def needs(
    file: Path, nodes: Sequence[Node], gpu_bytes: int | None = None, device: str | None = None
) -> Needs:
    return Needs(header_of(file, device=device), nodes, gpu_bytes)


GPUS = [Node(4, 0, 16 * GIB), Node(16, 2, 64 * GIB)]


@pytest.mark.slow
def test_a_run_asks_for_what_predict_says_it_needs(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Needs, "_predict", PREDICTED)
    predicted = rb.predict(f"{file}:workload", batch=16, progress=False, remedies=False)
    high = predicted.process_bytes["high"]
    assert high > CONTEXT[1]
    asking = needs(file, GPUS, gpu_bytes=3 * high)
    assert asking.of(plan_of()) == Need({"num_cpus": 1, "num_gpus": 0.35}, int(0.35 * 3 * high))
    asking.close()
    on_cpu = needs(file, [Node(4, 0, GIB * 1.5), Node(4, 0, GIB)], device="cpu")
    tensors = on_cpu.of(plan_of()).options["memory"] - CPU_OVERHEAD
    on_cpu.close()
    assert tensors == sum(predicted.breakdown.values())


def test_a_share_is_the_least_that_suffices() -> None:
    for needed in range(1, 1001):
        share = share_of(needed, 1000)
        shares = [part / 20 for part in range(5, 11) if part * 50 >= needed]
        assert share == (shares[0] if shares else 1)


def test_a_run_that_needs_more_than_any_machine_has_is_tried(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Needs, "_predict", lambda self, size: size * GIB)
    nodes = [Node(4, 0, 20 * GIB), Node(1, 0, 99 * GIB)]
    asking = needs(file, nodes, device="cpu")
    assert asking.of(plan_of(processes=2)).options["memory"] == 8 * GIB
    assert asking.of(plan_of(micro_batch=50, processes=2)).options["memory"] == 20 * GIB


def test_where_nothing_is_known_of_a_step_a_run_gets_a_whole_gpu(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(needs: Needs, batch_size: int) -> int:
        raise rb.UsageError("this step cannot be followed")

    whole = Need({"num_cpus": 1, "num_gpus": 1})
    assert needs(file, GPUS, gpu_bytes=None).of(plan_of()) == whole
    monkeypatch.setattr(Needs, "_predict", fail)
    assert needs(file, GPUS, 80 * GIB).of(plan_of()) == whole
    assert needs(file, GPUS, device="cpu").of(plan_of()) == Need({"num_cpus": 1})


def test_a_limit_that_was_given_sets_the_share_and_stays_the_limit(file: Path) -> None:
    given = needs(file, GPUS, 80 * GIB).of(plan_of(memory=30 * GIB))
    assert given == Need({"num_cpus": 1, "num_gpus": 0.4})


def test_a_run_of_several_processes_gets_a_gpu_and_a_processor_for_each(file: Path) -> None:
    assert needs(file, GPUS, 80 * GIB).of(plan_of(processes=2)) == Need(
        {"num_cpus": 2, "num_gpus": 2}
    )
    with pytest.raises(rb.UsageError, match=r"3 CPUs and 3 GPUs on one machine"):
        needs(file, GPUS).of(plan_of(processes=3))


def test_as_many_runs_go_on_as_the_cluster_takes(file: Path) -> None:
    assert needs(file, GPUS).at_once == 8
    assert needs(file, GPUS, device="cpu").at_once == 20
    assert needs(file, [Node(2.5, 0, GIB)]).at_once == 2
