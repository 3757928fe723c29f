"""Clients out of an instance's accept queue are served by the other one, also those that we had connected there."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
from collections.abc import Iterator

import pytest

from clojarsd.core.names import Address
from clojarsd.core.proxy_protocol import header
from clojarsd.runtime.rescued import adopt
from clojarsd.runtime.traffic import Traffic
from tests.support.fronts import LOOPBACK, B, Front, Instance, P
from tests.support.real import unavailable
from tests.support.sockets import (
    DEADLINE_S,
    Rig,
    in_background,
    noise,
    receive_exactly,
    receive_to_the_end,
    reset,
    stays_silent,
)

IP_LOCAL_PORT_RANGE = 51
"""Of linux/in.h."""


class Stuck:
    """A frontend whose primary does not accept; what waits there is what `rescued` takes.

    Attributes:
        drained: how often a drain was over.
    """

    def __init__(self, rig: Rig, front: Front) -> None:
        self.rig = rig
        self.front = front
        self.drained = 0
        self.traffic: Traffic = rig.call(self._make)

    def _make(self) -> Traffic:
        traffic = Traffic()
        traffic.add(self.front.frontend)
        traffic.set_eligible(P, True)
        traffic.set_eligible(B, True)
        return traffic

    def stall(self) -> None:
        self.rig.call(lambda: self.traffic.set_eligible(P, False))

    def rescued(self) -> socket.socket:
        return self.front.primary.accept()

    def adopt(self, *clients: socket.socket, name: str = "line") -> None:
        self.rig.call(lambda: adopt(self.traffic, name, P, clients))

    def begin_drain(self, role: object) -> None:
        def over() -> None:
            self.drained += 1

        self.rig.call(lambda: self.traffic.begin_drain(role, over))  # type: ignore[arg-type]

    def relayed(self, said: bytes) -> tuple[socket.socket, socket.socket]:
        """A client that came by the frontend before the stall, rescued; and the backup's end of it."""
        client = self.front.client(said)
        self.front.until(primary=1)
        waiting = self.rescued()
        self.stall()
        self.adopt(waiting)
        return client, self.front.backup.accept()


@pytest.fixture(params=[False, True], ids=["ipv4", "dual"])
def dual(request: pytest.FixtureRequest) -> bool:
    """Whether the instances listen as a JVM does, so that the rescued end of an IPv4 connection is an IPv6 socket."""
    return bool(request.param)


@pytest.fixture
def stuck(rig: Rig, dual: bool) -> Iterator[Stuck]:
    with Front(rig, primary=False, backup=False, dual=dual) as front:
        yield Stuck(rig, front)


def direct(stuck: Stuck, said: bytes = b"") -> socket.socket:
    """A client of the primary's own port."""
    client = socket.create_connection((LOOPBACK, stuck.front.primary.address.port), DEADLINE_S)
    client.sendall(said)
    return client


def test_who_waited_at_the_instance_itself_is_served_with_what_it_had_sent(stuck: Stuck) -> None:
    with direct(stuck, b"before") as client:
        waiting = stuck.rescued()
        stuck.stall()
        stuck.adopt(waiting)
        with stuck.front.backup.accept() as end:
            assert receive_exactly(end, 6) == b"before"
            client.sendall(b"after")
            end.sendall(b"answer")
            assert receive_exactly(end, 5) == b"after"
            assert receive_exactly(client, 6) == b"answer"
            stuck.front.until(backup=1)
        assert receive_to_the_end(client) == (b"", False)
    assert stuck.front.accepted() == (0, 0, 0), "it was counted where it came in"


def test_it_hears_the_end_also_while_who_has_rescued_it_has_not_let_go(stuck: Stuck) -> None:
    with direct(stuck, b"x") as client:
        waiting = stuck.rescued()
        stuck.stall()
        with waiting.dup():
            stuck.adopt(waiting)
            with stuck.front.backup.accept() as end:
                assert receive_exactly(end, 1) == b"x"
                client.shutdown(socket.SHUT_WR)
                assert receive_to_the_end(end) == (b"", False)
                end.sendall(b"y")
            assert receive_to_the_end(client) == (b"y", False)
            stuck.front.until()


