"""The size of an item before it is collated."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rightbatch._workload.item import item_bytes


@pytest.mark.parametrize(
    ("item", "size"),
    [
        (None, 0),
        (torch.zeros(3, 5), 60),
        (np.zeros((4, 2), np.float16), 16),
        (Image.new("RGB", (7, 5)), 105),
        (Image.new("L", (7, 5)), 35),
        ({"text": "four", "ids": [1, 2]}, 20),
        ((b"12", "345", True), 13),
        (SimpleNamespace(x=torch.zeros(4), name="ab"), 18),
        ([SimpleNamespace(inner=SimpleNamespace(x=torch.zeros(2)))], 8),
    ],
)
def test_arrays_texts_and_images_are_counted(item: Any, size: int) -> None:
    assert item_bytes(item) == size


def test_an_object_that_refers_to_itself_ends() -> None:
    item = SimpleNamespace(x=torch.zeros(1))
    item.itself = item
    assert item_bytes(item) >= 4
