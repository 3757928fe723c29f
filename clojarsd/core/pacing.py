"""How many clients that have waited are let go at once: an instance that has just come up is not overrun.

Few at first; one more for each that the instance has answered, so that a fast one has them all after a few round
trips, and no limit any more once it has answered many. One that does not answer within `PATIENCE` counts no longer as
unanswered, so that a protocol in which the client speaks last, or an instance that is stuck, holds up nobody for long.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

FIRST = 8
"""How many may be unanswered at the beginning."""
WARM = 128
"""The window from which on there is no limit."""
PATIENCE = 0.25
"""Seconds after which one that was let go is not waited for: at least FIRST clients go in each such time."""


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
        """The pace after the instance has answered so many more of them."""
        return replace(self, window=min(self.window + count, WARM))
