"""Start a command with the agent in its Python processes."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rightbatch._device.cpu import free_memory
from rightbatch._errors import UsageError
from rightbatch.integrations.command.listener import Listener

SITE = Path(__file__).parent / "site"
VARIABLE = "RIGHTBATCH_AGENT"
TRACKERS_OFF = {
    "WANDB_MODE": "disabled",
    "COMET_MODE": "disabled",
    "NEPTUNE_MODE": "debug",
    "CLEARML_OFFLINE_MODE": "1",
    "AIM_TRACKING_DISABLED": "1",
    "DISABLE_MLFLOW_INTEGRATION": "TRUE",
    "TRACKIO_DISABLED": "1",
}
"""The trackers' own variables: a trial is no run that somebody wants to see."""
_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def agent_settings(listener: Listener, *, trial: bool, **more: Any) -> dict[str, Any]:
    """Return the agents' settings, by the names of `_rightbatch_agent.settings`."""
    free = max(free_memory(), 1)
    found = {"address": listener.address, "secret": listener.secret, "trial": trial, "free": free}
    return found | more


def environment(settings: Mapping[str, Any], extra: Mapping[str, str] | None = None) -> Any:
    """Return the environment of a command whose agents have these settings."""
    path = os.pathsep.join(filter(None, [str(SITE), os.environ.get("PYTHONPATH")]))
    found = {key: value for key, value in os.environ.items() if key not in _GROUP}
    return found | dict(extra or {}) | {"PYTHONPATH": path, VARIABLE: json.dumps(dict(settings))}


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a command.

    Raises:
        UsageError: if the operating system cannot run the program.
    """
    try:
        return subprocess.Popen(command, **options)
    except OSError as error:
        hint = ""
        if error.errno == errno.ENOEXEC:
            hint = f": its first line names no interpreter; did you mean `sh {command[0]}`?"
        elif error.errno == errno.ENOENT:
            hint = ": the interpreter in its first line does not exist"
        reason = error.strerror or str(error)
        raise UsageError(f"{command[0]} cannot be started ({reason}){hint}") from None


def without_agent(command: Sequence[str], *, has_input: bool = True) -> str:
    """Return why no agent has reported, as a clause; `has_input` is False for a trial."""
    is_python = "python" in Path(command[0]).name
    without_values = [
        each for before, each in itertools.pairwise(command) if before not in ("-X", "-W")
    ]
    options = list(itertools.takewhile(lambda each: each.startswith("-"), without_values))
    isolated = next((e for e in options if set("ISE") & set(e) and not e.startswith("--")), None)
    if is_python and isolated:
        return f"Python's option {isolated} keeps the agent out; leave it out"
    replaced = next((each for each in command if "PYTHONPATH=" in each), None)
    if replaced is not None:
        return (
            "the agent is found by PYTHONPATH, which the command replaces; set it before "
            "rightbatch instead: `PYTHONPATH=… rightbatch …`"
        )
    if is_python and not has_input and "-" in options:
        return "its standard input is empty: name the script among the arguments"
    return (
        "no Python process of it has imported torch; Python's options -I, -S and -E, a new "
        "environment, and a PYTHONPATH that is replaced, keep the agent out"
    )
