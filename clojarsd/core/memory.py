"""When an instance uses too much memory: samples in, a verdict out."""

from __future__ import annotations

from dataclasses import dataclass

SAMPLES = 3
"""How many samples in a row must be above the limit."""
SAMPLES_AFTER_ASKING = 60
"""How many, when a restart was begun: a drain and a stop take their time, and something may yet come between."""
_UNITS = ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """What is known of one incarnation's memory. above: how many samples in a row were above the limit."""

    above: int = 0

    @property
    def is_excessive(self) -> bool:
        """Whether it has been above for long enough to act."""
        return self.above >= SAMPLES


RESTART_BEGUN = MemoryRecord(SAMPLES - SAMPLES_AFTER_ASKING)
"""The record of one whose restart was begun."""


def may_exceed(rss: int, limit: int | None) -> bool:
    """Whether the exact figure is worth finding: RSS counts shared memory for each process, so PSS is not more."""
    return limit is not None and rss > limit


def count(record: MemoryRecord, used: int, limit: int) -> MemoryRecord:
    """The record after a further sample, both in bytes; one at or below the limit begins anew."""
    return MemoryRecord(record.above + 1 if used > limit else 0)


def describe_excess(used: int, limit: int) -> str:
    """Why it is restarted, in words."""
    return f"its memory stayed above memory_max ({memory_text(used)}, at most {memory_text(limit)})"


def memory_text(size: int) -> str:
    """The size for people, to a tenth: `1.5 GiB`."""
    for length, unit in _UNITS:
        if size >= length:
            return f"{size / length:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} B"
