"""A study's runs on a Ray cluster: `rightbatch study W --batches 8,32 --out DIR --on ray`.

One Ray task a run; the task starts the run's own process where Ray has put it, and streams what it
says. The store is written where the sweep is. Every machine needs rightbatch and what the workload
imports, in the versions that the sweep has.
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
from rightbatch._study.records import Ended, Point
from rightbatch._study.runs.plan import RunPlan
from rightbatch._study.runs.process import RunEvent
from rightbatch._study.sweep import LostError
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch._worker.wire import Header
from rightbatch.integrations.ray._resources import Needs, nodes_of, wants_gpus
from rightbatch.integrations.ray._task import Sources, gpu_bytes, sources_of, train

_ENDING = 10.0  # seconds for workers to end a run's process, before they are killed
_ASKING = 60.0  # seconds for a machine to say what GPUs it has


def place(header: Header, *, address: str | None = None, **options: Any) -> RayPlace:
    """Ray as the place of a study's runs.

    Args:
        header: what every run's process is told.
        address: of the cluster; otherwise the one that this process has joined already, or
            `RAY_ADDRESS`, or one that runs on this machine, or a new one of this machine.
        options: there are no others.

    Raises:
        UsageError: if there is no cluster at that address, or an option is not known.
        MissingExtraError: if ray is not installed.
    """
    if options:
        raise UsageError(f"Ray takes an address, not {', '.join(sorted(options))}")
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
    """A task for each run; `jobs` is how many the cluster takes at a time, the others wait there.

    Made by `place`. `stop` also leaves the cluster, if it was joined for this.
    """

    def __init__(
        self, header: Header, needs: Needs, sources: Sources | None, *, is_ours: bool
    ) -> None:
        self._ray = _ray()
        self._header, self._needs, self._is_ours = header, needs, is_ours
        self._sources = sources
        # Ray would run a task again whose worker died, and say its points twice.
        self._train = self._ray.remote(num_returns="streaming", max_retries=0)(train)
        self._running: list[_Task] = []
        self._changed = threading.Condition()
        self._is_stopped = False
        self.jobs = needs.at_once

    def stream_events(self, plan: RunPlan) -> Iterator[RunEvent]:
        """As in `Place`."""
        task = self._begun(plan)
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
        except errors.OutOfMemoryError as error:  # Ray's, before the system itself runs short
            yield RunEvent(ended=_short_of_memory(last, str(error)))
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError) as error:
            if not self._is_stopped:
                kind = "machine" if isinstance(error, errors.NodeDiedError) else "worker"
                raise LostError(f"its {kind} was lost after {last.steps} steps") from error
        except errors.TaskCancelledError:
            if not self._is_stopped:
                raise
        except errors.RayTaskError as error:
            raise _of_worker(error) from None
        finally:
            with self._changed:
                self._running.remove(task)
                self._changed.notify_all()

    def stop(self) -> None:
        """As in `Place`."""
        with self._changed:
            self._is_stopped = True
            running = list(self._running)
        self._needs.close()
        for by_force in (False, True):
            for task in running:
                self._cancel(task, by_force=by_force)
            with self._changed:
                self._changed.wait_for(lambda: not self._running, _ENDING)
                running = list(self._running)
        if self._is_ours:
            self._ray.shutdown()

    def _cancel(self, task: _Task, *, by_force: bool = False) -> None:
        """Once: Ray aborts this process where a task is told so at the moment when it ends, as one
        does that was told before ("Tried to complete task that was not pending", Ray 2.60)."""
        with self._changed:
            if task.is_cancelled and not by_force:
                return
            task.is_cancelled = True
        with suppress(self._ray.exceptions.RayError):
            self._ray.cancel(task.stream, force=by_force)

    def _begun(self, plan: RunPlan) -> _Task | None:
        """None once all is stopped."""
        need = self._needs.of(plan)
        if need.memory is not None:
            # what a run takes beyond its share, another one that has the GPU with it would lack
            config = replace(plan.config, options=replace(plan.options, memory=need.memory))
            plan = replace(plan, config=config)
        with self._changed:
            if self._is_stopped:
                return None
            asked = self._train.options(name=f"rightbatch: {plan.key}", **need.options)
            task = _Task(asked.remote(self._header, plan, self._sources))
            self._running.append(task)
            return task


@dataclass(eq=False)
class _Task:
    """`stream` has references to what the run says."""

    stream: Any
    is_cancelled: bool = False


def _join(ray: Any, address: str | None) -> None:
    if address is not None and address.startswith("ray://"):
        raise UsageError(
            f"{address} is Ray's client server, through which no task can stream; give the "
            "cluster's own address from one of its machines, or `ray job submit` the study"
        )
    try:
        ray.init(
            address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at {address}" if address else "on this machine"
        raise UsageError(f"there is no Ray cluster {where}: {error}") from error


def _smallest_gpu(ray: Any) -> int | None:
    """Bytes of the smallest GPU of the cluster; None if one of its machines does not tell."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0)(gpu_bytes)
    asked = [
        ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU")
    ]
    try:
        told = ray.get(asked, timeout=_ASKING)
    except ray.exceptions.RayError:
        return None
    return min(min(sizes) for sizes in told) if all(told) else None


def _factory_of(header: Header) -> object:
    """What the header carries; None for what only the run's process can load."""
    try:
        subject = pickle.loads(header.subject)
    except Exception:
        return None
    return subject.factory if isinstance(subject, WorkloadTraining) else None


def _short_of_memory(last: Point, why: str) -> Ended:
    return Ended(
        "out_of_memory",
        f"Ray ended it, since its machine ran short of memory: {why.splitlines()[0]}",
        steps=last.steps,
        examples=int(last.examples),
        seconds=last.seconds,
        epochs=last.epochs,
    )


def _of_worker(error: Any) -> BaseException:
    """What was raised there, without Ray's own words."""
    cause = error.cause
    if isinstance(cause, RightbatchError):
        return cause
    if isinstance(cause, ImportError):
        return UsageError(
            f"a worker of the cluster cannot import what a run needs ({cause}); every machine "
            "needs rightbatch and the workload's packages, in the versions that are here"
        )
    return error  # type: ignore[no-any-return]


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray[serve]", "ray") from None
    return ray
