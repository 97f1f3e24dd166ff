"""`predict` end to end: real workloads, followed in a process of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fit_workloads as made
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rightbatch as rb
from rightbatch._predict.followed_step import _largest_surviving
from rightbatch._predict.overhead import CONTEXT, CUBLAS, CUBLAS_FROM_HOPPER, process_overhead

MIB = 2**20
WIDTH = 256
WEIGHTS = 4 * WIDTH * WIDTH * 4


def workload(**fields: Any) -> rb.Workload:
    def block() -> nn.Module:
        layers = ((nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh()) for _ in range(2))
        return nn.Sequential(*(part for pair in layers for part in pair))

    model = nn.Sequential(block(), block())
    given: dict[str, Any] = {
        "loss": lambda model, batch: model(batch[0]).square().mean(),
        "optimizer": torch.optim.AdamW(model.parameters()),
        "data": made.Examples(10_000_000, WIDTH),
    }
    return rb.Workload(model=model, **(given | fields))


def predict(factory: Any, **options: Any) -> rb.Prediction:
    return rb.predict(factory, progress=False, **options)


@pytest.fixture(scope="module")
def predicted() -> rb.Prediction:
    return predict(workload, batch=4096, memory="1GiB")


def test_the_parts_are_those_of_the_model_and_add_up(predicted: rb.Prediction) -> None:
    parts = predicted.breakdown
    assert parts["parameters"] == WEIGHTS
    assert parts["optimizer"] == 2 * WEIGHTS
    # What every tanh made; the batch itself is no activation.
    assert parts["activations"] == pytest.approx(4 * 4096 * WIDTH * 4, rel=0.01)
    assert sum(parts.values()) == predicted.trace.peak_bytes


def test_allocated_reserved_and_process_are_in_their_order(predicted: rb.Prediction) -> None:
    tensors = predicted.trace.peak_bytes
    assert tensors <= predicted.allocated_peak_bytes <= 1.2 * tensors + 2 * CUBLAS
    assert predicted.allocated_peak_bytes <= predicted.reserved_peak_bytes
    assert predicted.reserved_peak_bytes % (2 * MIB) == 0, "segments are whole"
    assert predicted.process_bytes["low"] == predicted.reserved_band["low"] + CONTEXT[0]
    assert predicted.process_bytes["high"] == predicted.reserved_band["high"] + CONTEXT[1]
    band = predicted.allocated_band
    assert band["low"] < predicted.allocated_peak_bytes < band["high"]


def test_the_largest_batch_survives_the_simulation_and_the_next_one_does_not(
    predicted: rb.Prediction,
) -> None:
    largest = predicted.largest_batch_size
    assert largest is not None
    room = 2**30 - CONTEXT[1]
    at_it = predict(workload, batch=largest, remedies=False)
    above = predict(workload, batch=largest + largest // 20, remedies=False)
    assert at_it.allocated_peak_bytes <= room < above.reserved_peak_bytes


def test_remedies_are_followed_and_not_guessed(predicted: rb.Prediction) -> None:
    saved = predicted.remedies["bf16 precision"]
    in_half = predict(lambda: workload(precision="bf16"), batch=4096, remedies=False)
    assert predicted.trace.peak_bytes - in_half.trace.peak_bytes == saved
    assert "activation checkpointing" in predicted.remedies
    assert "accumulation over 2 micro-batches" in predicted.remedies


def test_a_step_with_real_tensors_is_run_with_few_examples_only(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        with (tmp_path / "sizes").open("a") as file:
            file.write(f"{len(batch[0])}\n")
        found = model(batch[0]).square().mean()
        return found * found.item()  # a fake tensor has no value

    def factory() -> rb.Workload:
        model = nn.Linear(512, 512)  # too large for its values to be known
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return rb.Workload(model, loss, optimizer, made.Examples(10_000, 512))

    found = predict(factory, batch=4096, memory="1GiB")
    assert found.how == "real" and found.remedies == {}
    assert "ways to save memory are not followed with real tensors" in found.notes
    sizes = {int(size) for size in (tmp_path / "sizes").read_text().split()}
    assert {2, 4, 7} <= sizes and max(sizes) == 7


def test_a_prediction_has_a_readable_text_and_serializes(predicted: rb.Prediction) -> None:
    document = json.loads(json.dumps(predicted.to_dict()))
    expected = "batch_size allocated_peak_bytes reserved_peak_bytes process_bytes breakdown"
    assert {*expected.split(), "largest_batch_size", "reason"} <= set(document)
    assert set(document["breakdown"]) == {
        "parameters",
        "gradients",
        "optimizer",
        "activations",
        "other",
    }
    assert f"up to {predicted.largest_batch_size} examples fit into 1.00 GiB" in str(predicted)
    assert "activations by module: 0.1 4.00 MiB, 0.3 4.00 MiB" in str(predicted)
    assert "trace" not in document


def test_every_gpu_is_in_the_table_and_a_larger_one_holds_more() -> None:
    found = predict(workload, batch=16, gpu="all", remedies=False)
    sizes = {fit.gpu: fit.largest_batch_size for fit in found.gpus}
    assert len(sizes) >= 40
    assert (sizes["RTX 4060"] or 0) < (sizes["RTX 4090"] or 0) <= (sizes["H100 SXM 80GB"] or 0)
    assert "RTX 4090" in str(found)


def test_inference_needs_less_than_training() -> None:
    training, inference = (
        predict(workload, batch=4096, inference=mode, remedies=False) for mode in (False, True)
    )
    assert inference.allocated_peak_bytes < 0.7 * training.allocated_peak_bytes
    assert inference.breakdown["gradients"] == inference.breakdown["optimizer"] == 0


def test_nothing_fits_has_the_measurements() -> None:
    with pytest.raises(rb.NothingFitsError, match="not even one example fits into 300 MiB") as no:
        predict(workload, batch=1, memory="300MiB", remedies=False)
    document = no.value.to_dict()
    assert document["batch_size"] is None
    assert document["limit_bytes"] == 300 * MIB
    assert document["breakdown"]["parameters"] == WEIGHTS


def test_a_small_model_whose_step_reads_values_is_followed_at_any_batch_size() -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        outputs = model(batch[0])
        return outputs[outputs > 10.0].sum() + outputs.square().mean()

    found = predict(lambda: workload(loss=loss), batch=4096, remedies=False)
    plain = predict(workload, batch=4096, remedies=False)
    assert found.how == "fake"
    assert found.allocated_peak_bytes == pytest.approx(plain.allocated_peak_bytes, rel=0.5)


def test_an_error_of_the_workload_is_raised_instead_of_a_prediction() -> None:
    with pytest.raises(rb.WorkloadError, match="shapes cannot be multiplied") as caught:
        predict(made.with_wrong_shapes, batch=4)
    assert caught.value.exit_code == 3
    assert "loss" in caught.value.traceback


def test_a_model_too_large_for_memory_is_predicted() -> None:
    found = predict(made.too_large_for_any_machine, batch=1, remedies=False)
    weights = 4 * 4 * (2**34 + 2**17)
    assert found.allocated_peak_bytes >= 4 * weights


def test_a_compiled_model_is_followed_in_eager_mode_with_a_note() -> None:
    found = predict(made.compiled, batch=4, remedies=False)
    plain = predict(made.workload, batch=4, remedies=False)
    assert found.allocated_peak_bytes == plain.allocated_peak_bytes
    assert any("eager" in note for note in found.notes)


def test_wrong_use_raises_an_error_before_anything_runs() -> None:
    with pytest.raises(rb.UsageError, match="at least 1"):
        predict(workload, batch=0)
    with pytest.raises(rb.UsageError, match="not both"):
        predict(workload, batch=1, gpu="T4", memory="16GiB")
    with pytest.raises(rb.UsageError, match="the nearest names are"):
        predict(workload, batch=1, gpu="RTX 9999")
    with pytest.raises(rb.UsageError, match="expected a"):
        predict(made.that_is_no_workload, batch=1)


def test_the_overhead_depends_on_the_architecture_and_the_number_of_gpus() -> None:
    one = process_overhead(8.9, ("mm",), 1000, 10 * MIB, 1)
    assert (one.cublas, one.communication) == (CUBLAS, 0)
    assert process_overhead(9.0, ("mm",), 1000, 10 * MIB, 1).cublas == CUBLAS_FROM_HOPPER
    several = process_overhead(8.9, ("mm",), 1000, 10 * MIB, 2)
    assert several.communication >= 10 * MIB
    convolving = process_overhead(8.9, ("convolution",), 1000, 10 * MIB, 1)
    assert convolving.high - one.high == 2000
    assert "cuDNN" in convolving.notes[0]


def test_the_figure_has_a_layer_per_kind_and_the_limit(predicted: rb.Prediction) -> None:
    pytest.importorskip("plotly")
    figure = predicted.plot()
    assert [layer.name for layer in figure.data] == list(predicted.breakdown)
    highest = max(sum(levels) for levels in zip(*(layer.y for layer in figure.data), strict=True))
    assert highest * 2**30 == pytest.approx(predicted.trace.peak_bytes)
    assert any("limit" in (note.text or "") for note in figure.layout.annotations)


@given(st.integers(0, 5000), st.integers(1, 6000), st.integers(1, 5000))
def test_the_last_size_that_survives_is_found_from_any_guess(
    largest: int, guess: int, most: int
) -> None:
    asked: list[int] = []

    def survives(size: int) -> bool:
        asked.append(size)
        return size <= largest

    found = _largest_surviving(survives, min(guess, most), most)
    assert found == (min(largest, most) or None)
    assert max(asked) <= most
    assert len(asked) <= 30


def test_a_good_guess_needs_few_simulations() -> None:
    asked: list[int] = []

    def survives(size: int) -> bool:
        asked.append(size)
        return size <= 100

    assert _largest_surviving(survives, 101, 10_000) == 100
    assert len(asked) <= 3
