"""The contract of a `Model`, which `serve` relies on."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np

from rightbatch._serve.models.protocol import Image, Model
from rightbatch._serve.models.results import json_default


class ModelContract:
    """Tests of a `Model`. Subclass it with a fixture `model` that yields a new one for every test.

    `shapes` are (height, width) of images that the model accepts, `largest` the largest batch that
    is tested. Override `images` if the model has no result for noise, and `is_same` if equivalent
    results may differ by more than `numpy.allclose` with a tolerance of 0.001.
    """

    shapes: ClassVar[tuple[tuple[int, int], ...]] = ((48, 64), (64, 48), (33, 91))
    largest: ClassVar[int] = 5

    def images(self, count: int) -> list[Image]:
        """Return `count` different images, of all `shapes` in turn."""
        random = np.random.default_rng(0)
        return [
            random.integers(0, 256, (*self.shapes[k % len(self.shapes)], 3), np.uint8)
            for k in range(count)
        ]

    def is_same(self, one: Any, other: Any) -> bool:
        """Whether two results are equivalent."""
        return _is_close(_plain(one), _plain(other))

    def test_it_has_a_name_and_sizes_that_grow(self, model: Model) -> None:
        assert model.name
        assert isinstance(model.name, str)
        if model.sizes is not None:
            assert model.sizes == tuple(sorted(set(model.sizes)))
            assert min(model.sizes) >= 1

    def test_a_batch_of_any_size_gives_one_result_for_each(self, model: Model) -> None:
        for count in range(1, self.largest + 1):
            results = model(self.images(count))
            assert isinstance(results, list)
            assert len(results) == count

    def test_nothing_gives_nothing(self, model: Model) -> None:
        assert model([]) == []

    def test_results_are_in_order_and_do_not_depend_on_the_others_of_a_batch(
        self, model: Model
    ) -> None:
        images = self.images(self.largest)
        together = model(images)
        for image, result in zip(images, together, strict=True):
            [alone] = model([image])
            assert self.is_same(result, alone)

    def test_pictures_that_differ_give_results_that_differ(self, model: Model) -> None:
        # else the previous test could not fail
        one, other = model(self.images(2))
        assert not self.is_same(one, other)

    def test_pictures_are_only_read(self, model: Model) -> None:
        images = self.images(self.largest)
        before = [image.copy() for image in images]
        for image in images:
            image.flags.writeable = False
        model(images)
        for image, copy in zip(images, before, strict=True):
            assert np.array_equal(image, copy)

    def test_a_later_batch_leaves_earlier_results_as_they_were(self, model: Model) -> None:
        images = self.images(self.largest)
        earlier = model(images)
        before = [_plain(result) for result in earlier]
        model([255 - image for image in images])
        assert before == [_plain(result) for result in earlier]

    def test_results_are_json(self, model: Model) -> None:
        for result in model(self.images(2)):
            assert json.dumps(result, default=json_default, allow_nan=False)

    def test_closing_twice_is_closing_once(self, model: Model) -> None:
        model(self.images(1))
        model.close()
        model.close()


def _plain(result: Any) -> Any:
    return json.loads(json.dumps(result, default=json_default))


def _is_close(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_close, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return bool(np.isclose(one, other, rtol=1e-3, atol=1e-3))
    return bool(one == other)
