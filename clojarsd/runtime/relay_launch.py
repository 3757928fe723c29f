"""Finds the relay process that runs, makes one, and ends one."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from clojarsd.core.errors import Failed, reason_of
from clojarsd.core.relay_messages import (
    PROTOCOL,
    Hello,
    Refusal,
    ToSupervisor,
    Welcome,
    from_relay,
    protocol_of,
    to_relay,
)
from clojarsd.runtime.relay_owner import Owner as Owner
from clojarsd.system.channel import Channel, Descriptors, pair
from clojarsd.system.confinement import Account
from clojarsd.system.identity import user_of
from clojarsd.system.relay_socket import clear_room, connect, credentials_of

log = structlog.get_logger()

MODULE = "clojarsd.relay_process"
FORMER_SOCKET = "relay.sock"
"""Where a relay process of earlier versions is found."""
HELLO_TIMEOUT = 5.0
"""Seconds until a relay process must have answered a `Hello`, one that has just been launched included."""
END_TIMEOUT = 5.0
"""Seconds until one that was killed, or told to end, must be gone."""
RECONNECT_EVERY = 0.1
RECONNECT_FOR = 5.0
"""Seconds for which one that lives and has lost its channel is looked for."""
_ABOVE = 10
"""Descriptors for the child are made from here up, so that moving one to 3 in it cannot close another."""
_NOT_FOR_IT = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}
)
"""What the service manager says to the supervisor alone."""
_CATCHABLE = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}


class RelayPeer:
    """A relay process and the channel to it. The link makes it, by `find` or `launch`, and closes it.

    Messages that come before `listen` wait for it.

    Attributes:
        pid: of the process.
        welcome: what it has answered to our `Hello`; its listening sockets are in `listeners`, by frontend.
    """

    def __init__(self, pid: int, pidfd: int, end: socket.socket, owner: Owner) -> None:
        self.pid = pid
        self.welcome: Welcome
        self.listeners: dict[str, list[socket.socket]] = {}
        self.ended = asyncio.Event()
        self._owner = owner
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[Welcome | Refusal | str] = self._loop.create_future()
        self._early: list[ToSupervisor] = []
        self._on_message: Callable[[ToSupervisor], None] = self._early.append
        self._on_lost: Callable[[str], None] = lambda reason: None
        self._lost: str | None = None
        self._how: str | None = None
        self.channel = Channel(end, self._hear, self._lose)
        self._loop.add_reader(pidfd, self._end)
        owner.own(pid)

    @property
    def reason(self) -> str | None:
        """How the process has ended, or why the channel was lost; None while neither is known."""
        return self._how or self._lost

    async def greet(self, code: str, timeout: float | None = None) -> Welcome | Refusal | str:
        """What it answers; a text when it does not, or not in our version: why."""
        timeout = HELLO_TIMEOUT if timeout is None else timeout
        self.channel.send(to_relay(Hello(PROTOCOL, code)))
        try:
            async with asyncio.timeout(timeout):
                answer = await self._answer
        except TimeoutError:
            return f"it does not answer within {timeout:g} s"
        if isinstance(answer, Welcome):
            self.welcome = answer
        return answer

    def listen(self, on_message: Callable[[ToSupervisor], None], on_lost: Callable[[str], None]) -> None:
        """Hear what it says from now on, and that the channel is lost or the process gone, which is said once."""
        self._on_message, self._on_lost = on_message, on_lost
        early, self._early = self._early, []
        for message in early:
            on_message(message)
        if self._lost is not None:
            self._loop.call_soon(on_lost, self._lost)

    def kill(self) -> None:
        """Kill the process, if it has not ended."""
        self._signal(signal.SIGKILL)

    def abort(self) -> None:
        """End the process so that it says where it stands (faulthandler), if it can."""
        self._signal(signal.SIGABRT)

    def give_up(self, unanswered: int, *, is_first: bool) -> None:
        """End the process, which has not answered so many pings; the first time so that it says where it stands."""
        if is_first:
            log.error("relay_aborted", pid=self.pid, reason=f"it has not answered {unanswered} pings")
            self.abort()
        else:
            log.error("relay_killed", pid=self.pid, reason="it has not ended by itself")
            self.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def end(self) -> None:
        """Kill the process if it has not ended, and wait until it has; then everything of this is closed."""
        self._on_lost = lambda reason: None
        self.kill()
        await self.wait(END_TIMEOUT)
        self.close()

    async def wait(self, timeout: float) -> bool:
        """Whether the process ends within so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.ended.wait()
        return self.ended.is_set()

    def close(self) -> None:
        """Let the process be, and let go of it."""
        self.channel.close()
        self._close_pidfd()
        for listeners in self.listeners.values():
            for listener in listeners:
                listener.close()
        self.listeners.clear()

    def _hear(self, said: dict[str, Any], descriptors: Descriptors) -> None:
        if not self._answer.done():
            self._answer.set_result(self._answered(said, descriptors))
            return
        try:
            message = from_relay(said)
        except ValueError as error:
            self._lose(f"it says what does not fit: {error}")
            return
        if message is not None:
            self._on_message(message)

    def _answered(self, said: dict[str, Any], descriptors: Descriptors) -> Welcome | Refusal | str:
        protocol = protocol_of(said)
        if protocol != PROTOCOL:
            return f"it speaks version {protocol} of the protocol, and this is version {PROTOCOL}"
        try:
            answer = from_relay(said)
        except ValueError as error:
            return f"it says what does not fit: {error}"
        if not isinstance(answer, Welcome | Refusal):
            return f"it answers {said.get('class')} to a greeting"
        if isinstance(answer, Welcome):
            for standing in answer.frontends:
                taken = descriptors.take(standing.listeners)
                self.listeners[standing.plan.name] = [socket.socket(fileno=number) for number in taken]
        return answer

    def _lose(self, reason: str) -> None:
        """The process has gone, or the channel: whichever is seen first."""
        if self._lost is None:
            self._lost = reason
            if not self._answer.done():
                self._answer.set_result(reason)
            self.channel.close()
            self._on_lost(reason)

    def _end(self) -> None:
        self._how = _reap(self._pidfd)
        self._close_pidfd()
        self.ended.set()
        self._lose(self._how)

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
            self._owner.disown(self.pid)


