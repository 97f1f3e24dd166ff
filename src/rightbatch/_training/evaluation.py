"""The evaluation after an epoch: the loss on evaluation data, and the user's metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from rightbatch import _faults
from rightbatch._device import is_out_of_memory
from rightbatch._device.caches import release
from rightbatch._elastic import Elastic
from rightbatch._workload.callbacks import WorkloadCallbacks
from rightbatch._workload.loader import data_loader
from rightbatch._workload.modes import set_training
from rightbatch._workload.without_gradients import without_gradients
from rightbatch._workload.workload import Workload


def evaluated(w: Workload, step: Elastic, ran_out: Callable[[str], object]) -> dict[str, float]:
    """Return `evaluation_loss` and the metrics of the workload's `evaluate`.

    The model is in training mode afterwards. If `evaluate` runs out of memory, `ran_out` is called
    with a message and `evaluate` is called once more.
    """
    callbacks = w.callbacks or WorkloadCallbacks()
    callbacks.on_evaluation_start()
    try:
        return _evaluated(w, step, ran_out)
    finally:
        callbacks.on_evaluation_end()


def _evaluated(w: Workload, step: Elastic, ran_out: Callable[[str], object]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    set_training(w.model, False)
    if w.evaluation_data is not None:
        total, count = 0.0, 0.0
        loader = data_loader(
            w.evaluation_data,
            workers=w.workers,
            collate=w.collate,
            batch_size=step.micro_batch_size or 1,
            generator=torch.Generator(),
        )
        for batch in loader:
            for loss, n in step.evaluate(batch) if batch is not None else ():
                if n:  # the mean over a part without anything that counts is NaN
                    total, count = total + float(loss) * n, count + n
        metrics["evaluation_loss"] = total / count if count else float("nan")
    if w.evaluate is not None:
        metrics |= {name: float(value) for name, value in _users(w, ran_out).items()}
    set_training(w.model, True)
    return metrics


def _users(w: Workload, ran_out: Callable[[str], object]) -> Mapping[str, float]:
    """Call `evaluate`; after an out-of-memory error once more, with an emptied cache."""
    assert w.evaluate is not None
    try:
        _faults.enter("evaluation")
        return without_gradients(w.evaluate, w.model)  # type: ignore[no-any-return]
    except BaseException as error:
        if not is_out_of_memory(error):
            raise
    release(next(w.model.parameters()).device)
    ran_out("out of memory in the workload's evaluate; emptied the cache and tried again")
    return without_gradients(w.evaluate, w.model)  # type: ignore[no-any-return]
