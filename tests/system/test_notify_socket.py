"""The socket that instances notify on: its path, its rights, its messages."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed
from clojarsd.system.notify_socket import Datagram, NotifySocket


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[NotifySocket]:
    bound = NotifySocket(tmp_path / "notify-primary.sock")
    yield bound
    bound.close()


def send(path: Path, content: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(content, str(path))


def test_a_message_comes_with_who_sent_it(bound: NotifySocket) -> None:
    assert bound.receive() is None
    send(bound.path, b"READY=1")
    assert bound.receive() == Datagram(os.getpid(), b"READY=1")
    assert bound.receive() is None


def test_a_message_that_is_too_large_is_known_as_such(bound: NotifySocket) -> None:
    send(bound.path, b"x" * 4096)
    send(bound.path, b"x" * 4097)
    assert bound.receive() == Datagram(os.getpid(), b"x" * 4096)
    assert bound.receive() == Datagram(os.getpid(), None)


def test_only_its_owner_may_send(bound: NotifySocket) -> None:
    assert stat.S_IMODE(bound.path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_owner_is_the_user_of_the_instances(tmp_path: Path) -> None:
    bound = NotifySocket(tmp_path / "notify.sock", owner=65534)
    assert bound.path.stat().st_uid == 65534
    bound.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_user_may_send_from_then_on(tmp_path: Path) -> None:
    bound = NotifySocket(tmp_path / "notify.sock", owner=65534)
    bound.give_to(1)
    assert bound.path.stat().st_uid == 1
    bound.path.unlink()
    bound.give_to(2)  # there is nothing at the path to give
    bound.restore()
    assert bound.path.stat().st_uid == 2
    bound.close()


def test_whatever_is_at_the_path_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run" / "notify.sock"
    first = NotifySocket(path)
    second = NotifySocket(path)
    assert (first.is_there(), second.is_there()) == (False, True)
    send(path, b"a")
    assert first.receive() is None
    assert second.receive() is not None
    first.close()
    assert second.is_there()
    second.close()
    assert os.listdir(path.parent) == []


def test_a_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120)
    with pytest.raises(Failed, match=r"its path is too long \(at most 103 bytes\)$"):
        NotifySocket(path)


def test_a_directory_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Failed) as caught:
        NotifySocket(tmp_path / "file" / "notify.sock")
    assert str(caught.value).startswith(f"cannot open the notify socket {tmp_path}/file/notify.sock: ")
