"""Start a command with the agent in its Python processes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rightbatch._device.cpu import free_memory
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


def without_agent(command: Sequence[str]) -> str:
    """Return why no agent has reported, as a clause."""
    flags = [each for each in command[1:4] if each.startswith("-") and set("ISE") & set(each[1:])]
    is_python = "python" in Path(command[0]).name
    if is_python and flags and not flags[0].startswith("--"):
        return f"Python's option {flags[0]} keeps the agent out; leave it out"
    return (
        "no Python process of it has imported torch; Python's options -I, -S and -E, and a new "
        "environment, keep the agent out"
    )
