"""What a test does where a real program of the machine is missing."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def unavailable(reason: str) -> NoReturn:
    """Skip the test for this reason; fail it where CLOJARSD_REQUIRE_REAL says that nothing may be missing."""
    if os.environ.get("CLOJARSD_REQUIRE_REAL"):
        pytest.fail(f"CLOJARSD_REQUIRE_REAL is set, and: {reason}")
    pytest.skip(reason)
