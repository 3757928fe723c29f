"""Hears what an instance says of itself, and passes it on to its runner."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol

import structlog

from clojarsd.core.errors import Failed
from clojarsd.core.instance_notify import parse_notification
from clojarsd.core.names import NO_INCARNATION, Incarnation, Role
from clojarsd.system.inotify import EntryWatch
from clojarsd.system.notify_socket import Datagram

log = structlog.get_logger()

READ_AT_ONCE = 16
"""Datagrams read in one turn of the loop."""
MOST_IN_A_ROW = 100
"""Datagrams in one window after which the rest of it is left in the kernel's queue, where it holds up only senders."""
WINDOW = 0.05
RESTORE_PAUSE = 1.0


class NotifyListener(Protocol):
    """The bound socket; see `system.notify_socket.NotifySocket`."""

    @property
    def path(self) -> Path:
        """Where it is."""

    @property
    def socket(self) -> socket.socket:
        """What becomes readable; another one after `restore`."""

    def receive(self) -> Datagram | None:
        """The next message, None when there is none for now."""

    def is_there(self) -> bool:
        """Whether the path still leads to it."""

    def restore(self) -> None:
        """Be there again; raises Failed."""


class NotifiedUnit(Protocol):
    """Who hears what an instance says of itself."""

    def notified_ready(self, incarnation: Incarnation) -> None:
        """It says that it can serve; may come more than once."""

    def notified_status(self, incarnation: Incarnation, text: str) -> None:
        """Its state in its words, for people; empty when it takes them back."""

    def extend_deadline(self, incarnation: Incarnation, seconds: float) -> None:
        """It asks that the deadline of its present state be no sooner than so many seconds from now."""


class Fed(Protocol):
    """Expects keep-alives; see `runtime.watchdog.WatchdogTimer`."""

    def feed(self) -> None:
        """A keep-alive has come."""

    def extend(self, seconds: float) -> None:
        """The next may come that late."""

    def trigger(self) -> None:
        """The instance gives itself up."""


class InstanceNotify:
    """The notify socket of one role, as long as the daemon lives; `run` belongs to the daemon's task group.

    The listener is made and ended by daemon.py. What strangers send is dropped. Messages are heard in their order, each
    in the loop's thread; whoever floods the socket holds up itself.
    """

    def __init__(self, role: Role, listener: NotifyListener, unit: NotifiedUnit, watchdog: Fed) -> None:
        self._listener = listener
        self._unit = unit
        self._watchdog = watchdog
        self._incarnation = NO_INCARNATION
        self._belongs: Callable[[int], bool] = lambda pid: False
        self._told: set[str] = set()
        self._reading: socket.socket | None = None
        self._window_ends = 0.0
        self._read_in_window = 0
        self._status: str | None = None
        self._again: asyncio.TimerHandle | None = None
        self._log = log.bind(role=role.value)

    def begin(self, incarnation: Incarnation, belongs: Callable[[int], bool]) -> None:
        """Listen to this incarnation from now on.

        Args:
            belongs: whether the process with this number is one of the instance's; must not block.
        """
        self._incarnation, self._belongs, self._told = incarnation, belongs, set()

    def end(self) -> None:
        """Listen to nobody."""
        self._incarnation, self._belongs = NO_INCARNATION, lambda pid: False

    async def run(self) -> NoReturn:
        """Listen until cancelled; be there again whenever the socket's file is removed."""
        path, is_lost = self._listener.path, False
        self._read_on()
        try:
            while True:
                try:
                    if not self._listener.is_there():
                        self._restore()
                        self._log.warning("notify_socket_restored", path=str(path))
                    is_lost = False
                    with EntryWatch(path) as watch:
                        while self._listener.is_there():
                            await watch.change()
                except Failed as failed:
                    if not is_lost:
                        self._log.error("notify_socket_lost", reason=str(failed), pause_s=RESTORE_PAUSE)
                    is_lost = True
                    await asyncio.sleep(RESTORE_PAUSE)
        finally:
            self._stop_reading()

    def _restore(self) -> None:
        self._stop_reading()
        try:
            self._hear_all(MOST_IN_A_ROW)  # what had come to the old one
            self._listener.restore()
        finally:
            self._read_on()
        if not self._listener.is_there():
            raise Failed(f"the notify socket {self._listener.path} was taken away as soon as it was made")

    def _read_on(self) -> None:
        self._again = None
        self._reading = self._listener.socket
        asyncio.get_running_loop().add_reader(self._reading, self._read)

    def _stop_reading(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._reading is not None:
            asyncio.get_running_loop().remove_reader(self._reading)
            self._reading = None

    def _read(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now >= self._window_ends:
            self._window_ends, self._read_in_window = now + WINDOW, 0
        self._read_in_window += self._hear_all(READ_AT_ONCE)
        if self._read_in_window >= MOST_IN_A_ROW:
            self._stop_reading()
            self._again = loop.call_at(self._window_ends, self._read_on)

    def _hear_all(self, most: int) -> int:
        """Hear what waits, at most so many datagrams; returns how many. Of statuses in a row the last one counts."""
        for heard in range(most):
            if (datagram := self._listener.receive()) is None:
                self._pass_status_on()
                return heard
            self._hear(datagram)
        self._pass_status_on()
        return most

    def _pass_status_on(self) -> None:
        status, self._status = self._status, None
        if status is not None:
            self._unit.notified_status(self._incarnation, status)

    def _hear(self, datagram: Datagram) -> None:
        if not datagram.pid or not self._belongs(datagram.pid):
            self._tell_once("notification_from_a_stranger", pid=datagram.pid)
            return
        if datagram.content is None:
            self._tell_once("notification_too_large", pid=datagram.pid)
            return
        said, incarnation = parse_notification(datagram.content), self._incarnation
        if said.status is not None:
            self._status = said.status
        for sentence in said.ignored:
            self._log.debug("notification_ignored", pid=datagram.pid, reason=sentence)
        if said.extend is not None or said.ready or said.trigger:
            self._pass_status_on()
        if said.extend is not None:
            self._watchdog.extend(said.extend)
            self._unit.extend_deadline(incarnation, said.extend)
        if said.keepalive:
            self._watchdog.feed()
        if said.ready:
            self._unit.notified_ready(incarnation)
        if said.trigger:
            self._watchdog.trigger()

    def _tell_once(self, event: str, pid: int) -> None:
        """Log it at the first time in an incarnation; whoever floods the socket must not flood the log."""
        if event not in self._told:
            self._told.add(event)
            self._log.warning(event, incarnation=self._incarnation, pid=pid)
