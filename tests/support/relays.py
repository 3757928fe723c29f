"""Relay processes, the supervisor's link to them, and two instances that the test plays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Role
from clojarsd.core.view import FrontendView
from clojarsd.runtime.relay_fleet import RelayFleet
from clojarsd.runtime.relay_link import RelayLink
from clojarsd.runtime.relay_owner import Owner
from clojarsd.system.confinement import Account
from tests.support.fronts import LOOPBACK, B, Instance, P, make_plan
from tests.support.waiting import PATIENCE, until

NOBODY = Account(65534, 65534)
"""Whom relay processes of root become in tests; numbers need no account."""


class Client:
    """A client of a frontend, on the test's loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def ask(self, text: bytes = b"?") -> bytes:
        """What the instance answers: the name of its role, once for each byte that was said."""
        self.writer.write(text)
        return await self.hear(len(text))

    async def hear(self, count: int = 1) -> bytes:
        """So many bytes of the answer to what was said before."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readexactly(count)

    async def is_cut(self) -> bool:
        """Whether the connection ends with a reset, however long that takes."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._reader.read()
        except ConnectionError:
            return True
        return False

    async def ended(self) -> None:
        """Return when the connection has ended: with a reset, or as the kernel ends those of a killed process."""
        await self.is_cut()

    def close(self) -> None:
        """Leave."""
        self.writer.transport.abort()


class Pair:
    """Two instances that answer each byte with the first letter of their role, and a place for a relay process.

    Attributes:
        dir: the runtime directory.
        account: whom relay processes become.
        owned: processes that the links in use have called their own.
    """

    def __init__(self, directory: Path, account: Account | None = None) -> None:
        self.dir = directory
        self.account = account
        self.owned: set[int] = set()
        self.instances = {role: Instance() for role in Role}
        self._clients: list[Client] = []
        self._pids: set[int] = set()
        self._answering: set[asyncio.StreamWriter] = set()
        self._serving: dict[Role, asyncio.Server] = {}

    def _own(self, pid: int) -> None:
        self.owned.add(pid)
        self._pids.add(pid)

    async def serve(self, *roles: Role) -> None:
        """Let these instances answer."""
        for role in roles or tuple(Role):
            said = role.value[:1].encode()

            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes = said) -> None:
                self._answering.add(writer)
                with contextlib.suppress(ConnectionError):
                    while heard := await reader.read(1000):
                        writer.write(said * len(heard))
                        await writer.drain()
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
                self._answering.discard(writer)

            duplicate = self.instances[role]._socket.dup()
            self._serving[role] = await asyncio.start_server(answer, sock=duplicate)

    def plan(self, name: str = "line", **changes: Any) -> FrontendPlan:
        """A plan with these instances."""
        backends = changes.pop("backends", {role: one.address for role, one in self.instances.items()})
        return make_plan(backends, name=name, **changes)

    @contextlib.asynccontextmanager
    async def link(self, *plans: FrontendPlan, run: bool = True, begin: bool = True) -> AsyncIterator[RelayLink]:
        """A link with these frontends, with the primary and the backup eligible, that is looked after."""
        owner = Owner(self._own, self.owned.discard, self.account)
        async with asyncio.TaskGroup() as group, RelayLink.open(plans or (self.plan(),), self.dir, owner) as link:
            running = group.create_task(link.run()) if run else None
            if begin:
                link.set_eligible(P, True)
                link.set_eligible(B, True)
                link.begin()
            try:
                yield link
            finally:
                if running is not None:
                    running.cancel()

    @contextlib.asynccontextmanager
    async def fleet(
        self, *plans: FrontendPlan, workers: int = 2, run: bool = True, begin: bool = True
    ) -> AsyncIterator[RelayFleet]:
        """The same with so many relay processes, which all end with the pair."""
        owner = Owner(self._own, self.owned.discard, self.account)
        opened = RelayFleet.open(plans or (self.plan(),), self.dir, owner, workers=workers)
        async with asyncio.TaskGroup() as group, opened as fleet:
            running = group.create_task(fleet.run()) if run else None
            if begin:
                fleet.set_eligible(P, True)
                fleet.set_eligible(B, True)
                fleet.begin()
            try:
                yield fleet
            finally:
                if running is not None:
                    running.cancel()

    async def client(self, link_or_view: RelayLink | RelayFleet | FrontendView, name: str = "line") -> Client:
        """A client of the frontend."""
        view = link_or_view if isinstance(link_or_view, FrontendView) else link_or_view.views[name].view()
        async with asyncio.timeout(PATIENCE):
            client = Client(*await asyncio.open_connection(LOOPBACK, int(view.listen[0].rpartition(":")[2])))
        self._clients.append(client)
        return client

    async def listening(self, link: RelayLink | RelayFleet, name: str = "line") -> FrontendView:
        """The frontend's view as soon as its port is known."""
        await until(lambda: not link.views[name].view().listen[0].endswith(":0"), "the port")
        return link.views[name].view()

    async def close(self) -> None:
        """End everything, relay processes too."""
        for client in self._clients:
            client.close()
        for server in self._serving.values():
            server.close()
        for instance in self.instances.values():
            instance.close()
        for writer in self._answering:
            writer.transport.abort()
        await until(lambda: not self._answering, "the end of all answers")
        for pid in self._pids:
            await end_relay(pid)


def limit(pid: int, which: str, soft: int | str, hard: int | str, account: Account | None = None) -> None:
    """Set a limit of a process, by its name in prlimit(1); its own user may, or root with CAP_SYS_RESOURCE."""
    who = {"user": account.uid, "group": account.gid, "extra_groups": []} if account is not None else {}
    subprocess.run(["prlimit", "--pid", str(pid), f"--{which}={soft}:{hard}"], check=True, **who)  # type: ignore[call-overload]


async def end_relay(pid: int) -> None:
    """Kill a relay process of ours that may have ended, and wait for its end."""
    if not is_relay(pid):
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    await until(lambda: not is_relay(pid), f"the end of {pid}")


def is_relay(pid: int) -> bool:
    """Whether a relay process has this number."""
    try:
        return b"clojarsd.relay_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@contextlib.asynccontextmanager
async def a_pair(directory: Path, account: Account | None = None) -> AsyncIterator[Pair]:
    """Two instances that answer."""
    pair = Pair(directory, account)
    try:
        await pair.serve()
        yield pair
    finally:
        await pair.close()
