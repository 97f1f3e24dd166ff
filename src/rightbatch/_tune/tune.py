"""`tune`: the batch size that reaches the target soonest, with what it takes to train at it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._fit.fit import FitResult, largest_batch
from rightbatch._noise import NoiseWindow, estimate_from
from rightbatch._progress import Live
from rightbatch._training.scaling import Scaling, scaling
from rightbatch._training.targets import parse_target
from rightbatch._training.updates import DEFAULT_BATCH, most_useful
from rightbatch._tune.advice import Situation, advise
from rightbatch._tune.decision import Decision, decide
from rightbatch._tune.plan import Branch, Plan
from rightbatch._tune.reason import reason
from rightbatch._tune.throughput import Network, Steps, Throughput, spread
from rightbatch._tune.timing import Timing, sizes_between, told
from rightbatch._units import parse_bytes, parse_seconds
from rightbatch._worker import BuildError, Header, ProbeProcess, header_for
from rightbatch._workload.factory import resolve

TIMING, PILOT = 0.25, 0.55
"""Shares of the budget. The rest is for `fit` and for processes to start."""
SCHEDULED_EPOCHS = 10
"""What a schedule is made for in the pilot, where nobody says."""
BRANCHES = 0.3
LEAST_UPDATES = 10
OBJECTIVES = ("time", "cost", "energy")


def tune(
    workload: object,
    *,
    target: str | None = None,
    budget: float | str = "3min",
    objective: str = "time",
    base_batch: int = DEFAULT_BATCH,
    epochs: int | None = None,
    largest: FitResult | None = None,
    verify: bool = False,
    processes: int = 1,
    bandwidth: int | str = "10GB",
    memory: int | str | None = None,
    margin: float = 0.05,
    max_batch: int | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Plan:
    """Find the batch size that reaches the target soonest.

    Measures what fits, how long steps of several sizes take, and the noise scale late in a short
    training of a copy at `base_batch`, the size that the workload's learning rate was chosen for.
    `target` (`"loss=0.45"`, `evaluation_loss`, or a key of `evaluate`) ends that training when it
    is reached. All of it takes about `budget`. `objective` is `time`, `cost` (the time of all
    devices) or `energy` (NVIDIA GPUs). `processes` extrapolates to so many devices that exchange
    gradients at `bandwidth` a second. `verify` also trains short branches at half, twice and four
    times the size. `largest` is what `fit` found, where it was run before. No size is chosen that
    leaves a training of `epochs` too few updates (`rightbatch._training.updates`); without `epochs`
    it goes on until the target.

    Raises:
        NothingFitsError: if not even one example fits.
        WorkloadError: if the workload fails for a reason of its own.
        UsageError: for what cannot be meant.
    """
    if objective not in OBJECTIVES:
        raise UsageError(f"objective is one of {', '.join(OBJECTIVES)}, not {objective!r}")
    counts = {"base_batch": base_batch, "epochs": epochs, "processes": processes}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} is at least 1, not {value}")
    factory = resolve(workload, **options)
    if verify and hasattr(factory, "session"):
        raise UsageError("verify trains branches of a Workload; a framework's trainer has no such")
    asked = _Asked(
        target=None if target is None else parse_target(target),
        budget=parse_seconds(budget),
        objective=objective,
        base_batch=base_batch,
        epochs=epochs,
        verify=verify,
        processes=processes,
        bandwidth=parse_bytes(bandwidth),
        max_batch=max_batch,
        seed=seed,
    )
    started = time.perf_counter()
    with Live("tune", enabled=progress, total=100) as live:

        def show(text: str) -> None:
            live.show(text, int(100 * (time.perf_counter() - started) / asked.budget))

        header = header_for(factory, device=device, margin=margin, seed=seed)
        limit = None if memory is None else parse_bytes(memory)
        found = largest or largest_batch(
            header,
            limit,
            max_batch=max_batch,
            useful=lambda examples: most_useful(examples, epochs),
            show=show,
        )
        tuning = _Tuning(header, limit, found, asked, show, started)
        return tuning.run()


@dataclass(frozen=True)
class _Asked:
    target: tuple[str, float] | None
    budget: float
    objective: str
    base_batch: int
    epochs: int | None
    verify: bool
    processes: int
    bandwidth: int
    max_batch: int | None
    seed: int


class _Tuning:
    """Measures, decides, and says why."""

    def __init__(
        self,
        header: Header,
        limit: int | None,
        largest: FitResult,
        asked: _Asked,
        show: Callable[[str], object],
        started: float,
    ) -> None:
        if largest.examples is None:
            raise UsageError(
                "tune takes a data set with a length, of which it knows how many steps are an "
                "epoch; for a stream, use rightbatch.NoiseScale in your own loop"
            )
        self._header, self._limit = header, limit
        self._largest, self._asked = largest, asked
        self._show, self._started = show, started
        self._examples = largest.examples
        self._base = min(max(asked.base_batch, largest.smallest_batch_size), self._examples)

    def run(self) -> Plan:
        asked, largest = self._asked, self._largest
        with ExitStack() as processes:
            process = processes.enter_context(ProbeProcess(self._header, 1))
            timing = Timing(process, self._limit, self._show)
            seconds = self._left() * TIMING / (TIMING + PILOT)
            timing.run(largest.smallest_batch_size, largest.batch_size, seconds)
            process.stop()
            if asked.objective == "energy" and not all(timing.watts.get(s) for s in timing.samples):
                raise UsageError(
                    f"{largest.device} does not tell its energy; objective='energy' needs an "
                    "NVIDIA GPU of the Volta generation or later, 'time' and 'cost' run anywhere"
                )
            trainer, report = self._pilot(processes)
            notes = tuple(report["notes"])
            noise = estimate_from(report["observations"], notes=notes)
            averaged = estimate_from(report["at_average"], notes=notes)
            if noise is None:
                raise UsageError(
                    "no gradient of the pilot's windows was finite, so that nothing is known of "
                    "its noise; fp16 may overflow where bf16 does not"
                )
            facts = report["facts"]
            throughput, decision, devices = self._decide(timing, report)
            chosen = decision.chosen
            rule = self._scaling(facts, chosen.batch_size, decision.noise_scale)
            branches = self._branches(trainer, decision, facts) if asked.verify else ()
        advice = advise(
            Situation(
                chosen=chosen,
                noise=noise,
                averaged=averaged,
                scaling=rule,
                base_batch=self._base,
                examples=self._examples,
                drop_last=bool(facts["drop_last"]),
                workers=facts["workers"],
                batch_norm=facts["batch_norm"],
                values_per_channel=timing.values.get(chosen.micro_batch_size),
                loading=throughput.waits_for_loading(chosen.batch_size),
                bf16=timing.bf16 if facts["precision"] == "fp32" else None,
                unsteady=spread(timing.samples[chosen.micro_batch_size]),
                losses=[(int(examples), loss) for examples, loss in report["losses"]],
                target_reached=None if asked.target is None else report["reached"] is not None,
            )
        )
        per_epoch = -(-self._examples // chosen.batch_size)
        if facts["drop_last"]:
            per_epoch = max(self._examples // chosen.batch_size, 1)
        return Plan(
            batch_size=chosen.batch_size,
            micro_batch_size=chosen.micro_batch_size,
            accumulation=chosen.accumulation,
            learning_rate_factor=rule.learning_rate_factor,
            learning_rate_rule=rule.rule,
            beta2=rule.beta2,
            epsilon_factor=rule.epsilon_factor,
            base_batch=self._base,
            noise_scale=noise,
            averaged_noise_scale=averaged,
            expected=decision.expected,
            advice=tuple(advice),
            steps_per_epoch=per_epoch,
            steps_in_all=per_epoch * asked.epochs if asked.epochs else None,
            epochs=asked.epochs,
            largest=largest,
            objective=asked.objective,
            processes=devices,
            seconds=time.perf_counter() - self._started,
            reason=reason(decision, largest, asked.objective, branches),
            branches=branches,
            samples={size: tuple(steps) for size, steps in sorted(timing.samples.items())},
            seen=_seen(report),
        )

    def _left(self) -> float:
        """Of the budget; not less than half of it, however long `fit` took."""
        spent = time.perf_counter() - self._started
        return max(self._asked.budget - spent, 0.5 * self._asked.budget)

    def _pilot(self, processes: ExitStack) -> tuple[ProbeProcess, dict[str, Any]]:
        """In smaller parts where memory runs out: the average of the weights takes some of it."""
        share = BRANCHES if self._asked.verify else 0.0
        plan: dict[str, Any] = {
            "batch_size": self._base,
            "micro_batch_size": min(self._base, self._largest.batch_size),
            "seconds": (0.95 - share) * self._left(),
            "epochs": self._asked.epochs or SCHEDULED_EPOCHS,
            "target": self._asked.target,
            "seed": self._asked.seed,
        }
        while True:
            process = processes.enter_context(ProbeProcess(self._header, 2))
            try:
                return process, process.pilot(plan, self._limit, self._show)
            except BuildError as error:
                least = self._largest.smallest_batch_size
                if error.outcome == "failed" or plan["micro_batch_size"] <= least:
                    raise error.failure.as_error("the workload fails while it is tuned") from None
            process.stop()
            plan["micro_batch_size"] = max(plan["micro_batch_size"] // 2, least)

    def _decide(self, timing: Timing, report: dict[str, Any]) -> tuple[Throughput, Decision, int]:
        """With how many devices, too: cost may be least with fewer than there are."""
        asked, facts, reached = self._asked, report["facts"], report["reached"]
        best: tuple[Throughput, Decision, int] | None = None
        counts = [asked.processes]
        if asked.objective == "cost":
            counts = sizes_between(1, asked.processes)
        for devices in counts:
            network = Network(devices, asked.bandwidth, facts["gradient_bytes"])
            throughput = Throughput(
                timing.samples, workers=facts["workers"], network=network, seed=asked.seed
            )

            def price(steps: Steps, devices: int = devices) -> float:
                if asked.objective != "energy":
                    return devices if asked.objective == "cost" else 1
                watts = timing.watts[steps.micro_batch_size]
                return devices * sum(watts) / len(watts)

            decision = decide(
                throughput,
                _seen(report),
                self._candidates(devices),
                most=self._most(devices),
                price=price,
                examples_to_target=(self._base, int(reached["examples"])) if reached else None,
                seed=asked.seed,
            )
            if best is None or decision.price < best[1].price:
                best = throughput, decision, devices
        assert best is not None
        return best

    def _candidates(self, devices: int) -> list[int]:
        """Powers of 2, the default, the size of the learning rate, and the largest that fits; every
        device gets at least one example."""
        largest = self._largest.batch_size
        least = self._largest.smallest_batch_size * devices
        most = max(self._most(devices), largest)
        extra = {size for size in (largest, DEFAULT_BATCH, self._base) if least <= size <= most}
        return sorted({*sizes_between(least, self._most(devices)), *extra})

    def _most(self, devices: int) -> int:
        """Nothing above is chosen: it would leave too few updates, or was not wanted."""
        useful = most_useful(self._examples, self._asked.epochs)
        wanted = self._asked.max_batch or useful
        if self._asked.epochs is not None:
            wanted = min(wanted, useful)
        return max(wanted, self._largest.smallest_batch_size * devices)

    def _scaling(self, facts: dict[str, Any], size: int, noise_scale: float) -> Scaling:
        betas = facts["betas"]
        return scaling(tuple(betas) if betas else None, self._base, size, noise_scale)

    def _branches(
        self, process: ProbeProcess, decision: Decision, facts: dict[str, Any]
    ) -> tuple[Branch, ...]:
        """Half, once, twice and four times the chosen size, all over as many examples."""
        chosen = decision.chosen
        size, least = chosen.batch_size, self._largest.smallest_batch_size
        sizes = [s for s in (size // 2, size, 2 * size, 4 * size) if least <= s <= self._examples]
        rules = [self._scaling(facts, size, decision.noise_scale) for size in sizes]
        tries = [
            {
                "batch_size": size,
                "micro_batch_size": min(size, self._largest.batch_size),
                "batch_factor": rule.batch_factor,
                "learning_rate_factor": rule.learning_rate_factor,
            }
            for size, rule in zip(sizes, rules, strict=True)
        ]
        seconds = BRANCHES * self._asked.budget / len(sizes)
        examples = int(max(seconds * chosen.examples_per_second, LEAST_UPDATES * sizes[-1]))
        found = told(lambda: process.branches(tries, examples, self._show))
        return tuple(Branch(b["batch_size"], b["loss"], b["seconds"], b["examples"]) for b in found)


def _seen(report: dict[str, Any]) -> NoiseWindow:
    here, there = (
        tuple((gradient, noise) for gradient, noise in report[key])
        for key in ("observations", "at_average")
    )
    return NoiseWindow(here, there)
