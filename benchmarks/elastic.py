"""`Elastic`: what it costs, how exact it is, and what a failure costs beside what peers do.

`python -m benchmarks.elastic [PART ...]` runs some of its parts and keeps the others' results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

import rightbatch as rb
from benchmarks._record import RESULTS, about, save
from benchmarks.workloads import factory
from rightbatch.testing import inject_out_of_memory

Task = tuple[nn.Module, Callable[[nn.Module, Any], Tensor], list[Any]]
SILENT: Callable[[Any], None] = lambda event: None  # noqa: E731
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.003),
}


# Overhead

OVERHEAD = {"resnet18": (32, 8), "vit_tiny": (32, 8), "characters": (8, 2)}
"""Batch and micro-batch: seconds a step, as where accumulation is used at all."""
ROUNDS = 30


def overhead() -> dict[str, Any]:
    """Elastic's own processor time, and whole steps beside a plain loop of the same parts.

    Three trainings go on in turns: a plain loop, the same again (A/A), and Elastic. Own time is
    what passes outside of the loss, of `backward` and of `optimizer.step`, less the same of the
    plain loop; and what the optimizer's step in chunks takes longer than the plain one's.
    """
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (batch_size, micro) in OVERHEAD.items():
            results[name] = _overhead_of(factory(name, Path(folder)), batch_size, micro)
            say(f"overhead {name}: {results[name]['own_share']:.4f}")
    return results


def _overhead_of(subject: Any, batch_size: int, micro: int) -> dict[str, Any]:
    def made() -> tuple[rb.Workload, Any]:
        torch.manual_seed(0)
        workload = subject.load()()
        batch = workload.collate([workload.data[i] for i in range(batch_size)])
        return workload, batch

    plain, again, elastic = made(), made(), made()
    inside = {"model": 0.0, "update": 0.0}

    def timed(key: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            started = time.process_time()
            try:
                return function(*arguments)
            finally:
                inside[key] += time.process_time() - started

        return run

    w, batch = elastic
    step = rb.Elastic(
        w.model,
        w.optimizer,
        timed("model", w.loss),
        micro_batch_size=micro,
        count=w.count,
        split=w.split,
        backward=timed("model", lambda loss: loss.backward()),
        update=timed("update", lambda: w.optimizer.step()),
        on_event=SILENT,
    )
    kinds = ("plain", "again", "elastic", "own", "own_plain")
    samples: dict[str, list[float]] = {kind: [] for kind in kinds}
    updates: dict[str, list[float]] = {"plain": [], "elastic": []}
    for number in range(ROUNDS + 3):
        keep = number >= 3
        for key, (workload, its_batch) in (("plain", plain), ("again", again)):
            started = time.process_time()
            inside_plain = _plain_step(workload, its_batch, micro)
            if keep:
                spent = time.process_time() - started
                samples[key].append(spent)
                updates["plain"].append(inside_plain["update"])
                samples["own_plain"].append(spent - sum(inside_plain.values()))
        inside.update(model=0.0, update=0.0)
        started = time.process_time()
        step(batch)
        spent = time.process_time() - started
        if keep:
            samples["elastic"].append(spent)
            samples["own"].append(spent - inside["model"] - inside["update"])
            updates["elastic"].append(inside["update"])
    chunks = statistics.median(updates["elastic"]) - statistics.median(updates["plain"])
    own = statistics.median(samples["own"]) - statistics.median(samples["own_plain"])
    whole = statistics.median(samples["elastic"])
    return {
        "batch_size": batch_size,
        "micro_batch_size": micro,
        "own_share": (own + max(chunks, 0.0)) / whole,
        "own_seconds": own,
        "chunks_seconds": chunks,
        "step_seconds": whole,
        "ratio": _interval_of_ratio(samples["elastic"], samples["plain"]),
        "same_again": _interval_of_ratio(samples["again"], samples["plain"]),
        "samples": samples,
        "updates": updates,
    }


def _plain_step(w: rb.Workload, batch: Any, micro: int) -> dict[str, float]:
    """The loop that people write; returns the processor seconds of model and optimizer."""
    inside = {"model": 0.0, "update": 0.0}
    w.optimizer.zero_grad()
    parts = w.split(batch, micro)
    counts = [w.count(part) for part in parts]
    total = sum(counts)
    for part, n in zip(parts, counts, strict=True):
        started = time.process_time()
        loss = w.loss(w.model, part)
        inside["model"] += time.process_time() - started
        loss = loss * (n / total)
        started = time.process_time()
        loss.backward()
        inside["model"] += time.process_time() - started
    started = time.process_time()
    w.optimizer.step()
    inside["update"] = time.process_time() - started
    return inside


def _interval_of_ratio(one: list[float], other: list[float]) -> dict[str, float]:
    """Median of the paired ratios, with a 95% bootstrap interval."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {"median": statistics.median(ratios), "low": medians[50], "high": medians[-51]}


