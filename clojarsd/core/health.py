"""Rise and fall counting: check results in, up or down out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from clojarsd.core.names import Health


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one check.

    Attributes:
        passed: whether the instance did what the check asked.
        text: what was seen, for people: `200 in 3 ms`, `127.0.0.1:8001 refused`.
        took: seconds.
    """

    passed: bool
    text: str
    took: float


@dataclass(frozen=True, slots=True)
class CheckRecord:
    """What is known of one check of one incarnation.

    Attributes:
        health: the verdict; `UNKNOWN` until `rise` passes or `fall` failures in a row.
        streak: how many results in a row were like the last one.
        last: the last result, or None.
    """

    health: Health = Health.UNKNOWN
    streak: int = 0
    last: Result | None = None

    def is_settled(self) -> bool:
        """Whether the last result agrees with the verdict."""
        return self.last is not None and self.health is (Health.UP if self.last.passed else Health.DOWN)


def count(record: CheckRecord, result: Result, rise: int, fall: int) -> CheckRecord:
    """The record with one more result.

    Args:
        rise: passes in a row after which the check is up; at least 1.
        fall: failures in a row after which it is down; at least 1.

    Source: the rise and fall of HAProxy's server checks.
    """
    same = record.last is not None and record.last.passed == result.passed
    streak = record.streak + 1 if same else 1
    health = record.health
    if streak >= (rise if result.passed else fall):
        health = Health.UP if result.passed else Health.DOWN
    return replace(record, health=health, streak=streak, last=result)


def verdict(records: Iterable[CheckRecord]) -> Health:
    """The health of an instance: up when every check is up, down when one is down, unknown otherwise.

    Raises:
        ValueError: there is no check; settings imply one, so that nothing is up unproved.
    """
    seen = {record.health for record in records}
    if not seen:
        raise ValueError("a verdict needs a check")
    if Health.DOWN in seen:
        return Health.DOWN
    return Health.UNKNOWN if Health.UNKNOWN in seen else Health.UP
