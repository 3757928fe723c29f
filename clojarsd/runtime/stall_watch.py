"""Watches the accept queues of one instance, tells its runner when it does not accept, and has who waits rescued."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from clojarsd.core.errors import Failed
from clojarsd.core.history import EventName
from clojarsd.core.names import Health, Incarnation, Role, UnitState
from clojarsd.core.stall import Listener, Look, Probe, Stage, StallPolicy, look, resumed, settle
from clojarsd.core.unit import Unit
from clojarsd.runtime.instance_listeners import InstanceListeners, Target
from clojarsd.runtime.queue_books import Entry, QueueBooks
from clojarsd.runtime.unit_parts import History
from clojarsd.system.accept_queue import AcceptQueues, ProbeConnection
from clojarsd.system.instance_sockets import Listening
from clojarsd.system.own_connections import OwnConnections
from clojarsd.system.sock_diag import SockDiag
from clojarsd.system.sockets import EXHAUSTED

log = structlog.get_logger()

WHILE_OFF = 1.0
"""Seconds between two looks whether the listeners are still there, when stalls are not looked for."""
FIRST_RESCUE = 0.1
LONGEST_RESCUE = 2.0
"""Seconds from one rescue to the next while more come; doubled while they find nobody."""
TOLD_WITHIN = 0.5
"""Seconds after which a stall is recorded, also while the first rescue has not come to its end."""
_SERVES = frozenset({UnitState.READY, UnitState.DRAINING})


class StalledUnit(Protocol):
    """Who hears the verdict; see `runtime.unit_news.UnitNews`."""

    @property
    def unit(self) -> Unit:
        """The unit as it is."""

    @property
    def is_stalled(self) -> bool:
        """What it was told last."""

    def stalled(self, incarnation: Incarnation, reason: str | None) -> None:
        """The process accepts no connections, in words; None: it does again."""


class Rescuer(Protocol):
    """Rescues who waits; see `runtime.rescue.Rescue`."""

    def prepare(self) -> None:
        """It may be needed soon."""

    def dismiss(self) -> None:
        """It is not needed."""

    def rescue(self, role: Role, listeners: Sequence[Listening]) -> Awaitable[int]:
        """Have those served elsewhere who wait; how many. Raises Failed: nobody was."""


@dataclass(slots=True)
class _Watched:
    """One listener of it."""

    found: Listening
    thought: Listener
    probe: ProbeConnection | None = None
    entry: Entry | None = None

    @property
    def strangers(self) -> int:
        """Connections in its queue that are not our probe."""
        return self.thought.waiting - (self.probe is not None and self.probe.look() is Probe.WAITING)

    def drop_probe(self) -> None:
        """Close the probe, if there is one."""
        if self.probe is not None:
            self.probe.close()
            self.probe = None


class StallWatch:
    """The accept queues of one role, for as long as the daemon lives; `run` belongs to the daemon's task group.

    Attributes:
        health: of the instance by all that is known; set by the owner.
        on_listeners: called when the listeners of a ready instance are found or change; set by the owner.
        may_rescue: whether who waits may be served by the other instance; set by the owner.
        shared_ports: of a port of the instance: those from which the kernel steers connections to it, and perhaps to
            the other instance; set by the owner.
        others_wait: whether anything that the kernel has steered may wait at the other instance; set by the owner.
    """

    def __init__(
        self, role: Role, unit: StalledUnit, history: History, diag: SockDiag, own: OwnConnections, rescuer: Rescuer
    ) -> None:
        self.on_listeners: Callable[[], None] = lambda: None
        self.may_rescue: Callable[[], bool] = lambda: False
        self.health: Callable[[], Health] = lambda: Health.UP
        self.shared_ports: Callable[[int], Iterable[int]] = lambda port: ()
        self.others_wait: Callable[[], bool] = lambda: True
        self._role = role
        self._unit = unit
        self._history = history
        self._diag = diag
        self._own = own
        self._rescuer = rescuer
        self._queues = AcceptQueues(diag)
        self._books = QueueBooks(diag, self._queues, lambda port: self.shared_ports(port), lambda: self.others_wait())
        self._loop = asyncio.get_running_loop()
        self._broken: asyncio.Future[None] = self._loop.create_future()
        self._group: asyncio.TaskGroup | None = None
        self._policy: StallPolicy | None = None
        self._listeners = InstanceListeners(role, self._found)
        self._watched: list[_Watched] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        """When the latest look was to be."""
        self._is_rescuing = False
        self._rescue_at = 0.0
        self._rescue_pause = FIRST_RESCUE
        self._rescued = 0
        self._not_rescued: str | None = None
        """Why nobody could be rescued when that was tried last: said once for each stall."""
        self._untold: Callable[[], None] | None = None
        """Records the stall, as soon as it is known how many were rescued."""
        self._since = 0.0
        self._log = log.bind(role=role.value)

    def configure(self, policy: StallPolicy | None) -> None:
        """Look for stalls by this from now on; None: for none, so that none is known."""
        self._policy = policy
        if policy is None:
            for watched in self._watched:
                watched.drop_probe()
                watched.thought = Listener()
            self._withdraw()

    def begin(self, target: Target) -> None:
        """Watch this process, which is ready, and no other. One that is known to be stalled is until it accepts."""
        before = self._listeners.target
        if target == before:
            return
        if before is None or target.incarnation != before.incarnation:
            self.end()
            self._since = self._loop.time()
        self._listeners.begin(target)

    def end(self) -> None:
        """Watch nothing."""
        self._record_now()
        self._listeners.end()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for watched in self._watched:
            watched.drop_probe()
        self._watched = []
        self._queues.forget()
        self._rescuer.dismiss()

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._group:
                self._group.create_task(self._listeners.run())
                await self._broken
        finally:
            self.end()

    def may_have_steered(self) -> bool:
        """Whether anything that the kernel has steered may wait in one of its accept queues now."""
        return self._books.may_have_steered(watched.found for watched in self._watched)

    def _found(self, target: Target, found: list[Listening]) -> None:
        """Watch these listeners of the process, and go on with those that were watched already."""
        known = {watched.found: watched for watched in self._watched}
        for one in known.keys() - set(found):
            known[one].drop_probe()
        now = self._loop.time()
        fresh = resumed(now, now) if self._unit.is_stalled and self._policy is not None else Listener()
        self._watched = [known.get(one) or _Watched(one, fresh) for one in found]
        self.on_listeners()
        if not found or self._policy is None:
            self._withdraw()
        if found and self._timer is None:
            self._look()

    # Looking.

    def _look(self) -> None:
        self._timer = None
        try:
            self._look_at_all()
        except Exception as bug:
            if not self._broken.done():
                self._broken.set_exception(bug)  # a callback of the loop, which would only log it
            return
        if self._watched:
            policy = self._policy
            pause = min(WHILE_OFF if policy is None else one.thought.next_look(policy) for one in self._watched)
            self._due = max(self._due + pause, self._loop.time() + pause / 2)  # what comes late delays not all others
            self._timer = self._loop.call_at(self._due, self._look)

    def _look_at_all(self) -> None:
        target, now = self._listeners.target, self._loop.time()
        assert target is not None, "without one there is nothing to look at"
        for watched in list(self._watched):
            try:
                waiting = self._queues.waiting(watched.found)
            except (OSError, Failed) as error:
                if isinstance(error, OSError) and error.errno in EXHAUSTED:
                    continue  # it cannot be seen now: what is thought of it holds until the next look
                # closed, or its process is gone
                watched.drop_probe()
                self._watched.remove(watched)
                self._queues.forget()
                self._listeners.look_again()
                continue
            if self._policy is not None and self._unit.unit.state in _SERVES:
                self._judge(watched, waiting, now, self._policy)
        if not self._watched:
            self._withdraw()
        elif self._policy is not None:
            self._tell(target, now)
            self._rescue_if_needed(target, now)

    def _judge(self, watched: _Watched, waiting: int, now: float, policy: StallPolicy) -> None:
        before = watched.thought
        if before.stage is Stage.QUIET and not waiting:
            self._own.nothing_waits(watched.found.address.port)
            return  # nearly always
        seen = Look(now, waiting, watched.probe.look() if watched.probe is not None else Probe.NONE)
        watched.thought = look(before, seen, policy)
        stage = watched.thought.stage
        if seen.probe in (Probe.ACCEPTED, Probe.LOST):
            watched.drop_probe()
        if stage is Stage.CONFIRMING and before.stage is not stage:
            watched.entry = self._books.open(watched.found, waiting)
        if before.stage is Stage.CONFIRMING and stage is not before.stage:
            watched.drop_probe()
            self._rescuer.dismiss()
        if not self._is_rescuing and watched.thought.wants_probe(seen):
            self._probe(watched, now)
            if stage is Stage.CONFIRMING and self.may_rescue():
                self._rescuer.prepare()
        if watched.thought.is_confirmed(now):
            moved = watched.entry is not None and self._books.have_moved(watched.found, watched.entry)
            watched.thought = settle(watched.thought, now, moved=moved)
            if moved:
                watched.drop_probe()
                self._rescuer.dismiss()

    def _probe(self, watched: _Watched, now: float) -> None:
        watched.drop_probe()
        watched.thought = watched.thought.probed(now)
        with suppress(OSError):  # no descriptor is left: the next look tries again
            watched.probe = ProbeConnection(watched.found, self._diag, self._own)

    # What follows.

    def _tell(self, target: Target, now: float) -> None:
        """Tell the runner when the verdict has changed."""
        stalled = [watched for watched in self._watched if watched.thought.stage is Stage.STALLED]
        if bool(stalled) == self._unit.is_stalled:
            return
        if not stalled:
            seconds = now - self._since
            self._unit.stalled(target.incarnation, None)
            self._rescuer.dismiss()
            self._record_now()
            text = f"{self._role.value} accepts connections again, after {seconds:.3g} s"
            self._history.record(
                EventName.INSTANCE_RECOVERED,
                text,
                self._role,
                incarnation=target.incarnation,
                seconds=round(seconds, 3),
                rescued=self._rescued,
            )
            return
        worst = max(stalled, key=lambda watched: watched.strangers)
        self._since, self._rescued, self._not_rescued = worst.thought.since, 0, None
        self._rescue_pause, self._rescue_at = FIRST_RESCUE, now
        count, seconds = worst.strangers, now - worst.thought.since
        what = f"{count} waiting connection{'' if count == 1 else 's'}"
        reason = f"it has not accepted {what} for {seconds:.1f} s"
        self._unit.stalled(target.incarnation, reason)

        def record() -> None:
            is_one, other = self._rescued == 1, self._role.other.value
            told = f"; {self._rescued} of them {'is' if is_one else 'are'} served by {other}"
            self._history.record(
                EventName.INSTANCE_STALLED,
                f"{self._role.value} is stalled: {reason}{told if self._rescued else ''}",
                self._role,
                incarnation=target.incarnation,
                port=worst.found.address.port,
                waiting=count,
                seconds=round(seconds, 3),
                rescued=self._rescued,
            )

        self._untold = record
        self._loop.call_later(TOLD_WITHIN, self._record_now)

    def _withdraw(self) -> None:
        """What is not watched is not known to be stalled."""
        if self._listeners.target is not None and self._unit.is_stalled:
            self._unit.stalled(self._listeners.target.incarnation, None)
            self._record_now()

    def _record_now(self) -> None:
        record, self._untold = self._untold, None
        if record is not None:
            record()

    def _rescue_if_needed(self, target: Target, now: float) -> None:
        if self._is_rescuing:
            return
        if now >= self._rescue_at and self.may_rescue():
            stuck = [watched for watched in self._watched if self._is_stuck(watched)]
            if stuck and self._group is not None:
                self._is_rescuing = True
                for watched in stuck:
                    watched.drop_probe()  # it would be accepted, and not by the instance
                self._group.create_task(self._rescue(target, [watched.found for watched in stuck]))
                return
        self._record_now()

    def _is_stuck(self, watched: _Watched) -> bool:
        """Whether somebody waits there in vain: it is stalled, or an instance that fails its checks lets them wait."""
        if watched.thought.stage is Stage.STALLED:
            return watched.strangers > 0
        is_idle = watched.thought.stage is Stage.CONFIRMING or watched.thought.looks > 1
        return is_idle and watched.strangers > 0 and self.health() is Health.DOWN

    async def _rescue(self, target: Target, listeners: Sequence[Listening]) -> None:
        try:
            count = await self._rescuer.rescue(self._role, listeners)
        except Failed as failed:
            count = 0
            if str(failed) != self._not_rescued:
                self._log.warning("not_rescued", reason=str(failed))
            self._not_rescued = str(failed)
        finally:
            self._is_rescuing = False
        if count:
            self._log.info("rescued", connections=count, served_by=self._role.other.value)
        if target is not self._listeners.target:
            return
        self._rescued += count
        self._rescue_pause = FIRST_RESCUE if count else min(2 * self._rescue_pause, LONGEST_RESCUE)
        self._rescue_at = self._loop.time() + self._rescue_pause
        self._record_now()
