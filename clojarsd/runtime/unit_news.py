"""What others find out about an instance's process, and how the instance is shown to everybody."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from datetime import UTC, datetime

import structlog

from clojarsd.core import unit_events as events
from clojarsd.core.health import CheckRecord
from clojarsd.core.history import EventName, stamp
from clojarsd.core.names import Health, Incarnation, Role, UnitState
from clojarsd.core.saved import InForce
from clojarsd.core.unit import Unit
from clojarsd.core.view import InstanceView
from clojarsd.core.warmup import Warmup
from clojarsd.runtime.unit_memory import UnitMemory, view
from clojarsd.runtime.unit_parts import BY_DAEMON, Plan, Surroundings
from clojarsd.system.class_data import maps_archive

log = structlog.get_logger()


class UnitNews(ABC):
    """Takes what checks, the process itself and those who watch it say. A unit runner is one that also acts."""

    def __init__(self, role: Role, plan: Plan, around: Surroundings) -> None:
        self.role = role
        self._plan = plan
        self._around = around
        self._loop = asyncio.get_running_loop()
        self._unit = Unit()
        self._memory = UnitMemory(now())
        self._log = log.bind(role=role.value)

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """The number of its process, or None without one."""

    @property
    def unit(self) -> Unit:
        """The unit as it is."""
        return self._unit

    @property
    def in_force(self) -> InForce:
        """What of the settings its process is bound to; without a process what the next one will be."""
        return self._memory.in_force or self._plan.in_force

    @abstractmethod
    def report(self, event: events.Event) -> None:
        """Take news that the machine must know."""

    def checked(self, incarnation: Incarnation, records: tuple[CheckRecord, ...], which: int) -> None:
        """Take the records of all checks after a result of the one at index `which`."""
        if not self._is_about(incarnation):
            return
        before = self._memory.health(self._unit)
        self._memory.records = records
        self._memory.checked_at[which] = stamp(now())
        if self._memory.start_seconds is None and self._memory.health(self._unit) is Health.UP:
            self._started()
        self._prove()
        self._publish()
        if self._memory.health(self._unit) is not before:
            self._around.changed()

    def stalled(self, incarnation: Incarnation, reason: str | None) -> None:
        """Take that the process accepts no connections, in words that go on `it has …`; None: it does again."""
        if not self._is_about(incarnation) or (reason is None) == (self._memory.stalled is None):
            return
        if reason is None:
            self._memory.end_stall(self._loop.time())
        else:
            self._memory.begin_stall(f"{reason}, as of {stamp(now())}", self._loop.time())  # it may be shown for long
        self._log.warning("unit_stalled" if reason else "unit_recovered", incarnation=incarnation, reason=reason)
        self._publish()
        self._around.changed()

    @property
    def is_stalled(self) -> bool:
        """Whether it has been found to accept no connections."""
        return self._memory.stalled is not None

    def notified_ready(self, incarnation: Incarnation) -> None:
        """The process has said READY=1."""
        if self._is_about(incarnation):
            self._memory.noticed = incarnation
            self._prove()
            self._publish()

    def notified_status(self, incarnation: Incarnation, text: str) -> None:
        """The process has said how it is."""
        if self._is_about(incarnation):
            self._memory.status_text = text or None
            self._publish()

    def extend_deadline(self, incarnation: Incarnation, seconds: float) -> None:
        """The process has asked for time."""
        self.report(events.TimeAsked(incarnation, seconds))

    def warming(self, incarnation: Incarnation, warmup: Warmup) -> None:
        """Take how far the warm-up is, or what came of it."""
        if not self._is_about(incarnation) or self._unit.warming_since is None:
            return
        self._memory.warmup = warmup
        if warmup.is_over:
            self._tell_warmup(warmup)
            self.report(events.Warmed(incarnation, warmup.failure))
        self._publish()

    def _tell_warmup(self, warmup: Warmup) -> None:
        told = {**warmup.as_json(), "incarnation": self._unit.incarnation}
        text = f"{self.role.value} {warmup.result()}"
        if warmup.failure is None:
            self._log.info("warmup_finished", **told)
            self._around.history.record(EventName.WARMUP_FINISHED, text, self.role, self._memory.by, **told)
            return
        self._log.warning("warmup_failed", **told)
        so = "is ended, because it must be warm" if self._plan.policy.must_be_warm else "serves all the same"
        self._around.history.record(EventName.WARMUP_FAILED, f"{text}; it {so}", self.role, self._memory.by, **told)

    def leave_behind(self, what: str | None) -> None:
        """Show what the ended process has left, such as a port that is still taken; None for nothing."""
        self._memory.left = what
        self._publish()

    def show_trouble(self, what: str | None) -> None:
        """Show what is wrong with the process though it may serve, until it ends; None for nothing any more."""
        self._memory.trouble = what
        self._publish()

    def _is_about(self, incarnation: Incarnation) -> bool:
        """Whether news of that incarnation is about the process that there is."""
        return incarnation == self._unit.incarnation and self._unit.has_process

    def _started(self) -> None:
        """The checks of the process have passed for the first time."""
        archive = self._memory.archive
        has_archive = archive is not None and self.pid is not None and maps_archive(self.pid, archive)
        if archive is not None and not has_archive:
            self._log.warning("class_data_not_used", archive=archive, pid=self.pid)
        self._memory.end_start(self._loop.time(), has_archive)

    def _prove(self) -> None:
        """Report that the process can serve, if all who must say so have said so."""
        noticed = self._memory.noticed == self._unit.incarnation or not self.in_force.notify
        if noticed and self._memory.health(self._unit) is Health.UP:
            self.report(events.Proved(self._unit.incarnation))

    def _view(self) -> InstanceView:
        return view(self.role, self._unit, self._memory, self._plan, self.pid, self._loop.time())

    def _publish(self) -> None:
        seen = self._view()
        wanted = self._unit.state is UnitState.DRAINING and self._memory.by not in (None, BY_DAEMON)
        self._around.traffic.set_eligible(self.role, seen.is_eligible, is_ordered=wanted, is_down=seen.is_down)
        self._around.board.publish(seen)


def now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)
