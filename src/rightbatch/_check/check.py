"""`check`: whether a step still fits on a GPU, and what made it grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rightbatch._check.budget import Budget, read_budget
from rightbatch._check.options import CheckOptions
from rightbatch._check.result import CheckResult
from rightbatch._errors import UsageError
from rightbatch._predict.options import PredictOptions
from rightbatch._predict.predict import Prediction, prediction_of
from rightbatch._units import format_bytes, parse_bytes
from rightbatch._workload.verb import takes


@takes(CheckOptions)
def check(workload: object, options: CheckOptions, **spec: Any) -> CheckResult:
    """Predict whether a step of `batch` examples fits on a GPU, and compare it with a budget.

    `against` is the file of a budget, which `write` has written: without `batch`, `gpu` and
    `memory` those of the file are taken. The peak may exceed the budget's by a share of
    `tolerance`. The memory is that of `rightbatch.predict`: no GPU is needed.

    Raises:
        UsageError: for a budget of another batch, GPU or kind of step, or one that cannot be read.
        WorkloadError: if the workload failed with an error other than out-of-memory.
    """
    budget = None if options.against is None else read_budget(Path(options.against))
    memory = None if options.memory is None else parse_bytes(options.memory)
    batch, gpu = options.batch, options.gpu
    if budget is not None:
        batch = budget.batch_size if batch is None else batch
        if gpu is None and memory is None:
            gpu, memory = budget.gpu, budget.memory
    assert batch is not None  # the options say so
    prediction = prediction_of(
        workload,
        PredictOptions(
            batch=batch,
            gpu=gpu,
            memory=memory,
            inference=options.inference,
            remedies=False,
            seed=options.seed,
            progress=options.progress,
        ),
        spec,
    )
    now = Budget(
        batch_size=batch,
        gpu=prediction.gpu,
        memory=memory,
        inference=options.inference,
        peak_bytes=prediction.allocated_peak_bytes,
        modules=prediction.trace.by_module(),
    )
    if budget is not None:
        _check_alike(budget, now)
    result = _compared(now, budget, prediction, options.tolerance)
    if options.write is not None:
        now.write(Path(options.write))
    return result


def _check_alike(budget: Budget, now: Budget) -> None:
    for name in ("batch_size", "gpu", "memory", "inference"):
        before, given = getattr(budget, name), getattr(now, name)
        if before != given:
            what = name.replace("_", " ")
            raise UsageError(f"the budget is for {what} {before}, and {what} {given} was asked for")


def _compared(
    now: Budget, budget: Budget | None, prediction: Prediction, tolerance: float
) -> CheckResult:
    limit, largest = prediction.limit_bytes, prediction.largest_batch_size
    assert limit is not None
    fits = largest is not None and largest >= now.batch_size
    place = prediction.gpu or format_bytes(limit)
    most = "nothing fits" if largest is None else f"up to {largest} would fit"
    peak = format_bytes(now.peak_bytes)
    reason = f"batch size {now.batch_size} allocates {peak} on {place}, {most}"
    within = fits
    if budget is not None:
        within = fits and now.peak_bytes <= budget.peak_bytes * (1 + tolerance)
        growth = now.peak_bytes / budget.peak_bytes - 1 if budget.peak_bytes else 0.0
        reason += f"; {growth:+.1%} against the budget of {format_bytes(budget.peak_bytes)}"
    return CheckResult(
        fits=fits,
        within_budget=within,
        batch_size=now.batch_size,
        gpu=prediction.gpu,
        peak_bytes=now.peak_bytes,
        budget_bytes=limit if budget is None else budget.peak_bytes,
        largest_batch_size=largest,
        changed=() if budget is None else budget.changed(now.modules),
        reason=reason,
        notes=prediction.notes,
    )
