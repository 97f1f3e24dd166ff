"""Ultralytics: `batch=-1` measured instead of guessed (`install`), and YOLO models by their names.

`factory` describes a training for every verb, `session` runs its steps, `elastic` survives memory.
"""

from __future__ import annotations

from rightbatch.integrations.ultralytics._factory import (
    YoloFactory,
    from_spec,
    install,
    uninstall,
)

__all__ = ["YoloFactory", "from_spec", "install", "uninstall"]
