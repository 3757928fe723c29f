"""Waiting for facts that nobody announces."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 30.0 * float(os.environ.get("CLOJARSD_TEST_PATIENCE", "1"))
"""Seconds after which a fact will not come any more; generous, since it only decides how long a failure takes."""


async def until(fact: Callable[[], T], what: str = "the fact") -> T:
    """The first true value of `fact`, looked at again and again; fails with the last one seen."""
    seen = fact()
    try:
        async with asyncio.timeout(PATIENCE):
            while not seen:
                await asyncio.sleep(0.005)  # the outside world sets no event
                seen = fact()
    except TimeoutError:
        raise AssertionError(f"{what} did not come; last seen: {seen!r}") from None
    return seen
