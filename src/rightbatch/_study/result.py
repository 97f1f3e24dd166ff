"""The result of a study: its runs and their comparison, as text, table and figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rightbatch._errors import MissingExtraError
from rightbatch._study.analysis.summary import COSTS, Summary, summarize
from rightbatch._study.records import Axis, Run, Target
from rightbatch._units import format_bytes
from rightbatch._workload.notebook import ShownInNotebooks


@dataclass(frozen=True)
class StudyResult(ShownInNotebooks):
    """The `runs` of a study, newest try of each first, and the `summary` of them by batch size.

    `out` is the folder, which `rightbatch ui OUT` shows and `rightbatch report OUT` writes into one
    file.
    """

    runs: tuple[Run, ...]
    target: Target | None
    summary: Summary
    out: str

    @property
    def reason(self) -> str:
        """The result in a few sentences."""
        return " ".join(self.summary.sentences)

    @property
    def exit_code(self) -> int:
        """0; 1 if no run reached the target or finished; 3 if all runs of a size failed."""
        statuses = {run.status for run in self.runs}
        if any(set(size.statuses) == {"failed"} for size in self.summary.sizes):
            return 3
        if statuses <= {"failed", "stopped"} and "failed" in statuses:
            return 3
        if self.target is not None:
            return 0 if any(size.count for size in self.summary.sizes) else 1
        return 0 if "finished" in statuses else 1

    @property
    def frame(self) -> Any:
        """A pandas DataFrame with a row for each run.

        Raises:
            MissingExtraError: without pandas, which mlflow brings.
        """
        try:
            import pandas
        except ImportError:
            raise MissingExtraError("pandas", "study") from None

        return pandas.DataFrame([self._row(run) for run in self.runs])

    def plot(self, metric: str = "loss", axis: Axis = "examples") -> Any:
        """Return a plotly figure of a metric along the runs: a colour per size, seeds as bands.

        Raises:
            MissingExtraError: without plotly.
        """
        from rightbatch._study.analysis.figures import curves_figure

        return curves_figure(self.runs, metric, axis, self.target)

    @property
    def figures(self) -> dict[str, Any]:
        """Plotly figures: seconds, steps and examples to the target by batch size, and what a size
        costs in throughput and memory.

        Raises:
            MissingExtraError: without plotly.
        """
        from rightbatch._study.analysis.figures import cost_figure, target_figure

        return {cost: target_figure(self.summary, cost) for cost in COSTS} | {
            "cost": cost_figure(self.summary)
        }

    def __str__(self) -> str:
        lines = [
            f"  {'batch':>6}  {'runs':>5}  {'seconds':>9}  {'steps':>9}  {'examples':>10}  "
            f"{'examples/s':>10}  {'peak':>9}"
        ]
        for size in self.summary.sizes:
            figures = (size.seconds, size.steps, size.examples, size.examples_per_second)
            cells = ["–" if one is None else f"{one.middle:.4g}" for one in figures]
            peak = "–" if size.peak_bytes is None else format_bytes(size.peak_bytes.middle)
            lines.append(
                f"  {size.batch_size:>6}  {size.runs:>5}  {cells[0]:>9}  {cells[1]:>9}  "
                f"{cells[2]:>10}  {cells[3]:>10}  {peak:>9}"
            )
        reach = f" to {self.target}" if self.target else ""
        return "\n".join(
            [
                *self.summary.sentences,
                f"median{reach}:",
                *lines,
                f"show: rightbatch ui {self.out}; write one file: rightbatch report {self.out}",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `rightbatch study --json`."""
        return {
            "runs": [self._row(run) | {"parameters": dict(run.parameters)} for run in self.runs],
            "summary": self.summary.to_dict(),
            "target": None if self.target is None else vars(self.target),
            "reason": self.reason,
            "out": self.out,
        }

    def _row(self, run: Run) -> dict[str, Any]:
        plain = (
            "batch_size seed learning_rate_factor status reason learning_rate micro_batch_size "
            "steps examples seconds epochs examples_per_second peak_bytes limit_bytes device"
        )
        return {name: getattr(run, name) for name in plain.split()} | {
            "metrics": dict(run.metrics),
            "name": run.name,
        }


def result_of(source: Any, out: str) -> StudyResult:
    """Return the result of the runs in a store."""
    runs = tuple(source.runs())
    target = source.target
    return StudyResult(runs, target, summarize(runs, target), out)
