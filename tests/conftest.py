"""What all tests share."""

from __future__ import annotations

import pytest
from hypothesis import settings

# A contract's failed assertion shows its values, as that of a test does.
pytest.register_assert_rewrite("rightbatch.testing")

# The first example imports torch's operators, and machines differ: no example has a deadline.
settings.register_profile("rightbatch", deadline=None)
settings.load_profile("rightbatch")
