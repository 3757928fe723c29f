"""Checks over Unix sockets, and of ports that want to be told who comes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from clojarsd.core.names import Address, UnixAddress
from clojarsd.core.proxy_protocol import LOCAL
from clojarsd.system.probe import Prober
from tests.support.sockets import open_descriptors
from tests.support.waiting import until
from tests.system.test_probe import Asked

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
async def prober() -> AsyncIterator[Prober]:
    async with Prober() as prober:
        yield prober


@pytest.fixture
def path() -> Iterator[str]:
    directory = Path(tempfile.mkdtemp(prefix="probe-"))
    yield str(directory / "app.sock")
    shutil.rmtree(directory)


class Server:
    """Answers each connection, on TCP or at a path, and remembers what was said on each."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.heard: list[bytes] = []
        self._open: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        said = b""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while part := await reader.read(1000):
                said += part
                if said.endswith(b"\r\n\r\n"):
                    writer.write(self.answer)
        self.heard.append(said)
        writer.close()
        self._open.discard(writer)

    @contextlib.asynccontextmanager
    async def at(self, where: str | None) -> AsyncIterator[Address | UnixAddress]:
        if where is None:
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
            address: Address | UnixAddress = Address(*server.sockets[0].getsockname())
        else:
            server = await asyncio.start_unix_server(self.serve, where)
            address = UnixAddress(where)
        try:
            yield address
        finally:
            server.close()
            for writer in list(self._open):
                writer.transport.abort()
            await until(lambda: not self._open, "the end of the connections")


async def test_an_answer_over_a_unix_socket(prober: Prober, path: str) -> None:
    server = Server(OK)
    async with server.at(path) as address:
        assert (await prober.http(Asked(), address)).passed
        assert (await prober.http(Asked(path="/again"), address)).passed
        await until(lambda: len(server.heard) == 2, "the end of both")
    assert server.heard[0].startswith(b"GET /health?deep=1 HTTP/1.1\r\nHost: localhost\r\n")
    assert server.heard[1].startswith(b"GET /again HTTP/1.1\r\n")


async def test_another_answer_over_a_unix_socket_names_the_path(prober: Prober, path: str) -> None:
    async with Server(NOT_FOUND).at(path) as address:
        result = await prober.http(Asked(), address)
    assert (result.passed, result.text) == (False, f"{path} answered 404 (expected 200)")


@pytest.mark.parametrize("kind", ["http", "tcp"])
async def test_nobody_at_the_path(prober: Prober, path: str, kind: str) -> None:
    ask = getattr(prober, kind)
    result = await ask(Asked(), UnixAddress(path))
    assert (result.passed, result.text) == (False, f"{path}: no such file or directory")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    result = await ask(Asked(), UnixAddress(path))
    assert (result.passed, result.text) == (False, f"{path} refused")


async def test_a_connection_over_a_unix_socket_is_enough_for_tcp(prober: Prober, path: str) -> None:
    before = open_descriptors()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert (await prober.tcp(Asked(), UnixAddress(path))).passed
        assert (await prober.tcp(Asked(), UnixAddress(path), announced=True)).passed
        first, second = listener.accept()[0], listener.accept()[0]
        with first, second:
            assert (first.recv(100), second.recv(100)) == (b"", LOCAL)
    assert open_descriptors() == before


async def test_a_full_backlog_of_a_unix_socket_fails_in_time(prober: Prober, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as filler:
        listener.bind(path)
        listener.listen(0)
        filler.connect(path)
        result = await prober.tcp(Asked(timeout=0.1), UnixAddress(path))
    assert (result.passed, result.text) == (False, f"{path} did not answer within 0.1 s")


@pytest.mark.parametrize("is_unix", [False, True])
@pytest.mark.parametrize("kind", ["http", "tcp"])
async def test_a_check_says_that_it_is_no_client(prober: Prober, path: str, kind: str, is_unix: bool) -> None:
    server = Server(OK)
    async with server.at(path if is_unix else None) as address:
        ask = getattr(prober, kind)
        assert (await ask(Asked(), address, announced=True)).passed
        assert (await ask(Asked(), address)).passed
        await until(lambda: len(server.heard) == 2, "the end of both")
    plain, announced = sorted(server.heard, key=len)
    assert announced.startswith(LOCAL)
    assert not plain.startswith(LOCAL)
    if kind == "http":
        assert announced.removeprefix(LOCAL) == plain
        assert plain.startswith(b"GET /health?deep=1 HTTP/1.1\r\n")
    else:
        assert (announced, plain) == (LOCAL, b"")


async def test_a_request_may_be_for_another_host_than_the_address(prober: Prober) -> None:
    server = Server(OK)
    async with server.at(None) as address:
        assert (await prober.http(Asked(), address, host="app.example:8001")).passed
        await until(lambda: server.heard, "the end of it")
    assert b"\r\nHost: app.example:8001\r\n" in server.heard[0]
