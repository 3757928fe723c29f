"""Requests of a warm-up: real answers over one connection, and why there was none."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from clojarsd.core.names import Address, UnixAddress
from clojarsd.core.proxy_protocol import LOCAL
from clojarsd.system.own_connections import OwnConnections
from clojarsd.system.sockets import free_ports
from clojarsd.system.warm_requests import WarmRequests
from tests.support.sockets import open_descriptors
from tests.support.waiting import PATIENCE, until
from tests.system.test_probe_kinds import Server


def answer(status: str, body: bytes = b"hello") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("announced", [False, True])
@pytest.mark.parametrize("is_unix", [False, True])
async def test_requests_share_a_connection(tmp_path: Path, is_unix: bool, announced: bool) -> None:
    """Which, where that is wanted, begins with the word that nobody's connection it is; once."""
    server, own, before = Server(answer("200 OK")), OwnConnections(), open_descriptors()
    async with server.at(str(tmp_path / "s") if is_unix else None) as where:
        async with WarmRequests(where, own, announced=announced, host="app.example:80") as requests:
            results = [await requests.get(path, PATIENCE) for path in ("/", "/search?q=a+b", "/")]
        await until(lambda: server.heard, "the end of the connection")
    assert [(result.passed, result.text) for result in results] == [
        (True, "/ answered 200"),
        (True, "/search?q=a+b answered 200"),
        (True, "/ answered 200"),
    ]
    [said] = server.heard
    assert said.startswith(LOCAL + b"GET / " if announced else b"GET / ")
    assert said.count(LOCAL) == announced
    assert (said.count(b"GET "), said.count(b"Host: app.example:80")) == (3, 3)
    assert own._known == {}
    await until(lambda: open_descriptors() == before, "no descriptor left")


@pytest.mark.parametrize(
    ("status", "passed"),
    [
        ("204 No Content", True),
        ("302 Found", True),
        ("399 Almost", True),
        ("404 Not Found", False),
        ("503 Busy", False),
    ],
)
async def test_which_answers_are_real(status: str, passed: bool) -> None:
    async with Server(answer(status, b"")).at(None) as where, WarmRequests(where, OwnConnections()) as requests:
        result = await requests.get("/x", PATIENCE)
    assert (result.passed, result.text) == (passed, f"/x answered {status[:3]}")


async def test_no_answer_says_why_and_the_next_request_is_made_all_the_same() -> None:
    [port] = free_ports(1)
    where = Address("127.0.0.1", port)
    async with WarmRequests(where, OwnConnections()) as requests:
        assert (await requests.get("/", PATIENCE)).text == f"/: {where} refused"
        assert not (await requests.get("/", PATIENCE)).passed


async def test_a_body_that_does_not_end_is_no_answer() -> None:
    """The head is there at once, and a page is warm when all of it is."""
    own = OwnConnections()
    server = Server(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
    async with server.at(None) as where:
        async with WarmRequests(where, own) as requests:
            result = await requests.get("/", 0.05)
            assert (result.passed, result.text) == (False, f"/: {where} did not answer within 0.05 s")
            server.answer = answer("200 OK")
            assert (await requests.get("/", PATIENCE)).passed
        with contextlib.suppress(TimeoutError):
            await until(lambda: len(server.heard) == 2, "both connections' end")
    assert len(server.heard) == 2


async def test_who_waits_in_an_accept_queue_is_known_as_our_own(tmp_path: Path) -> None:
    server, own = Server(b""), OwnConnections()
    async with server.at(None) as where:
        assert not isinstance(where, UnixAddress)
        async with WarmRequests(where, own) as requests:
            assert not (await requests.get("/", 0.05)).passed
            [(local, to)] = own._known
        assert to == where.port
        assert own.claim(local, to)
