"""Ultralytics: `batch=-1` measured instead of estimated (`install`), and YOLO models by name.

`_training` describes a training for every verb, `_session` and `_loop` run it, `_elastic` makes it
survive out-of-memory errors, `_model` serves.
"""

from __future__ import annotations

from rightbatch.integrations.ultralytics._install import install, uninstall
from rightbatch.integrations.ultralytics._isolation import without_trackers
from rightbatch.integrations.ultralytics._training import UltralyticsTraining, from_spec

__all__ = ["UltralyticsTraining", "from_spec", "install", "uninstall", "without_trackers"]
