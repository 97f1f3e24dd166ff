"""`Elastic`: the update of the whole batch, in parts that fit, whatever memory does meanwhile."""

from __future__ import annotations

from rightbatch._elastic.events import Event
from rightbatch._elastic.exactness import Exactness
from rightbatch._elastic.step import Elastic, StepReport

__all__ = ["Elastic", "Event", "Exactness", "StepReport"]