def test_nobody_eligible_lets_it_wait(stuck: Stuck) -> None:
    with direct(stuck, b"x") as client:
        waiting = stuck.rescued()
        stuck.stall()
        stuck.rig.call(lambda: stuck.traffic.set_eligible(B, False))
        stuck.adopt(waiting)
        stuck.front.until(held=1)
        stuck.rig.call(lambda: stuck.traffic.set_eligible(B, True))
        with stuck.front.backup.accept() as end:
            assert receive_exactly(end, 1) == b"x"
            end.sendall(b"y")
            assert receive_exactly(client, 1) == b"y"


def test_one_that_has_gone_is_let_go(stuck: Stuck) -> None:
    client = direct(stuck)
    reset(client)
    waiting = stuck.rescued()
    stuck.stall()
    stuck.adopt(waiting)
    assert waiting.fileno() == -1
    assert stuck.front.connections() == (0, 0, 0)


def test_one_of_no_frontend_is_reset(stuck: Stuck) -> None:
    with direct(stuck) as client:
        stuck.adopt(stuck.rescued(), name="unknown")
        assert receive_to_the_end(client) == (b"", True)


def test_a_client_whose_session_waited_there_is_served_over_it(stuck: Stuck) -> None:
    client, end = stuck.relayed(b"before")
    with end:
        assert receive_exactly(end, 6) == b"before"
        end.sendall(b"answer")
        assert receive_exactly(client, 6) == b"answer"
        client.sendall(b"after")
        assert receive_exactly(end, 5) == b"after"
        stuck.front.until(backup=2)  # the session, and the one that goes on from its other end
        client.shutdown(socket.SHUT_WR)
        assert receive_to_the_end(end) == (b"", False)
        end.sendall(b"last")
    assert receive_to_the_end(client) == (b"last", False)
    stuck.front.until()
    assert stuck.front.accepted() == (1, 0, 0)


def test_an_upload_that_was_under_way_arrives_whole(stuck: Stuck) -> None:
    """What the instance's kernel had taken, what waited here, and what came later."""
    body = noise(24 << 20)
    client = stuck.front.client()
    stuck.front.until(primary=1)
    with in_background(lambda: client.sendall(body)):
        waiting = stuck.rescued()
        assert not stays_silent(waiting)
        stuck.stall()
        stuck.adopt(waiting)
        with stuck.front.backup.accept() as end:
            got = receive_exactly(end, len(body))
            assert hashlib.sha256(got).digest() == hashlib.sha256(body).digest()
            end.sendall(b"done")
            assert receive_exactly(client, 4) == b"done"


@pytest.mark.parametrize("side", ["client", "instance"])
def test_a_reset_is_passed_on_over_it(stuck: Stuck, side: str) -> None:
    client, end = stuck.relayed(b"x")
    assert receive_exactly(end, 1) == b"x"
    one, other = (client, end) if side == "client" else (end, client)
    one.sendall(b"last words")
    assert receive_exactly(other, 10) == b"last words"
    reset(one)
    assert receive_to_the_end(other) == (b"", True)
    other.close()


def test_it_holds_up_no_drain_of_the_instance_that_never_had_it_and_is_not_cut_with_it(stuck: Stuck) -> None:
    client = stuck.front.client(b"x")
    stuck.front.until(primary=1)
    waiting = stuck.rescued()
    stuck.stall()
    stuck.begin_drain(P)
    assert stuck.drained == 0
    stuck.adopt(waiting)
    assert stuck.drained == 1
    stuck.rig.call(lambda: stuck.traffic.cut(P))
    with stuck.front.backup.accept() as end:
        assert receive_exactly(end, 1) == b"x"
        end.sendall(b"y")
        assert receive_exactly(client, 1) == b"y"


def test_a_drain_of_the_one_that_serves_it_waits_for_it_and_a_cut_ends_it(stuck: Stuck) -> None:
    client, end = stuck.relayed(b"x")
    with end:
        assert receive_exactly(end, 1) == b"x"
        stuck.begin_drain(B)
        assert stuck.drained == 0
        stuck.rig.call(lambda: stuck.traffic.cut(B))
        assert receive_to_the_end(client) == (b"", True)
        assert stuck.drained == 1


