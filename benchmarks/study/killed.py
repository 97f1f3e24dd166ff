"""A study that is killed at random moments, and the same command that is given again.

`python -m benchmarks.study.killed [--kills 20] [--quick] [--to FOLDER]`. `kill -9` meets the
process that a person started, at a moment drawn evenly from the time that the whole study takes
undisturbed. The same command follows at once; a study that ends before its kill makes room for a
fresh one. What the store holds is asked of MLflow itself, and held against what was said on stderr.
"""

from __future__ import annotations

import random
import re
import secrets
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks._record import say
from benchmarks.study.part import Part, figures, plural, spread
from benchmarks.study.processes import RIGHTBATCH, end, environment
from benchmarks.study.stored import Kept, runs_of
from benchmarks.study.workload import UNHURRIED

BATCHES, SEEDS, EPOCHS, QUICK_SEEDS = (16, 32), 3, 2, 1
MARK = "RIGHTBATCH_BENCHMARK"
"""In the environment of a study, and so of all processes that it starts."""
SEED = 0
_GONE = 10.0  # seconds in which all processes have to be gone
_PATIENCE = 5.0  # times as long as undisturbed, for a study that is not killed any more
_SAID = re.compile(r"batch (\d+), seed (\d+): finished after")


class Study:
    """A study in a fresh folder, started, killed, started again; what is seen of it."""

    def __init__(self, folder: Path, seeds: int) -> None:
        self.out, self._temporary = folder / "study", folder / "temporary"
        self._temporary.mkdir()
        self._mark = secrets.token_hex(8)
        self._keys = len(BATCHES) * seeds
        self._command = [*RIGHTBATCH, "study", UNHURRIED, "--out", str(self.out)]
        self._command += ["--batches", ",".join(map(str, BATCHES)), "--seeds", str(seeds)]
        self._command += ["--epochs", str(EPOCHS)]
        self._said = folder / "said"
        self._finished: dict[str, Kept] = {}

    def start(self) -> subprocess.Popen[str]:
        temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self._temporary))
        with self._said.open("a") as said:
            return subprocess.Popen(
                self._command,
                text=True,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=environment(**temporary, **{MARK: self._mark}),
            )

    def processes(self) -> list[psutil.Process]:
        """All that live, whoever started them."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get(MARK) == self._mark
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, study: subprocess.Popen[str]) -> dict[str, Any]:
        """Kill the one process, and see what is left of the others, and of the store."""
        before = len(self.processes())
        study.kill()
        study.wait()
        killed = time.monotonic()
        while (left := self.processes()) and time.monotonic() - killed < _GONE:
            time.sleep(0.02)
        gone = time.monotonic() - killed
        names = [" ".join(process.cmdline()) for process in left]
        for process in left:
            process.kill()
        found = {"processes_before": before, "left": names, "gone_after": gone}
        return found | self.look()

    def look(self) -> dict[str, Any]:
        """What is wrong with the store: nothing, where every run that was finished, or was said to
        be, still is, once and with the same values, and no key is finished twice."""
        try:
            runs = runs_of(self.out)
        except Exception as error:  # whatever it is, MLflow cannot read what the kill left
            return {"unreadable": f"{type(error).__name__}: {error}"}
        by_id = {run.id: run for run in runs}
        before, self._finished = self._finished, {run.id: run for run in runs if run.is_finished}
        keys = Counter(run.key for run in self._finished.values())
        said = Counter(f"batch_{b}-seed_{s}-rate_1.0" for b, s in _SAID.findall(self._told()))
        return {
            "unreadable": "",
            "tries": len(runs),
            "finished": len(self._finished),
            "running": sum(run.status == "RUNNING" for run in runs),
            "said": len(said),
            "lost": sorted(
                {run.key for run in before.values() if run.id not in self._finished}
                | (said.keys() - keys.keys())
            ),
            "changed": [run.key for run in before.values() if by_id.get(run.id, run) != run],
            "repeated": [key for key, count in (keys | said).items() if count > 1],
        }

    def complete(self) -> dict[str, Any]:
        """The store in the end, and whether each key has one finished run, and each size one
        learning rate: what the first run decided for the others survives a kill, too."""
        found = self.look()
        runs = self._finished.values()
        rates = {(run.batch_size, run.history("learning_rate")[0][2]) for run in runs}
        return found | {
            "missing": self._keys - len({run.key for run in runs}),
            "learning_rates": len(rates) - len(BATCHES),
            "temporary_folders_left": len(list(self._temporary.iterdir())),
        }

    @property
    def last_words(self) -> str:
        return self._told()[-2000:]

    def _told(self) -> str:
        return self._said.read_text()


def main() -> None:
    part = Part("killed", __doc__, kills=20)
    seeds = QUICK_SEEDS if part.quick else SEEDS
    with _fresh() as folder:
        expected = _undisturbed(Study(Path(folder), seeds))
    say(f"undisturbed it takes {expected:.0f} s")
    chance, kills, studies = random.Random(SEED), [], []
    while len(kills) < part.counts["kills"]:
        with _fresh() as folder:
            study = Study(Path(folder), seeds)
            mine, ended = _until_done(study, expected, chance, part.counts["kills"] - len(kills))
        kills += [{"study": len(studies)} | kill for kill in mine]
        studies.append(ended | {"kills": len(mine)})
        say(f"study {len(studies)}: {ended}; {len(kills)} kills so far")
    found = {"expected_seconds": expected, "seed": SEED, "kills": kills, "studies": studies}
    part.save(found, table)


def table(document: dict[str, Any]) -> str:
    """Show what kills did to the store, and whether the same command finished the study."""
    kills, studies = document["kills"], document["studies"]
    seeds = QUICK_SEEDS if document["quick"] else SEEDS
    introduction = (
        f"`kill -9` at random moments of a study of {len(BATCHES)} sizes × "
        f"{plural(seeds, 'seed')} that takes {document['expected_seconds']:.0f} s undisturbed; "
        f"{len(kills)} kills in {len(studies)} studies. {_where(kills)}"
    )
    return figures(document, introduction, _rows(kills, studies))


def _fresh() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rightbatch-", ignore_cleanup_errors=True)


def _undisturbed(study: Study) -> float:
    began = time.monotonic()
    process = study.start()
    try:
        process.wait()
    finally:
        end(process)
    if process.returncode or study.complete()["missing"]:
        raise RuntimeError(f"it does not even end undisturbed: {study.last_words}")
    return time.monotonic() - began


def _until_done(
    study: Study, expected: float, chance: random.Random, most: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Kill it at most so many times, and let it end then; a kill went on if what followed did."""
    kills: list[dict[str, Any]] = []
    while True:
        moment = chance.uniform(0, expected)
        process = study.start()
        is_last = len(kills) >= most
        try:
            process.wait(_PATIENCE * expected if is_last else moment)
        except subprocess.TimeoutExpired:
            if not is_last:
                kills.append({"after": moment, "went_on": True} | study.kill(process))
                say(f"killed after {moment:.1f} s: {kills[-1]}")
                continue
        finally:
            end(process)
        ended = {"exit_code": process.returncode, **study.complete()}
        if process.returncode:
            ended["last_words"] = study.last_words
        if kills and (process.returncode or ended["unreadable"] or ended.get("missing")):
            kills[-1]["went_on"] = False
        return kills, ended


