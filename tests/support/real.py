"""What a test does where something real of the machine is missing."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
"""What needs another user than the one who runs the tests; it is no part of the machine that is missing then."""


def unavailable(reason: str) -> NoReturn:
    """Skip the test for this reason; fail it where CLOJARSD_REQUIRE_REAL says that nothing may be missing."""
    if os.environ.get("CLOJARSD_REQUIRE_REAL"):
        pytest.fail(f"CLOJARSD_REQUIRE_REAL is set, and: {reason}")
    pytest.skip(reason)
