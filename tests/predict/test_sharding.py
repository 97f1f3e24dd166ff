"""Steps that are sharded over several processes, against closed forms, PyTorch's own tracker of
FSDP2, and two processes that exist."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rightbatch as rb
from rightbatch._predict.allocator import AllocatorSettings
from rightbatch._predict.simulate import simulate

FOLDER = Path(__file__).parent
RANKS = 4
WIDTH, BLOCKS = 64, 6
BLOCK = 4 * (2 * 4 * WIDTH * WIDTH + 5 * WIDTH)  # bytes of its weights
OUTSIDE = 4 * (32 * WIDTH + WIDTH + 10 * WIDTH + 10)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(torch.tanh(self.wide(x)))


class Model(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(Block(width) for _ in range(BLOCKS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return torch.tanh(self.last(x))


def workload(width: int = WIDTH, **fields: Any) -> rb.Workload:
    model = Model(width)
    given: dict[str, Any] = {
        "loss": lambda model, batch: model(batch).square().mean(),
        "optimizer": torch.optim.AdamW(model.parameters()),
        "data": [torch.rand(32) for _ in range(1000)],
    }
    return rb.Workload(model=model, **(given | fields))


def predict(sharding: Any, factory: Any = workload, **options: Any) -> rb.Prediction:
    given: dict[str, Any] = {"batch": 8, "remedies": False, "processes": RANKS}
    return rb.predict(factory, progress=False, sharding=sharding, **(given | options))


@pytest.fixture(scope="module")
def predicted() -> dict[str | None, rb.Prediction]:
    return {kind: predict(kind) for kind in (None, "zero1", "zero2", "zero3")}


def persistent(prediction: rb.Prediction, kind: str) -> int:
    """The bytes of a kind that are there when the last step begins."""
    trace = prediction.trace
    start = [index for index, name in trace.phases if name == "zero gradients"][-1]
    alive: set[int] = set()
    for event in trace.order[:start]:
        if event >= 0:
            alive.add(event)
        else:
            alive.discard(~event)
    return sum(trace.sizes[i] for i in alive if trace.kinds[i] == kind)


def sharded_bytes() -> int:
    """What one of the processes has of the weights: of each, its share of the first dimension."""
    shares = (-(-p.shape[0] // RANKS) * p[0].numel() for p in Model().parameters())
    return 4 * sum(shares)


def test_what_lasts_is_sharded_as_the_stage_says(
    predicted: dict[str | None, rb.Prediction],
) -> None:
    whole = BLOCKS * BLOCK + OUTSIDE
    assert [persistent(predicted[None], kind) for kind in ("parameters", "optimizer")] == [
        whole,
        2 * whole,
    ]
    one = predicted["zero1"]
    assert persistent(one, "parameters") == persistent(one, "gradients") == whole
    # A parameter is in one piece: the shares are as equal as a greedy choice makes them.
    assert persistent(one, "optimizer") == pytest.approx(2 * whole / RANKS, rel=0.1)
    for kind in ("zero2", "zero3"):
        assert persistent(predicted[kind], "parameters") == sharded_bytes()
        assert persistent(predicted[kind], "gradients") == sharded_bytes()
        assert persistent(predicted[kind], "optimizer") == 2 * sharded_bytes()


def test_zero3_gathers_a_block_at_a_time_and_zero2_keeps_all(
    predicted: dict[str | None, rb.Prediction],
) -> None:
    def gathered(kind: str) -> int:
        trace = predicted[kind].trace
        start, stop = ([i for i, name in trace.phases if name == n][-1] for n in
                       ("zero gradients", "backward"))  # fmt: skip
        levels, now = [], 0
        for event in trace.order[:stop]:
            index = event if event >= 0 else ~event
            if trace.kinds[index] == "parameters":
                now += trace.sizes[index] if event >= 0 else -trace.sizes[index]
            levels.append(now)
        return max(levels[start:]) - sharded_bytes()

    padded = RANKS * sharded_bytes()
    assert gathered("zero2") == padded
    assert gathered("zero3") == padded - (BLOCKS - 1) * BLOCK  # one block, and what is in none
    peaks = [predicted[kind].allocated_peak_bytes for kind in (None, "zero1", "zero2", "zero3")]
    assert peaks == sorted(peaks, reverse=True)


PEER = """
import sys, torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from test_sharding import RANKS, Model

dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
mesh = init_device_mesh("cpu", (RANKS,))
settings = {"reshard_after_forward": False} if sys.argv[1] == "zero2" else {}
with FakeTensorMode():
    model = Model()
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    tracker = FSDPMemTracker(model, optimizer)

    def step():
        optimizer.zero_grad()
        model(torch.empty(8, 32)).square().mean().backward()
        optimizer.step()

    step()  # the first one also allocates whole tensors, to learn shapes
    with tracker:
        step()
    print(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])
