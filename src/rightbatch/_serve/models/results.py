"""Results of a batch: checked, grouped, split by image, and converted for JSON."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rightbatch._errors import UsageError
from rightbatch._serve.models.protocol import Image


def run_grouped(
    images: list[Image], kind: Callable[[Image], Hashable], run: Callable[[list[Image]], list[Any]]
) -> list[Any]:
    """Call `run` on the images of each `kind`; return the results in the order of `images`."""
    places: defaultdict[Hashable, list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        places[kind(image)].append(place)
    if len(places) == 1:
        return run(images)
    results: list[Any] = [None] * len(images)
    for group in places.values():
        for place, result in zip(group, run([images[place] for place in group]), strict=True):
            results[place] = result
    return results


def check_result_per_image(results: Any, count: int, name: str) -> list[Any]:
    """Return `results` as a list, which must have one entry per image.

    Raises:
        UsageError: if it has not.
    """
    if not isinstance(results, list | tuple):
        hint = "; return list(...) of it" if hasattr(results, "__iter__") else ""
        raise UsageError(
            f"{name} must return a list with one result per image ({count}), "
            f"got {type(results).__name__}{hint}"
        )
    if len(results) != count:
        raise UsageError(f"{name} must return one result per image ({count}), got {len(results)}")
    return list(results)


def split_by_image(output: Any, count: int, name: str) -> list[Any]:
    """Split the output of a module for `count` images into a list, one part each, on the host.

    Raises:
        UsageError: if the first axis of a tensor is not `count`, or the type cannot be split.
    """
    if isinstance(output, list) and output and all(isinstance(one, Mapping) for one in output):
        return [_on_host(one) for one in check_result_per_image(output, count, name)]
    return check_result_per_image(list(_parts(output, count, name)), count, name)


def _parts(output: Any, count: int, name: str) -> Iterator[Any]:
    if _is_tensor(output):
        if output.ndim == 0 or len(output) != count:
            raise UsageError(
                f"{name} must return tensors whose first axis has length {count} (the images), "
                f"got shape {tuple(output.shape)}"
            )
        return iter(_on_host(output).unbind(0))
    if isinstance(output, Mapping):
        parts = [_parts(value, count, name) for value in output.values()]
        return (dict(zip(output, values, strict=True)) for values in zip(*parts, strict=True))
    if isinstance(output, tuple | list):
        parts = [_parts(value, count, name) for value in output]
        kind = list if isinstance(output, list) else tuple
        return (kind(values) for values in zip(*parts, strict=True))
    raise UsageError(
        f"{name} must return tensors, or tuples, lists and mappings of them, "
        f"got {type(output).__name__}"
    )


def json_default(value: Any) -> Any:
    """Convert arrays, tensors and containers for `json.dumps(result, default=json_default)`."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if _is_tensor(value):
        return value.detach().cpu().tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset | Sequence):
        return list(value)
    raise TypeError(f"a result contains a {type(value).__name__}, which JSON cannot represent")


def _on_host(value: Any) -> Any:
    if _is_tensor(value):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_host(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_on_host(one) for one in value]
    return value


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
