"""How long to wait before the next launch, and when to give up."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


class RestartWhen(enum.Enum):
    """After which unasked ends a unit is launched again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How launches follow each other.

    Attributes:
        when: after which unasked ends there is a next launch.
        first_delay: seconds before the first one.
        max_delay: seconds, the most that the doubled delay grows to.
        reset_after: seconds of ready time after which earlier failures are forgotten.
        limit_count: how many launches may follow failures within `limit_within`; at least 1.
        limit_within: seconds.
    """

    when: RestartWhen
    first_delay: float
    max_delay: float
    reset_after: float
    limit_count: int
    limit_within: float


@dataclass(frozen=True, slots=True)
class Failures:
    """What is remembered of a unit's unasked ends.

    Attributes:
        in_a_row: how many since it last stayed ready for `RestartPolicy.reset_after`.
        relaunched_at: monotonic instants of the launches that followed them, within the limit's window; oldest first.
    """

    in_a_row: int = 0
    relaunched_at: tuple[float, ...] = ()


NO_FAILURES = Failures()


def next_delay(failures: int, policy: RestartPolicy) -> float:
    """Seconds to wait before the next launch, after `failures` unasked ends in a row.

    Doubles from policy.first_delay up to policy.max_delay.

    Raises:
        ValueError: failures is below 1.

    Source: the idea of RestartSteps= and RestartMaxDelaySec= in systemd.service(5).
    """
    if failures < 1:
        raise ValueError(f"{failures} failures: the first failure counts as 1")
    doublings = min(failures - 1, 64)  # beyond any delay that could be configured, and still a number a float can hold
    return min(math.ldexp(policy.first_delay, doublings), policy.max_delay)


def count_failure(
    failures: Failures, ready_for: float, now: float, policy: RestartPolicy
) -> tuple[Failures, float | None]:
    """The failures with one more, and the seconds until the next launch; None when the limit says to give up.

    Args:
        ready_for: seconds that the ended process had been ready, 0 if it never was.
        now: monotonic instant of the end.
    """
    if ready_for >= policy.reset_after > 0:
        failures = NO_FAILURES
    recent = tuple(at for at in failures.relaunched_at if now - at < policy.limit_within)
    in_a_row = failures.in_a_row + 1
    if len(recent) >= policy.limit_count:
        return Failures(in_a_row, recent), None
    delay = next_delay(in_a_row, policy)
    return Failures(in_a_row, (*recent, now + delay)), delay
