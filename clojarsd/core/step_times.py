"""How long the steps of a rollout take, beside how long they took the last time that they succeeded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def last_times(rollouts: Iterable[Iterable[Mapping[str, Any]]]) -> dict[str, float]:
    """The seconds that each step took when it last came to its good end, by its name.

    Args:
        rollouts: the records of the journals of earlier rollouts, oldest first. Those count that say `done` of a step
            and how many seconds it took; what is written otherwise is skipped.
    """
    found: dict[str, float] = {}
    for records in rollouts:
        for record in records:
            step, seconds = record.get("step"), record.get("seconds")
            if record.get("what") != "done" or not isinstance(step, str) or isinstance(seconds, bool):
                continue
            if isinstance(seconds, int | float) and seconds >= 0:
                found[step] = float(seconds)
    return found


def step_text(step: str, seconds: float, last: float | None) -> str:
    """How long the step takes or took: `build: 12 s (last time 14 s)`.

    Args:
        last: as `last_times` has it; None: nothing to compare with.
    """
    beside = f" (last time {short_text(last)})" if last is not None else ""
    return f"{step}: {short_text(seconds)}{beside}"


def short_text(seconds: float) -> str:
    """The seconds for people, as fine as they can be compared: `0.4 s`, `12 s`, `2 min 5 s`, `1 h 2 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