# Exactness


class Words(nn.Module):
    def __init__(self, activation: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, batch_first=True, activation=activation
        )
        self.head = nn.Linear(32, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(tokens)))  # type: ignore[no-any-return]


def _next(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _classified(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def _task(name: str, dtype: torch.dtype) -> Task:
    torch.manual_seed(0)
    sizes = [32, 32, 27, 32, 9]
    if name.startswith("transformer"):
        # A ReLU turns a rounding into a step where a value is within 1e-7 of zero; GELU has none.
        words = Words("gelu" if name.endswith("GELU") else "relu")
        return words.to(dtype), _next, [torch.randint(50, (n, 12)) for n in sizes]
    if name == "convolution":
        shape: tuple[int, ...] = (3, 12, 12)
        layers = [nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 16, 3)]
        model = nn.Sequential(*layers, nn.GroupNorm(4, 16), nn.ReLU(), nn.Flatten())
        model.append(nn.Linear(16 * 64, 5))
    else:
        shape = (20,)
        model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        model.append(nn.Linear(64, 5))
    batches = [(torch.randn(n, *shape, dtype=dtype), torch.randint(5, (n,))) for n in sizes]
    return model.to(dtype), _classified, batches


STEPS, FAILURES, MICRO = 200, 20, 6


def exactness() -> list[dict[str, Any]]:
    """Gradients of parts against the whole; 200 steps with 20 failures against none."""
    rows = []
    for dtype in (torch.float64, torch.float32):
        for task in ("mlp", "convolution", "transformer, ReLU", "transformer, GELU"):
            for optimizer in OPTIMIZERS:
                rows.append(_exactness_of(task, optimizer, dtype))
                say(f"exactness {rows[-1]}")
    return rows


def _exactness_of(task: str, optimizer: str, dtype: torch.dtype) -> dict[str, Any]:
    worst = 0.0
    model, loss, batches = _task(task, dtype)
    step = rb.Elastic(
        model,
        OPTIMIZERS[optimizer](model.parameters()),
        loss,
        micro_batch_size=MICRO,
        on_event=SILENT,
    )
    for number in range(20):
        batch = batches[number % len(batches)]
        whole = torch.autograd.grad(loss(model, batch), list(model.parameters()))
        step(batch)
        parts = [p.grad for p in model.parameters() if p.grad is not None]
        worst = max(worst, difference(parts, whole))
    undisturbed = _trained(task, optimizer, dtype, MICRO)
    # What fails twice in a row is halved, so a disturbed training runs at several sizes.
    disturbed, failures, seen_once, sizes = _disturbed(task, optimizer, dtype)
    others = [_trained(task, optimizer, dtype, size) for size in sizes if size != MICRO]
    pairs = itertools.combinations([undisturbed, *others], 2)
    once_more, same_failures = _retried(task, optimizer, dtype)
    return {
        "task": task,
        "optimizer": optimizer,
        "dtype": str(dtype).removeprefix("torch."),
        "gradient": worst,
        "failures": failures,
        "end": difference(disturbed, undisturbed),
        "sizes": sizes,
        "two_sizes": max(difference(one, other) for one, other in pairs),
        "retries_at_the_same_size": same_failures,
        "retried_equal_bit_for_bit": all(map(torch.equal, once_more, undisturbed)),
        "examples_seen_once": seen_once,
    }


def _trained(task: str, optimizer: str, dtype: torch.dtype, micro: int) -> list[Tensor]:
    model, loss, batches = _task(task, dtype)
    update = OPTIMIZERS[optimizer](model.parameters())
    step = rb.Elastic(model, update, loss, micro_batch_size=micro, on_event=SILENT)
    for number in range(STEPS):
        step(batches[number % len(batches)])
    return [p.detach() for p in model.parameters()]


def _disturbed(
    task: str, optimizer: str, dtype: torch.dtype
) -> tuple[list[Tensor], int, bool, list[int]]:
    model, loss, batches = _task(task, dtype)
    update = OPTIMIZERS[optimizer](model.parameters())
    step = rb.Elastic(model, update, loss, micro_batch_size=MICRO, on_event=SILENT)
    chance = random.Random(0)
    places = ("forward", "backward", "synchronization", "optimizer", "hook")
    at = sorted(chance.sample(range(STEPS), FAILURES))
    failures, counted = 0, True
    sizes: set[int] = set()
    for number in range(STEPS):
        batch = batches[number % len(batches)]
        size = len(batch[1]) if isinstance(batch, tuple) else len(batch)
        with ExitStack() as stack:
            if number in at:
                fault = inject_out_of_memory(chance.choice(places), 0)
                injected = stack.enter_context(fault)
            report = step(batch)
            counted &= report.count == size
            sizes.add(report.micro_batch_size)
        failures += len(injected.failed) if number in at else 0
    return [p.detach() for p in model.parameters()], failures, counted, sorted(sizes)


def _retried(task: str, optimizer: str, dtype: torch.dtype) -> tuple[list[Tensor], int]:
    """Failures so far apart that each is tried again at the same size."""
    model, loss, batches = _task(task, dtype)
    update = OPTIMIZERS[optimizer](model.parameters())
    step = rb.Elastic(model, update, loss, micro_batch_size=MICRO, on_event=SILENT)
    failures = 0
    for number in range(STEPS):
        with ExitStack() as stack:
            if number % 25 == 12:
                stack.enter_context(inject_out_of_memory("backward", 1))
                failures += 1
            step(batches[number % len(batches)])
    return [p.detach() for p in model.parameters()], failures


def difference(one: Any, other: Any) -> float:
    apart = sum(
        float((a.double() - b.double()).square().sum()) for a, b in zip(one, other, strict=True)
    )
    return float((apart / sum(float(b.double().square().sum()) for b in other)) ** 0.5)


# Several processes

RUNS, RUN_STEPS = 50, 12


def processes() -> dict[str, Any]:
    """DDP with 2 and 4 processes, failures in random ones: 50 trainings each."""
    results = {}
    for world_size in (2, 4):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(
                _one_process, args=(world_size, folder), nprocs=world_size, join=True
            )
            ends = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world_size)]
        differing = sum(
            not all(torch.equal(a, b) for a, b in zip(ends[0][run], end[run], strict=True))
            for run in range(RUNS)
            for end in ends[1:]
        )
        survived = sum(int(end[-1]) for end in ends)
        results[str(world_size)] = {
            "runs": RUNS,
            "deadlocks": 0,  # one would have ended the benchmark by the group's timeout
            "failures_injected": survived,
            "differences_between_processes": differing,
        }
        say(f"processes {world_size}: {results[str(world_size)]}")
    return results


