"""The options of `fit`."""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch._workload.options import Inference, ProbeOptions


@dataclass(frozen=True, kw_only=True)
class FitOptions(ProbeOptions):
    """What `rightbatch.fit` takes in addition to the workload."""

    inference: Inference = False
