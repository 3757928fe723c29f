"""Drives one instance: takes orders and reports, steps the machine, carries its effects out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import structlog

from clojarsd.core.errors import LaunchFailed, Refused
from clojarsd.core.health import CheckRecord, verdict
from clojarsd.core.history import EventName, stamp
from clojarsd.core.launch import LaunchSpec
from clojarsd.core.names import ExitStatus, Health, Incarnation, Role, UnitState
from clojarsd.core.reasons import describe_end, why_not_eligible
from clojarsd.core.unit import EndCause, Unit, UnitPolicy, step
from clojarsd.core.unit_events import (
    Announce,
    BeginDrain,
    CutConnections,
    DeadlinePassed,
    Drained,
    Effect,
    EndChecks,
    EndDrain,
    Event,
    Exited,
    Launch,
    NotLaunched,
    Order,
    Proved,
    Signal,
)
from clojarsd.core.view import CheckView, InstanceView, LastExit
from clojarsd.runtime.status import Board

log = structlog.get_logger()


class Running(Protocol):
    """A launched process."""

    @property
    def pid(self) -> int:
        """Its number."""

    def signal(self, number: int) -> None:
        """Send a signal to its whole group."""

    def abandon(self) -> None:
        """Watch it no more, and let it run."""


class LaunchReports(Protocol):
    """Who hears how a launched process fares; see `system.process.ProcessEvents`."""

    def executed(self) -> None:
        """The command runs."""

    def ended(self, how: ExitStatus | LaunchFailed) -> None:
        """The process is gone."""


class Launcher(Protocol):
    """Makes processes."""

    def __call__(self, spec: LaunchSpec, make_events: Callable[[int], LaunchReports], /) -> Running:
        """A process that is becoming the spec's command; raises LaunchFailed when there is none."""


class Checker(Protocol):
    """Checks one incarnation at a time."""

    def begin(self, incarnation: Incarnation) -> None:
        """Check this incarnation from now on, and report each result to `UnitRunner.checked`."""

    def end(self) -> None:
        """Check nothing."""


class Traffic(Protocol):
    """The connections that clients have to the pair."""

    def set_eligible(self, role: Role, eligible: bool) -> None:
        """Whether the instance may get new connections."""

    def begin_drain(self, role: Role, when_drained: Callable[[], None]) -> None:
        """Let open connections end, each within its frontend's time; call back when none is left."""

    def end_drain(self, role: Role) -> None:
        """Leave open connections alone again."""

    def cut(self, role: Role) -> None:
        """Close the open connections."""


