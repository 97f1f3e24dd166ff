"""Memory outside the allocator, and what of it a search for the largest batch keeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import rightbatch as rb
from rightbatch._predict.overhead import CONTEXT, process_overhead

CHANNELS, SIDE = 64, 64
OUTPUT = CHANNELS * SIDE**2 * 4


class Images(Dataset[Tensor]):
    def __len__(self) -> int:
        return 2**20

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(3, SIDE, SIDE)


def test_workspaces_of_convolutions_are_in_the_interval_and_not_kept() -> None:
    found = process_overhead(8.0, ("convolution",), 10**9, 0, 1)
    assert found.high - found.low == CONTEXT[1] - CONTEXT[0] + 2 * 10**9
    assert found.kept == CONTEXT[1]


def test_a_convolutions_tensors_fill_the_memory_that_is_not_the_contexts() -> None:
    def factory() -> rb.Workload:
        model = nn.Conv2d(3, CHANNELS, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = lambda model, batch: model(batch).sum()  # noqa: E731
        return rb.Workload(model, loss, optimizer, Images(), size=lambda index: 1)

    limit = 4 * 2**30
    found = rb.predict(factory, batch=2, memory=limit, inference=True).largest_batch_size
    # The second batch is moved into the segment of the first output, so that the second output
    # needs another segment of this size.
    most = (limit - CONTEXT[1]) / (2 * OUTPUT)
    assert found is not None
    assert 0.95 * most < found <= most