def test_a_request_boundary_brings_it_home_without_a_detour(rig: Rig, dual: bool) -> None:
    """HTTP: a drain of the backup moves the client itself, and nothing is left of the way that it took."""
    with Front(rig, primary=False, backup=False, dual=dual, movable=True, drain_idle=DEADLINE_S) as front:
        stuck = Stuck(rig, front)
        client, end = stuck.relayed(b"GET / HTTP/1.1\r\n\r\n")
        with end:
            receive_exactly(end, 18)
            end.sendall(b"one")
            assert receive_exactly(client, 3) == b"one"
            rig.call(lambda: stuck.traffic.set_eligible(B, False))
            rig.call(lambda: stuck.traffic.set_eligible(P, True))
            stuck.begin_drain(B)
            client.sendall(b"GET /2 HTTP/1.1\r\n\r\n")
            assert receive_to_the_end(end) == (b"", False)
        with stuck.rescued() as home:
            assert receive_exactly(home, 19) == b"GET /2 HTTP/1.1\r\n\r\n"
            home.sendall(b"two")
            assert receive_exactly(client, 3) == b"two"
            front.until(primary=1)
            assert stuck.drained == 1


def test_the_other_sessions_of_the_instance_stay_its_own(stuck: Stuck) -> None:
    served = stuck.front.client(b"a")
    stuck.front.until(primary=1)
    with stuck.rescued() as inside:
        inside.sendall(b"b")
        assert receive_exactly(served, 1) == b"b"
        client = stuck.front.client(b"x")
        stuck.front.until(primary=2)
        waiting = stuck.rescued()
        stuck.stall()
        stuck.adopt(waiting)
        with stuck.front.backup.accept() as end:
            end.sendall(b"y")
            assert receive_exactly(client, 1) == b"y"
            stuck.front.until(primary=1, backup=2)


def test_one_that_comes_from_the_same_port_as_a_session_to_elsewhere_is_another(stuck: Stuck) -> None:
    """The kernel gives one local port to several connections whose other ends differ."""
    client = stuck.front.client(b"x")
    stuck.front.until(primary=1)
    with stuck.rescued() as inside, contextlib.closing(Instance()) as port, socket.socket() as another:
        dial_from(another, inside.getpeername()[1], port.address)
        another.sendall(b"z")
        waiting = port.accept()
        assert waiting.getpeername()[1] == inside.getpeername()[1]
        stuck.stall()
        stuck.adopt(waiting)
        with stuck.front.backup.accept() as end:
            assert receive_exactly(end, 1) == b"z"
            stuck.front.until(primary=1, backup=1)
            assert receive_exactly(inside, 1) == b"x"
            client.close()


def dial_from(client: socket.socket, port: int, to: Address) -> None:
    """Connect from that local port, which another connection has, too."""
    try:
        client.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", port << 16 | port))
    except OSError:
        unavailable("Linux before 6.3 lets nobody choose a port that is in use")
    client.connect((to.host, to.port))


def test_where_there_is_no_room_it_is_reset_and_the_rest_goes_on(stuck: Stuck) -> None:
    client = stuck.front.client(b"x")
    stuck.front.until(primary=1)
    budget = stuck.front.frontend._budget
    stuck.rig.call(lambda: budget.keep_free(20_000))
    with stuck.front.primary.accept(), direct(stuck) as another:
        stuck.adopt(stuck.rescued())
        assert receive_to_the_end(another) == (b"", True)
        assert stuck.front.connections() == (1, 0, 0)
        client.close()


def test_who_was_announced_by_the_first_session_is_not_announced_again(rig: Rig, dual: bool) -> None:
    """The header that the stuck instance would have read is in the rescued socket, and names the client."""
    with Front(rig, primary=False, backup=False, dual=dual, proxy_protocol=True) as front:
        stuck = Stuck(rig, front)
        client, end = stuck.relayed(b"x")
        own = stuck.front.address
        with client, end:
            source = Address(*client.getsockname()[:2])
            assert receive_exactly(end, len(header(source, own)) + 1) == header(source, own) + b"x"
            end.sendall(b"y")
            assert receive_exactly(client, 1) == b"y"


def test_who_came_by_the_instances_own_port_is_announced(rig: Rig, dual: bool) -> None:
    with Front(rig, primary=False, backup=False, dual=dual, proxy_protocol=True) as front:
        stuck = Stuck(rig, front)
        with direct(stuck, b"x") as client:
            waiting = stuck.rescued()
            stuck.stall()
            stuck.adopt(waiting)
            said = header(Address(*client.getsockname()[:2]), front.primary.address)
            with front.backup.accept() as end:
                assert receive_exactly(end, len(said) + 1) == said + b"x"
