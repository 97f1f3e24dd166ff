"""Make libraries treat fake tensors like real ones.

transformers makes every attention mask for a fake tensor, because an exported graph needs it; a
training step leaves out a mask that hides nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CHECKS = {"transformers.utils.import_utils": "is_fake_tensor"}
"""Modules, and their functions that say whether a tensor is fake."""


@contextmanager
def fake_checks_denied() -> Iterator[None]:
    """Make these functions return False inside the context; imports nothing."""
    kept = []
    for name, function in _CHECKS.items():
        module = sys.modules.get(name)
        if module is not None and hasattr(module, function):
            kept.append((module, function, getattr(module, function)))
            setattr(module, function, lambda _: False)
    try:
        yield
    finally:
        for module, function, original in kept:
            setattr(module, function, original)
