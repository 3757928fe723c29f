"""Two frontends act as one: both hear who is eligible, and a drain is over when it is in both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from clojarsd.core.frontend_plan import Pause
from clojarsd.core.names import Role
from clojarsd.core.pacing import FIRST
from clojarsd.runtime.traffic import Traffic
from tests.support.fronts import NEVER, B, Front, P
from tests.support.sockets import Rig, receive_exactly, receive_to_the_end


def traffic_of(rig: Rig, *fronts: Front) -> Traffic:
    """A traffic over these frontends."""

    def make() -> Traffic:
        traffic = Traffic()
        for front in fronts:
            traffic.add(front.frontend)
        return traffic

    return rig.call(make)


class Both:
    """Two frontends under one traffic."""

    def __init__(self, rig: Rig, stack: ExitStack) -> None:
        self.rig = rig
        self.fronts = [
            stack.enter_context(Front(rig, primary=False, backup=False, name=name)) for name in ("http", "line")
        ]
        self.traffic = traffic_of(rig, *self.fronts)
        self.over = 0

    def eligible(self, role: Role, may: bool) -> None:
        self.rig.call(lambda: self.traffic.set_eligible(role, may))

    def begin_drain(self) -> None:
        self.rig.call(lambda: self.traffic.begin_drain(P, self._drained))

    def _drained(self) -> None:
        self.over += 1


@pytest.fixture
def both(rig: Rig) -> Iterator[Both]:
    with ExitStack() as stack:
        yield Both(rig, stack)


def test_all_frontends_hear_who_is_eligible(both: Both) -> None:
    both.eligible(B, True)
    assert [front.active() for front in both.fronts] == [B, B]
    both.eligible(P, True)
    assert [front.active() for front in both.fronts] == [P, P]
    both.eligible(P, False)
    both.eligible(B, False)
    assert [front.active() for front in both.fronts] == [None, None]


def test_saying_again_that_an_instance_is_eligible_begins_nothing_anew(rig: Rig) -> None:
    with Front(rig, primary=False, backup=False, failback=0.3) as front:
        traffic = traffic_of(rig, front)
        for role, may in ((P, True), (B, True), (P, False), (P, True)):
            rig.call(lambda role=role, may=may: traffic.set_eligible(role, may))  # type: ignore[misc]
        assert front.active() is B
        again = 0

        def is_back() -> bool:
            nonlocal again
            again += 1
            traffic.set_eligible(P, True)
            return front.frontend.view().active is P

        rig.until(is_back, front.frontend.view)
        assert again > 1


def test_a_drain_with_nothing_open_is_over_at_once(both: Both) -> None:
    both.begin_drain()
    assert both.over == 1


def test_a_drain_is_over_when_it_is_in_every_frontend(both: Both) -> None:
    both.eligible(P, True)
    clients = [front.client(b"x") for front in both.fronts]
    ends = [front.primary.accept() for front in both.fronts]
    both.eligible(P, False)
    both.begin_drain()
    for client, end, front in zip(clients, ends, both.fronts, strict=True):
        assert both.over == 0
        assert receive_exactly(end, 1) == b"x"
        client.close()
        end.close()
        front.until()
    both.rig.until(lambda: both.over == 1, lambda: both.over)


def test_a_drain_that_is_given_up_is_given_up_everywhere(both: Both) -> None:
    both.eligible(P, True)
    clients = [front.client(b"x") for front in both.fronts]
    ends = [front.primary.accept() for front in both.fronts]
    both.begin_drain()
    both.rig.call(lambda: both.traffic.end_drain(P))
    for one in (*clients, *ends):
        one.close()
    for front in both.fronts:
        front.until()
    assert both.over == 0


def test_a_drain_begun_twice_is_over_once_for_the_later(both: Both) -> None:
    both.eligible(P, True)
    clients = [front.client(b"x") for front in both.fronts]
    ends = [front.primary.accept() for front in both.fronts]
    both.begin_drain()
    both.begin_drain()
    for one in (*clients, *ends):
        one.close()
    both.rig.until(lambda: both.over > 0, lambda: both.over)
    assert both.over == 1


def test_a_cut_resets_the_connections_of_one_role_in_every_frontend(both: Both) -> None:
    both.eligible(P, True)
    clients = [front.client(b"x") for front in both.fronts]
    ends = [front.primary.accept() for front in both.fronts]
    both.rig.call(lambda: both.traffic.cut(B))
    assert [front.connections() for front in both.fronts] == [(1, 0, 0)] * 2
    both.rig.call(lambda: both.traffic.cut(P))
    assert [receive_to_the_end(client) for client in clients] == [(b"", True)] * 2
    for end in ends:
        end.close()


def test_without_frontends_a_drain_is_over_at_once(rig: Rig) -> None:
    over: list[bool] = []
    rig.call(lambda: Traffic().begin_drain(P, lambda: over.append(True)))
    assert over == [True]


@pytest.mark.parametrize("how", ["retired", "stopped"])
def test_all_who_wait_because_of_a_pause_are_served_before_a_frontend_ends(rig: Rig, how: str) -> None:
    """More than are sent on their way at once otherwise."""
    with Front(rig, primary=False, backup=False) as front:
        traffic = traffic_of(rig, front)
        rig.call(lambda: traffic.set_eligible(P, True))
        rig.call(lambda: front.frontend.gate.pause(Pause(rig.loop.time() + NEVER, "ada")))
        clients = [front.client(b"x") for _ in range(3 * FIRST)]
        front.until(held=3 * FIRST)

        def end() -> None:
            if how == "retired":
                traffic.retire("line")
            else:
                traffic.stop_accepting()
                traffic.set_eligible(P, False)

        rig.call(end)
        for client in clients:
            with front.primary.accept() as instance:
                assert receive_exactly(instance, 1) == b"x"
            client.close()
        front.until()
