"""An instance whose host has a name, in a mount namespace whose /etc/hosts we write: run by test_host_moves.py.

`python -m tests.support.named_host DIRECTORY HOSTS` prints what was seen, a word for each fact, in their order.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest

from clojarsd.core.errors import Failed
from clojarsd.core.launch import World
from clojarsd.core.names import Address, Role
from clojarsd.core.saved import InForce
from clojarsd.core.settings import parse_settings
from clojarsd.runtime.configuration import Configuration
from clojarsd.runtime.plans import Plans
from clojarsd.runtime.relay_fleet import RelayFleet
from clojarsd.runtime.unit_parts import Plan
from clojarsd.system.host_names import HostNames
from clojarsd.system.probe import Prober
from tests.support.fronts import Past
from tests.support.waiting import until

TEXT = """
[app]
command = ["serve"]
[instances.primary]
host = "app.test"
resolve = "100ms"
ports = {{ line = {port} }}
[instances.backup]
ports = {{ line = {other} }}
[frontends.line]
listen = "127.0.0.1:0"
port = "line"
half_closed_timeout = "never"
"""


class Unit:
    """One that runs."""

    pid = 1

    def __init__(self, in_force: InForce) -> None:
        self.in_force = in_force

    def replan(self, plan: Plan) -> None:
        """Nothing is done here."""


class Client:
    """Who asks which instance it has."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def ask(self) -> str:
        """The address of the instance."""
        self.writer.write(b"?")
        return (await self._reader.readuntil(b"\n")).decode().strip()


class Room:
    """What is there to be asked."""

    def __init__(self, hosts: Path) -> None:
        self.hosts = hosts
        self.port = 0

    def name(self, *addresses: str) -> None:
        """Let the name stand for these."""
        self.hosts.write_text("".join(f"{address} app.test\n" for address in addresses))

    async def serve(self, stack: contextlib.AsyncExitStack, host: str) -> None:
        """Let an instance answer there."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while await reader.read(1):
                    writer.write(f"{host}\n".encode())
            writer.close()

        server = await asyncio.start_server(answer, host, self.port)
        self.port = server.sockets[0].getsockname()[1]
        stack.callback(server.close)


def names_are_remembered(room: Room) -> None:
    """HostNames by itself."""
    room.name("127.0.0.2", "127.0.0.3", "::1")
    names = HostNames()
    both = [Address("127.0.0.2", 1), Address("127.0.0.3", 1), Address("::1", 1)]
    assert list(names.addresses(Address("app.test", 1))) == both
    assert names.addresses(Address("::1", 2)) == (Address("::1", 2),)
    room.name("127.0.0.3", "::1", "127.0.0.2")
    assert not names.refresh(["app.test"]), "another order is no change"
    assert list(names.addresses(Address("app.test", 1))) == both
    room.name()
    assert not names.refresh(["app.test"])
    assert list(names.addresses(Address("app.test", 1))) == both
    room.name("127.0.0.3")
    assert names.refresh(["app.test"])
    assert names.addresses(Address("app.test", 1)) == (Address("127.0.0.3", 1),)
    with pytest.raises(Failed, match=r"^cannot find the host of nobody\.test:1: "):
        names.addresses(Address("nobody.test", 1))
    print("remembered")


async def main(directory: Path, hosts: Path) -> None:
    """See all of it."""
    room = Room(hosts)
    names_are_remembered(room)
    async with contextlib.AsyncExitStack() as stack:
        await room.serve(stack, "127.0.0.2")
        await room.serve(stack, "127.0.0.3")
        await room.serve(stack, "::1")
        room.name("127.0.0.2")
        text = TEXT.format(port=room.port, other=room.port - 1)
        settings = parse_settings(text, "x")
        prober = await stack.enter_async_context(Prober())
        plans = Plans(settings, World({}, becomes_user=False, soft_nofile=1024), prober)
        in_force = {role: plans.in_force(role) for role in Role}
        link = await stack.enter_async_context(RelayFleet.open(plans.frontends(in_force).values(), directory))
        configuration = Configuration(hosts, plans, Past(), _not_asked, _not_asked)
        stack.callback(configuration.close)
        configuration.attach({role: Unit(in_force[role]) for role in Role}, {}, link, _not_asked)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(link.run()), group.create_task(configuration.run())]
            link.set_eligible(Role.PRIMARY, True)
            link.begin()
            await until(lambda: not link.views["line"].view().listen[0].endswith(":0"))
            host, _, number = link.views["line"].view().listen[0].rpartition(":")

            async def connect() -> Client:
                reader, writer = await asyncio.open_connection(host, int(number))
                stack.callback(writer.transport.abort)
                return Client(reader, writer)

            first = await connect()
            assert await first.ask() == "127.0.0.2"
            for address in ("127.0.0.3", "::1"):
                room.name(address)
                for _ in range(1_000):
                    seen = await (await connect()).ask()
                    if seen == address:
                        break
                    await asyncio.sleep(0.02)
                assert seen == address
                assert await first.ask() == "127.0.0.2", "open connections stay where they are"
                print("moved")
            room.name()
            await until(lambda: plans.names._failing)
            assert await (await connect()).ask() == "::1"
            print("kept")
            for task in tasks:
                task.cancel()
        await link.close()


def _not_asked(*_: object) -> Any:
    raise AssertionError("nobody reloads here")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
