"""Instances behind Unix sockets, behind several addresses, and connects that come from an address of our choice."""

from __future__ import annotations

import errno
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clojarsd.core.names import Address, Backend, UnixAddress
from clojarsd.runtime.dial import Client, Dial
from clojarsd.runtime.wide_dial import WideDial
from tests.support.fronts import NEVER, B, Front, Instance, P, pending_timers
from tests.support.sockets import (
    DEADLINE_S,
    Rig,
    in_background,
    noise,
    open_descriptors,
    receive_exactly,
    receive_to_the_end,
    reset,
    stays_silent,
)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path, as sockets need it."""
    directory = Path(tempfile.mkdtemp(prefix="wide-"))
    yield directory
    shutil.rmtree(directory)


class UnixInstance:
    """An instance that listens at a path."""

    def __init__(self, path: Path, backlog: int = 100) -> None:
        self.address = UnixAddress(str(path))
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.address.path)
        self._socket.listen(backlog)
        self._socket.settimeout(DEADLINE_S)

    def accept(self) -> socket.socket:
        end, _ = self._socket.accept()
        end.settimeout(DEADLINE_S)
        return end

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def unix(place: Path) -> Iterator[Callable[..., UnixInstance]]:
    """Makes instances that listen at a path."""
    made: list[UnixInstance] = []

    def make(name: str = "app.sock", **options: Any) -> UnixInstance:
        made.append(UnixInstance(place / name, **options))
        return made[-1]

    yield make
    for instance in made:
        instance.close()


def change(front: Front, **changes: Any) -> None:
    """Let the frontend go by another plan."""
    front.plan = replace(front.plan, **changes)
    front.rig.call(lambda: front.frontend.change_plan(front.plan))


def before(front: Front, primary: Backend, **changes: Any) -> None:
    """Put the frontend before another primary."""
    change(front, backends={P: primary, B: front.backup.address}, **changes)


def test_bytes_go_both_ways_over_a_unix_socket(rig: Rig, unix: Callable[..., UnixInstance]) -> None:
    instance = unix()
    much = noise(3 << 20)
    with Front(rig, quickack=True) as front:
        before(front, instance.address)
        client = front.client(b"hello")
        with instance.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
            with in_background(lambda: end.sendall(much)):
                assert receive_exactly(client, len(much)) == much
            client.shutdown(socket.SHUT_WR)
            assert receive_to_the_end(end) == (b"", False)
            end.sendall(b"still here")
        assert receive_to_the_end(client) == (b"still here", False)
        assert front.accepted() == (1, 0, 0)
        front.until()


def test_a_path_where_nobody_listens_is_no_instance(rig: Rig, place: Path) -> None:
    with Front(rig) as front:
        before(front, UnixAddress(str(place / "nobody.sock")))
        front.client(b"hello")
        with front.backup.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
        assert front.doubts == [P]


def test_a_full_backlog_of_a_unix_socket_is_waited_for(rig: Rig, unix: Callable[..., UnixInstance]) -> None:
    instance = unix(backlog=0)
    with Front(rig) as front, socket.socket(socket.AF_UNIX) as filler:
        filler.connect(instance.address.path)
        before(front, instance.address)
        client = front.client(b"hello")
        front.until(primary=1)
        assert stays_silent(client)
        with instance.accept(), instance.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
        assert front.doubts == []
        front.until()
        assert rig.call(pending_timers) == 0


def test_a_backlog_that_stays_full_is_left_in_time(rig: Rig, unix: Callable[..., UnixInstance]) -> None:
    instance = unix(backlog=0)
    with Front(rig) as front, socket.socket(socket.AF_UNIX) as filler:
        filler.connect(instance.address.path)
        before(front, instance.address, connect_timeout=0.1)
        front.client(b"hello")
        with front.backup.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
        assert front.doubts == [P]


def test_a_client_that_resets_is_gone_for_an_instance_behind_a_unix_socket(
    rig: Rig, unix: Callable[..., UnixInstance]
) -> None:
    instance = unix()
    with Front(rig) as front:
        before(front, instance.address)
        client = front.client(b"hello")
        with instance.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
            reset(client)
            assert receive_to_the_end(end)[0] == b""
        front.until()


def test_each_address_of_a_host_is_tried(rig: Rig) -> None:
    other = Instance()
    with Front(rig) as front:
        front.primary.refuse()
        change(front, others={P: (other.address,)})
        front.client(b"hello")
        with other.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
        assert front.doubts == []
        assert front.accepted() == (1, 0, 0)
    other.close()


def test_an_address_that_does_not_answer_has_its_share_of_the_time(rig: Rig) -> None:
    other = Instance()
    with Front(rig) as front:
        front.primary.fill()
        change(front, others={P: (other.address,)}, connect_timeout=0.4)
        front.client(b"hello")
        with other.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
        assert front.doubts == []
    other.close()


def test_an_ipv6_instance(rig: Rig) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener, Front(rig) as front:
        before(front, Address("::1", listener.getsockname()[1]), source="::1")
        front.client(b"hello")
        end, peer = listener.accept()
        with end:
            assert receive_exactly(end, 5) == b"hello"
            assert peer[0] == "::1"


def test_connects_come_from_the_source(rig: Rig) -> None:
    with Front(rig, source="127.0.0.2") as front:
        client = front.client(b"hello")
        with front.primary.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
            assert end.getpeername()[0] == "127.0.0.2"
            (session,) = rig.call(lambda: list(front.frontend.open_sessions(P)))
            assert session.instance.getsockopt(socket.IPPROTO_IP, 24) == 1  # IP_BIND_ADDRESS_NO_PORT
            end.sendall(b"answer")
            assert receive_exactly(client, 6) == b"answer"


def outcome_of(rig: Rig, addresses: list[Backend], source: str | None = None) -> socket.SocketType | OSError:
    """What a dial comes to; its client is closed."""
    near, far = socket.socketpair()
    outcomes: list[socket.SocketType | OSError] = []
    dial = WideDial(rig.loop, Client(near), P, addresses, source, NEVER, lambda _, outcome: outcomes.append(outcome))
    rig.call(dial.start)
    rig.until(lambda: bool(outcomes), lambda: outcomes)
    near.close()
    far.close()
    assert len(outcomes) == 1
    return outcomes[0]


@pytest.mark.parametrize(
    ("source", "number", "why"),
    [
        ("203.0.113.1", errno.EADDRNOTAVAIL, "from 203.0.113.1: cannot assign requested address"),
        ("::1", errno.EAFNOSUPPORT, "from ::1: not of the same kind"),
    ],
)
def test_a_source_that_cannot_be_is_said(rig: Rig, source: str, number: int, why: str) -> None:
    descriptors = open_descriptors()
    instance = Instance()
    outcome = outcome_of(rig, [instance.address], source)
    assert isinstance(outcome, OSError)
    assert (outcome.errno, outcome.strerror) == (number, f"cannot connect to {instance.address} {why}")
    instance.close()
    assert open_descriptors() == descriptors


def test_of_addresses_of_both_kinds_those_are_tried_that_fit_the_source(rig: Rig) -> None:
    instance = Instance()
    outcome = outcome_of(rig, [Address("::1", 1), instance.address], "127.0.0.3")
    assert isinstance(outcome, socket.socket)
    with outcome:
        assert outcome.getsockname()[0] == "127.0.0.3"
        assert not outcome.getblocking()
    instance.close()


def test_the_last_error_is_told_when_no_address_answers(rig: Rig, place: Path) -> None:
    instance = Instance()
    instance.refuse()
    outcome = outcome_of(rig, [UnixAddress(str(place / "nobody")), instance.address])
    assert isinstance(outcome, OSError)
    assert outcome.errno == errno.ECONNREFUSED
    outcome = outcome_of(rig, [instance.address, Address("no such host", 1)])
    assert isinstance(outcome, OSError)
    assert outcome.errno == errno.EHOSTUNREACH
    instance.close()


def test_an_abandoned_dial_leaves_nothing(rig: Rig, unix: Callable[..., UnixInstance]) -> None:
    full = unix(backlog=0)
    instance = Instance()
    instance.fill()
    with socket.socket(socket.AF_UNIX) as filler:
        filler.connect(full.address.path)
        near, far = socket.socketpair()
        descriptors = open_descriptors()
        for address in (instance.address, full.address):
            client = Client(near)
            dial = WideDial(rig.loop, client, P, [address], None, NEVER, lambda *_: pytest.fail("it was abandoned"))
            rig.call(dial.start)
            assert rig.call(pending_timers) == 1
            assert rig.call(dial.abandon) is client
            assert rig.call(pending_timers) == 0
            assert open_descriptors() == descriptors
        near.close()
        far.close()
    instance.close()


def test_plain_addresses_take_the_plain_way(rig: Rig) -> None:
    """What most connects are costs nothing more than before."""
    with Front(rig) as front:
        front.primary.fill()
        front.client(b"hello")
        front.until(primary=1)
        (dial,) = rig.call(lambda: list(front.frontend._dials))
        assert type(dial) is Dial
