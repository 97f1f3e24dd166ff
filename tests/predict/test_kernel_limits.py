"""Batches that fail with memory left, because a kernel takes no more."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import rightbatch as rb

TOKENS, WIDTH, WINDOWS = 4, 16, 64


class Rows(Dataset[Tensor]):
    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return 2**20

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(self.shape)


class Windowed(nn.Module):
    """Attention within windows: every window is a sequence of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(x).view(len(x) * WINDOWS, TOKENS, 2, WIDTH // 2).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(y, y, y)


def largest(
    model: nn.Module, *shape: int, memory: str = "4GiB", batch: int = 2
) -> tuple[int | None, str]:
    def factory() -> rb.Workload:
        optimizer = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.ones(1))], lr=0.1)
        return rb.Workload(
            model,
            lambda model, batch: model(batch).sum(),
            optimizer,
            Rows(*shape),
            size=lambda index: 1,
            precision="bf16",
        )

    found = rb.predict(factory, batch=batch, memory=memory, inference=True)
    return found.largest_batch_size, " ".join(found.notes)


def test_a_batch_with_more_windows_than_flash_attention_takes_fails_with_memory_left() -> None:
    size, notes = largest(Windowed(), WINDOWS * TOKENS, WIDTH)
    assert size == (2**16 - 1) // WINDOWS  # a dimension of a grid has 65,535 blocks
    assert f"a batch of {2**16 // WINDOWS} fails with memory left" in notes


def test_a_given_batch_that_a_kernel_does_not_take_is_named() -> None:
    _, notes = largest(Windowed(), WINDOWS * TOKENS, WIDTH, batch=2**16 // WINDOWS)
    assert notes.count(f"a batch of {2**16 // WINDOWS} fails") == 1


def test_no_kernel_is_named_if_memory_runs_out_first() -> None:
    size, notes = largest(Windowed(), WINDOWS * TOKENS, WIDTH, memory="530MiB")
    assert size is not None and size < (2**16 - 1) // WINDOWS
    assert "memory left" not in notes


class Depthwise(nn.Module):
    def __init__(self, channels: int, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.memory_format = memory_format

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.contiguous(memory_format=self.memory_format))


def test_a_depthwise_convolution_in_channels_last_takes_fewer_than_2_31_elements() -> None:
    channels, side = 8, 64
    model = Depthwise(channels, torch.channels_last)
    size, notes = largest(model, channels, side, side, memory="1TiB")
    assert size == (2**31 - 1) // (channels * side**2)
    assert "depthwise" in notes
    size, notes = largest(
        Depthwise(channels, torch.contiguous_format), channels, side, side, memory="1TiB"
    )
    assert size is not None and size * channels * side**2 > 2**31
    assert "memory left" not in notes


def test_a_part_of_the_channels_is_in_channels_last_by_its_strides() -> None:
    channels, side = 8, 64

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.conv(tokens[..., :channels].permute(0, 3, 1, 2))

    size, _ = largest(Part(), side, side, 2 * channels, memory="1TiB")
    assert size == (2**31 - 1) // (channels * side**2)


def test_reflection_padding_takes_fewer_than_2_31_elements() -> None:
    size, notes = largest(nn.ReflectionPad2d(1), 8, 64, 64, memory="1TiB")
    assert size == (2**31 - 1) // (8 * 64**2)
    assert "reflection" in notes


def test_without_such_a_kernel_memory_is_the_limit() -> None:
    size, notes = largest(nn.Linear(WIDTH, WIDTH), WINDOWS * TOKENS, WIDTH)
    assert size is not None and size > 2**16
    assert "memory left" not in notes
