"""When to try again what has failed: later each time, until it has held for a while."""

from __future__ import annotations


class Retry:
    """For one thing that may fail; whoever tries it has one.

    Args:
        first: seconds until it may be tried again at first.
        longest: the most that doubling makes of them, and for how long it must have held to be trusted again.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._delay = 0.0
        self._due_at = 0.0

    def put_off(self, now: float) -> None:
        """It has failed at that monotonic instant."""
        has_held = now - self._due_at > self._longest
        self._delay = self._first if has_held or not self._delay else min(2 * self._delay, self._longest)
        self._due_at = now + self._delay

    def is_due(self, now: float) -> bool:
        """Whether it may be tried."""
        return now >= self._due_at
