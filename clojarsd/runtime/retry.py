"""When to try again what has failed."""

from __future__ import annotations


class Retry:
    """Later each time, until it has held for a while.

    Args:
        first: seconds before the first new try; doubled each time.
        longest: seconds at most; also for how long it must hold before the next failure is the first one again.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._delay = 0.0
        self._due_at = 0.0

    def put_off(self, now: float) -> None:
        """It has failed."""
        has_held = now - self._due_at > self._longest
        self._delay = self._first if has_held or not self._delay else min(2 * self._delay, self._longest)
        self._due_at = now + self._delay

    def is_due(self, now: float) -> bool:
        """Whether it may be tried."""
        return now >= self._due_at
