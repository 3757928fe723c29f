"""Connections as JSON shows them, and in which order."""

from __future__ import annotations

from clojarsd.core.connections import MOST_LISTED, ConnectionList, ConnectionPhase, ConnectionView, joined
from clojarsd.core.names import Address, Role


def view(port: int, *, owed: bool = False, silent: float | None = 0.0) -> ConnectionView:
    client = Address("127.0.0.1", port)
    return ConnectionView("http", "relay", Role.PRIMARY, client, ConnectionPhase.OPEN, 9.0, silent, 1, 2, owed)


def ports(listed: ConnectionList) -> list[int]:
    return [one.client.port for one in listed.connections if one.client is not None]


def test_a_connection_in_json() -> None:
    client = Address("::1", 4242)
    one = ConnectionView("http", "steer", Role.BACKUP, client, ConnectionPhase.OPEN, None, 0.12345, 10, 20, owed=True)
    assert ConnectionList((one,), 3).as_json() == {
        "version": 1,
        "connections": [
            {
                "frontend": "http",
                "mode": "steer",
                "role": "backup",
                "client": "[::1]:4242",
                "phase": "open",
                "open_seconds": None,
                "silent_seconds": 0.123,
                "bytes_up": 10,
                "bytes_down": 20,
                "owed": True,
            }
        ],
        "left_out": 3,
    }


def test_one_that_is_held_and_has_gone_has_neither_instance_nor_client() -> None:
    one = ConnectionView("http", "relay", None, None, ConnectionPhase.HELD, 1.0, None, 0, 0, owed=True)
    shown = one.as_json()
    assert (shown["role"], shown["client"], shown["silent_seconds"]) == (None, None, None)


def test_those_that_keep_a_drain_come_first() -> None:
    one = ConnectionList((view(1, silent=9.0), view(2, silent=1.0), view(3, owed=True, silent=4.0)))
    other = ConnectionList((view(4, owed=True, silent=2.0), view(5, silent=None)), 7)
    listed = joined([one, other])
    assert ports(listed) == [4, 3, 5, 2, 1]
    assert listed.left_out == 7


def test_no_more_are_listed_than_there_is_room_for() -> None:
    many = ConnectionList(tuple(view(port) for port in range(1, MOST_LISTED)))
    listed = joined([many, many])
    assert len(listed.connections) == MOST_LISTED
    assert listed.left_out == MOST_LISTED - 2
