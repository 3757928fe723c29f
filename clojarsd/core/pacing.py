"""How many clients that have waited are let go at once: an instance that has just come up is not overrun.

Few at first; one more for each that the instance has answered, so that a fast one has them all after a few round
trips, and no limit any more once it has answered many. One that has no answer within `PATIENCE` counts as answered:
where the client speaks last, or an instance is stuck, the number doubles each time, and all go within some seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

FIRST = 8
"""How many may be unanswered at the beginning."""
WARM = 128
"""The window from which on there is no limit."""
PATIENCE = 1.0
"""Seconds after which an answer is not waited for."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of one release.

    Attributes:
        window: how many may be on their way and unanswered.
    """

    window: int = FIRST

    def allows(self, unanswered: int) -> int | None:
        """How many more may go now; None: all."""
        return None if self.window >= WARM else max(self.window - unanswered, 0)

    def answered(self, count: int) -> Pace:
        """The pace after so many more of them were answered, or not in time."""
        return replace(self, window=min(self.window + count, WARM))
