"""One check against servers of every kind, good and bad; each failure has its sentence and leaves no socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from clojarsd.core.errors import Failed
from clojarsd.core.names import Address
from clojarsd.system.own_connections import OwnConnections
from clojarsd.system.probe import Prober
from clojarsd.system.sockets import close_with_reset
from tests.support.pair import CHECKOUT
from tests.support.real import unavailable
from tests.support.waiting import PATIENCE, until

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Asked:
    """A check; patient, so that a loaded machine fails none."""

    path: str = "/health?deep=1"
    status: tuple[int, ...] = (200,)
    timeout: float = PATIENCE


@asynccontextmanager
async def serving(serve: Serve, host: str = "127.0.0.1") -> AsyncIterator[Address]:
    """A server that reads the head of a request and then does as told; all its connections end with the block."""
    connections: set[asyncio.StreamWriter] = set()

    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the checker leaves when it knows enough
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            connections.discard(writer)

    server = await asyncio.start_server(begin, host, 0)
    try:
        yield Address(host, server.sockets[0].getsockname()[1])
    finally:
        for _ in range(20):
            await asyncio.sleep(0)  # what was accepted already gets its transport and its task, turn by turn
        server.close()

        def all_ended() -> bool:
            for writer in connections:
                writer.transport.abort()
            return not connections

        await until(all_ended, "the end of the connections")


def answering(raw: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()

    return serve


def ok(status: str = "200 OK", more: str = "") -> Serve:
    return answering(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n{more}\r\n".encode())


@pytest.fixture
async def prober() -> AsyncIterator[Prober]:
    async with Prober() as made:
        yield made


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_the_expected_answer_passes(prober: Prober, host: str) -> None:
    async with serving(ok(), host) as address:
        result = await prober.http(Asked(), address)
    assert result.passed
    assert re.fullmatch(r"200 in \d+ ms", result.text)
    assert 0 < result.took < PATIENCE


async def test_the_request_is_plain_and_its_path_is_sent_as_it_stands(prober: Prober) -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\nSet-Cookie: a=b\r\n\r\n")

    async with serving(serve) as address:
        for _ in range(2):
            assert (await prober.http(Asked("/a%20b?x=%2F", (204,)), address)).passed
    assert heads[0] == heads[1], "no cookie comes back"
    assert heads[0].startswith(f"GET /a%20b?x=%2F HTTP/1.1\r\nHost: {address}\r\n".encode())
    assert b"User-Agent: clojarsd\r\n" in heads[0]


@pytest.mark.parametrize(
    ("answer", "expected", "sentence"),
    [
        ("503 Gone", (200,), "answered 503 (expected 200)"),
        ("500 No", (204, 200), "answered 500 (expected 200 or 204)"),
        ("302 Found", (200,), "answered 302 (expected 200)"),
    ],
)
async def test_another_answer_fails(prober: Prober, answer: str, expected: tuple[int, ...], sentence: str) -> None:
    """A redirect is one, wherever it leads: it is not followed."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await ok(answer, "Location: /elsewhere\r\n")(reader, writer)

    async with serving(serve) as address:
        result = await prober.http(Asked(status=expected), address)
    assert (result.passed, result.text) == (False, f"{address} {sentence}")
    assert connections == 1


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def half_a_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    await reader.read()


