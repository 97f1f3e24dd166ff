"""Recalibration of BatchNorm's statistics, and the number of values per channel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from rightbatch._workload.normalization import ValuesPerChannel


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm2d(4)
    )


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 2


def test_running_statistics_become_those_of_the_data() -> None:
    model, data = net(), images(64)
    weights = [p.clone() for p in model.parameters()]
    assert rb.recalibrate_batchnorm(model, [(data,)]) == 1
    inputs = model[0](data)
    norm = model[1]
    assert torch.allclose(norm.running_mean, inputs.mean(dim=(0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, inputs.var(dim=(0, 2, 3)), rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert model.training and norm.training and norm.momentum == 0.1
    # Dropout is off while they are taken: the second layer sees what evaluation shows it.
    model.eval()
    seen = model[:4](data)
    assert torch.allclose(model[4].running_mean, seen.mean(dim=(0, 2, 3)), atol=0.05)


def test_several_batches_count_alike() -> None:
    model, data = net(), images(96)
    model.eval()
    assert rb.recalibrate_batchnorm(model, data.split(32)) == 3
    inputs = model[0](data)
    assert torch.allclose(model[1].running_mean, inputs.mean(dim=(0, 2, 3)), atol=1e-4)
    assert not model.training and not model[1].training


def test_a_failure_leaves_the_statistics_as_they_were() -> None:
    model = net()
    model(images(8))
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def broken() -> object:
        yield images(8)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        rb.recalibrate_batchnorm(model, broken())  # type: ignore[arg-type]
    with pytest.raises(rb.UsageError, match="batches is empty"):
        rb.recalibrate_batchnorm(model, [])
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_a_model_without_batch_norm_raises_an_error() -> None:
    with pytest.raises(rb.UsageError, match="no BatchNorm"):
        rb.recalibrate_batchnorm(nn.Linear(2, 2), [torch.zeros(2, 2)])


def test_values_per_channel_count_positions_and_examples() -> None:
    model = net()
    values = ValuesPerChannel(model)
    model(images(2))
    assert values.least == 2 * 6 * 6
    values.close()
    model(images(1))
    assert values.least == 72
