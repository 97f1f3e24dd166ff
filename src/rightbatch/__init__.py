"""The right batch size: found, explained and kept.

import rightbatch as rb

rb.fit(factory)     the largest batch that survives on this device
rb.predict(factory) its memory, and the largest batch, on a GPU you don't have
rb.check(factory)   whether a change still fits there, against a stored budget
rb.run(command)     what a command, unchanged, does with its memory and its batch
rb.tune(factory)    the size that reaches the target soonest, with its learning rate and reasons
rb.Elastic          one update by a batch of any size, in parts that fit, in your own loop
rb.train(spec)      train at a size that was measured, through the framework's own trainer
rb.study(factory, batches=...)  what the batch size does to a training: every size, every seed
rb.serve(model, sources)  many cameras under one latency target, in the best batches
rb.Batcher          the same batches in your own server: `await batcher(item)`
rb.NoiseScale       how noisy gradients are, from the micro-batches of your own loop
rb.Command          a training as its author starts it: a command line with {batch} in it
rb.Workload         what is trained: model, loss, optimizer and data, returned by a factory
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rightbatch._errors import (
    LateError,
    MissingExtraError,
    NothingFitsError,
    RightbatchError,
    UsageError,
    WorkloadError,
)

if TYPE_CHECKING:
    from rightbatch._check.check import check
    from rightbatch._check.result import CheckResult
    from rightbatch._elastic.events import Event
    from rightbatch._elastic.exactness import Exactness
    from rightbatch._elastic.report import StepReport
    from rightbatch._elastic.step import Elastic
    from rightbatch._fit.fit import fit
    from rightbatch._fit.probe import Probe
    from rightbatch._fit.result import FitResult
    from rightbatch._noise import NoiseEstimate, NoiseScale, NormalizationNoise
    from rightbatch._predict.calibrate import Calibration, calibrate
    from rightbatch._predict.predict import Prediction, predict, replay
    from rightbatch._predict.replay import ReplayResult
    from rightbatch._run.report import RunReport
    from rightbatch._run.run import run
    from rightbatch._serve.engine.batcher import Batcher
    from rightbatch._serve.serve import serve
    from rightbatch._serve.server import Server
    from rightbatch._study.result import StudyResult
    from rightbatch._study.study import study
    from rightbatch._train.train import TrainResult, train
    from rightbatch._training.protocol import Session, Training
    from rightbatch._tune.plan import Plan
    from rightbatch._tune.tune import tune
    from rightbatch._workload.batch import count_examples, split_batch
    from rightbatch._workload.normalization import recalibrate_batchnorm
    from rightbatch._workload.workload import Workload
    from rightbatch.integrations.command.command import Command

__version__ = "0.1.0"

# Public name -> the module that has it; imported when first used, since most import torch.
_LAZY = {
    "Batcher": "_serve.engine.batcher",
    "Calibration": "_predict.calibrate",
    "CheckResult": "_check.result",
    "Command": "integrations.command.command",
    "Elastic": "_elastic.step",
    "Event": "_elastic.events",
    "Exactness": "_elastic.exactness",
    "FitResult": "_fit.result",
    "NoiseEstimate": "_noise",
    "NoiseScale": "_noise",
    "NormalizationNoise": "_noise",
    "Prediction": "_predict.predict",
    "Probe": "_fit.probe",
    "Plan": "_tune.plan",
    "ReplayResult": "_predict.replay",
    "RunReport": "_run.report",
    "Server": "_serve.server",
    "Session": "_training.protocol",
    "StepReport": "_elastic.report",
    "StudyResult": "_study.result",
    "Training": "_training.protocol",
    "TrainResult": "_train.train",
    "Workload": "_workload.workload",
    "calibrate": "_predict.calibrate",
    "check": "_check.check",
    "count_examples": "_workload.batch",
    "fit": "_fit.fit",
    "predict": "_predict.predict",
    "recalibrate_batchnorm": "_workload.normalization",
    "replay": "_predict.predict",
    "run": "_run.run",
    "serve": "_serve.serve",
    "split_batch": "_workload.batch",
    "study": "_study.study",
    "train": "_train.train",
    "tune": "_tune.tune",
}

__all__ = [
    "Batcher",
    "Calibration",
    "CheckResult",
    "Command",
    "Elastic",
    "Event",
    "Exactness",
    "FitResult",
    "LateError",
    "MissingExtraError",
    "NoiseEstimate",
    "NoiseScale",
    "NormalizationNoise",
    "NothingFitsError",
    "Plan",
    "Prediction",
    "Probe",
    "ReplayResult",
    "RightbatchError",
    "RunReport",
    "Server",
    "Session",
    "StepReport",
    "StudyResult",
    "TrainResult",
    "Training",
    "UsageError",
    "Workload",
    "WorkloadError",
    "calibrate",
    "check",
    "count_examples",
    "fit",
    "predict",
    "recalibrate_batchnorm",
    "replay",
    "run",
    "serve",
    "split_batch",
    "study",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'rightbatch' has no attribute {name!r}")
    value = getattr(import_module(f"rightbatch.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
