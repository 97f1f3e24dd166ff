"""What the tests of studies share. Its being here puts this folder's helpers on the path."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_store_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own tracking server is not written to."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
