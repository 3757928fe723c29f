"""Several listening sockets on one port, and whom the kernel gives connections to."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import pytest

from clojarsd.core.errors import Failed
from clojarsd.core.names import Address
from clojarsd.system.port_group import deal_to_all, is_shared, keep, prefer
from clojarsd.system.sockets import listen

MANY = 100
"""Of which each of three sockets gets some: that one gets none happens once in 10**17 times."""


@pytest.fixture(params=["127.0.0.1", "::1", "::"])
def group(request: pytest.FixtureRequest) -> Iterator[list[socket.socket]]:
    """Three in the order in which they began to listen."""
    listeners = [listen(Address(request.param, 0), ipv6_only=False, what="it")]
    try:
        for _ in range(2):
            listeners.append(beside(listeners[0]))
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


def beside(other: socket.socket) -> socket.socket:
    return listen(address_of(other), ipv6_only=False, what="it", beside=other)


def address_of(listener: socket.socket) -> Address:
    return Address(*listener.getsockname()[:2])


def given(listeners: Sequence[socket.socket]) -> list[int]:
    """How many of new connections each gets."""
    host, port = listeners[0].getsockname()[:2]
    clients = [socket.create_connection(("127.0.0.1" if host == "::" else host, port)) for _ in range(MANY)]
    counts = []
    for listener in listeners:
        count = 0
        while True:
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                break
            count += 1
        counts.append(count)
    for client in clients:
        client.close()
    return counts


def test_each_gets_some(group: list[socket.socket]) -> None:
    counts = given(group)
    assert sum(counts) == MANY
    assert all(counts)


def test_those_that_began_first_get_all_until_it_is_said_otherwise(group: list[socket.socket]) -> None:
    prefer(group[0], 2)
    first, second, third = given(group)
    assert first
    assert second
    assert not third
    prefer(group[0], 1)
    assert given(group) == [MANY, 0, 0]
    deal_to_all(group[0])
    assert all(given(group))


def test_nobody_is_lost_when_the_last_one_is_closed_meanwhile(group: list[socket.socket]) -> None:
    prefer(group[0], 2)
    group.pop().close()
    deal_to_all(group[0])
    assert sum(given(group)) == MANY
    group.append(beside(group[0]))
    assert all(given(group))


def test_a_place_that_is_shared_is_not_free(group: list[socket.socket]) -> None:
    with pytest.raises(Failed, match="address already in use"):
        listen(address_of(group[0]), ipv6_only=False, what="another one")


def test_a_place_can_be_ones_own_again(group: list[socket.socket]) -> None:
    while len(group) > 1:
        group.pop().close()
    assert is_shared(group[0])
    keep(group[0])
    assert not is_shared(group[0])
    with pytest.raises(Failed, match="address already in use"):
        listen(address_of(group[0]), ipv6_only=False, what="another one")
    assert given(group) == [MANY]
    group.append(beside(group[0]))
    assert all(given(group))


def test_one_that_is_alone_has_no_group() -> None:
    with listen(Address("127.0.0.1", 0), ipv6_only=False, what="it") as alone:
        assert not is_shared(alone)
        deal_to_all(alone)
        with pytest.raises(OSError, match="Invalid"):
            prefer(alone, 1)
