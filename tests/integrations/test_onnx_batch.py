"""What counts as the same result of an image alone and beside others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnxruntime")

from rightbatch._errors import UsageError
from rightbatch.integrations._onnx_batch import BatchAxis, find_batch_axis
from rightbatch.integrations._onnx_input import ImageInput

IMAGE = ImageInput("x", np.dtype(np.float32), None, 3, (8, 8), False)
BATCH_OF_1 = "its results change with the other images of a batch; it is run one by one"


def found(run: Any) -> BatchAxis:
    """Try a model that is a function of the batch N×3×8×8, with outputs of any number."""
    count = len(run(np.zeros((1, 3, 8, 8), np.float32)))
    declared: list[Any] = [type("Output", (), {"shape": ["N"]})] * count
    return find_batch_axis(run, IMAGE, declared)


def detections(x_NCHW: NDArray[Any], count: int = 50) -> list[NDArray[Any]]:
    """Boxes in pixels, classes and confidences by decreasing confidence, from the pixels."""
    x_NP = x_NCHW.reshape(len(x_NCHW), -1)
    boxes = 640 * np.stack([x_NP[:, k : k + count] for k in range(4)], 2)
    confidences = np.sort(x_NP[:, 50 : 50 + count], axis=1)[:, ::-1]
    return [boxes, (80 * x_NP[:, 100 : 100 + count]).astype(np.int64), confidences]


def in_batches(change: Any) -> Any:
    """Return `detections` that `change` modifies in batches of more than one image."""

    def run(x_NCHW: NDArray[Any]) -> list[NDArray[Any]]:
        outputs = [one.copy() for one in detections(x_NCHW)]
        return change(outputs) if len(x_NCHW) > 1 else outputs

    return run


ORDER = np.random.default_rng(0).permutation(50)


def test_detections_may_change_places() -> None:
    def reordered(outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        return [one[:, ORDER] for one in outputs]

    def last_is_another(outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        outputs[0][:, -1] += 100
        return reordered(outputs)

    def one_table(x_NCHW: NDArray[Any]) -> list[NDArray[Any]]:
        boxes, classes, confidences = detections(x_NCHW)
        table = np.concatenate([boxes, confidences[..., None], classes[..., None]], 2)
        return [table[:, ORDER] if len(table) > 1 else table]

    assert found(detections).size is None
    for model in (in_batches(reordered), in_batches(last_is_another), one_table):
        assert found(model) == BatchAxis(None, (True,) * (1 if model is one_table else 3))


def of_the_other_image(outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    return [one[::-1] for one in outputs]


def boxes_alone_change_places(outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    return [outputs[0][:, ORDER], *outputs[1:]]


def columns_change_places(outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    return [outputs[0][:, :, [2, 3, 0, 1]], *outputs[1:]]


def one_in_ten_changes(outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    outputs[0][:, ::10] /= 2
    return outputs


def boxes_of_both_images(outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    return [np.concatenate([one[:, ::2], one[::-1, 1::2]], 1) for one in outputs]


def first_image_for_all(outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    return [one[[0] * len(one)] for one in outputs]


def last_image_for_all(outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    return [one[[-1] * len(one)] for one in outputs]


def nothing_beyond_the_first(outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Suppression that was exported for a batch of 1."""
    for one in outputs:
        one[1:] = 0
    return outputs


def confidences_change(outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """In one table with the boxes, whose pixels are far larger."""
    boxes, _, confidences = outputs
    return [boxes, _, confidences / 3]


@pytest.mark.parametrize(
    "change",
    [
        of_the_other_image,
        boxes_alone_change_places,
        columns_change_places,
        one_in_ten_changes,
        boxes_of_both_images,
        confidences_change,
        first_image_for_all,
        last_image_for_all,
        nothing_beyond_the_first,
    ],
)
@pytest.mark.parametrize("is_table", [False, True])
def test_detections_that_change_are_not_the_same(change: Any, is_table: bool) -> None:
    def run(x_NCHW: NDArray[Any]) -> list[NDArray[Any]]:
        outputs = in_batches(change)(x_NCHW)
        if not is_table:
            return outputs
        boxes, classes, confidences = outputs
        return [np.concatenate([boxes, confidences[..., None], classes[..., None]], 2)]

    axis = found(run)
    assert (axis.size, axis.reason) == (1, BATCH_OF_1)


@pytest.mark.parametrize(
    "change", [of_the_other_image, first_image_for_all, last_image_for_all, one_in_ten_changes]
)
def test_a_fixed_batch_with_other_results_is_refused(change: Any) -> None:
    four = replace(IMAGE, batch=4)
    declared: list[Any] = [None] * 3
    assert find_batch_axis(in_batches(lambda outputs: outputs), four, declared).size == 4
    if change is one_in_ten_changes:  # by the mean of the batch

        def changing(x_NCHW: NDArray[Any]) -> list[NDArray[Any]]:
            outputs = [one.copy() for one in detections(x_NCHW)]
            outputs[0][:, ::10] *= x_NCHW.mean()
            return outputs

    else:
        changing = in_batches(change)
    with pytest.raises(UsageError, match="change with the other images of a batch"):
        find_batch_axis(changing, four, declared)


def test_scores_of_classes_keep_their_places() -> None:
    """The same numbers in another order are another class."""

    def model(x_NCHW: NDArray[Any]) -> list[NDArray[Any]]:
        scores = x_NCHW.reshape(len(x_NCHW), -1)[:, :100]
        return [scores[:, ::-1] if len(scores) > 1 else scores]

    def two_outputs(x_NCHW: NDArray[Any]) -> list[NDArray[Any]]:
        return [*model(x_NCHW), *model(x_NCHW)]

    def a_tenth(x_NCHW: NDArray[Any]) -> list[NDArray[Any]]:
        scores = x_NCHW.reshape(len(x_NCHW), -1)[:, :100].copy()
        if len(scores) > 1:
            scores[:, :10] += 0.5
        return [scores]

    for changing in (model, two_outputs, a_tenth):
        assert found(changing).size == 1


def test_values_that_are_not_finite_hide_no_others() -> None:
    def model(x_NCHW: NDArray[Any]) -> list[NDArray[Any]]:
        scores = x_NCHW.reshape(len(x_NCHW), -1)[:, :100].copy()
        scores[:, 0], scores[:, 1] = -np.inf, np.nan
        return [scores]

    def changing(x_NCHW: NDArray[Any]) -> list[NDArray[Any]]:
        [scores] = model(x_NCHW)
        return [scores + (len(scores) > 1)]

    assert found(model).size is None
    assert found(changing).size == 1


def test_rounding_is_no_change() -> None:
    def model(x_NCHW: NDArray[Any]) -> list[NDArray[Any]]:
        logits = x_NCHW.reshape(len(x_NCHW), -1) - 0.5
        noise = np.random.default_rng(len(x_NCHW)).normal(0, 2e-3, logits.shape)
        return [
            logits + noise,
            np.argmax(logits.reshape(len(x_NCHW), 3, 64) + noise[:, :64][:, None], 1),
        ]

    assert found(model).size is None
