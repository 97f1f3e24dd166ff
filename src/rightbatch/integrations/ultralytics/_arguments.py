"""The arguments of `YOLO.train` for a loop: the user's, and those that the loop sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._training.protocol import LoopPlan

_STUDY_OPTION = "use batches, base_batch, epochs, target, budget, seeds and device of the study"
_NO_FILES = "a run of a study stores its measurements and no files"
REFUSED = {
    **dict.fromkeys(
        ("batch", "nbs", "epochs", "time", "patience", "seed", "device"), _STUDY_OPTION
    ),
    **dict.fromkeys(("save", "save_period", "plots", "resume", "project", "name"), _NO_FILES),
    "val": "a run is validated at intervals that the study chooses",
    "cfg": "give its arguments individually",
    "compile": "a compiled step cannot be run in parts",
}
"""Arguments of `YOLO.train` that cannot be set in a study, and why."""
RATES = {"sgd": 0.01, "musgd": 0.01, "adam": 0.001, "adamw": 0.001, "adamax": 0.001}
RATES |= {"nadam": 0.001, "radam": 0.001}
"""Optimizers with a rule for their learning rate, and Ultralytics' rate for each."""


def loop_arguments(overrides: Mapping[str, Any], plan: LoopPlan, device: str) -> dict[str, Any]:
    """Return the arguments of `YOLO.train` for a plan.

    Raises:
        UsageError: for an argument that a study sets.
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
            # Ultralytics' `batch` is a micro-batch; gradients are accumulated up to `nbs`.
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
        "epochs": plan.schedule_epochs or plan.epochs,  # optimizer=auto depends on it
        "device": _device(device),
        "seed": plan.seed,
        "val": False,  # observers evaluate
        "save": False,
        "plots": False,
        "verbose": False,
        "exist_ok": True,
        "name": "run",
    }


def comparable_arguments(
    overrides: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the user's arguments, with an optimizer and a rate that are equal for all sizes.

    Ultralytics' `optimizer=auto` chooses both by the number of updates. The default is SGD with
    Ultralytics' rate. Adam and its variants get no higher rate for biases in the warm-up, as with
    `auto`.

    Raises:
        UsageError: for an argument that the study sets.
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
            f"{optimizer}: auto may choose different ones for different batch sizes, and there is "
            "no learning rate rule for others"
        )
    own = {"optimizer": optimizer, "lr0": RATES[optimizer.lower()]}
    if "adam" in optimizer.lower():
        own["warmup_bias_lr"] = 0.0
    return own | arguments


def averaging(decay: Callable[[float], float], batch_factor: float) -> Callable[[float], float]:
    """Return the decay of an average of the weights over as many examples as before.

    An update counts as `batch_factor` updates (Busbridge et al. 2023, arXiv 2307.13813).
    """
    return lambda updates: decay(updates * batch_factor) ** batch_factor


def _device(name: str) -> str:
    return name.removeprefix("cuda:")
