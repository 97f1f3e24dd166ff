"""What a model keeps in attributes is the same after trial passes, and after a failed attempt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rightbatch import Elastic
from rightbatch._workload.module_attributes import ModuleAttributes

Batch = tuple[Tensor, Tensor]


class Recurrent(nn.Module):
    """A hidden state of the last batch's size, a counter, a list, and a queue."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 1)
        self.hidden: Tensor | None = None
        self.seen, self.sizes, self.queue = 0, [0], torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        self.sizes.append(len(x))
        self.queue[:] += 1
        out, hidden = self.rnn(x, self.hidden)
        self.hidden = hidden.detach()
        return self.head(out[:, -1]).squeeze(1)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def batch(examples: int) -> Batch:
    return torch.randn(examples, 5, 4), torch.randn(examples)


def test_trial_passes_leave_no_trace_in_attributes() -> None:
    """The state of a trial pass has another size than the batch (udacity/…-pytorch#398)."""
    torch.manual_seed(0)
    model = Recurrent()
    step = Elastic(model, torch.optim.SGD(model.parameters(), lr=0.1), loss)
    step(batch(12))
    assert (model.seen, model.sizes, model.queue.tolist()) == (12, [0, 12], [1, 1, 1])
    assert model.hidden is not None and model.hidden.shape[1] == 12


def test_a_hidden_state_in_parts_is_reported_as_inexact() -> None:
    torch.manual_seed(0)
    model = Recurrent()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = Elastic(model, optimizer, loss, micro_batch_size=6)
    assert "keeps a state" in str(step(batch(12)).events[0])


def test_a_repeated_attempt_starts_from_the_same_attributes() -> None:
    torch.manual_seed(0)
    model = Recurrent()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = []

    def failing(model: nn.Module, batch: Batch) -> Tensor:
        calls.append(len(batch[0]))
        value = loss(model, batch)
        if len(calls) == 1:
            raise MemoryError
        return value

    step = Elastic(model, optimizer, failing, micro_batch_size=12, check=False)
    report = step(batch(12))
    assert (report.attempts, calls) == (2, [12, 12])
    assert (model.seen, model.sizes, model.queue.tolist()) == (12, [0, 12], [1, 1, 1])


def test_restored_attributes_are_the_same_objects() -> None:
    model = Recurrent()
    sizes, queue = model.sizes, model.queue
    before = ModuleAttributes(model)
    model(torch.randn(3, 5, 4))
    before.restore()
    assert model.sizes is sizes and model.queue is queue
    assert (model.hidden, model.seen, sizes, queue.tolist()) == (None, 0, [0], [0, 0, 0])


def test_a_hidden_state_is_forgotten_without_what_else_has_changed() -> None:
    """A framework may set attributes when a training starts, which then stay."""
    model = Recurrent()
    built = ModuleAttributes(model)
    model(torch.randn(3, 5, 4))
    model.started = True
    built.restore_tensors()
    assert (model.hidden, model.seen, model.sizes, model.started) == (None, 3, [0, 3], True)
