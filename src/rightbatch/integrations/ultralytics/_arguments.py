"""The arguments of `YOLO.train` for a loop: the user's, and those that the loop sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
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


_OWN_FOLDER = "give the folder of the results with out (--out)"
NOT_OF_A_TRAINING = {
    "batch": "a verb finds the batch size, or takes it as its own option (train --batch N)",
    "mode": "the verb is the mode",
    "model": "the model is the workload, the first argument",
    "task": "the model's name has the task: yolo26n-seg.yaml, yolo26n-cls.yaml, ...",
    "resume": "train --resume names how to go on",
    **dict.fromkeys(("project", "name", "save_dir", "exist_ok"), _OWN_FOLDER),
}
"""Arguments of `YOLO.train` that are no settings of a training, and the way round."""
_MORE = ("augmentations", "end2end", "half", "int8", "label_smoothing")
"""Arguments that `YOLO.train` takes and its default.yaml has not."""


def check_names(arguments: Mapping[str, Any]) -> None:
    """Check that `YOLO.train` has the arguments, without importing ultralytics.

    Raises:
        UsageError: for one that it has not, or that a verb sets.
    """
    known = _known()
    for name in arguments:
        if name in NOT_OF_A_TRAINING:
            raise UsageError(f"{name} cannot be given here: {NOT_OF_A_TRAINING[name]}")
        if known and name not in known:
            close = get_close_matches(name, known)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise UsageError(f"YOLO.train has no argument {name}{hint}")


def defaults_file() -> Path | None:
    """Return the file with Ultralytics' arguments and their defaults."""
    spec = find_spec("ultralytics")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, "cfg", "default.yaml")
        if path.is_file():
            return path
    return None


def _known() -> frozenset[str]:
    path = defaults_file()
    if path is None:
        return frozenset()
    names = re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset((*names, *_MORE))


def loop_arguments(overrides: Mapping[str, Any], plan: LoopPlan, device: str) -> dict[str, Any]:
    """Return the arguments of `YOLO.train` for a plan.

    Raises:
        UsageError: for an argument that a study sets.
    """
    size = plan.batch_size
    if plan.out is not None:
        if "nbs" in overrides or "nbs" in plan.settings:
            raise UsageError(
                "nbs cannot be set here: the batch size of an update is batch (--batch)"
            )
        out = plan.out.expanduser().resolve()
        own = without(overrides, "model")
        micro = size if plan.micro_batch_size == "auto" else min(int(plan.micro_batch_size), size)
        return {
            **own,
            "device": device_argument(device),
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
        own = without(overrides, "model") | dict(plan.settings)
    return without_disk_cache(own) | {
        "batch": size,
        "nbs": size,
        "epochs": plan.schedule_epochs or plan.epochs,  # optimizer=auto depends on it
        "device": device_argument(device),
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
    arguments = without(overrides, "model", "nbs") | dict(settings)
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


def without(arguments: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the arguments but for those with the names."""
    return {key: value for key, value in arguments.items() if key not in names}


def without_disk_cache(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments without a cache on the disk, which would write next to the images."""
    return arguments | {"cache": False} if arguments.get("cache") == "disk" else arguments


def device_argument(name: str) -> str:
    """Return a device as `YOLO.train` takes it: a CUDA device by its number."""
    return name.removeprefix("cuda:")
