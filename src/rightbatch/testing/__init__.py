"""Contracts of what others may write, as tests to subclass, and memory that runs out on purpose.

`DeviceContract`, `SessionContract` and `IntegrationContract` are what a device, a session and an
integration of `Elastic` have to do. `inject_out_of_memory` fails at a named place, `limited_memory`
at a limit that the operating system enforces.

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
from rightbatch.testing._integration import IntegrationContract
from rightbatch.testing._session import SessionContract

__all__ = [
    "DeviceContract",
    "Injected",
    "IntegrationContract",
    "SessionContract",
    "inject_out_of_memory",
    "limited_memory",
]
