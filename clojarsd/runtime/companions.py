"""What goes along with an instance's process: its messages, its keep-alives, its memory, and its ports at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import structlog

from clojarsd.core.api import Verb
from clojarsd.core.errors import Refused
from clojarsd.core.history import EventName
from clojarsd.core.identity import InstanceMark
from clojarsd.core.names import Address, Incarnation, LaunchStage, Role
from clojarsd.core.saved import InForce
from clojarsd.core.unit import Unit
from clojarsd.core.unit_events import NotLaunched
from clojarsd.runtime.unit_parts import BY_DAEMON, History

log = structlog.get_logger()


class Lived(Protocol):
    """A unit, as far as those who go along with it need it."""

    @property
    def unit(self) -> Unit:
        """The unit as it is."""

    @property
    def pid(self) -> int | None:
        """The number of its process, or None without one."""

    @property
    def in_force(self) -> InForce:
        """What of the settings its process is bound to."""

    def leave_behind(self, what: str | None) -> None:
        """Show what the ended process has left."""

    def show_trouble(self, what: str | None) -> None:
        """Show what is wrong with the process though it may serve; None for nothing any more."""


class Heard(Protocol):
    """Hears what an instance says of itself; see `runtime.instance_notify.InstanceNotify`."""

    def begin(self, incarnation: Incarnation, belongs: Callable[[int], bool]) -> None:
        """Listen to this incarnation, whose processes are those for which `belongs` holds."""

    def end(self) -> None:
        """Listen to nobody."""


class Leash(Protocol):
    """Expects keep-alives; see `runtime.watchdog.WatchdogTimer`."""

    def begin(self, seconds: float, resumed: Callable[[Role], None] | None = None) -> None:
        """Expect one within every so many seconds; `resumed` is called at the first."""

    def end(self) -> None:
        """Expect nothing any more."""


class Memory(Protocol):
    """Looks at what instances use; see `runtime.memory_watch.MemoryWatch`."""

    def begin(self, role: Role, pid: int) -> None:
        """Look at this process from now on."""

    def end(self, role: Role) -> None:
        """The process is gone."""


class Orders(Protocol):
    """Carries orders out."""

    def submit(self, verb: Verb, roles: tuple[Role, ...], by: str) -> Any:
        """Begin an order; raises Refused when nothing was done."""


class Watcher(Protocol):
    """Watches each process while it is ready; see `runtime.stalls.Stalls`."""

    def proved(self, role: Role) -> None:
        """It has become ready, or the settings have changed."""

    def gone(self, role: Role) -> None:
        """It has ended."""


class Companions:
    """Tells those who go along with each process when it begins, is ready and ends; nothing runs inside.

    Args:
        belongs: whether the process with the first number is one of the leader with the second, by mark too.
        still_taken: which of the ports somebody still has, in words, or None; blocks.
        strangers: what runs and comes from an instance of which nobody can tell which, in words; blocks.
        state_dir: of this daemon, for marks.
        watchdogs: the seconds of each role by the settings as they are now, or None.
        steady: seconds that it must have been ready before it is restarted for the same kind of reason again.
    """

    def __init__(
        self,
        units: Mapping[Role, Lived],
        history: History,
        memory: Memory,
        belongs: Callable[[int, int, InstanceMark], bool],
        still_taken: Callable[[Mapping[str, Address]], str | None],
        strangers: Callable[[], Sequence[str]],
        state_dir: str,
        watchdogs: Callable[[Role], float | None],
        steady: Callable[[Role], float],
    ) -> None:
        self._units = units
        self._history = history
        self._memory = memory
        self._belongs = belongs
        self._still_taken = still_taken
        self._strangers = strangers
        self._state_dir = state_dir
        self._watchdogs = watchdogs
        self._steady = steady
        self._restarted: dict[Role, Incarnation] = {}
        self._heard: Mapping[Role, Heard] = {}
        self._leashes: Mapping[Role, Leash] = {}
        self._orders: Orders
        self._watchers: Sequence[Watcher] = ()
        self._told_hung: dict[Role, Incarnation] = {}
        self._loop = asyncio.get_running_loop()

    def attach(
        self,
        heard: Mapping[Role, Heard],
        leashes: Mapping[Role, Leash],
        orders: Orders,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        """Take those who hear, expect and watch, and who restarts what has gone wrong."""
        self._heard, self._leashes, self._orders, self._watchers = heard, leashes, orders, watchers

    def launched(self, role: Role) -> None:
        """A process was launched or adopted."""
        runner = self._units[role]
        leader, incarnation = runner.pid, runner.unit.incarnation
        assert leader is not None
        self._memory.begin(role, leader)
        if runner.in_force.notify and role in self._heard:
            mark = InstanceMark(self._state_dir, role, incarnation)
            self._heard[role].begin(incarnation, lambda pid: self._belongs(pid, leader, mark))

    def proved(self, role: Role) -> None:
        """It has become ready, or the settings have changed: it has to say that it lives, if that was agreed."""
        agreed, wanted = self._units[role].in_force.watchdog, self._watchdogs(role)
        if agreed is None or wanted is None:
            self._leashes[role].end()
            if self._told_hung.pop(role, None) is not None:  # nobody expects it to say anything any more
                self._units[role].show_trouble(None)
        else:
            self._leashes[role].begin(max(agreed, wanted), self._watchdog_resumed)
        for watcher in self._watchers:
            watcher.proved(role)

    def gone(self, role: Role) -> None:
        """It has ended, and nothing that it started is left."""
        self._memory.end(role)
        self._leashes[role].end()
        if role in self._heard:
            self._heard[role].end()
        for watcher in self._watchers:
            watcher.gone(role)

    def rested(self, role: Role) -> None:
        """No other process is to come: whoever has the ports now keeps the next one from them."""
        end = self._units[role].unit.last_end
        if isinstance(end, NotLaunched) and end.stage is LaunchStage.PORTS:
            return  # that is told already
        in_force = self._units[role].in_force
        ports = {name: Address(in_force.host, port) for name, port in in_force.ports.items()}
        try:
            looking = self._loop.run_in_executor(None, self._what_is_left, ports)
        except RuntimeError as error:  # the kernel gives no more threads, and nothing depends on this look
            log.warning("ports_not_looked_at", role=role.value, reason=str(error))
            return
        looking.add_done_callback(lambda looked: self._show_taken(role, looked))

    def _what_is_left(self, ports: Mapping[str, Address]) -> str | None:
        """What keeps the next process from its ports, and what somebody has let go of, in words; None for nothing."""
        told = [taken] if (taken := self._still_taken(ports)) is not None else []
        if strays := self._strangers():
            one = len(strays) == 1
            told.append(
                f"{', '.join(strays)} {'has' if one else 'have'} left {'its' if one else 'their'} instance without a"
                f" trace, whichever that was, and {'ends' if one else 'end'} with clojarsd"
            )
        return "; ".join(told) or None

    def restart(self, role: Role, reason: str) -> None:
        """Restart an instance without an outage, for a reason in words.

        Raises:
            Refused: the other one could not take over; or it is not up, or being ended, which an operator may have
                ordered: that is not overridden; or the last such restart was followed by too short a life, so that
                the next one would not help either.
        """
        unit = self._units[role].unit
        if unit.cause is not None or unit.ready_at is None:
            raise Refused(f"cannot restart {role.value}: it is {unit.state.value}; nothing was done")
        lived, reset = self._loop.time() - unit.ready_at, self._steady(role)
        if self._restarted.get(role) == unit.incarnation - 1 and lived < reset:
            raise Refused(
                f"cannot restart {role.value}: it was restarted for such a reason already, and has been up again for"
                f" {lived:.0f} s only (restart_reset {reset:g} s); it runs on"
            )
        work = self._orders.submit(Verb.RESTART, (role,), BY_DAEMON)
        assert work is not None
        self._restarted[role] = unit.incarnation
        text = f"clojarsd restarts {role.value}: {reason}"
        self._history.record(EventName.ORDER, text, role, BY_DAEMON, verb=Verb.RESTART.value, reason=reason)

    def watchdog_expired(self, role: Role, seconds: float) -> None:
        """It has not said for so long that it lives; while the other could not take over it gets that time again."""
        reason = f"it has not said within {seconds:g} s that it is alive (watchdog)"
        unit = self._units[role].unit
        if unit.cause is None and self._told_hung.get(role) != unit.incarnation:
            self._told_hung[role] = unit.incarnation  # once, however often its restart is put off
            text = f"{role.value} hangs: {reason}"
            self._history.record(EventName.INSTANCE_HUNG, text, role, incarnation=unit.incarnation, seconds=seconds)
        try:
            self.restart(role, reason)
        except Refused as refused:
            log.warning("watchdog_restart_put_off", role=role.value, refused=str(refused))
            self._leashes[role].begin(seconds, self._watchdog_resumed)
            if unit.cause is None:
                self._units[role].show_trouble(f"{reason}; its restart is put off: {refused}")
        else:
            self._units[role].show_trouble(None)

    def _watchdog_resumed(self, role: Role) -> None:
        """A keep-alive has come, the first one for a while or at all."""
        incarnation = self._units[role].unit.incarnation
        if self._told_hung.pop(role, None) == incarnation:
            self._units[role].show_trouble(None)
            text = f"{role.value} says again that it is alive (watchdog)"
            self._history.record(EventName.INSTANCE_RECOVERED, text, role, incarnation=incarnation)

    def _show_taken(self, role: Role, looked: asyncio.Future[str | None]) -> None:
        if looked.cancelled() or looked.exception() is not None:
            return
        runner = self._units[role]
        if not runner.unit.has_process and looked.result() is not None:
            log.warning("something_left", role=role.value, reason=looked.result())
            runner.leave_behind(looked.result())
