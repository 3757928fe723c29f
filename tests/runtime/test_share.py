"""New connections that go to the backup though the primary is active: by order, and in a slow start."""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import replace

import pytest

from clojarsd.core.routing import Caps
from tests.support.fronts import NEVER, B, Front, P
from tests.support.sockets import Rig, receive_exactly


def ask(front: Front, count: int) -> list[str]:
    """Who gets each of so many clients, one after the other."""
    names = []
    for _ in range(count):
        before = front.accepted()
        client = front.client(b"x")
        front.rig.until(lambda before=before: _got(front) > sum(before[:2]), front.accepted)  # type: ignore[misc]
        role = B if front.accepted()[1] > before[1] else P
        names.append(role.value)
        front.instances[role].accept().close()
        client.close()
        front.until()
    return names


def _got(front: Front) -> int:
    """How many both instances have got; asked in the frontend's loop."""
    total = front.frontend.accepted_total()
    return total[P] + total[B]


def share(front: Front, part: float) -> None:
    front.rig.call(lambda: front.frontend.share(part))


def test_each_nth_client_goes_to_the_backup_and_none_when_it_is_over(rig: Rig) -> None:
    with Front(rig) as front:
        share(front, 0.25)
        assert ask(front, 8) == ["primary", "primary", "primary", "backup"] * 2
        assert rig.call(front.frontend.view).share == 0.25
        share(front, 0.0)
        assert set(ask(front, 8)) == {"primary"}


def test_a_share_needs_both(rig: Rig) -> None:
    with Front(rig, failback=NEVER) as front:
        share(front, 0.5)
        front.eligible(primary=True, backup=False)
        assert set(ask(front, 4)) == {"primary"}
        front.eligible(primary=False, backup=True)
        front.eligible(primary=True, backup=True)
        assert set(ask(front, 4)) == {"backup"}


def test_who_cannot_be_connected_to_the_backup_gets_the_primary(rig: Rig) -> None:
    with Front(rig) as front:
        share(front, 0.5)
        front.backup.refuse()
        assert set(ask(front, 6)) == {"primary"}


def test_a_full_backup_gets_no_more_of_its_share(rig: Rig) -> None:
    with Front(rig) as front:
        share(front, 0.5)
        rig.call(lambda: front.frontend.gate.cap(Caps(backup=1)))
        for _ in range(6):
            front.client(b"x")
        front.until(primary=5, backup=1)


def test_who_changes_sides_is_no_new_client(rig: Rig) -> None:
    """A drain of the backup moves its HTTP clients to the primary, and none of them back."""
    with Front(rig, movable=True, hold=NEVER) as front:
        share(front, 0.5)
        clients = [front.client(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(2)]
        front.until(primary=1, backup=1)
        end = front.backup.accept()
        receive_exactly(end, 27)
        end.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        [moved] = [client for client in clients if _has_answer(client)]
        rig.call(lambda: front.frontend.begin_drain(B, lambda: None))
        moved.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        front.until(primary=2)
        end.close()


def _has_answer(client: socket.socket) -> bool:
    client.settimeout(0.2)
    try:
        return bool(client.recv(100))
    except TimeoutError:
        return False


class Clock:
    """What a router takes for the loop, whose time the test moves."""

    def __init__(self, front: Front) -> None:
        self._loop = front.rig.loop
        self.later = 0.0

    def time(self) -> float:
        return self._loop.time() + self.later

    def __getattr__(self, name: str) -> object:
        return getattr(self._loop, name)


def test_a_slow_start_gives_the_primary_more_and_more_and_then_all(rig: Rig) -> None:
    with Front(rig, slow_start=1000.0) as front:
        assert set(ask(front, 5)) == {"primary"}, "the first start of a pair is none"
        front.eligible(primary=False, backup=True)
        front.eligible(primary=True, backup=True)
        coming = rig.call(front.frontend.view).next
        assert coming is not None
        assert coming.what == "primary gets all of its new connections (slow start)"
        counts = []
        clock = Clock(front)
        rig.call(lambda: setattr(front.frontend._router, "_loop", clock))
        for later in (0.0, 500.0, 900.0):
            clock.later = later
            counts.append(Counter(ask(front, 20))["primary"])
        assert counts[0] <= 2
        assert 9 <= counts[1] <= 11
        assert 17 <= counts[2] <= 19
        clock.later = 1001.0
        assert ask(front, 20).count("backup") <= 1  # what was owed to it
        assert set(ask(front, 20)) == {"primary"}
        assert not rig.call(lambda: front.frontend._router.is_dealing)
        assert rig.call(front.frontend.view).next is None


def test_a_slow_start_is_over_when_the_backup_cannot_serve(rig: Rig) -> None:
    with Front(rig, slow_start=NEVER) as front:
        front.eligible(primary=False, backup=True)
        front.eligible(primary=True, backup=True)
        front.eligible(primary=True, backup=False)
        assert set(ask(front, 5)) == {"primary"}
        assert rig.call(front.frontend.view).next is None


@pytest.mark.parametrize("slow_start", [0.0, NEVER])
def test_another_plan_changes_a_slow_start_that_is_under_way(rig: Rig, slow_start: float) -> None:
    with Front(rig, slow_start=NEVER - slow_start) as front:
        front.eligible(primary=False, backup=True)
        front.eligible(primary=True, backup=True)
        rig.call(lambda: front.frontend.change_plan(replace(front.frontend.plan, slow_start=slow_start)))
        assert ("backup" in ask(front, 5)) == bool(slow_start)
