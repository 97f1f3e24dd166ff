"""How long `import rightbatch` and `rightbatch --help` take, as whole processes.

The time of an interpreter that does nothing is measured in the same loop and given beside them.
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks._record import median, save

REPEATS = 21
COMMANDS = {
    "an empty interpreter": [sys.executable, "-c", "pass"],
    "import rightbatch": [sys.executable, "-c", "import rightbatch"],
    "rightbatch --help": [sys.executable, "-m", "rightbatch", "--help"],
}
GOALS_MS = {"import rightbatch": 100, "rightbatch --help": 300}


def main() -> None:
    samples: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(REPEATS + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            samples[name].append(1000 * (time.perf_counter() - started))
    samples = {name: values[1:] for name, values in samples.items()}  # the first one reads the disk
    save("startup", {"milliseconds": samples}, table(samples))


def table(samples: dict[str, list[float]]) -> str:
    """Medians, and what a command takes longer than an interpreter that does nothing."""
    empty = median(samples["an empty interpreter"])
    text = "| command | median | over an empty interpreter | goal |\n|---|---|---|---|\n"
    for name, values in samples.items():
        middle, goal = median(values), GOALS_MS.get(name)
        cells = ["–", ""] if goal is None else [f"{middle - empty:.0f} ms", f"{goal} ms"]
        text += f"| `{name}` | {middle:.0f} ms | {' | '.join(cells)} |\n"
    return text


if __name__ == "__main__":
    main()