@pytest.mark.parametrize("serve", [silence, half_a_head])
async def test_no_answer_in_time_fails(prober: Prober, serve: Serve) -> None:
    async with serving(serve) as address:
        result = await prober.http(Asked(timeout=0.05), address)
    assert (result.passed, result.text) == (False, f"{address} did not answer within 0.05 s")
    assert 0.049 <= result.took < PATIENCE


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize(
    ("serve", "sentence"),
    [
        (answering(b""), "closed the connection without an answer"),
        (answering(b"HTTP/1.1 200 OK\r\n"), "closed the connection without an answer"),
        (answering(b"\x00\x01 hello\r\n\r\n"), "did not answer in HTTP (ClientResponseError)"),
        (answering(b"SSH-2.0-OpenSSH_9.2\r\n"), "did not answer in HTTP (ClientResponseError)"),
        (answering(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"), "did not answer in HTTP"),
        (reset, "reset the connection"),
    ],
)
async def test_no_proper_answer_fails(prober: Prober, serve: Serve, sentence: str) -> None:
    async with serving(serve) as address:
        result = await prober.http(Asked(), address)
    assert not result.passed
    assert result.text.startswith(f"{address} {sentence}")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
@pytest.mark.parametrize("kind", ["http", "tcp"])
async def test_nobody_there(prober: Prober, kind: str, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as bound:  # and not listening
        bound.bind((host, 0))
        address = Address(host, bound.getsockname()[1])
        result = await getattr(prober, kind)(Asked(), address)
    assert (result.passed, result.text) == (False, f"{address} refused")


@pytest.mark.parametrize("kind", ["http", "tcp"])
async def test_another_reason_is_in_the_kernels_words(prober: Prober, kind: str) -> None:
    address = Address("255.255.255.255", 80)
    result = await getattr(prober, kind)(Asked(), address)
    assert not result.passed
    assert result.text in (f"{address}: permission denied", f"{address}: network is unreachable")


async def test_the_body_is_not_waited_for(prober: Prober) -> None:
    """The head says all; a body without end is cut off."""
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with serving(serve) as address:
        result = await prober.http(Asked(), address)
    assert result.passed
    assert sent < 64 * 1024 * 1024


async def test_a_connection_is_enough_for_tcp(prober: Prober) -> None:
    async with serving(silence) as address:
        result = await prober.tcp(Asked(), address)
    assert result.passed
    assert re.fullmatch(r"connected in \d+ ms", result.text)


ASK_ITSELF = """
import asyncio, subprocess
from clojarsd.core.errors import Failed
from clojarsd.core.names import Address
from clojarsd.system.own_connections import OwnConnections
from clojarsd.system.probe import Prober
from clojarsd.system.sockets import close_with_reset
from tests.system.test_probe import Asked
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as ports:
    ports.write("40001 40001")
async def ask():
    async with Prober() as prober:
        print((await prober.tcp(Asked(), Address("127.0.0.1", 40001))).text)
asyncio.run(ask())
"""


@pytest.mark.slow
@pytest.mark.real
def test_a_connection_to_itself_is_no_answer() -> None:
    """Where nobody listens on a port that the kernel also gives to clients, a client may meet itself there."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        unavailable("a network namespace of its own needs root, unshare and ip")
    asked = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", ASK_ITSELF],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        timeout=PATIENCE,
        check=False,
    )
    assert (asked.stdout, asked.stderr) == ("127.0.0.1:40001 refused\n", "")


async def test_a_full_accept_queue_fails_in_time(prober: Prober) -> None:
    """The kernel takes no further connection: the process is there and does not accept."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as stuck:
        address = Address(*stuck.getsockname()[:2])
        with socket.create_connection((address.host, address.port)):
            result = await prober.tcp(Asked(timeout=0.05), address)
    assert (result.passed, result.text) == (False, f"{address} did not answer within 0.05 s")


@pytest.mark.parametrize("serve", [ok(), ok("500 No"), silence, answering(b""), reset])
async def test_checks_leave_no_sockets(prober: Prober, serve: Serve) -> None:
    def sockets() -> int:
        found = 0
        for entry in os.listdir("/proc/self/fd"):
            try:
                found += os.readlink(f"/proc/self/fd/{entry}").startswith("socket:")
            except FileNotFoundError:
                continue
        return found

    before = sockets()
    async with serving(serve) as address:
        for _ in range(10):
            await prober.http(Asked(timeout=0.02 if serve is silence else PATIENCE), address)
            await prober.tcp(Asked(), address)
    await until(lambda: sockets() <= before, "their end")


async def test_a_cancelled_check_ends(prober: Prober) -> None:
    begun = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await reader.read()

    async with serving(serve) as address:
        check = asyncio.ensure_future(prober.http(Asked(), address))
        await begun.wait()
        check.cancel()
        with pytest.raises(asyncio.CancelledError):
            await check


async def test_want_of_descriptors_here_says_nothing_about_the_instance(prober: Prober) -> None:
    async with serving(silence) as address:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            for check in (prober.http, prober.tcp):
                with pytest.raises(Failed, match=f"^cannot check {address}: too many open files$"):
                    await check(Asked(timeout=5.0), address)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_check_that_was_taken_out_of_the_queue_was_not_reset_by_the_instance() -> None:
    """By whoever rescues those who wait there: the instance itself has not even seen it."""
    own = OwnConnections()
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as stuck:
        stuck.setblocking(False)
        address = Address(*stuck.getsockname())
        async with Prober(own) as prober, asyncio.TaskGroup() as group:

            async def take_out() -> None:
                while True:  # the checker tries it twice
                    taken, where = await loop.sock_accept(stuck)
                    assert own.claim(Address(*where), address.port)
                    close_with_reset(taken)

            taking = group.create_task(take_out())
            result = await prober.http(Asked(), address)
            assert (result.passed, result.text) == (False, f"{address} has not accepted the connection")
            taking.cancel()
