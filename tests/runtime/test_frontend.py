"""Which instance a client gets, what is counted and recorded, and that nothing is left of it afterwards."""

from __future__ import annotations

import socket
import threading
from datetime import UTC, datetime, timedelta

import pytest

from clojarsd.core.history import EventName
from clojarsd.core.names import Address
from clojarsd.core.pacing import FIRST
from tests.support.fronts import LOOPBACK, B, Front, Instance, P, pending_timers
from tests.support.sockets import (
    Rig,
    in_background,
    open_descriptors,
    receive_exactly,
    receive_to_the_end,
    reset,
    stays_silent,
)


def converse(client: socket.socket, instance: Instance, said: bytes) -> socket.socket:
    """The instance's end of the client's connection, after what the client said has come and was answered."""
    end = instance.accept()
    assert receive_exactly(end, len(said)) == said
    end.sendall(b"answer")
    assert receive_exactly(client, 6) == b"answer"
    return end


def test_the_primary_is_preferred(rig: Rig) -> None:
    with Front(rig) as front, converse(front.client(b"hello"), front.primary, b"hello"):
        assert front.active() is P
        assert front.connections() == (1, 0, 0)
        assert front.accepted() == (1, 0, 0)


def test_the_backup_serves_while_the_primary_is_not_eligible(rig: Rig) -> None:
    with Front(rig, primary=False) as front, converse(front.client(b"hello"), front.backup, b"hello"):
        assert front.active() is B
        assert front.accepted() == (0, 1, 0)


def test_open_connections_stay_where_they_are(rig: Rig) -> None:
    with Front(rig) as front:
        client = front.client(b"hello")
        with converse(client, front.primary, b"hello") as end:
            front.eligible(primary=False, backup=True)
            client.sendall(b"more")
            assert receive_exactly(end, 4) == b"more"


def test_a_refused_client_goes_to_the_other_with_all_it_has_said(rig: Rig) -> None:
    with Front(rig, begin=False) as front:
        front.primary.refuse()
        client = front.client(b"said before anybody served")
        rig.call(front.frontend.begin)
        with converse(client, front.backup, b"said before anybody served"):
            assert front.doubts == [P]
            assert front.accepted() == (0, 1, 0)
            assert front.happened == []


def test_accepting_begins_when_it_is_told_to(rig: Rig) -> None:
    with Front(rig, begin=False) as front:
        client = front.client(b"early")
        front.eligible(primary=False, backup=False)
        front.eligible(primary=True, backup=True)
        assert stays_silent(client)
        assert front.connections() == (0, 0, 0)
        rig.call(front.frontend.begin)
        converse(client, front.primary, b"early").close()


def test_failover_and_failback_are_recorded_once_each(rig: Rig) -> None:
    with Front(rig, backup=False) as front:
        front.eligible(primary=True, backup=True)
        front.eligible(primary=False, backup=True)
        front.eligible(primary=False, backup=True)
        assert front.happened == [EventName.FAILOVER]
        front.eligible(primary=True, backup=True)
        assert front.happened == [EventName.FAILOVER, EventName.FAILBACK]
        front.eligible(primary=True, backup=False)
        assert front.happened == [EventName.FAILOVER, EventName.FAILBACK]


def test_a_failover_is_one_also_when_nobody_served_for_a_moment(rig: Rig) -> None:
    with Front(rig) as front:
        front.eligible(primary=False, backup=False)
        assert front.active() is None
        front.eligible(primary=False, backup=True)
        assert front.happened == [EventName.FAILOVER]
        front.eligible(primary=False, backup=False)
        front.eligible(primary=True, backup=False)
        assert front.happened == [EventName.FAILOVER, EventName.FAILBACK]


def test_a_backup_that_was_ready_first_is_no_failover_and_the_primary_no_failback(rig: Rig) -> None:
    with Front(rig, primary=False) as front:
        front.eligible(primary=True, backup=True)
        assert front.active() is P
        assert front.happened == []


