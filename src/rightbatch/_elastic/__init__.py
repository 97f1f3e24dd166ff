"""`Elastic`: one update by a batch of any size, in parts that fit, with out-of-memory survived.

`step` is the entry. `trial_passes` measures before the first update, `gradients` accumulates the
parts, `undoable_update` makes the optimizer step atomic, `size_policy` chooses the micro-batch,
`size_control` records its changes, `ranks` coordinates several processes.
"""

from __future__ import annotations

from rightbatch._elastic.events import Event
from rightbatch._elastic.exactness import Exactness
from rightbatch._elastic.report import StepReport
from rightbatch._elastic.step import Elastic

__all__ = ["Elastic", "Event", "Exactness", "StepReport"]
