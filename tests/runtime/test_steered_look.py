"""What can be told of a connection from outside: whether it is silent, and whether its client waits for an answer."""

from __future__ import annotations

from typing import Any

import pytest

from clojarsd.core.names import Address
from clojarsd.runtime.steered_look import UNCLEAR_TIMES, is_silent, owes_answer, silence
from clojarsd.system.sock_diag import CLOSE_WAIT, ESTABLISHED, Connection

IDLE = 2.0


def seen(**changes: Any) -> Connection:
    """A connection that has been asked and has answered long ago, with the changes."""
    values: dict[str, Any] = {
        "local": Address("127.0.0.1", 80),
        "remote": Address("127.0.0.1", 4242),
        "state": ESTABLISHED,
        "inode": 1,
        "receive_queue": 0,
        "send_queue": 0,
        "cookie": 1,
        "since_sent": 9.0,
        "since_received": 9.1,
        "since_heard": 8.96,
        "bytes_received": 10,
        "bytes_acknowledged": 100,
        "unsent": 0,
        "is_ipv6": False,
        "interface": 0,
    }
    return Connection(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "owed"),
    [
        ({}, False),
        ({"since_received": 8.0}, True),
        ({"receive_queue": 1}, True),
        ({"bytes_received": 0, "since_sent": 9.1, "since_heard": 9.1}, False),
        ({"bytes_received": 1, "state": CLOSE_WAIT, "bytes_acknowledged": 0}, False),
        ({"bytes_received": 1, "state": CLOSE_WAIT, "receive_queue": 1}, False),
        ({"bytes_received": 11, "state": CLOSE_WAIT, "since_received": 8.0}, True),
        ({"bytes_acknowledged": 0, "since_sent": 9.1, "since_received": 9.1}, True),
        ({"bytes_acknowledged": 0, "send_queue": 5}, False),
        ({"since_received": 9.0, "since_heard": 8.96}, False),
        ({"since_received": 9.0, "since_heard": 9.0}, None),
        ({"since_sent": None, "since_received": None, "since_heard": None}, True),
    ],
    ids=[
        "answered",
        "asked after the last answer",
        "unread",
        "never said anything",
        "ended without a word",
        "ended without a word, and nobody has noticed",
        "asked and ended",
        "never answered",
        "the answer is under way",
        "within one tick, and acknowledged later",
        "within one tick",
        "not known",
    ],
)
def test_whether_an_answer_is_owed(changes: dict[str, Any], owed: bool | None) -> None:
    assert owes_answer(seen(**changes)) is owed


@pytest.mark.parametrize(
    ("changes", "silent"),
    [
        ({}, True),
        ({"since_sent": IDLE - 0.1}, False),
        ({"since_received": 8.0}, False),
        ({"send_queue": 1}, False),
        ({"receive_queue": 1}, False),
        ({"state": CLOSE_WAIT, "receive_queue": 1}, True),
        ({"since_sent": None, "since_received": None, "bytes_received": 0}, False),
    ],
    ids=["long", "not for long", "owes", "sends", "unread", "ended and silent", "not known"],
)
def test_whether_it_is_silent(changes: dict[str, Any], silent: bool) -> None:
    assert is_silent(seen(**changes), IDLE) is silent


def test_where_the_order_cannot_be_told_the_silence_must_last_longer() -> None:
    def unclear(seconds: float) -> Connection:
        return seen(since_sent=seconds, since_received=seconds, since_heard=seconds)

    assert not is_silent(unclear(IDLE * UNCLEAR_TIMES - 0.1), IDLE)
    assert is_silent(unclear(IDLE * UNCLEAR_TIMES), IDLE)


def test_the_silence_is_that_of_both_sides() -> None:
    assert silence(seen(since_sent=3.0, since_received=2.0)) == 2.0
    assert silence(seen(since_sent=None)) is None
