"""Who is taken for the relay process, and who is not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed
from clojarsd.system.confinement import Account
from clojarsd.system.relay_socket import BACKLOG, RelaySocket, clear_room, connect, make_room
from tests.support.fronts import descriptors_left
from tests.support.real import unavailable
from tests.support.sockets import open_descriptors

LISTEN = """
import os, socket, sys
path, uid = sys.argv[1], int(sys.argv[2])
end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
end.bind(path)
os.setresuid(uid, uid, uid)
end.listen(1)
print("listening", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def room(tmp_path: Path) -> Path:
    make_room(tmp_path / "relay", None)
    return tmp_path / "relay" / "relay.sock"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Where another program of ours listens."""
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(path))
        other.listen(1)
        yield path


def test_who_listens_there_is_found_and_lets_us_in(room: Path) -> None:
    listening = RelaySocket(room)
    end = connect(room)
    assert end is not None
    accepted = listening.accept()
    assert accepted is not None
    assert accepted[1] == os.getpid()
    accepted[0].close()
    end.close()
    listening.close()
    assert connect(room) is None
    clear_room(room)
    assert not room.parent.exists()


def test_a_path_may_be_longer_than_an_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    make_room(deep / "relay", None)
    listening = RelaySocket(deep / "relay" / "relay.sock")
    end = connect(listening.path)
    assert end is not None
    end.close()
    listening.close()


def test_nobody_is_found_where_nobody_listens(room: Path) -> None:
    assert connect(room) is None
    assert connect(room.parent / "missing" / "relay.sock") is None
    RelaySocket(room).socket.close()
    assert connect(room) is None
    room.unlink()
    room.write_text("something else")
    assert connect(room) is None


def test_another_listener_that_a_link_leads_to_is_nobody(room: Path, elsewhere: Path) -> None:
    room.symlink_to(elsewhere)
    assert connect(room) is None
    room.unlink()
    room.hardlink_to(elsewhere)
    assert connect(room) is None


def test_a_listener_of_somebody_else_is_nobody(room: Path) -> None:
    if os.geteuid() != 0:
        unavailable("only root can be somebody else")
    with subprocess.Popen(
        [sys.executable, "-S", "-c", LISTEN, str(room), "65534"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"listening\n"
        assert connect(room) is None
        make_room(room.parent, Account(65534, 65534))
        end = connect(room)
        assert end is not None, "the owner of the directory"
        end.close()
        other.stdin.close()


def test_one_that_takes_no_more_is_told(room: Path) -> None:
    listening = RelaySocket(room)
    waiting = [connect(room) for _ in range(BACKLOG + 1)]
    with pytest.raises(Failed, match=f"cannot reach the relay process at {room}: resource temporarily unavailable"):
        connect(room)
    for end in waiting:
        assert end is not None
        end.close()
    listening.close()


def test_without_descriptors_nobody_can_be_asked_and_none_is_left(room: Path) -> None:
    listening = RelaySocket(room)
    before = open_descriptors()
    for left in range(2):
        with descriptors_left(left), pytest.raises(Failed, match=f"{room}: too many open files"):
            connect(room)
    assert open_descriptors() == before
    listening.close()


def test_a_directory_is_made_private_and_is_never_a_link(tmp_path: Path) -> None:
    path = tmp_path / "relay"
    path.mkdir(0o755)
    make_room(path, None)
    assert path.stat().st_mode & 0o7777 == 0o700
    path.rmdir()
    path.symlink_to(tmp_path)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        make_room(path, Account(1, 1))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        make_room(tmp_path / "missing" / "relay", None)


def test_a_socket_comes_back_after_its_directory_was_removed(room: Path) -> None:
    listening = RelaySocket(room)
    room.unlink()
    room.parent.rmdir()
    assert listening.is_gone()
    with pytest.raises(FileNotFoundError):
        listening.restore()
    make_room(room.parent, None)
    assert listening.is_gone()
    listening.restore()
    assert not listening.is_gone()
    end = connect(room)
    assert end is not None
    end.close()
    listening.close()
    assert list(room.parent.iterdir()) == []