def test_the_primary_gets_clients_back_when_it_has_been_eligible_long_enough(rig: Rig) -> None:
    """Nothing but the loop's clock makes it so."""
    with Front(rig, failback=0.2) as front:
        front.eligible(primary=False, backup=True)
        front.eligible(primary=True, backup=True)
        assert front.active() is B
        times: list[float] = []
        front.frontend.changed = lambda: times.append(rig.loop.time())
        rig.until(lambda: bool(times), front.frontend.view)
        assert front.active() is P
        since = front.since[P]
        assert since is not None
        assert times[0] - since >= 0.199  # uvloop counts whole milliseconds
        assert front.happened == [EventName.FAILOVER, EventName.FAILBACK]


def test_a_primary_that_fails_before_failback_begins_anew(rig: Rig) -> None:
    with Front(rig, failback=1000.0) as front:
        front.eligible(primary=False, backup=True)
        front.eligible(primary=True, backup=True)
        front.eligible(primary=False, backup=True)
        assert rig.call(pending_timers) == 0
        assert front.active() is B
        assert front.happened == [EventName.FAILOVER]


def test_many_that_come_at_once_are_all_served(rig: Rig) -> None:
    with Front(rig, begin=False) as front:
        clients = [front.client(b"x") for _ in range(200)]
        rig.call(front.frontend.begin)
        front.until(primary=200)
        for _ in clients:
            with front.primary.accept() as end:
                end.sendall(receive_exactly(end, 1))
        assert [receive_exactly(client, 1) for client in clients] == [b"x"] * 200
        assert front.accepted() == (200, 0, 0)


def test_who_waits_in_the_backlog_is_served_when_accepting_stops(rig: Rig) -> None:
    with Front(rig, begin=False) as front:
        clients = [front.client(b"x") for _ in range(200)]

        def begin_and_stop() -> None:
            front.frontend.begin()
            front.frontend.stop_accepting()

        rig.call(begin_and_stop)
        with pytest.raises(ConnectionRefusedError):
            front.client()
        for _ in clients:
            with front.primary.accept() as end:
                end.sendall(receive_exactly(end, 1))
        assert [receive_exactly(client, 1) for client in clients] == [b"x"] * 200


def test_what_is_open_goes_on_when_accepting_stops(rig: Rig) -> None:
    with Front(rig) as front:
        client = front.client(b"hello")
        with converse(client, front.primary, b"hello") as end:
            rig.call(front.frontend.stop_accepting)
            client.sendall(b"more")
            assert receive_exactly(end, 4) == b"more"
            assert front.connections() == (1, 0, 0)


def test_close_resets_everybody_and_leaves_nothing(rig: Rig) -> None:
    """One client is relayed, one is being connected, one is held."""
    before = open_descriptors()
    with Front(rig, backup=False, failback=1000.0) as front:
        clients = [front.client(b"relayed")]
        end = converse(clients[0], front.primary, b"relayed")
        front.primary.fill()
        clients.append(front.client(b"dialled"))
        front.until(primary=2)
        rig.call(lambda: front.frontend.begin_drain(P, lambda: None))
        clients.append(front.client(b"held"))
        front.until(primary=1, held=2)
        rig.call(front.frontend.close)
        assert [receive_to_the_end(client) for client in clients] == [(b"", True)] * 3
        assert receive_to_the_end(end) == (b"", True)
        end.close()
        assert rig.call(pending_timers) == 0
    assert open_descriptors() == before


def test_close_while_a_connect_is_under_way_resets_the_client(rig: Rig) -> None:
    with Front(rig, backup=False) as front:
        front.primary.fill()
        client = front.client(b"dialled")
        front.until(primary=1)
        rig.call(front.frontend.close)
        assert receive_to_the_end(client) == (b"", True)
        assert rig.call(pending_timers) == 0


@pytest.mark.slow
def test_a_thousand_connections_leave_nothing_behind(rig: Rig) -> None:
    with Front(rig) as front:
        before = open_descriptors(), rig.call(pending_timers)

        def echo() -> None:
            for _ in range(1000):
                with front.primary.accept() as end:
                    end.sendall(receive_exactly(end, 1))

        with in_background(echo):
            for number in range(1000):
                client = socket.create_connection((front.address.host, front.address.port))
                client.sendall(b"x")
                assert receive_exactly(client, 1) == b"x"
                if number % 3:
                    client.close()
                else:
                    reset(client)
        front.until()
        assert front.accepted() == (1000, 0, 0)
        assert rig.call(lambda: len(rig.resources.poller)) == 0
        assert (open_descriptors(), rig.call(pending_timers)) == before


