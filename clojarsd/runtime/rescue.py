"""Takes those who wait out of a stuck instance's accept queue, and has them served by the other instance."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import structlog

from clojarsd.core.errors import Failed, reason_of
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Address, Role
from clojarsd.core.rescue import frontend_of
from clojarsd.runtime.relay_launch import Owner
from clojarsd.system.instance_sockets import Listening
from clojarsd.system.own_connections import OwnConnections
from clojarsd.system.rescuing import Helper
from clojarsd.system.sockets import close_with_reset

log = structlog.get_logger()

HELPER_TIME = 1.0
"""Seconds that one helper may accept for."""
MOST = 4096
"""Connections that one helper accepts at the most."""
PATIENCE = 3.0
"""Seconds after which the end of a helper is waited for no more; what it still sends is taken."""
AT_ONCE = 32
PAUSE = 0.01
"""Connections that are handed on at once, and the seconds until the next ones: the other instance's queue is short."""


class Adopter(Protocol):
    """Serves clients; see `runtime.relay_traffic.RelayTraffic`."""

    def adopt(self, frontend: str, role: Role, clients: Sequence[socket.socket]) -> None:
        """Serve these clients, who waited for the role, by the other one; the sockets are closed by this."""


class Rescue:
    """Rescues, for as long as the daemon lives. No task runs inside; `close` lets go of everything.

    Args:
        owner: told which processes are ours to reap.
        own: our own connections, which are closed and never answered by anybody else.
        frontends: the plans as they are now.
    """

    def __init__(
        self,
        owner: Owner,
        own: OwnConnections,
        frontends: Callable[[], Mapping[str, FrontendPlan]],
        adopter: Adopter,
    ) -> None:
        self._owner = owner
        self._own = own
        self._frontends = frontends
        self._adopter = adopter
        self._loop = asyncio.get_running_loop()
        self._spare: Helper | None = None
        self._passes: set[_Pass] = set()
        self._helpers: set[Helper] = set()

    def prepare(self) -> None:
        """Have a helper wait: somebody suspects that one is needed, and it takes some milliseconds to start."""
        if self._spare is None:
            with suppress(Failed):
                self._spare = self._start()

    def dismiss(self) -> None:
        """Nobody suspects anything any more."""
        if self._spare is not None:
            self._spare.channel.close()  # its end, and that of the helper, is seen by its pidfd
            self._spare = None

    async def rescue(self, role: Role, listeners: Sequence[Listening]) -> int:
        """Take who waits for the role out of these accept queues, and have them served by the other one.

        Returns:
            How many there were, without those who had gone and our own.

        Raises:
            Failed: nobody could be taken; they wait on.
        """
        helper, self._spare = self._spare or self._start(), None
        try:
            helper.begin(listeners, HELPER_TIME, MOST)
        except OSError as error:
            helper.channel.close()
            raise Failed(f"cannot accept for {role.value}: {reason_of(error)}") from error
        except Failed:
            helper.channel.close()
            raise
        one = _Pass(helper, role, self._sort, self._hand_on)
        self._passes.add(one)
        one.ended.add_done_callback(lambda _: self._passes.discard(one))
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await asyncio.shield(one.ended)
        return one.rescued

    def close(self) -> None:
        """Take what helpers have accepted, and let go of them."""
        for one in list(self._passes):
            one.close()
        self.dismiss()
        for helper in list(self._helpers):
            self._loop.remove_reader(helper.pidfd)
            os.kill(helper.pid, signal.SIGKILL)  # it could hand nothing on any more; our own child, not reaped
            os.waitpid(helper.pid, 0)
            self._forget(helper)

    def _start(self) -> Helper:
        helper = Helper()
        self._owner.own(helper.pid)
        self._helpers.add(helper)
        self._loop.add_reader(helper.pidfd, self._reap, helper)
        return helper

    def _reap(self, helper: Helper) -> None:
        self._loop.remove_reader(helper.pidfd)
        with suppress(ChildProcessError):
            os.waitpid(helper.pid, 0)
        self._forget(helper)

    def _forget(self, helper: Helper) -> None:
        if helper is self._spare:
            self._spare = None  # it has ended by itself
            helper.channel.close()
        self._helpers.discard(helper)
        self._owner.disown(helper.pid)
        os.close(helper.pidfd)

    def _sort(self, role: Role, client: socket.socket) -> str | None:
        """Whose client it is; None when it is nobody's, and closed."""
        try:
            remote = Address.of_socket(client.getpeername())
            local = Address.of_socket(client.getsockname())
        except OSError:
            client.close()  # it has gone
            return None
        if self._own.claim(remote, local.port):
            close_with_reset(client)
            return None
        name = frontend_of(local, role, self._frontends().values())
        if name is None:
            log.warning("rescued_of_no_frontend", role=role.value, local=str(local))
            close_with_reset(client)
        return name

    def _hand_on(self, role: Role, clients: Mapping[str, Sequence[socket.socket]]) -> None:
        for name, some in clients.items():
            self._adopter.adopt(name, role, some)


class _Pass:
    """One helper at work. `ended` is set when it has ended and all that it has accepted is handed on."""

    def __init__(
        self,
        helper: Helper,
        role: Role,
        sort: Callable[[Role, socket.socket], str | None],
        hand_on: Callable[[Role, Mapping[str, Sequence[socket.socket]]], None],
    ) -> None:
        self.rescued = 0
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._helper = helper
        self._role = role
        self._sort = sort
        self._hand_on = hand_on
        self._again: asyncio.TimerHandle | None = None
        self._loop.add_reader(helper.channel.fileno(), self._read)

    def close(self) -> None:
        """Take what is there, and no more."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if not self.ended.done():
            for _ in range(MOST // AT_ONCE + 1):  # where no descriptor is left there is no end
                if not self._take():
                    break
            self._end()

    def _read(self) -> None:
        self._again = None
        if self._take():
            self._loop.remove_reader(self._helper.channel.fileno())
            self._again = self._loop.call_later(PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._again = None
        self._loop.add_reader(self._helper.channel.fileno(), self._read)

    def _take(self) -> bool:
        """Hand on what has come, up to so many. Whether there may be more at once."""
        clients: dict[str, list[socket.socket]] = {}
        is_over, is_full, count = False, False, 0
        try:
            while count < AT_ONCE:
                client = self._helper.receive()
                if client is None:
                    is_over = True
                    break
                count += 1
                name = self._sort(self._role, client)
                if name is not None:
                    clients.setdefault(name, []).append(client)
        except BlockingIOError:
            pass
        except OSError:  # no descriptor is left for the next one
            is_full = True
        self.rescued += sum(map(len, clients.values()))
        self._hand_on(self._role, clients)
        if is_over:
            self._end()
        return is_full or count == AT_ONCE

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
            self._loop.remove_reader(self._helper.channel.fileno())
            self._helper.channel.close()
