"""`Command`: a training that is a command line, run as it stands."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rightbatch._device.cpu import free_memory
from rightbatch._errors import UsageError
from rightbatch._training.protocol import Ability, Training
from rightbatch._training.trial import Trial, TrialRequest
from rightbatch._training.watched import Watched, WatchRequest
from rightbatch._worker.dialogue import EXACT_MALLOC
from rightbatch.integrations.command.launch import without_agent
from rightbatch.integrations.command.observed import Observed, Rank, examples_per_step
from rightbatch.integrations.command.template import Template
from rightbatch.integrations.command.trial import TrialPlan, TrialResult, run_trial
from rightbatch.integrations.command.watch import watch, watched_of

_CPU_VARIATION = 0.015  # as `rightbatch._device.cpu.CPU.charge_variation`
_ASK = 0.5  # seconds between two questions whether a trial is enough
_MAX_NEW_FILES = 5  # that a note names


class Command(Training):
    """A training as its author starts it: `Command(["python", "train.py", "--batch", "{batch}"])`.

    The script is neither changed nor imported. An agent in the command's Python processes observes
    torch's optimizers, loaders, backward passes and memory. `{batch}` is where the batch size goes;
    also known are `{micro_batch}`, `{accumulation}`, `{learning_rate}`, `{seed}`, `{out}` and
    `{resume}`.

    Args:
        arguments: the program and its arguments.
        steps: steps of a trial, in place of the search's own number.
        until: `"evaluation"` lets a trial go on until an evaluation and one more step.
        learning_rate: for `{learning_rate}`, the one that was chosen for the base batch size;
            without it, the arguments with `{learning_rate}` are left out in trials, and the
            script's own default is seen.

    Raises:
        UsageError: if the program does not exist.
    """

    integration = "a command"
    abilities = frozenset({Ability.TRIAL, Ability.WATCH})

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        steps: int | None = None,
        until: str | None = None,
        learning_rate: float | None = None,
    ) -> None:
        if until not in (None, "evaluation"):
            raise UsageError(f"a trial runs until 'evaluation', not until {until!r}")
        if steps is not None and steps < 2:
            raise UsageError(f"a trial needs at least 2 steps, not {steps}")
        if learning_rate is not None and not learning_rate > 0:
            raise UsageError(f"a learning rate is above 0, not {learning_rate}")
        self.template = Template.of(arguments)
        self.learning_rate = learning_rate
        self._steps, self._until_evaluation = steps, until == "evaluation"
        self._trained: set[int] = set()  # the arguments of trials that made a training step
        self._made: dict[str, int] = {}  # files of trials, and when they last changed

    def __str__(self) -> str:
        return str(self.template)

    @property
    def place(self) -> str:
        """`CommandPlace`: a run of a study is the command itself."""
        return "command"

    @property
    def title(self) -> str:
        """The program and its script; arguments may be secrets."""
        return self.template.title

    def trial(self, argument: int, request: TrialRequest) -> Trial:
        """Run the command until its training has made enough steps."""
        if not self.accumulates:
            self.template.require("batch", "a trial")
        free = max(free_memory(), 1)
        steps = None if request.steps is None else self._steps or max(request.steps, 2)
        with _folder_for_files() as out, _new_files() as new:
            plan = TrialPlan(
                steps=steps,
                batch=argument,
                memory=request.memory,
                free=free,
                margin=max(request.margin, _CPU_VARIATION),
                until_evaluation=self._until_evaluation,
                folders=(out,),
                made=self._made,
                variables=EXACT_MALLOC if request.exact else {},
            )
            sizes = {"batch": argument, "micro_batch": argument, "accumulation": 1}
            values = sizes | {"out": out, "seed": request.seed}
            command = self._with_learning_rate(self.learning_rate, values)
            result = run_trial(command, plan, _at_times(request.is_enough))
        self._remember(result.observed.made)
        return self._trial(argument, plan, result, new)

    def _remember(self, made: set[str]) -> None:
        """Keep which files a trial has made, or written again, and when they last changed."""
        for path in made:
            try:
                self._made[path] = Path(path).stat().st_ctime_ns
            except OSError:
                self._made.pop(path, None)

    def watch(self, request: WatchRequest) -> Watched:
        """Run the command to its end."""
        return watch(self.template.filled({}), request)

    @property
    def accumulates(self) -> bool:
        """Whether the command takes a batch in several micro-batches."""
        return {"micro_batch", "accumulation"} <= self.template.names

    def command_line(self, values: Mapping[str, object]) -> str:
        """Return the command with `values` for its placeholders, as one types it.

        Placeholders without a value stay; values that look like secrets are hidden.
        """
        return str(self.template.partly_filled(values))

    def _with_learning_rate(self, rate: float | None, values: Mapping[str, object]) -> list[str]:
        if rate is None:
            return self.template.without("learning_rate").filled(values)
        return self.template.filled({**values, "learning_rate": rate})

    def _trial(
        self, argument: int, plan: TrialPlan, result: TrialResult, new: Sequence[str]
    ) -> Trial:
        ranks = result.observed.ranks
        self._check(argument, result)
        steps = min((len(rank.steps) for rank in ranks), default=0)
        charges = tuple(_over_ranks(ranks, "charged", step) for step in range(steps))
        charges = tuple(charge + result.other_bytes for charge in charges)
        examples = examples_per_step(ranks)
        first = ranks[0] if ranks else None
        epoch = first.epoch if first else None
        limits = [rank.memory for rank in ranks if rank.memory.get("ceiling") is not None]
        is_cpu = not ranks or _device(ranks) == "cpu"
        limit = _total((memory["limit"] for memory in limits), is_cpu)
        ceiling = _total((memory["ceiling"] for memory in limits), is_cpu)
        shared = min(
            (memory["shared_limit"] for memory in limits if memory["shared_limit"]),
            default=min(filter(None, (plan.memory, plan.free))),
        )
        enforced = bool(limits) and all(memory["enforced"] for memory in limits)
        # It ended before its first step, or has spawned ranks that do not know that they share it.
        if not limits or (is_cpu and limit > shared):
            enforced, limit, ceiling = False, shared, int(shared * (1 - plan.margin))
        return Trial(
            argument=argument,
            outcome=result.outcome,
            seconds=result.seconds,
            device=_device(ranks),
            peak_bytes=_over_ranks(ranks, "peak", steps - 1) + result.other_bytes
            if steps
            else None,
            live_bytes=_live(ranks) if steps else None,
            charges=charges,
            step_seconds=tuple(step["seconds"] for step in first.steps) if first else (),
            waited_seconds=tuple(step["waited"] for step in first.steps) if first else (),
            examples_per_step=examples,
            ranks=max(len(ranks), 1),
            limit_bytes=limit,
            ceiling_bytes=ceiling,
            enforced=enforced,
            examples=epoch,
            largest_argument=_largest_argument(argument, examples, epoch),
            evaluated=any(rank.evaluated for rank in ranks),
            saved=any(rank.saved for rank in ranks),
            notes=self._notes(argument, result, examples, new),
            detail={
                "other_bytes": result.other_bytes,
                "ranks": len(ranks),
                "micro_batches": max((s["micro_batches"] for s in first.steps), default=0)
                if first
                else 0,
            },
            failure=result.failure,
            watched=watched_of(result.observed, result.exit_code) if plan.steps is None else None,
        )

    def _check(self, argument: int, result: TrialResult) -> None:
        """Refuse what cannot be measured, with the way round."""
        observed = result.observed
        if observed.overwritten is not None:
            raise UsageError(
                f"the command would overwrite or remove {observed.overwritten}, which existed "
                "before the trial; nothing was changed. Put {out} where it names its output "
                "folder: each trial gets a temporary one"
            )
        if result.left:
            raise UsageError(f"processes {result.left} of the command could not be ended")
        if result.outcome != "ok":
            return
        if not observed.has_torch:
            raise UsageError(
                "nothing of the command can be measured: "
                + without_agent(self.template.arguments, has_input=False)
            )
        if not any(rank.steps for rank in observed.trainers):
            errors = "; ".join(observed.agent_errors)
            why = f"the agent failed: {errors}" if errors else "it made no training step"
            if self._trained and not errors:
                known = max(self._trained)
                why += (
                    f" with {{batch}} = {argument}, but did with {known}: its data may be too few; "
                    f"--max-batch {known} tries nothing larger"
                )
            raise UsageError(f"the command ended, and {why}\n{result.output}".rstrip())
        self._trained.add(argument)

    def _notes(
        self, argument: int, result: TrialResult, examples: int | None, new: Sequence[str]
    ) -> tuple[str, ...]:
        ranks = result.observed.ranks
        notes = []
        if result.outcome == "ok":
            for what, is_covered, remedy in (
                ("an evaluation", any(rank.evaluated for rank in ranks), "--until evaluation"),
                ("a checkpoint", any(rank.saved for rank in ranks), "--steps N with a larger N"),
            ):
                if not is_covered:
                    notes.append(
                        f"{what} was not reached within the steps, so its memory is not covered; "
                        f"{remedy} covers it"
                    )
            factor = len(ranks) or 1
            if examples is None:
                notes.append("the size of its batches was not seen: {batch} is taken as it is")
            elif examples % (argument * factor) and examples != argument:
                notes.append(
                    f"{examples} examples per step were seen where {{batch}} was {argument}: the "
                    "command rounds or clips it, survives out-of-memory itself, or its data ended"
                )
        if new:
            more = f" and {len(new) - _MAX_NEW_FILES} more" if len(new) > _MAX_NEW_FILES else ""
            names = ", ".join(new[:_MAX_NEW_FILES])
            notes.append(f"new in the working folder: {names}{more}")
        notes += result.observed.notes
        return tuple(notes)


def from_spec(spec: str, **options: object) -> Command | None:
    """Return the command of a spec that begins with `-- `; None for any other spec.

    Raises:
        UsageError: if the program does not exist, or an option is unknown.
    """
    import shlex

    if not spec.startswith("-- "):
        return None
    given = {name: value for name, value in options.items() if value is not None}
    unknown = sorted(given.keys() - {"steps", "until", "learning_rate"})
    if unknown:
        raise UsageError(f"a command takes no option {', '.join(unknown)}: it has its own")
    return Command(shlex.split(spec[3:]), **given)  # type: ignore[arg-type]


def _at_times(is_enough: Callable[[Watched], bool]) -> Callable[[Observed], bool]:
    """Ask no more often than every half second: what was seen is put together for it."""
    asked_at = time.monotonic()

    def ask(observed: Observed) -> bool:
        nonlocal asked_at
        if time.monotonic() - asked_at < _ASK or not observed.trainers:
            return False
        asked_at = time.monotonic()
        return is_enough(watched_of(observed, None))

    return ask


def _device(ranks: Sequence[Rank]) -> str:
    return next((rank.memory["device"] for rank in ranks if rank.memory), "cpu")


def _over_ranks(ranks: Sequence[Rank], key: str, step: int) -> int:
    """Return a figure after a step: on the CPU, which ranks share, the sum, else the largest."""
    figures = [rank.steps[step].get("memory", {}).get(key, 0) for rank in ranks]
    return sum(figures) if _device(ranks) == "cpu" else max(figures, default=0)


def _live(ranks: Sequence[Rank]) -> int | None:
    return max(
        (rank.memory["allocated"] for rank in ranks if "allocated" in rank.memory), default=None
    )


def _total(figures: Iterable[int | None], is_shared: bool) -> int:
    known = [figure for figure in figures if figure is not None]
    return sum(known) if is_shared else min(known, default=0)


def _largest_argument(argument: int, examples: int | None, epoch: int | None) -> int | None:
    """Return the largest useful `{batch}`: that of the data set, or where it is clipped."""
    if examples is None:
        return None
    factor = examples / argument
    if factor < 1 and argument > 1:
        return argument
    return max(int(epoch / factor), argument) if epoch else None


@contextlib.contextmanager
def _folder_for_files() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="rightbatch-out-", ignore_cleanup_errors=True) as out:
        yield out


@contextlib.contextmanager
def _new_files() -> Iterator[list[str]]:
    """Yield a list that has, at the end, the new entries of the working folder."""
    folder = Path.cwd()
    before = {path.name for path in folder.iterdir()}
    found: list[str] = []
    yield found
    names = {path.name for path in folder.iterdir()}
    found += sorted(names - before - {"__pycache__"})
