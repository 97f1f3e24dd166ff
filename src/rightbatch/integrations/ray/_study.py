"""A study's runs on a Ray cluster: `rightbatch study W --batches 8,32 --out DIR --on ray`.

One Ray task per run; the task starts the run's process on its machine and streams its events. The
sweep's machine writes the store. Every machine needs rightbatch and the packages of the workload in
the same versions as the sweep's machine.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from rightbatch._errors import MissingExtraError, RightbatchError, UsageError
from rightbatch._study.options import StudyOptions
from rightbatch._study.records import Ended, Point
from rightbatch._study.runs.plan import RunPlan
from rightbatch._study.runs.process import RunEvent
from rightbatch._study.sweep import LostError
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch._worker.wire import Header
from rightbatch.integrations.ray._resources import Needs, nodes_of, wants_gpus
from rightbatch.integrations.ray._task import Sources, gpu_bytes, sources_of, train

_STOP_TIMEOUT = 10.0  # seconds for workers to end a run's process before they are killed
_GPU_QUERY_TIMEOUT = 60.0  # seconds for a machine to report its GPUs


def place(
    header: Header,
    *,
    study: StudyOptions | None = None,
    address: str | None = None,
    **options: Any,
) -> RayPlace:
    """Return Ray as the place where a study's runs are executed.

    Args:
        header: of every run's process.
        study: the study's options; the number of runs at a time is the cluster's.
        address: of the cluster; by default the one that this process has joined, `RAY_ADDRESS`, one
            that runs on this machine, or a new one on this machine.
        options: none are supported.

    Raises:
        UsageError: if there is no cluster at the address, or an option is given.
        MissingExtraError: if ray is not installed.
    """
    if options:
        raise UsageError(f"Ray has no option {', '.join(sorted(options))}; its option is address")
    ray = _ray()
    is_ours = address is not None or not ray.is_initialized()
    if is_ours:
        _join(ray, address or os.environ.get("RAY_ADDRESS"))
    try:
        nodes = nodes_of(ray)
        smallest = _smallest_gpu(ray) if wants_gpus(header, nodes) else None
        factory = sources_of(_factory_of(header))
        return RayPlace(header, Needs(header, nodes, smallest), factory, is_ours=is_ours)
    except BaseException:
        if is_ours:
            ray.shutdown()
        raise


class RayPlace:
    """Executes each run as a Ray task; `jobs` is the number that the cluster can run concurrently.

    Created by `place`. `stop` also leaves the cluster if `place` joined it.
    """

    def __init__(
        self, header: Header, needs: Needs, sources: Sources | None, *, is_ours: bool
    ) -> None:
        self._ray = _ray()
        self._header, self._needs, self._is_ours = header, needs, is_ours
        self._sources = sources
        # With retries, a task whose worker died would run again and repeat its points.
        self._train = self._ray.remote(num_returns="streaming", max_retries=0)(train)
        self._running: list[_Task] = []
        self._changed = threading.Condition()
        self._is_stopped = False
        self.jobs = needs.at_once

    def stream_events(self, plan: RunPlan) -> Iterator[RunEvent]:
        """See `Place`."""
        task = self._start(plan)
        if task is None:
            return
        last = Point(0, 0, 0.0, 0.0, {}, 0.0)
        errors = self._ray.exceptions
        try:
            for reference in task.stream:
                said: RunEvent = self._ray.get(reference)
                last = said.points[-1] if said.points else last
                yield said
        except GeneratorExit:
            self._cancel(task)
            with suppress(errors.RayError):
                for reference in task.stream:
                    self._ray.get(reference)
            raise
        except (
            errors.OutOfMemoryError
        ) as error:  # raised by Ray before the machine's memory is exhausted
            yield RunEvent(ended=_short_of_memory(last, str(error)))
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError) as error:
            if not self._is_stopped:
                kind = "machine" if isinstance(error, errors.NodeDiedError) else "worker"
                raise LostError(f"its {kind} was lost after {last.steps} steps") from error
        except errors.TaskCancelledError:
            if not self._is_stopped:
                raise
        except errors.RayTaskError as error:
            raise _worker_error(error) from None
        finally:
            with self._changed:
                self._running.remove(task)
                self._changed.notify_all()

    def stop(self) -> None:
        """See `Place`."""
        with self._changed:
            self._is_stopped = True
            running = list(self._running)
        self._needs.close()
        for by_force in (False, True):
            for task in running:
                self._cancel(task, by_force=by_force)
            with self._changed:
                self._changed.wait_for(lambda: not self._running, _STOP_TIMEOUT)
                running = list(self._running)
        if self._is_ours:
            self._ray.shutdown()

    def _cancel(self, task: _Task, *, by_force: bool = False) -> None:
        """Cancel a task, only once: Ray 2.60 aborts this process if a cancelled task is cancelled
        again while it ends ("Tried to complete task that was not pending")."""
        with self._changed:
            if task.is_cancelled and not by_force:
                return
            task.is_cancelled = True
        with suppress(self._ray.exceptions.RayError):
            self._ray.cancel(task.stream, force=by_force)

    def _start(self, plan: RunPlan) -> _Task | None:
        """Submit the task of a run; return None if the place was stopped."""
        need = self._needs.of(plan)
        if need.memory is not None:
            # Beyond its share a run would take memory from the runs that share the GPU.
            config = replace(plan.config, options=replace(plan.options, memory=need.memory))
            plan = replace(plan, config=config)
        with self._changed:
            if self._is_stopped:
                return None
            train = self._train.options(name=f"rightbatch: {plan.key}", **need.options)
            task = _Task(train.remote(self._header, plan, self._sources))
            self._running.append(task)
            return task


@dataclass(eq=False)
class _Task:
    """A submitted task; `stream` yields references to the run's events."""

    stream: Any
    is_cancelled: bool = False