"""


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_the_peak_is_that_of_pytorchs_own_tracker(
    predicted: dict[str | None, rb.Prediction], kind: str
) -> None:
    pytest.importorskip("torch.distributed._tools.fsdp2_mem_tracker")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PEER, kind],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    trace = predicted[kind].trace
    stop = next(index for index, name in trace.phases if name == "evaluation")
    trained = max(list(trace.live_bytes())[:stop])
    assert int(done.stdout.split()[-1]) == pytest.approx(trained, rel=0.01)


REAL = """
import json, sys, torch
import torch.distributed as dist
from contextlib import nullcontext
from rightbatch._predict.recorder import Recorder
from rightbatch._predict.sharding import shard
from test_sharding import workload

rank, port = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{port}")
w = shard(workload(), "zero3", 2, nullcontext())
recorder = Recorder()
with recorder, recorder.sharded():
    recorder.hold(w.model.parameters(), "parameters")
    for _ in range(2):
        w.optimizer.zero_grad()
        w.loss(w.model, torch.rand(8, 32)).backward()
        w.optimizer.step()
    trace = recorder.trace()
weights = torch.cat([p.full_tensor().flatten() for p in w.model.parameters()])
if rank == 0:
    print(json.dumps({"made": [*zip(trace.sizes, trace.streams)], "norm": float(weights.norm())}))
dist.destroy_process_group()
"""
FAKE = REAL.replace('"gloo", rank=rank, world_size=2, init_method=f"file://{port}"',
                    '"fake", rank=0, world_size=2, store=FakeStore()').replace(
    "from test_sharding",
    "from torch.testing._internal.distributed.fake_pg import FakeStore\nfrom test_sharding",
)  # fmt: skip


def test_two_processes_that_exist_allocate_as_one_that_stands_for_them(tmp_path: Path) -> None:
    def start(text: str, rank: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "ignore", "-c", text, str(rank), str(tmp_path / "store")]
        return subprocess.Popen(
            command, cwd=FOLDER, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    processes = [start(REAL, 0), start(REAL, 1), start(FAKE, 0)]
    outputs = [process.communicate() for process in processes]
    assert all(process.returncode == 0 for process in processes), [e for _, e in outputs]
    real, fake = (json.loads(outputs[i][0].splitlines()[-1]) for i in (0, 2))
    assert real["norm"] > 0
    made, expected = (
        Counter((size, stream) for size, stream in one["made"]) for one in (real, fake)
    )
    assert {stream for _, stream in expected} == {0, 1, 2}  # it gathers and reduces on its own
    # Gloo reduces in a copy of each unit, in each of the two steps; NCCL has none.
    assert made - expected == {(BLOCK, 2): 2 * BLOCKS, (OUTSIDE, 2): 2}
    assert not expected - made


def test_memory_of_other_streams_is_in_other_segments(
    predicted: dict[str | None, rb.Prediction],
) -> None:
    trace = predicted["zero3"].trace
    on_one = replace(trace, streams=())
    apart, together = (simulate(one, AllocatorSettings()) for one in (trace, on_one))
    assert apart is not None and together is not None
    assert apart.allocated_bytes == together.allocated_bytes
    assert apart.reserved_bytes > together.reserved_bytes


def test_the_largest_batch_grows_with_what_is_sharded() -> None:
    data = [torch.rand(32)] * 1_000_000
    largest = [
        predict(kind, lambda: workload(1024, data=data), memory="2500MiB").largest_batch_size or 0
        for kind in (None, "zero2", "zero3")
    ]
    assert 0 < largest[0] < largest[1] < largest[2]


def test_inference_is_sharded_too() -> None:
    one, several = (predict(kind, inference=True) for kind in (None, "zero3"))
    assert several.allocated_peak_bytes < one.allocated_peak_bytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharding": "zero3", "processes": 1}, "say over how many"),
        ({"sharding": "zero4"}, "unknown sharding 'zero4'; there are zero1, zero2, zero3"),
        ({"sharding": "zero1", "inference": True}, "what inference does not have; take zero3"),
    ],
)
def test_what_cannot_be_sharded_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(rb.UsageError, match=message):
        predict(**options)


def reads_values() -> rb.Workload:
    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = model(batch)
        return out[out > 0].square().mean()

    return workload(loss=loss)


def picky() -> rb.Workload:
    class Picky(torch.optim.SGD):
        def __init__(self, model: nn.Module, rate: float) -> None:
            super().__init__(model.parameters(), rate)

    w = workload()
    return replace(w, optimizer=Picky(w.model, 0.1))


def test_steps_that_read_values_are_refused_when_sharded() -> None:
    with pytest.raises(rb.UsageError, match="predict it without sharding"):
        predict("zero3", reads_values)


def test_an_optimizer_that_cannot_be_rebuilt_is_refused_with_the_way_round() -> None:
    with pytest.raises(rb.UsageError, match=r"zero1 cannot rebuild Picky.*zero2 and zero3 keep"):
        predict("zero1", picky)


def test_blocks_that_share_a_parameter_are_refused_with_the_way_round() -> None:
    def tied() -> rb.Workload:
        made = workload()
        blocks: Any = made.model.blocks
        blocks[2].wide.weight = blocks[0].wide.weight
        return replace(made, optimizer=torch.optim.AdamW(made.model.parameters()))

    with pytest.raises(
        rb.UsageError, match=r"blocks.2.wide.weight is shared .* predict it with zero1"
    ):
        predict("zero3", tied)
