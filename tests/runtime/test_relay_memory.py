"""A relay process that has no memory left ends as a whole, and clients that come meanwhile are served by the next."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from clojarsd.runtime.relay_link import RelayLink
from tests.support.real import unavailable
from tests.support.relays import NOBODY, Pair, a_pair, limit
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.slow

MOST_CLIENTS = 4000
AT_ONCE = 100
CGROUP = Path("/sys/fs/cgroup/memory")
NO_MORE = 1 << 16
"""Bytes that a process may still get: nothing, but for what it has already."""
ACCOUNTS = [None, NOBODY] if os.geteuid() == 0 else [None]


@pytest.fixture(params=ACCOUNTS, ids=lambda account: "nobody" if account else "same-user")
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    async with a_pair(tmp_path, request.param) as pair:
        yield pair


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of its own in which there is next to no memory to be had."""
    path = CGROUP / f"clojarsd-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        unavailable(f"no memory group can be made: {error}")
    try:
        (path / "memory.limit_in_bytes").write_text(str(NO_MORE))
        yield path
    finally:
        path.rmdir()


def pid_of(link: RelayLink) -> int:
    assert link.pid is not None
    return link.pid


async def ask(port: int) -> str:
    """What comes of a client that says one byte and waits for the answer: the answer, or `cut`."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        try:
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(client, ("127.0.0.1", port))
                await loop.sock_sendall(client, b"?")
                return (await loop.sock_recv(client, 1)).decode() or "cut"
        except ConnectionError:
            return "cut"


async def crowd(pair: Pair, link: RelayLink, port: int, first: int) -> list[socket.socket]:
    """Clients that stay, as many as it takes until the relay process is another one."""
    loop = asyncio.get_running_loop()
    clients: list[socket.socket] = []
    while link.pid == first and len(clients) < MOST_CLIENTS:
        some = [socket.socket() for _ in range(AT_ONCE)]
        clients += some
        for client in some:
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(client, b"?")
    return clients


async def come_to_an_end(clients: list[socket.socket]) -> dict[str, int]:
    """How many were answered, by a relay process that lives, and how many were cut; no other kind is there."""
    loop = asyncio.get_running_loop()
    counts = {"answered": 0, "cut": 0}
    async with asyncio.timeout(PATIENCE):
        for client in clients:
            try:
                heard = await loop.sock_recv(client, 1)
                await loop.sock_sendall(client, b"?")
                heard = heard and await loop.sock_recv(client, 1)
            except ConnectionError:
                heard = b""
            counts["answered" if heard else "cut"] += 1
            client.close()
    return counts


async def loses_its_memory(pair: Pair, shorten: object, how: str) -> None:
    assert callable(shorten)
    with structlog.testing.capture_logs() as logged:
        async with pair.link() as link:
            port = int((await pair.listening(link)).listen[0].rpartition(":")[2])
            first = pid_of(link)
            assert await ask(port) == "p"
            shorten(first)
            clients = await crowd(pair, link, port, first)
            await until(lambda: link.pid not in (None, first), "the next process")
            counts = await come_to_an_end(clients)
            assert counts["cut"] > 0
            assert [await ask(port) for _ in range(20)] == ["p"] * 20
            assert link.views["line"].view().accepted_total[None] == 0
            await link.close()
    (lost,) = [line for line in logged if line["event"] == "relay_lost"]
    assert (lost["pid"], lost["reason"]) == (first, how)
    assert [line["event"] for line in logged].count("relay_replaced") == 1


async def test_one_that_gets_no_address_space_ends_and_says_so(pair: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    def shorten(pid: int) -> None:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        limit(pid, "as", pages * os.sysconf("SC_PAGE_SIZE"), "unlimited", pair.account)

    await loses_its_memory(pair, shorten, "it was killed by signal 6")
    said = capfd.readouterr().err
    assert "clojarsd: this process ends with all that it has: MemoryError()" in said
    assert "Fatal Python error: Aborted" in said


async def test_one_that_the_kernel_kills_for_want_of_memory_is_replaced(pair: Pair, group: Path) -> None:
    def shorten(pid: int) -> None:
        (group / "cgroup.procs").write_text(str(pid))

    await loses_its_memory(pair, shorten, "it was killed by signal 9")
    assert "oom_kill 1" in (group / "memory.oom_control").read_text()