def _join(ray: Any, address: str | None) -> None:
    if address is not None and address.startswith("ray://"):
        raise UsageError(
            f"{address} is a Ray client server, which does not support streaming tasks; run the "
            "study on a machine of the cluster with the cluster's address, or use `ray job submit`"
        )
    try:
        ray.init(
            address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at {address}" if address else "on this machine"
        raise UsageError(f"no Ray cluster {where}: {error}") from error


def _smallest_gpu(ray: Any) -> int | None:
    """Return the bytes of the smallest GPU of the cluster; None if a machine does not report."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0)(gpu_bytes)
    queries = [
        ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU")
    ]
    try:
        found = ray.get(queries, timeout=_GPU_QUERY_TIMEOUT)
    except ray.exceptions.RayError:
        return None
    return min(min(sizes) for sizes in found) if all(found) else None


def _factory_of(header: Header) -> object:
    """Unpickle the header's factory; return None if only the run's process can load it."""
    try:
        subject = pickle.loads(header.subject)
    except Exception:
        return None
    return subject.factory if isinstance(subject, WorkloadTraining) else None


def _short_of_memory(last: Point, why: str) -> Ended:
    return Ended(
        "out_of_memory",
        f"Ray stopped the run because its machine ran out of memory: {why.splitlines()[0]}",
        steps=last.steps,
        examples=int(last.examples),
        seconds=last.seconds,
        epochs=last.epochs,
    )


def _worker_error(error: Any) -> BaseException:
    """Return the error that a worker raised, without Ray's wrapper."""
    cause = error.cause
    if isinstance(cause, RightbatchError):
        return cause
    if isinstance(cause, ImportError):
        return UsageError(
            f"a worker of the cluster cannot import a module of the run ({cause}); every machine "
            "needs rightbatch and the workload's packages, in the same versions as here"
        )
    return error  # type: ignore[no-any-return]


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray[serve]", "ray") from None
    return ray
