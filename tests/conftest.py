"""What all tests share."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from hypothesis import settings

# A contract's failed assertion shows its values, as that of a test does.
pytest.register_assert_rewrite("rightbatch.testing")

# The first example imports torch's operators, and machines differ: no example has a deadline.
settings.register_profile("rightbatch", deadline=None)
settings.load_profile("rightbatch")


@pytest.fixture(scope="session")
def ray_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the ports of every Ray that a process of tests starts: Ray reads it once a process, and
    would make one in the user's home."""
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(str(uuid.uuid4()))
    return token
