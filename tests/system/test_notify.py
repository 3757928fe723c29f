"""What the service manager hears from the daemon, received on a real datagram socket."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from clojarsd.system.notify import Notifier

DEADLINE_S = 10.0


class Manager:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(DEADLINE_S)
        self.socket.bind(address)

    def next(self) -> dict[str, str]:
        lines = self.socket.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)


def fill(manager: Manager) -> int:
    """Fill the manager's queue; how many messages it took."""
    sent = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        filler.setblocking(False)
        try:
            while True:
                filler.sendto(b"FILLER=1", manager.socket.getsockname())
                sent += 1
        except BlockingIOError:
            return sent


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    with Notifier({"NOTIFY_SOCKET": manager.socket.getsockname()}) as notifier:
        yield notifier


def test_readiness_comes_with_a_sentence(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("both instances are ready")
    assert manager.next() == {"READY": "1", "STATUS": "both instances are ready"}


def test_a_status_never_breaks_into_fields_of_its_own(manager: Manager, notifier: Notifier) -> None:
    notifier.status("primary said:\nMAINPID=1")
    assert manager.next() == {"STATUS": "primary said: MAINPID=1"}


def test_stopping_may_ask_for_the_time_it_needs(manager: Manager, notifier: Notifier) -> None:
    notifier.stopping(within=75.5)
    assert manager.next() == {"STOPPING": "1", "STATUS": "stopping", "EXTEND_TIMEOUT_USEC": "75500000"}
    notifier.stopping()
    assert "EXTEND_TIMEOUT_USEC" not in manager.next()


def test_the_watchdog_is_fed(manager: Manager, notifier: Notifier) -> None:
    notifier.watchdog()
    assert manager.next() == {"WATCHDOG": "1"}


def test_an_abstract_socket_is_reached() -> None:
    name = f"clojarsd-test-{secrets.token_hex(8)}"
    manager = Manager("\0" + name)
    with Notifier({"NOTIFY_SOCKET": "@" + name}) as notifier:
        notifier.ready("ready")
    assert manager.next()["READY"] == "1"
    manager.socket.close()


def test_without_a_service_manager_every_call_does_nothing() -> None:
    with Notifier({}) as notifier:
        assert notifier.watchdog_interval is None
        notifier.ready("ready")
        notifier.status("well")
        notifier.watchdog()
        notifier.stopping(within=1.0)


def test_an_address_of_another_kind_is_left_alone() -> None:
    with Notifier({"NOTIFY_SOCKET": "vsock:2:1234"}) as notifier:
        notifier.ready("ready")


def test_children_do_not_inherit_the_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with Notifier() as notifier:
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
        assert notifier.environment["WATCHDOG_USEC"] == "30000000"


def test_a_message_that_met_a_full_queue_goes_out_with_the_next(manager: Manager, notifier: Notifier) -> None:
    sent = fill(manager)
    notifier.ready("ready")
    assert [manager.next() for _ in range(sent)] == [{"FILLER": "1"}] * sent
    notifier.watchdog()
    assert manager.next() == {"READY": "1", "STATUS": "ready", "WATCHDOG": "1"}
    notifier.watchdog()
    assert manager.next() == {"WATCHDOG": "1"}


def test_a_service_manager_that_is_gone_harms_nobody(manager: Manager, notifier: Notifier) -> None:
    manager.socket.close()
    notifier.watchdog()


def test_a_service_manager_that_stays_away_is_logged_once(
    manager: Manager, notifier: Notifier, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = fill(manager)
    for _ in range(3):
        notifier.watchdog()
    assert capsys.readouterr().out.count("service_manager_unreachable") == 1
    for _ in range(sent):
        manager.next()
    notifier.watchdog()
    notifier.watchdog()
    assert capsys.readouterr().out.count("service_manager_reached_again") == 1


def test_after_close_nothing_is_sent(manager: Manager, notifier: Notifier) -> None:
    notifier.close()
    notifier.watchdog()
    manager.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.next()


@pytest.mark.parametrize(
    ("variables", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_wants_a_word_every_half_of_its_limit(variables: dict[str, str], interval: float | None) -> None:
    assert Notifier(dict(variables)).watchdog_interval == interval
