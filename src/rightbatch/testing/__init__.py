"""Contracts of what others may write, as tests to subclass: `DeviceContract`, `SessionContract`.

A test module subclasses one and defines its fixture; pytest runs every test of the contract::

    class TestMySession(SessionContract):
        @pytest.fixture
        def session(self):
            session = MySession("cpu")
            yield session
            session.close()

`pytest.register_assert_rewrite("rightbatch.testing")` in a `conftest.py` makes failures show the
values that they compare.
"""

from __future__ import annotations

from rightbatch.testing._device import DeviceContract
from rightbatch.testing._faults import Injected, inject_out_of_memory, limited_memory
from rightbatch.testing._session import SessionContract

__all__ = [
    "DeviceContract",
    "Injected",
    "SessionContract",
    "inject_out_of_memory",
    "limited_memory",
]