def _one_process(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        f"file://{folder}/meeting",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    ends: list[Any] = []
    injected_in_all = 0
    for run in range(RUNS):
        model, loss, batches = _task("convolution", torch.float32)
        parallel = nn.parallel.DistributedDataParallel(model)
        update = OPTIMIZERS["AdamW"](model.parameters())
        step = rb.Elastic(parallel, update, loss, micro_batch_size=4, check=False, on_event=SILENT)
        chance = random.Random(f"{run} {rank}")
        for number in range(RUN_STEPS):
            images, labels = batches[number % len(batches)]
            share = images[rank::world_size], labels[rank::world_size]
            with ExitStack() as stack:
                if chance.random() < 0.3 / world_size:
                    place = chance.choice(
                        ("forward", "backward", "synchronization", "optimizer", "hook")
                    )
                    fault = stack.enter_context(inject_out_of_memory(place, 0))
                    step(share)
                    injected_in_all += len(fault.failed)
                else:
                    step(share)
        ends.append([p.detach().clone() for p in model.parameters()])
    ends.append(torch.tensor(injected_in_all))
    torch.save(ends, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


# What a failure costs


def lost() -> dict[str, Any]:
    """Seconds of a step with one failure, over those of a step without, by place."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        subject = factory("resnet18", Path(folder))
        torch.manual_seed(0)
        w = subject.load()()
        batch = w.collate([w.data[i] for i in range(32)])
        step = rb.Elastic(w.model, w.optimizer, w.loss, micro_batch_size=8, on_event=SILENT)
        for _ in range(3):
            step(batch)
        plain = [step(batch).seconds for _ in range(8)]
        usual = statistics.median(plain)
        for place in ("forward", "backward", "synchronization", "hook", "optimizer"):
            disturbed = []
            for _ in range(5):
                when = 3 if place in ("forward", "backward") else 0  # the last part
                with inject_out_of_memory(place, when):
                    disturbed.append(step(batch).seconds)
                for _ in range(21):  # until an emptied cache is worth another try
                    step._micro.went_well(is_short=True)  # type: ignore[union-attr]
            results[place] = {
                "steps_lost": statistics.median(disturbed) / usual - 1,
                "seconds": disturbed,
            }
            say(f"lost {place}: {results[place]['steps_lost']:.2f} steps")
    return {"step_seconds": plain, "places": results}


# Peers in the same scenario

SCENARIO_STEPS, FAILS_AT = 40, 25


def peers() -> dict[str, Any]:
    """Memory runs out once, at step 25 of 40, at any size above 8 examples at once."""
    return {
        "elastic": _elastic_scenario(),
        "accelerate": _accelerate_scenario(),
        "ultralytics": _ultralytics_scenario(),
    }


@contextmanager
def _fails_once(large: int) -> Iterator[Callable[[int], None]]:
    """A function to call with the examples at once; fails at its call for step `FAILS_AT`."""
    seen = {"calls": 0, "failed": 0}

    def run(examples: int) -> None:
        seen["calls"] += 1
        if examples > large and seen["calls"] > FAILS_AT:
            seen["failed"] += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    yield run


def _elastic_scenario() -> dict[str, Any]:
    model, loss, batches = _task("mlp", torch.float32)
    attempts = 0
    with _fails_once(8) as fault:

        def failing(model: nn.Module, batch: Any) -> Tensor:
            fault(len(batch[1]))
            return loss(model, batch)

        step = rb.Elastic(
            model, OPTIMIZERS["SGD"](model.parameters()), failing, micro_batch_size=32,
            check=False, on_event=SILENT,
        )  # fmt: skip
        for _ in range(SCENARIO_STEPS):
            attempts += step(batches[0]).attempts
    return {
        "ended": True,
        "restarts": 0,
        "steps_run": attempts,
        "steps_lost": attempts - SCENARIO_STEPS,
        "batch_size": 32,
        "at_once": step.micro_batch_size,
    }


def _accelerate_scenario() -> dict[str, Any]:
    from accelerate.utils import find_executable_batch_size

    seen = {"steps": 0, "starts": 0, "size": 0}
    with _fails_once(8) as fault:

        @find_executable_batch_size(starting_batch_size=32)  # type: ignore[untyped-decorator]
        def train(batch_size: int) -> None:
            seen["starts"] += 1
            seen["size"] = batch_size
            model, loss, batches = _task("mlp", torch.float32)
            optimizer = OPTIMIZERS["SGD"](model.parameters())
            for _ in range(SCENARIO_STEPS):
                seen["steps"] += 1
                fault(batch_size)
                optimizer.zero_grad()
                loss(model, tuple(t[:batch_size] for t in batches[0])).backward()
                optimizer.step()

        train()
    return {
        "ended": True,
        "restarts": seen["starts"] - 1,
        "steps_run": seen["steps"],
        "steps_lost": seen["steps"] - SCENARIO_STEPS,
        "batch_size": seen["size"],
        "at_once": seen["size"],
    }


def _ultralytics_scenario() -> dict[str, Any]:
    """Its own retry, once in the first epoch and once in the second one."""
    results = {}
    for name, fails_at in (("first epoch", 3), ("second epoch", 9)):
        results[name] = _ultralytics_run(fails_at)
        say(f"ultralytics {name}: {results[name]}")
    return results


def _ultralytics_run(fails_at: int) -> dict[str, Any]:
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel

    from rightbatch.examples.parts import render_parts

    seen = {"calls": 0, "failed": 0}
    original = DetectionModel.loss

    def failing(self: Any, batch: Any, preds: Any = None) -> Any:
        if self.training:
            seen["calls"] += 1
            if seen["calls"] == fails_at:
                seen["failed"] += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, batch, preds)

    DetectionModel.loss = failing
    with tempfile.TemporaryDirectory() as folder:
        data = render_parts(Path(folder) / "parts", images=48, validation=8, size=64)
        model = YOLO("yolo26n.yaml")
        try:
            model.train(
                data=str(data), epochs=2, batch=8, imgsz=64, device="cpu", project=folder,
                name="run", workers=0, plots=False, verbose=False,
            )  # fmt: skip
            ended, size = True, int(model.trainer.batch_size)
        except torch.OutOfMemoryError:
            ended, size = False, 8
        finally:
            DetectionModel.loss = original
    return {"ended": ended, "batch_size": size, "steps_run": seen["calls"], "steps_asked": 12}


PARTS: dict[str, Callable[[], Any]] = {
    "exactness": exactness,
    "processes": processes,
    "peers": peers,
    "overhead": overhead,
    "lost": lost,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART")
    arguments = parser.parse_args()
    stored = RESULTS / "elastic.json"
    results: dict[str, Any] = json.loads(stored.read_text())["results"] if stored.exists() else {}
    for part in arguments.parts:
        results[part] = {"about": about(), "found": PARTS[part]()}
        save("elastic", {"results": results}, table(results))
    print(table(results))


def table(results: dict[str, Any]) -> str:
    """The tables of the docs."""
    found = {part: result["found"] for part, result in results.items()}
    lines = []
    if "overhead" in found:
        lines += [
            "| training | batch, at once | Elastic's own time | of it in the optimizer "
            "| step ÷ plain step | A/A |",
            "|---|---|---|---|---|---|",
        ]
        for name, r in found["overhead"].items():
            ratio, same = r["ratio"], r["same_again"]
            lines.append(
                f"| {name} | {r['batch_size']}, {r['micro_batch_size']} | {r['own_share']:.2%} "
                f"| {max(r['chunks_seconds'], 0) / r['step_seconds']:.2%} "
                f"| {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}) "
                f"| {same['median']:.3f} ({same['low']:.3f} to {same['high']:.3f}) |"
            )
        lines.append("")
    if "exactness" in found:
        lines += [
            "| task | optimizer | precision | each gradient | end after 200 steps with failures "
            "| two undisturbed sizes | retries at one size equal |",
            "|---|---|---|---|---|---|---|",
        ]
        for r in found["exactness"]:
            equal = "bit for bit" if r["retried_equal_bit_for_bit"] else "no"
            lines.append(
                f"| {r['task']} | {r['optimizer']} | {r['dtype']} | {r['gradient']:.1e} "
                f"| {r['end']:.1e} ({r['failures']} failures) | {r['two_sizes']:.1e} | {equal} |"
            )
        lines.append("")
    if "processes" in found:
        lines += [
            "| processes | trainings | failures | deadlocks | differences between processes |",
            "|---|---|---|---|---|",
        ]
        for size, r in found["processes"].items():
            lines.append(
                f"| {size} | {r['runs']} | {r['failures_injected']} | {r['deadlocks']} "
                f"| {r['differences_between_processes']} |"
            )
        lines.append("")
    if "lost" in found:
        lines += ["| memory runs out in | steps lost |", "|---|---|"]
        for place, r in found["lost"]["places"].items():
            lines.append(f"| {place} | {r['steps_lost']:.2f} |")
        lines.append("")
    if "peers" in found:
        p = found["peers"]
        lines += [
            "| memory runs out once | ends | restarts | steps lost | batch size afterwards |",
            "|---|---|---|---|---|",
        ]
        for name in ("elastic", "accelerate"):
            r = p[name]
            lines.append(
                f"| {name}, step 25 of 40 | yes | {r['restarts']} | {r['steps_lost']} "
                f"| {r['batch_size']} (was 32) |"
            )
        for name, r in p["ultralytics"].items():
            lost_steps = r["steps_run"] - r["steps_asked"] if r["ended"] else "all"
            lines.append(
                f"| ultralytics, {name} | {'yes' if r['ended'] else 'no'} | – | {lost_steps} "
                f"| {r['batch_size']} (was 8) |"
            )
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
