"""Live while it trains: how late the page is, and what watching costs the training.

`python -m benchmarks.study.live [--turns 8] [--steps 2000] [--quick] [--to FOLDER]`. The training
is a convolution on handwritten digits, with steps of 10 to 50 ms on the CPU.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks._record import interval, say
from benchmarks.study.beside import beside
from benchmarks.study.delay import delay
from benchmarks.study.own import own
from benchmarks.study.part import Part, figures

GOAL_DELAY, GOAL_OWN = 2.0, 0.01
BATCHES, EPOCHS = (32, 64, 128), 40
QUICK_BATCHES, QUICK_EPOCHS = (64, 128), 8
EPOCHS_OF_A_TURN, QUICK_TURN = 25, 3


def main() -> None:
    part = Part("live", __doc__, turns=8, steps=2000)
    steps = part.counts["steps"] if not part.quick else max(part.counts["steps"], 100)
    found: dict[str, Any] = {"own": own(steps)}
    say(f"own processor time: {found['own']['own_share']:.3%} of a step's")
    found["delay"] = delay(QUICK_BATCHES, QUICK_EPOCHS) if part.quick else delay(BATCHES, EPOCHS)
    found["beside"] = beside(part.counts["turns"], QUICK_TURN if part.quick else EPOCHS_OF_A_TURN)
    part.save(found, table)


def table(document: dict[str, Any]) -> str:
    """Show the delay of the page, and what measuring costs the training."""
    return figures(document, _introduction(document), _rows(document))


def _introduction(found: dict[str, Any]) -> str:
    mine, batch = found["own"], found["own"]["batch_size"]
    points = found["delay"]["points"]
    return (
        f"Delay: {len(points)} points of {len(found['delay']['batches'])} runs, from the "
        "measurement in the run to the frame in which the page's main chart shows it.\n\n"
        f"Cost: {len(mine['steps']['alone'])} steps of {1000 * mine['step_seconds']:.0f} ms of "
        f"processor time at batch size {batch}, one thread, alternating with a training that is "
        "not measured. Evaluations and noise measurements do not count as training: the run's "
        "clock is stopped meanwhile. They may take a fifth and a twentieth of the training's time, "
        "and 2 s each. *On the run's clock*: the training has a process of its own and shares the "
        "cores with the study and the page."
    )


def _rows(found: dict[str, Any]) -> list[str]:
    delays = [point["delay"] for point in found["delay"]["points"] if point["delay"] is not None]
    hundredths = statistics.quantiles(delays, n=100)
    mine, turns = found["own"], found["beside"]["ratios"]
    return [
        f"| delay, median | {hundredths[49]:.2f} s | ≤ {GOAL_DELAY:g} s |",
        f"| delay, 99th percentile | {hundredths[98]:.2f} s | |",
        f"| delay, worst | {max(delays):.2f} s | ≤ {GOAL_DELAY:g} s |",
        f"| points that never appeared | {found['delay']['never_shown']} | 0 |",
        f"| processor time of measuring ÷ a step's | {mine['own_share']:.2%} | ≤ {GOAL_OWN:.0%} |",
        f"| measured step ÷ plain step, processor time | {interval(mine['step_ratio'])} | |",
        f"| the same again (A/A) | {interval(mine['same_again'])} | |",
        f"| evaluations ÷ training, not counted as training | {mine['evaluation_share']:.1%} | |",
        f"| noise measurements ÷ training, not counted as training | {mine['noise_share']:.1%} | |",
        f"| step in a study ÷ step alone, on the run's clock | {interval(turns['study'])} | |",
        f"| the same with the page open | {interval(turns['page'])} | |",
        f"| the same again (A/A) | {interval(turns['again'])} | |",
    ]


if __name__ == "__main__":
    main()