def _where(kills: Sequence[dict[str, Any]]) -> str:
    early = sum(not kill.get("tries") for kill in kills)
    between = sum(bool(kill.get("tries")) and not kill.get("running") for kill in kills)
    in_flight = len(kills) - early - between
    return (
        f"{in_flight} kills interrupted a run, {early} came before the first run had started, "
        f"{between} between two runs."
    )


def _rows(kills: Sequence[dict[str, Any]], studies: Sequence[dict[str, Any]]) -> list[str]:
    both = [*kills, *studies]

    def count(name: str) -> int:
        return sum(len(one.get(name, ())) for one in both)

    went_on = sum(kill["went_on"] and not kill["unreadable"] for kill in kills)
    again = sum(study["tries"] - study["finished"] for study in studies if "tries" in study)
    folders = sum(study["temporary_folders_left"] for study in studies)
    gone = spread([kill["gone_after"] for kill in kills])
    return [
        f"| kills after which the same command finished the study | {went_on} of {len(kills)} | "
        f"{len(kills)} of {len(kills)} |",
        f"| finished runs lost | {count('lost')} | 0 |",
        f"| finished runs whose values changed | {count('changed')} | 0 |",
        f"| finished runs repeated | {count('repeated')} | 0 |",
        f"| runs missing at the end | {sum(study.get('missing', 0) for study in studies)} | 0 |",
        f"| learning rates beyond one per size | {sum(s['learning_rates'] for s in studies)} | 0 |",
        f"| processes alive {_GONE:.0f} s after a kill | {count('left')} | 0 |",
        f"| time until the last process has ended | {gone} | |",
        f"| interrupted runs that were started again | {again} | |",
        f"| temporary folders left behind by kills | {folders} | |",
    ]


if __name__ == "__main__":
    main()