class History(Protocol):
    """Keeps what happened."""

    def record(
        self, event: EventName, message: str, role: Role | None = None, by: str | None = None, **detail: Any
    ) -> None:
        """Add an event."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a unit is made of: its name, ports and policy, the kinds of its checks, and what to launch next.

    Attributes:
        spec: the launch with the release as it is now, and that release's name; raises LaunchFailed.
    """

    name: str
    ports: dict[str, int]
    policy: UnitPolicy
    checks: tuple[str, ...]
    spec: Callable[[], tuple[LaunchSpec, str | None]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every runner shares.

    Attributes:
        on_bug: called with an error that must end the daemon.
    """

    launch: Launcher
    traffic: Traffic
    history: History
    board: Board
    on_bug: Callable[[Exception], None]


class UnitRunner:
    """One instance, as long as the daemon lives.

    Everything happens in the loop's thread and at once: an order has taken its effect, on eligibility too, when `order`
    returns, so that no two orders can both rely on the same other instance. The checker is given with `attach`.
    """

    def __init__(self, role: Role, plan: Plan, around: Surroundings) -> None:
        self.role = role
        self._plan = plan
        self._around = around
        self._checker: Checker
        self._loop = asyncio.get_running_loop()
        self._unit = Unit()
        self._process: Running | None = None
        self._records: tuple[CheckRecord, ...] = ()
        self._checked_at: list[str | None] = []
        self._since = _now()
        self._last_exit: LastExit | None = None
        self._release: str | None = None
        self._restarts = 0
        self._by: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._queue: deque[Event] = deque()
        self._stepping = False
        self._abandoned = False
        self._log = log.bind(role=role.value)

    def attach(self, checker: Checker) -> None:
        """Take the checker that will report to this runner, and show the unit for the first time."""
        self._checker = checker
        self._publish()

    @property
    def unit(self) -> Unit:
        """The unit as it is."""
        return self._unit

    def order(self, order: Order, by: str) -> None:
        """Carry an operator's order out.

        Raises:
            Refused: the order does not fit the unit's state; nothing was done.
        """
        assert not self._stepping, "an order comes from outside, never out of an effect"
        before, self._by = self._by, by
        try:
            self._run([order])
        except Refused as refused:
            self._by = before
            verb = type(order).__name__.lower()
            raise Refused(f"cannot {verb} {self.role.value}: {refused}") from None

    def report(self, event: Event) -> None:
        """Take news from the outside; may be called out of an effect."""
        if self._stepping:
            self._queue.append(event)
        elif not self._abandoned:
            self._run([event])

    def checked(self, incarnation: Incarnation, records: tuple[CheckRecord, ...], which: int) -> None:
        """Take the records of all checks after a result of the one at index `which`."""
        if incarnation != self._unit.incarnation or not self._unit.state.has_process:
            return
        self._records = records
        self._checked_at[which] = stamp(_now())
        if self._health() is Health.UP:
            self.report(Proved(incarnation))
        self._publish()

    def abandon(self) -> None:
        """Let the process run on, unwatched; the emergency exit of the daemon."""
        self._abandoned = True
        if self._timer is not None:
            self._timer.cancel()
        if self._process is not None:
            self._process.abandon()
            self._process = None

    def _run(self, events: list[Event]) -> None:
        """Step through the events and through those that their effects bring."""
        self._queue.extend(events)
        self._stepping = True
        try:
            while self._queue:
                self._step(self._queue.popleft())
        except Refused:
            raise
        except Exception as bug:
            self._around.on_bug(bug)  # most callers are callbacks of the loop, which would only log it
            raise
        finally:
            self._stepping = False

    def _step(self, event: Event) -> None:
        before = self._unit
        self._unit, effects = step(before, event, self._loop.time(), self._plan.policy)
        if self._unit is before and not effects:
            return
        if self._unit.state is not before.state or self._unit.incarnation != before.incarnation:
            self._since = _now()
        self._count(before, event)
        self._set_timer()
        self._publish()  # before the effects: what must not get connections any more gets none from here on
        for effect in effects:
            self._perform(effect)
        self._publish()
        if self._unit.state is not before.state or self._unit.incarnation != before.incarnation:
            self._log.info(f"unit_{self._unit.state.value}", incarnation=self._unit.incarnation, pid=self._pid())

    def _count(self, before: Unit, event: Event) -> None:
        """Keep in mind what the machine does not: relaunches, and that what happens unasked is nobody's order."""
        if before.state is UnitState.BACKOFF and isinstance(event, DeadlinePassed):
            self._restarts += 1
        if self._unit.last_end is not before.last_end and self._unit.ended_by in (None, EndCause.START_TIMEOUT):
            self._by = None

    def _perform(self, effect: Effect) -> None:
        traffic = self._around.traffic
        match effect:
            case Launch(incarnation):
                self._launch(incarnation)
            case Signal(_, number):
                if self._process is not None:
                    self._process.signal(number)
            case BeginDrain(incarnation):
                traffic.begin_drain(self.role, lambda: self.report(Drained(incarnation)))
            case EndDrain():
                traffic.end_drain(self.role)
            case CutConnections():
                traffic.cut(self.role)
            case EndChecks():
                self._checker.end()
            case Announce(event):
                self._announce(event)

    def _launch(self, incarnation: Incarnation) -> None:
        self._records = tuple(CheckRecord() for _ in self._plan.checks)
        self._checked_at = [None] * len(self._plan.checks)
        self._around.traffic.end_drain(self.role)
        try:
            spec, self._release = self._plan.spec()
            self._process = self._around.launch(spec, lambda pid: _Reports(self, incarnation))
        except LaunchFailed as failed:
            self.report(NotLaunched(incarnation, failed.stage, failed.reason))

    def _executed(self, incarnation: Incarnation) -> None:
        """The command runs, so nobody else had its ports: only from here on do answers on them speak for it."""
        if self._unit.state is not UnitState.STOPPING:
            self._checker.begin(incarnation)
        self._around.history.record(
            EventName.INSTANCE_STARTED,
            f"{self.role.value} was launched as process {self._pid()}",
            self.role,
            self._by,
            pid=self._pid(),
            incarnation=self._unit.incarnation,
        )

    def _ended(self, incarnation: Incarnation, how: ExitStatus | LaunchFailed) -> None:
        self._process = None
        if isinstance(how, LaunchFailed):
            self.report(NotLaunched(incarnation, how.stage, how.reason))
        else:
            self._last_exit = LastExit(how, stamp(_now()))
            self.report(Exited(incarnation, how))

    def _announce(self, event: EventName) -> None:
        unit, detail = self._unit, dict[str, Any](incarnation=self._unit.incarnation)
        if event is EventName.INSTANCE_READY:
            message = "is ready"
        elif event is EventName.INSTANCE_EXITED:
            assert unit.last_end is not None
            message = describe_end(self.role, unit.last_end, unit.ended_by)
            if isinstance(unit.last_end, NotLaunched):
                self._log.warning("launch_failed", stage=unit.last_end.stage.value, reason=unit.last_end.reason)
            else:
                self._log.info("unit_exited", how=str(unit.last_end.status), incarnation=unit.last_end.incarnation)
                detail |= {"code": unit.last_end.status.code, "signal": unit.last_end.status.signal}
            detail["incarnation"] = unit.last_end.incarnation
        elif event is EventName.INSTANCE_FAILED:
            message = f"is not started again: {self._reason()}"
        elif event is EventName.DRAIN_STARTED:
            message = "gets no new connections; open ones may end"
        else:
            message = "has no connections left" if unit.state is not UnitState.READY else "gets connections again"
        text = message if message.startswith("cannot") else f"{self.role.value} {message}"
        self._around.history.record(event, text, self.role, self._by, **detail)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._unit.deadline is not None:
            self._timer = self._loop.call_at(self._unit.deadline, self.report, DeadlinePassed())

    def _publish(self) -> None:
        view = InstanceView(
            role=self.role,
            name=self._plan.name,
            unit=self._unit,
            health=self._health(),
            pid=self._pid(),
            since=stamp(self._since),
            restarts=self._restarts,
            last_exit=self._last_exit,
            reason=self._reason(),
            release=self._release,
            ports=self._plan.ports,
            checks=self._check_views(),
        )
        self._around.traffic.set_eligible(self.role, view.is_eligible)
        self._around.board.publish(view)

    def _pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def _health(self) -> Health:
        return verdict(self._records) if self._unit.state.has_process and self._records else Health.UNKNOWN

    def _check_views(self) -> tuple[CheckView, ...]:
        if not self._records or not self._unit.state.has_process:
            return tuple(CheckView(kind, Health.UNKNOWN, None, None) for kind in self._plan.checks)
        return tuple(
            CheckView(kind, record.health, record.last.text if record.last else None, at)
            for kind, record, at in zip(self._plan.checks, self._records, self._checked_at, strict=True)
        )

    def _reason(self) -> str | None:
        next_try = None
        if self._unit.state is UnitState.BACKOFF and self._unit.deadline is not None:
            next_try = stamp(_now() + timedelta(seconds=self._unit.deadline - self._loop.time()))
        return why_not_eligible(self.role, self._unit, self._health(), self._check_views(), self._plan.policy, next_try)


class _Reports:
    """Tells a runner about the process of one incarnation."""

    def __init__(self, runner: UnitRunner, incarnation: Incarnation) -> None:
        self._runner = runner
        self._incarnation = incarnation

    def executed(self) -> None:
        """The command runs."""
        self._runner._executed(self._incarnation)

    def ended(self, how: ExitStatus | LaunchFailed) -> None:
        """The process is gone."""
        self._runner._ended(self._incarnation, how)


def _now() -> datetime:
    return datetime.now(UTC)
