"""The scheduler on a virtual clock: the most that is 99% in target, and what is left in overload.

`python -m benchmarks.serve.virtual` takes a few minutes on one core and gives the same everywhere:
no clock is read. A batch of n items takes a n + b; every policy knows that, and the target.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from benchmarks._record import save, say
from rightbatch._serve.engine.scheduler import Scheduler
from rightbatch._serve.engine.service_times import ServiceTable
from rightbatch._serve.engine.virtual_clock import Arrival, cameras, poisson, simulate
from rightbatch.testing._queueing import capacity

# a, b, target; the rates that must be reached, of cameras and Poisson arrivals, items a second.
ROWS = (
    (1e-3, 4e-3, 0.033, {"cameras": 731, "poisson": 620}),
    (1e-3, 4e-3, 0.1, {"cameras": 901, "poisson": 866}),
    (0.2e-3, 3e-3, 0.033, {"cameras": 3980, "poisson": 3840}),
    (5e-3, 20e-3, 0.2, {"cameras": 156, "poisson": 136}),
)
VIDEO, SLOW = 30.0, 10.0  # frames a second of a camera, or nearly: so that the rate is exact
SHARE, ITEMS, SEEDS = 0.99, 120_000, range(4)
GRID_ITEMS, WITHIN = 20_000, 0.002
OVERLOAD, OVERLOAD_FACTOR, KEPT = 1200.0, 1.6, 0.95
WAITS = (0.0, 0.05, 0.1, 0.2, 0.45)  # of the target
LONG_WAIT = 0.015  # seconds, in overload

Load = Callable[[float, int, int], list[Arrival]]
Policy = Callable[[Sequence[Arrival]], int]  # how many were in time


def main() -> None:
    rows = [row(*one) for one in ROWS]
    document = {"share": SHARE, "items": ITEMS, "seeds": len(SEEDS), "rows": rows} | {
        "overload": overload()
    }
    save("serve_virtual", document, table(document))


# -- loads


def of_cameras(per: float) -> Load:
    def load(rate: float, items: int, seed: int) -> list[Arrival]:
        count = max(1, round(rate / per))
        return cameras(count, rate / count, items / rate, seed)

    return load


def of_requests(rate: float, items: int, seed: int) -> list[Arrival]:
    return poisson(rate, items / rate, seed)


LOADS: dict[str, Load] = {
    "cameras": of_cameras(VIDEO),
    "poisson": of_requests,
    "slow cameras": of_cameras(SLOW),
}


# -- policies


class Server:
    """A device, a target, and everything that may decide for them."""

    def __init__(self, a: float, b: float, target: float) -> None:
        self.a, self.b, self.target = a, b, target
        self.cap = self._scheduler().largest
        self.capacity = capacity(a, b, self.cap)

    def seconds(self, size: int) -> float:
        return self.a * size + self.b

    def policies(self) -> dict[str, Policy]:
        return {
            "rightbatch": self.rightbatch,
            "greedy, no drop": self.greedy,
            "newest first": self.newest_first,
            "shrinking": self.shrinking,
        }

    def _scheduler(self) -> Scheduler:
        table = ServiceTable({2**k: [self.seconds(2**k)] for k in range(11)})
        return Scheduler(table, self.target)

    def rightbatch(self, arrivals: Sequence[Arrival]) -> int:
        return simulate(self._scheduler(), arrivals).in_time

    def greedy(self, arrivals: Sequence[Arrival]) -> int:
        return self.fixed(self.cap, 0.0)(arrivals)

    def fixed(self, size: int, wait: float) -> Policy:
        """Go with so many, or once the first has waited so long."""

        def policy(arrivals: Sequence[Arrival]) -> int:
            moments = [at for at, _ in arrivals]
            first, free, in_time = 0, 0.0, 0
            while first < len(moments):
                start = moments[first] + wait
                if first + size <= len(moments):
                    start = min(start, moments[first + size - 1])
                start = max(start, free)
                last = min(first + size, bisect.bisect_right(moments, start, first))
                free = start + self.seconds(last - first)
                in_time += last - bisect.bisect_left(moments, free - self.target, first, last)
                first = last
            return in_time

        return policy

    def newest_first(self, arrivals: Sequence[Arrival]) -> int:
        moments = [at for at, _ in arrivals]
        waiting: list[float] = []
        place, free, in_time = 0, 0.0, 0
        while place < len(moments) or waiting:
            start = free if waiting else max(free, moments[place])
            while place < len(moments) and moments[place] <= start:
                waiting.append(moments[place])
                place += 1
            batch = waiting[-self.cap :]
            del waiting[-self.cap :]
            free = start + self.seconds(len(batch))
            in_time += sum(free - at <= self.target for at in batch)
        return in_time

    def shrinking(self, arrivals: Sequence[Arrival]) -> int:
        """A batch is made so small that the oldest is in time; where none is, it is dropped."""
        moments = [at for at, _ in arrivals]
        first, free, in_time = 0, 0.0, 0
        while first < len(moments):
            start = max(free, moments[first])
            left = moments[first] + self.target - start
            most = int((left - self.b) / self.a + 1e-9)
            if most < 1:
                first += 1
                continue
            waiting = bisect.bisect_right(moments, start, first) - first
            size = min(waiting, self.cap, most)
            free = start + self.seconds(size)
            in_time += size
            first += size
        return in_time


# -- searches


def attained(
    policy: Policy, load: Load, rate: float, items: int = ITEMS, seeds: range = SEEDS
) -> float:
    counted = [(policy(arrivals), len(arrivals)) for arrivals in _loads(load, rate, items, seeds)]
    return sum(good for good, _ in counted) / sum(offered for _, offered in counted)


def _loads(load: Load, rate: float, items: int, seeds: range) -> list[list[Arrival]]:
    return [load(rate, items // len(seeds), seed) for seed in seeds]


def largest_rate(
    policy: Policy, load: Load, most: float, items: int = ITEMS, seeds: range = SEEDS
) -> float:
    low, high = 0.0, most
    while high - low > WITHIN * most:
        rate = (low + high) / 2
        if attained(policy, load, rate, items, seeds) >= SHARE:
            low = rate
        else:
            high = rate
    return low


def best_fixed(server: Server, load: Load) -> tuple[float, int, float]:
    """The rate, the size and the wait of the best of a grid."""
    sizes = sorted({1, 2, 4, server.cap // 2, server.cap, round(1.25 * server.cap)} - {0})
    waits = [share * server.target for share in WAITS]
    most = 1.05 / server.a
    found = [
        (largest_rate(server.fixed(size, wait), load, most, GRID_ITEMS, range(2)), size, wait)
        for size, wait in product(sizes, waits)
        if size > 1 or not wait
    ]
    _, size, wait = max(found, key=lambda one: (one[0], -one[2]))
    return largest_rate(server.fixed(size, wait), load, most), size, wait


def row(a: float, b: float, target: float, goals: dict[str, float]) -> dict[str, Any]:
    server = Server(a, b, target)
    found: dict[str, Any] = {}
    for kind, load in LOADS.items():
        rates = {
            name: largest_rate(policy, load, 1.05 / a) for name, policy in server.policies().items()
        }
        rate, size, wait = best_fixed(server, load)
        rates["best fixed"] = rate
        goal = goals.get(kind)
        found[kind] = {
            "goal": goal,
            "attained_at_goal": attained(server.rightbatch, load, goal) if goal else None,
            "rates": rates,
            "best_fixed": {"size": size, "wait": wait},
        }
        say(f"{a}, {b}, {target}, {kind}: {found[kind]}")
    offered = OVERLOAD_FACTOR * server.capacity
    kept = {
        kind: attained(server.rightbatch, load, offered) * offered / server.capacity
        for kind, load in LOADS.items()
    }
    return {
        "a": a,
        "b": b,
        "target": target,
        "largest_batch": server.cap,
        "capacity": server.capacity,
        "loads": found,
        "overload": {"factor": OVERLOAD_FACTOR, "kept_of_capacity": kept},
    }


def overload() -> dict[str, Any]:
    """The first row, offered more than it can serve: how much is in time."""
    server = Server(*ROWS[0][:3])
    policies = server.policies() | {
        f"fixed, {1000 * LONG_WAIT:g} ms": server.fixed(server.cap, LONG_WAIT),
    }
    return {
        "rate": OVERLOAD,
        "capacity": server.capacity,
        "share_in_time": {
            name: {kind: attained(policy, load, OVERLOAD) for kind, load in LOADS.items()}
            for name, policy in policies.items()
        },
    }


# -- what a person reads

_NAMES = {
    "cameras": f"cameras of {VIDEO:g}/s",
    "poisson": "Poisson",
    "slow cameras": f"cameras of {SLOW:g}/s",
}


def table(document: dict[str, Any]) -> str:
    parts = [
        "# The scheduler on a virtual clock\n\n"
        f"The highest rate (items per second) with {SHARE:.0%} within the target, by bisection to "
        f"{WITHIN:.1%}, over {len(SEEDS)} seeds and {ITEMS:,} items. A batch of n takes a·n + b. "
        "All policies but `best fixed` form at most the largest batch of which two fit into the "
        "target. a, b and target are in milliseconds; in brackets the goal, and the size and wait "
        "of the best fixed batch.\n"
    ]
    for kind, name in _NAMES.items():
        policies = list(document["rows"][0]["loads"][kind]["rates"])
        parts += [
            f"## {name}\n",
            f"| a, b, target | {' | '.join(policies)} | in time at the goal |",
            "|---|" + "---|" * (len(policies) + 1),
            *(_line(one, kind) for one in document["rows"]),
            "",
        ]
    most, shares = document["overload"]["capacity"], document["overload"]["share_in_time"]
    parts += [
        f"## Overload: the first row, offered {OVERLOAD:g}/s with a capacity of {most:g}/s\n",
        "| in time | " + " | ".join(_NAMES.values()) + " |",
        "|---|" + "---|" * len(_NAMES),
        *(
            f"| {name} | " + " | ".join(f"{by_kind[kind]:.1%}" for kind in _NAMES) + " |"
            for name, by_kind in shares.items()
        ),
        f"\n## Share of the capacity served in time, offered {OVERLOAD_FACTOR:g} times as much\n",
        "| a, b, target | " + " | ".join(_NAMES.values()) + " |",
        "|---|" + "---|" * len(_NAMES),
        *(
            f"| {_setting(one)} | "
            + " | ".join(f"{one['overload']['kept_of_capacity'][kind]:.1%}" for kind in _NAMES)
            + " |"
            for one in document["rows"]
        ),
        "",
        *_verdicts(document),
    ]
    return "\n".join(parts) + "\n"


def _setting(one: dict[str, Any]) -> str:
    return f"{1000 * one['a']:g}, {1000 * one['b']:g}, {1000 * one['target']:g}"


def _line(one: dict[str, Any], kind: str) -> str:
    load = one["loads"][kind]
    cells = [f"{rate:.0f}" for rate in load["rates"].values()]
    if load["goal"]:
        cells[0] += f" ({load['goal']})"
    cells[-1] += f" ({load['best_fixed']['size']}, {1000 * load['best_fixed']['wait']:.3g} ms)"
    at_goal = load["attained_at_goal"]
    cells.append("–" if at_goal is None else f"{at_goal:.2%}")
    return f"| {_setting(one)} | " + " | ".join(cells) + " |"


def _verdicts(document: dict[str, Any]) -> list[str]:
    missed = [
        f"{_setting(one)}, {_NAMES[kind]}"
        for one in document["rows"]
        for kind, load in one["loads"].items()
        if load["goal"] and load["attained_at_goal"] < SHARE
    ]
    lost = [
        f"{_setting(one)}, {_NAMES[kind]}"
        for one in document["rows"]
        for kind, kept in one["overload"]["kept_of_capacity"].items()
        if kept < KEPT
    ]
    behind = [
        f"{_setting(one)}, {_NAMES[kind]}"
        for one in document["rows"]
        for kind, load in one["loads"].items()
        if load["rates"]["rightbatch"] < max(load["rates"].values()) * (1 - 2 * WITHIN)
    ]
    return [
        f"- {SHARE:.0%} in time at the goal's rate: "
        + (f"not at {'; '.join(missed)}" if missed else "everywhere"),
        f"- at least {KEPT:.0%} of the capacity served in overload: "
        + (f"not at {'; '.join(lost)}" if lost else "everywhere"),
        "- the highest rate of all policies: "
        + (f"not at {'; '.join(behind)}" if behind else "everywhere"),
    ]


if __name__ == "__main__":
    main()