def test_clients_that_have_waited_go_on_in_their_order_and_not_all_at_once(rig: Rig) -> None:
    """One that does not answer keeps a place for a moment; the next ones come then."""
    count = 3 * FIRST
    with Front(rig, primary=False, backup=False) as front:
        for number in range(count):
            front.client(number.to_bytes(2))
            front.until(held=number + 1)
        assert front.accepted() == (0, 0, count)

        def release() -> tuple[int, int]:
            front.frontend.set_eligible({P: rig.loop.time(), B: None})
            counts = front.frontend.view().connections
            return counts[P], counts[None]

        assert rig.call(release) == (FIRST, count - FIRST)
        front.until(primary=count)
        order = []
        for _ in range(count):
            with front.primary.accept() as end:
                order.append(int.from_bytes(receive_exactly(end, 2)))
        assert order == list(range(count))
        assert front.accepted() == (count, 0, count)
        front.until_happened(EventName.HOLD_STARTED, EventName.HOLD_ENDED)


def test_the_route_may_change_while_held_clients_are_released(rig: Rig) -> None:
    """The primary refuses; hearing the first doubt the owner takes it out of rotation at once."""
    with Front(rig, primary=False, backup=False) as front:
        front.primary.refuse()
        clients = [front.client(b"x") for _ in range(40)]
        front.until(held=40)
        front.frontend.doubt = lambda role: front.frontend.set_eligible({P: None, B: rig.loop.time()})
        front.eligible(primary=True, backup=False)
        front.until(backup=40)
        for _ in clients:
            with front.backup.accept() as end:
                end.sendall(receive_exactly(end, 1))
        assert [receive_exactly(client, 1) for client in clients] == [b"x"] * 40
        assert front.accepted() == (0, 40, 40)
        front.until_happened(EventName.HOLD_STARTED, EventName.FAILOVER, EventName.HOLD_ENDED)


def test_an_ipv6_address_alone_serves_ipv4_clients_too(rig: Rig) -> None:
    with Front(rig, listen=(Address("::", 0),)) as front:
        for host in (LOOPBACK, "::1"):
            with socket.create_connection((host, front.address.port)) as client:
                client.sendall(b"hello")
                converse(client, front.primary, b"hello").close()


def test_an_ipv6_address_beside_an_ipv4_one_leaves_that_side_alone(rig: Rig) -> None:
    with socket.create_server((LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    both = (Address("::", port), Address(LOOPBACK, port))
    with Front(rig, listen=both) as front:
        assert rig.call(front.frontend.addresses) == both
        assert rig.call(lambda: front.frontend.view().listen) == (f"[::]:{port}", f"{LOOPBACK}:{port}")
        for host in (LOOPBACK, "::1"):
            with socket.create_connection((host, port)) as client:
                client.sendall(b"hello")
                converse(client, front.primary, b"hello").close()


def test_the_view_says_when_the_primary_gets_its_connections_back(rig: Rig) -> None:
    told = threading.Event()
    with Front(rig, failback=3600.0) as front:
        front.eligible(primary=False, backup=True)
        assert rig.call(lambda: front.frontend.view().next) is None
        front.frontend.changed = told.set
        front.eligible(primary=True, backup=True)
        assert told.is_set()
        due = rig.call(lambda: front.frontend.view().next)
        assert due is not None
        assert due.what == "primary gets its new connections"
        left = datetime.fromisoformat(due.at) - datetime.now(UTC)
        assert timedelta(seconds=3500) < left <= timedelta(seconds=3600)


def test_changes_of_the_route_are_told(rig: Rig) -> None:
    told = threading.Event()
    with Front(rig) as front:
        front.frontend.changed = told.set
        front.eligible(primary=True, backup=False)
        assert not told.is_set()
        front.eligible(primary=False, backup=False)
        assert told.is_set()
