"""The noise scale, compared with closed forms and per-example gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from rightbatch._noise import NormalizationNoise, exact_noise_scale

WIDTH, SIGMA = 20, 1.0


class Line(nn.Module):
    """Linear regression of x ~ N(0, 1) on y = noise, at weights of length `away`."""

    def __init__(self, away: float = 1.0) -> None:
        super().__init__()
        weight = torch.zeros(WIDTH)
        weight[0] = away
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def regression(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return 0.5 * (model(batch[0]) - batch[1]).square().mean()


def drawn(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, WIDTH, generator=generator)
    return x, SIGMA * torch.randn(count, generator=generator)


def truth(away: float) -> float:
    """g = x (xᵀδ − ε): E g = δ and E|g|² = (d + 2)|δ|² + d σ²."""
    return (WIDTH + 1) + WIDTH * SIGMA**2 / away**2


def watched(
    away: float = 1.0, steps: int = 40, parts: tuple[int, ...] = (16,) * 8, seed: int = 0
) -> rb.NoiseScale:
    """Observe the gradients of `steps` updates at fixed weights."""
    generator = torch.Generator().manual_seed(seed)
    model = Line(away)
    noise = rb.NoiseScale(model, window=steps)
    for _ in range(steps):
        model.zero_grad()
        for n in parts:
            regression(model, drawn(n, generator)).backward()
            noise.micro_batch(n=n)
        noise.step()
    return noise


@pytest.mark.parametrize("away", [0.5, 1.0, 2.0])
def test_a_regression_has_the_noise_scale_of_its_closed_form(away: float) -> None:
    found = watched(away, steps=400).estimate
    assert found is not None and found.value is not None
    assert found.value == pytest.approx(truth(away), rel=0.1)
    assert found.gradient == pytest.approx(away**2, rel=0.1)
    assert found.low < found.value < found.high


def test_the_interval_covers_the_truth_in_nine_of_ten_repeats() -> None:
    intervals = [watched(seed=seed, steps=60).estimate for seed in range(50)]
    covered = [found is not None and found.low <= truth(1.0) <= found.high for found in intervals]
    assert sum(covered) >= 45


def test_micro_batches_of_unequal_sizes_count_by_their_sizes() -> None:
    found = watched(steps=600, parts=(4, 8, 16, 32, 5)).estimate
    assert found is not None
    assert found.value == pytest.approx(truth(1.0), rel=0.1)


@pytest.mark.parametrize("factor", [1 / 8, 1024.0])
def test_a_factor_on_the_loss_is_corrected_by_its_weight(factor: float) -> None:
    plain, scaled = [], []
    for weight, into in ((1.0, plain), (factor, scaled)):
        generator = torch.Generator().manual_seed(3)
        model = Line()
        noise = rb.NoiseScale(model)
        for _ in range(10):
            model.zero_grad()
            for _ in range(4):
                (weight * regression(model, drawn(16, generator))).backward()
                noise.micro_batch(n=16, weight=weight)
            noise.step()
        assert noise.estimate is not None
        into += [noise.estimate.gradient, noise.estimate.noise]
    assert scaled == pytest.approx(plain, rel=1e-4)


def test_a_gradient_lost_in_noise_gives_a_lower_bound_only() -> None:
    found = watched(away=0.01, steps=30).estimate
    assert found is not None
    assert found.value is None and math.isinf(found.high)
    assert 0 < found.low < truth(0.01)
    assert str(found).startswith("noise scale above ")
    assert found.to_dict()["high"] is None


def test_sampling_without_replacement_is_corrected_by_the_population() -> None:
    generator = torch.Generator().manual_seed(5)
    x, y = drawn(64, generator)
    model = Line()
    with_it, without = rb.NoiseScale(model, population=64), rb.NoiseScale(model)
    for _ in range(100):
        model.zero_grad()
        order = torch.randperm(64, generator=generator)
        for chosen in order[:48].split(16):
            regression(model, (x[chosen], y[chosen])).backward()
            for noise in (with_it, without):
                noise.micro_batch(n=16)
        for noise in (with_it, without):
            noise.step()
    # The whole population's own gradient and covariance (of N, not N − 1).
    each = torch.stack([x[i] * (x[i] @ model.weight - y[i]) for i in range(64)]).detach()
    gradient = each.mean(dim=0).square().sum()
    noise_of_all = each.square().sum() / 64 - gradient
    found, naive = with_it.estimate, without.estimate
    assert found is not None and naive is not None
    assert found.noise == pytest.approx(float(noise_of_all), rel=0.05)
    assert found.gradient == pytest.approx(float(gradient), rel=0.05)
    assert abs(naive.gradient / gradient - 1) > 0.1


def test_per_example_gradients_agree_with_the_closed_form_and_with_the_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    gradient, noise = exact_noise_scale(Line(), regression, drawn(20_000, generator))
    assert noise / gradient == pytest.approx(truth(1.0), rel=0.05)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))
    images, labels = torch.randn(512, 1, 8, 8), torch.randint(3, (512,))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    gradient, noise = exact_noise_scale(model, loss, (images, labels))
    watching = rb.NoiseScale(model, population=512)
    for _ in range(60):
        model.zero_grad()
        for chosen in torch.randperm(512)[:128].split(16):
            loss(model, (images[chosen], labels[chosen])).backward()
            watching.micro_batch(n=16)
        watching.step()
    found = watching.estimate
    assert found is not None
    assert found.noise == pytest.approx(noise * 511 / 512, rel=0.05)


def test_observing_does_not_change_gradients_and_can_be_closed() -> None:
    models = [Line(), Line()]
    noise = rb.NoiseScale(models[0])
    for model in models:
        generator = torch.Generator().manual_seed(2)
        for _ in range(2):
            regression(model, drawn(8, generator)).backward()
            if model is models[0]:
                noise.micro_batch(n=8)
    noise.step()
    assert torch.equal(models[0].weight.grad, models[1].weight.grad)  # type: ignore[arg-type]
    noise.close()
    regression(models[0], drawn(8, generator)).backward()
    with pytest.raises(rb.UsageError, match="no gradient was computed"):
        noise.micro_batch(n=8)


def test_steps_that_a_gradient_scaler_skips_are_skipped() -> None:
    model = Line()
    noise = rb.NoiseScale(model)
    for factor in (1.0, math.inf, 1.0):
        model.zero_grad()
        for _ in range(2):
            (factor * regression(model, drawn(8, torch.Generator()))).backward()
            noise.micro_batch(n=8)
        noise.step()
    assert noise.estimate is not None
    assert noise.estimate.steps == 2


def test_it_continues_from_its_state_dict() -> None:
    before = watched(steps=20)
    after = rb.NoiseScale(Line(), window=20)
    assert after.estimate is None
    after.load_state_dict(before.state_dict())
    assert after.estimate == before.estimate


def test_wrong_use_raises_an_error_with_the_remedy() -> None:
    model = Line()
    noise = rb.NoiseScale(model)
    regression(model, drawn(8, torch.Generator())).backward()
    noise.micro_batch(n=8)
    with pytest.raises(rb.UsageError, match="two or more"):
        noise.step()
    with pytest.raises(rb.UsageError, match="must be positive"):
        noise.micro_batch(n=0)
    with pytest.raises(rb.UsageError, match="no parameter of the model"):
        rb.NoiseScale(Line().requires_grad_(False))


def test_with_batch_norm_a_note_says_what_the_value_depends_on() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    noise = rb.NoiseScale(model)
    for _ in range(2):
        model.zero_grad()
        for _ in range(2):
            model(torch.randn(4, 2)).square().sum().backward()
            noise.micro_batch(n=4)
        noise.step()
    assert noise.estimate is not None
    assert "micro-batch" in noise.estimate.notes[0]


def _process(rank: int, count: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count
    )
    bare = Line()
    model = nn.parallel.DistributedDataParallel(bare)
    noise = rb.NoiseScale(model)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(5):
        model.zero_grad()
        regression(model, drawn(16, generator)).backward()
        noise.micro_batch(n=16)  # one part a process: all of them together are enough
        noise.step()
    torch.save(noise.state_dict(), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_several_processes_estimate_the_same_as_one_process(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (2, str(tmp_path)), nprocs=2)
    model = Line()
    noise = rb.NoiseScale(model)
    generators = [torch.Generator().manual_seed(rank) for rank in range(2)]
    for _ in range(5):
        model.zero_grad()
        for generator in generators:
            (regression(model, drawn(16, generator)) / 2).backward()
            noise.micro_batch(n=16, weight=1 / 2)
        noise.step()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)["steps"]
        expected = noise.state_dict()["steps"]
        assert torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=1e-4)


class Normalized(nn.Module):
    """A layer of each supported kind, over sequences of vectors."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        kinds = {
            "layer": lambda: nn.LayerNorm(8),
            "rms": lambda: nn.RMSNorm(8),
            "group": lambda: nn.GroupNorm(2, 8),
        }
        self.kind, self.norm = kind, kinds[kind]()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.kind == "group":
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        else:
            x = self.norm(x)
        return self.second(torch.tanh(x)).mean(dim=1)