@dataclass(frozen=True, slots=True)
class Found:
    """A relay process that runs already. `answer` is what it said to our greeting, see `RelayPeer.greet`."""

    peer: RelayPeer
    answer: Welcome | Refusal | str = field(repr=False)


async def find(runtime_dir: Path, code: str, owner: Owner) -> Found | None:
    """The relay process that listens in the directory, also one of an earlier version; None when there is none.

    Raises:
        Failed: there is one that cannot be reached.
    """
    found = await _find(owner.place(runtime_dir), code, owner)
    if found is None and owner.number == 1:
        found = await _find(runtime_dir / FORMER_SOCKET, code, owner)
    return found


async def _find(path: Path, code: str, owner: Owner) -> Found | None:
    end = connect(path)
    if end is None:
        return None
    pid, uid = credentials_of(end)
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        end.close()
        return None
    except OSError as error:
        end.close()
        raise Failed(f"cannot watch the relay process {pid}: {reason_of(error)}") from error
    # The number was its own when it began to listen. Its end of the connection is open still, so it was also when the
    # descriptor was made: that is closed with the process, and nobody inherits it.
    peer = RelayPeer(pid, pidfd, end, owner)
    if peer.channel.is_left() or user_of(pid) != uid:  # or somebody has made us one whose number is another's by now
        peer.close()
        return None
    return Found(peer, await peer.greet(code))


