"""The arguments of `YOLO.train` for a loop: what was asked for, and what the loop decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._training.protocol import LoopPlan

_ITS_OWN = "the study has batches, base_batch, epochs, target, budget, seeds and device for that"
_UNKEPT = "a run of a study keeps its measurements and no files"
REFUSED = {
    **dict.fromkeys(("batch", "nbs", "epochs", "time", "patience", "seed", "device"), _ITS_OWN),
    **dict.fromkeys(("save", "save_period", "plots", "resume", "project", "name"), _UNKEPT),
    "val": "it is validated whenever that is cheap",
    "cfg": "name its arguments one by one",
    "compile": "a compiled step cannot be run in parts",
}
"""Arguments of `YOLO.train` that are not the user's in a study, and why."""
RATES = {"sgd": 0.01, "musgd": 0.01, "adam": 0.001, "adamw": 0.001, "adamax": 0.001}
RATES |= {"nadam": 0.001, "radam": 0.001}
"""Optimizers whose rate a rule is known for, and the rate that Ultralytics names for each."""


def loop_arguments(overrides: Mapping[str, Any], plan: LoopPlan, device: str) -> dict[str, Any]:
    """Return the arguments of `YOLO.train` for a plan.

    Raises:
        UsageError: for what a study decides.
    """
    size = plan.batch_size
    if plan.out is not None:
        out = plan.out.expanduser().resolve()
        own = {key: value for key, value in overrides.items() if key != "model"}
        micro = size if plan.micro_batch_size == "auto" else min(int(plan.micro_batch_size), size)
        return {
            **own,
            "device": _device(device),
            **plan.settings,
            "project": str(out.parent),
            "name": out.name,
            "exist_ok": True,
            "seed": plan.seed,
            # Ultralytics' `batch` is a micro-batch, of which it accumulates to `nbs`.
            "batch": micro,
            "nbs": size,
            "epochs": plan.epochs,
        }
    if plan.factors is not None:
        own = comparable_arguments(overrides, plan.settings)
    else:
        own = {key: value for key, value in overrides.items() if key != "model"} | dict(
            plan.settings
        )
    return own | {
        "batch": size,
        "nbs": size,
        "epochs": plan.schedule_epochs or plan.epochs,  # by which optimizer=auto chooses
        "device": _device(device),
        "seed": plan.seed,
        "val": False,  # an observer says when
        "save": False,
        "plots": False,
        "verbose": False,
        "exist_ok": True,
        "name": "run",
    }


def comparable_arguments(
    overrides: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what was asked for, with an optimizer and a rate that stay from size to size.

    Ultralytics' `optimizer=auto` chooses both by how many updates there will be. SGD and its rate
    are Ultralytics' own otherwise; Adam and its kin have no high rate for biases at first, as
    they have none in `auto`.

    Raises:
        UsageError: for what is the study's to decide.
    """
    arguments = {key: value for key, value in overrides.items() if key not in ("model", "nbs")}
    arguments |= settings
    for name in arguments:
        if name in REFUSED:
            raise UsageError(f"{name} cannot be set in a study: {REFUSED[name]}")
    optimizer = str(arguments.get("optimizer", "SGD"))
    if optimizer.lower() not in RATES:
        raise UsageError(
            f"optimizer is one of SGD, MuSGD, Adam, AdamW, Adamax, NAdam and RAdam in a study, not "
            f"{optimizer}: auto would take another one for another batch size, and no rule is "
            "known for others"
        )
    own = {"optimizer": optimizer, "lr0": RATES[optimizer.lower()]}
    if "adam" in optimizer.lower():
        own["warmup_bias_lr"] = 0.0
    return own | arguments


def averaging(decay: Callable[[float], float], batch_factor: float) -> Callable[[float], float]:
    """Return the decay of an average of the weights that holds as many examples as before.

    An update counts as `batch_factor` ones (Busbridge et al. 2023, arXiv 2307.13813).
    """
    return lambda updates: decay(updates * batch_factor) ** batch_factor


def _device(name: str) -> str:
    return name.removeprefix("cuda:")
