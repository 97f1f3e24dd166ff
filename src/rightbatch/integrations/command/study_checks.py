"""What a study of a command needs, and which options have no meaning for one."""

from __future__ import annotations

from rightbatch._errors import UsageError
from rightbatch._study.options import StudyOptions
from rightbatch._training.targets import parse_target
from rightbatch.integrations.command.template import Template


def check_study(template: Template, study: StudyOptions) -> None:
    """Check the options of a study against the placeholders of its command.

    Raises:
        UsageError: if they do not go together; it names the option or the placeholder.
    """
    _refuse_options(study)
    template.require("batch", "study")
    seeds = len(study.seed_numbers)
    if seeds > 1 and "seed" not in template.names:
        raise UsageError(
            f"{seeds} seeds without {{seed}} in the command are the same run {seeds} times: put "
            f"{{seed}} where its seed goes, for example `{template} --seed {{seed}}`, or give "
            "--seeds 1"
        )
    if study.search or tuple(study.learning_rates) != (1.0,):
        name = "search" if study.search else "learning-rates"
        template.require("learning_rate", f"study --{name}")
    if study.target is not None:
        name, _ = parse_target(study.target)
        known = {*study.metric_patterns, "loss"}
        if name not in known:
            raise UsageError(
                f"there is no metric {name!r} to reach; known are {', '.join(sorted(known))}, and "
                f"--metric '{name}=REGEX' reads another one from the command's output"
            )
    template.filled(dict.fromkeys(("batch", "seed", "out", "learning_rate"), 0))


def _refuse_options(study: StudyOptions) -> None:
    refused = {
        "--memory": (
            study.memory is not None,
            "each run has the memory of its device; `rightbatch fit --memory` finds what fits",
        ),
        "--device": (study.device is not None, "it chooses its own; pass it among its arguments"),
        "--epochs": (
            study.epochs is not None,
            "pass it among its arguments, or end its runs with --steps or --budget",
        ),
        "--micro-batch": (
            study.micro_batch_size != "auto",
            "it cuts its batches itself; pass it among its arguments",
        ),
        "--processes": (
            study.processes > 1,
            "start it with torchrun, whose processes are all observed",
        ),
        "--sharpness": (
            study.sharpness,
            "leave it out, or describe the training as a rightbatch.Workload",
        ),
        "settings": (bool(study.settings), "pass them among its arguments"),
    }
    for name, (is_given, way_round) in refused.items():
        if is_given:
            raise UsageError(f"study takes no {name} for a command: {way_round}")
