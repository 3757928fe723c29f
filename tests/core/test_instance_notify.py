"""What an instance says of itself."""

from __future__ import annotations

import pytest

from clojarsd.core.instance_notify import Notification, notify_environment, parse_notification


@pytest.mark.parametrize(
    ("datagram", "meaning"),
    [
        (b"", Notification()),
        (b"\n\n", Notification()),
        (b"READY=1", Notification(ready=True)),
        (b"READY=1\nSTATUS=serving\n", Notification(ready=True, status="serving")),
        (b"STATUS=", Notification(status="")),
        (b"STATUS=a=b", Notification(status="a=b")),
        (b"STATUS=one\nSTATUS=two", Notification(status="two")),
        (b"STATUS=\x1b[31mred\t\xff", Notification(status="?[31mred?\N{REPLACEMENT CHARACTER}")),
        (b"STATUS=" + b"x" * 1000, Notification(status="x" * 199 + "…")),
        (b"STATUS=" + b"x" * 200, Notification(status="x" * 200)),
        (b"WATCHDOG=1", Notification(keepalive=True)),
        (b"WATCHDOG=trigger", Notification(trigger=True)),
        (b"EXTEND_TIMEOUT_USEC=1500000", Notification(extend=1.5)),
        (b"EXTEND_TIMEOUT_USEC=" + b"9" * 4000, Notification(extend=86400.0)),
        (b"BARRIER=1", Notification()),
        (b"X_OWN=1", Notification()),
    ],
)
def test_what_is_understood(datagram: bytes, meaning: Notification) -> None:
    assert parse_notification(datagram) == meaning


@pytest.mark.parametrize(
    ("datagram", "sentence"),
    [
        (b"READY=yes", "READY ignored: yes is not 1"),
        (b"WATCHDOG=0", "WATCHDOG ignored: 0 is not 1 or trigger"),
        (b"WATCHDOG_USEC=1", "WATCHDOG_USEC ignored: the interval is that of the settings"),
        (b"MAINPID=1", "MAINPID ignored: the process that was launched stays the main one"),
        (b"RELOADING=1", "RELOADING ignored: a reload is not waited for"),
        (b"STOPPING=1", "STOPPING ignored: it is stopped by order or seen to exit"),
        (b"EXTEND_TIMEOUT_USEC=soon", "EXTEND_TIMEOUT_USEC ignored: it is not a number of microseconds"),
        ("EXTEND_TIMEOUT_USEC=²".encode(), "EXTEND_TIMEOUT_USEC ignored: it is not a number of microseconds"),
        (b"EXTEND_TIMEOUT_USEC=0", "EXTEND_TIMEOUT_USEC ignored: it is not a number of microseconds"),
        (b"READY", "READY ignored: it is not known"),
        (b"HELLO=1", "HELLO ignored: it is not known"),
        (b"\x00=1", "? ignored: it is not known"),
    ],
)
def test_what_is_not_understood_has_a_reason(datagram: bytes, sentence: str) -> None:
    assert parse_notification(datagram) == Notification(ignored=(sentence,))


def test_a_flood_of_assignments_is_cut() -> None:
    meaning = parse_notification(b"X_A=1\n" * 64 + b"READY=1")
    assert not meaning.ready
    assert meaning.ignored == ("further assignments ignored: there are more than 64",)


def test_what_an_instance_is_told() -> None:
    assert notify_environment("/run/x.sock", None) == {"NOTIFY_SOCKET": "/run/x.sock"}
    assert notify_environment("/run/x.sock", 2.5)["WATCHDOG_USEC"] == "2500000"
