"""Contracts of plug-ins as test classes to subclass, and out-of-memory errors for tests.

`DeviceContract`, `TrainingContract` and `IntegrationContract` test a device, a training (its
sessions and loops) and an integration of `Elastic`; `FrameSourceContract` and `ModelContract` test
a source of frames and a model for `serve`, and need the extra `serve`. `inject_out_of_memory`
raises an error at a named place, `limited_memory` sets a limit that the operating system enforces.

Subclass a contract in a test module and define its fixture; pytest runs all tests of the contract::

    class TestMyTraining(TrainingContract):
        @pytest.fixture
        def training(self):
            return MyTraining("model.yaml").load()

`pytest.register_assert_rewrite("rightbatch.testing")` in a `conftest.py` makes failures show the
compared values.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rightbatch._errors import MissingExtraError
from rightbatch.testing._device import DeviceContract
from rightbatch.testing._faults import Injected, inject_out_of_memory, limited_memory

if TYPE_CHECKING:
    from rightbatch.testing._frame_source import FrameSourceContract
    from rightbatch.testing._integration import IntegrationContract
    from rightbatch.testing._model import ModelContract
    from rightbatch.testing._training import TrainingContract

__all__ = [
    "DeviceContract",
    "FrameSourceContract",
    "Injected",
    "IntegrationContract",
    "ModelContract",
    "TrainingContract",
    "inject_out_of_memory",
    "limited_memory",
]

_LAZY = {
    "FrameSourceContract": "_frame_source",
    "IntegrationContract": "_integration",
    "ModelContract": "_model",
    "TrainingContract": "_training",
}
_NEED_NUMPY = ("FrameSourceContract", "ModelContract")


def __getattr__(name: str) -> Any:
    """Import contracts that need numpy or pytest on first use.

    Raises:
        MissingExtraError: if numpy is not installed.
    """
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _NEED_NUMPY and find_spec("numpy") is None:
        raise MissingExtraError("numpy", "serve")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