def classified(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("kind", ["layer", "rms", "group"])
def test_one_backward_pass_gives_the_exact_noise_of_normalization_layers(kind: str) -> None:
    torch.manual_seed(0)
    model = Normalized(kind).double()
    batch = (torch.randn(16, 5, 6, dtype=torch.float64) + 1, torch.randint(3, (16,)))
    noise = NormalizationNoise(model, every=1)
    for _ in range(2):
        model.zero_grad()
        classified(model, batch).backward()
        noise.step()
    found = noise.estimate
    assert found is not None
    # Every example's gradient by itself, of the normalization layer's parameters.
    rows = []
    for index in range(16):
        model.zero_grad()
        classified(model, (batch[0][index : index + 1], batch[1][index : index + 1])).backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.norm.parameters()]))
    each = torch.stack(rows)
    covariance = each.var(dim=0, correction=1).sum()
    assert found.noise == pytest.approx(float(covariance), rel=1e-5)
    expected = each.mean(dim=0).square().sum() - covariance / 16
    assert found.gradient == pytest.approx(float(expected), rel=1e-4)


def test_normalization_layers_are_observed_in_every_nth_step_only() -> None:
    model = Normalized("layer")
    batch = (torch.randn(8, 5, 6), torch.randint(3, (8,)))
    noise = NormalizationNoise(model, every=3)
    for _ in range(9):
        model.zero_grad()
        classified(model, batch).backward()
        noise.step()
    assert noise.estimate is not None and noise.estimate.steps == 3
    noise.close()


def test_a_model_without_normalization_raises_an_error_with_the_alternative() -> None:
    with pytest.raises(rb.UsageError, match="NoiseScale"):
        NormalizationNoise(Line())
