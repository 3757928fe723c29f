"""What is known of one unit and what the settings say about its life: the values that its machine steps over."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from clojarsd.core.names import NO_INCARNATION, Goal, HookName, Incarnation, Rotation, UnitState
from clojarsd.core.restart import NO_FAILURES, Failures, RestartPolicy
from clojarsd.core.unit_events import Effect, Exited, NotLaunched

SIGKILL = 9


class EndCause(enum.Enum):
    """Why the process of a unit is being ended by us."""

    STOP = "an order to stop"
    RESTART = "an order to restart"
    START_TIMEOUT = "it was not ready in time"
    POST_START = "its post_start failed"
    WARMUP = "its warm-up failed"

    @property
    def is_asked(self) -> bool:
        """Whether somebody ordered the end, so that it is no failure."""
        return self in (EndCause.STOP, EndCause.RESTART)


@dataclass(frozen=True, slots=True)
class UnitPolicy:
    """What the settings say about a unit's life.

    Attributes:
        start_timeout: seconds from the launch to the proof by checks.
        drain_timeout: seconds that open connections may last when the process is to be ended.
        stop_steps: signal number and seconds until the next one; after the last comes SIGKILL.
        success_codes: exit codes that are no failure; those from 128 up only when the end was ordered.
        reload_signal: what tells the main process to read its configuration again.
        hooks: the hooks that have commands, and the seconds that all commands of one may take together.
        warmup: seconds that the warm-up may take, or None without one.
        must_be_warm: whether an instance whose warm-up failed is ended, and does not serve all the same.
    """

    start_timeout: float
    drain_timeout: float
    stop_steps: tuple[tuple[int, float], ...]
    success_codes: frozenset[int]
    restart: RestartPolicy
    reload_signal: int = 1
    hooks: Mapping[HookName, float] = field(default_factory=dict)
    warmup: float | None = None
    must_be_warm: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit as a value.

    Attributes:
        deadline: monotonic instant at which this state has lasted too long, or None.
        cause: why the process is being ended, or None while nobody ends it: `DRAINING` without a cause lasts.
        ready_at: monotonic instant of this incarnation's proof, or None.
        hook: whose commands are running, or None. Before pre_start is through there is no process yet, and while
            post_stop runs there is none any more.
        hook_failure: how post_start of this incarnation failed, or None.
        warming_since: monotonic instant since when it is warmed up, with nothing left to prove, or None.
        warmup_failure: why the warm-up of this incarnation, which was required, has failed, or None.
        stop_step: how many stop signals were sent to this incarnation.
        last_end: how the latest process that has ended did so, or why it could not be launched.
        ended_by: why that one was ended by us, or None when it ended unasked.
    """

    goal: Goal = Goal.DOWN
    state: UnitState = UnitState.STOPPED
    rotation: Rotation = Rotation.IN
    incarnation: Incarnation = NO_INCARNATION
    deadline: float | None = None
    cause: EndCause | None = None
    ready_at: float | None = None
    hook: HookName | None = None
    hook_failure: str | None = None
    stop_step: int = 0
    failures: Failures = NO_FAILURES
    last_end: Exited | NotLaunched | None = None
    ended_by: EndCause | None = None
    warming_since: float | None = None
    warmup_failure: str | None = None

    @property
    def has_process(self) -> bool:
        """Whether there is a process of this incarnation, or one is being made."""
        return self.state in _WITH_PROCESS and self.hook not in (HookName.PRE_START, HookName.POST_STOP)

    @property
    def lacks(self) -> str | None:
        """What must be there before it can be launched, in words: it rests until then. None while nothing is known."""
        rests = self.state is UnitState.STOPPED and self.goal is Goal.UP
        return self.last_end.reason if rests and isinstance(self.last_end, NotLaunched) else None

    def time_left(self, now: float) -> float | None:
        """Seconds until the deadline, not below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - now)


_WITH_PROCESS = frozenset({UnitState.STARTING, UnitState.READY, UnitState.DRAINING, UnitState.STOPPING})

Step: TypeAlias = tuple[Unit, tuple[Effect, ...]]
"""What the unit becomes, and what must be done about it."""