async def find_again(lost: RelayPeer, runtime_dir: Path, code: str, owner: Owner) -> RelayPeer | None:
    """The same process, which lives and has lost its channel, with another one; None: it is gone, killed if need be."""
    give_up_at = asyncio.get_running_loop().time() + RECONNECT_FOR
    while not await lost.wait(RECONNECT_EVERY):
        with contextlib.suppress(Failed):
            found = await find(runtime_dir, code, owner)
            if found is not None and isinstance(found.answer, Welcome) and found.peer.pid == lost.pid:
                lost.close()
                owner.own(lost.pid)  # which the closing has undone
                return found.peer
            if found is not None:
                found.peer.close()
        if asyncio.get_running_loop().time() > give_up_at:
            log.error("relay_killed", pid=lost.pid, reason="it cannot be reached any more; its connections are cut")
            await lost.end()
    lost.close()
    return None


async def launch(runtime_dir: Path, code: str, owner: Owner) -> RelayPeer:
    """A new relay process that has answered. It has no frontends yet.

    Raises:
        Failed: there is none; says why.
    """
    peer = spawn(runtime_dir, code, owner)
    try:
        answer = await peer.greet(code)
    except BaseException:
        await peer.end()
        raise
    if not isinstance(answer, Welcome):
        reason = answer if isinstance(answer, str) else answer.reason
        await peer.end()
        raise Failed(f"cannot start the relay process: {reason}")
    log.info("relay_started", pid=peer.pid)
    return peer


def spawn(runtime_dir: Path, code: str, owner: Owner, take_over: socket.socket | None = None) -> RelayPeer:
    """A new relay process, not greeted yet.

    Args:
        take_over: leads to a process that it gets everything from; it answers a greeting only when it has all.

    Raises:
        Failed: there is none; says why.
    """
    try:
        with ExitStack() as undo:
            owner.keep_room(runtime_dir)
            ours, theirs = pair()
            undo.callback(ours.close)
            with theirs:
                pid, pidfd = _spawn(owner.place(runtime_dir), code, theirs, take_over, owner.account)
            undo.pop_all()
    except OSError as error:
        raise Failed(f"cannot start the relay process: {reason_of(error)}") from error
    return RelayPeer(pid, pidfd, ours, owner)


def leave(runtime_dir: Path, owner: Owner) -> None:
    """Take away what a relay process that has ended needed in the directory."""
    clear_room(owner.place(runtime_dir))


def leave_former(runtime_dir: Path, owner: Owner) -> None:
    """Take away what one of an earlier version has left there, which has handed over to one in a place of its own."""
    if owner.number == 1:
        with contextlib.suppress(OSError):
            (runtime_dir / FORMER_SOCKET).unlink()


def _spawn(
    path: Path, code: str, supervisor: socket.socket, take_over: socket.socket | None, account: Account | None
) -> tuple[int, int]:
    """A relay process in a session of its own, with default signals: its number, and a descriptor of it."""
    arguments = [sys.executable, "-P", "-m", MODULE, str(path), code]
    given = [supervisor]
    if take_over is not None:
        arguments += ["--take-over", "4"]
        given.append(take_over)
    if account is not None:
        arguments += ["--account", str(account)]
    with ExitStack() as undo:
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        for number, end in enumerate(given, start=3):
            above = fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, _ABOVE)
            undo.callback(os.close, above)
            actions.append((os.POSIX_SPAWN_DUP2, above, number))
        pid = os.posix_spawn(
            sys.executable,
            arguments,
            {name: value for name, value in os.environ.items() if name not in _NOT_FOR_IT},
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=list(_CATCHABLE),
        )
    try:
        return pid, os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)  # our own child, not reaped: the number is its own
        os.waitpid(pid, 0)
        raise


def _reap(pidfd: int) -> str:
    """How the process ended, in words. It is reaped if it is our child."""
    try:
        seen = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return "it has ended"
    if seen is None:
        return "it has ended"
    how = "exited with" if seen.si_code == os.CLD_EXITED else "was killed by signal"
    return f"it {how} {seen.si_status}"
