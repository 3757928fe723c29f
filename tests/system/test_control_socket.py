"""The control socket: one daemon alone has it, and it is really there."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed
from clojarsd.system.control_socket import ControlSocket

HOLDER = """
import sys
from pathlib import Path
from clojarsd.system.control_socket import ControlSocket

listener = ControlSocket.bind(Path(sys.argv[1]))
print("bound", flush=True)
sys.stdin.read()
"""
"""Another daemon: binds, says so, and stays until its stdin ends or it is killed."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "control.sock"


def answers(path: Path) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def hold(path: Path) -> subprocess.Popen[bytes]:
    """Another process that has bound the socket."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"bound\n"
    return holder


def end(holder: subprocess.Popen[bytes]) -> None:
    holder.kill()
    holder.communicate()


def test_everybody_may_connect_and_only_the_owner_may_replace(path: Path) -> None:
    before = os.umask(0o077)
    try:
        with ControlSocket.bind(path):
            assert answers(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    finally:
        os.umask(before)


def test_a_clean_end_takes_the_socket_away(path: Path) -> None:
    with ControlSocket.bind(path):
        pass
    assert not path.exists()
    with ControlSocket.bind(path):
        assert answers(path)


def test_a_second_daemon_is_told_of_the_first(path: Path) -> None:
    holder = hold(path)
    try:
        with pytest.raises(Failed) as failed:
            ControlSocket.bind(path)
        assert (
            str(failed.value) == f"cannot start: clojarsd already runs as process {holder.pid} (control socket {path})"
        )
        assert answers(path)
    finally:
        end(holder)


def test_the_lock_alone_keeps_a_second_daemon_out(path: Path) -> None:
    holder = hold(path)
    try:
        path.unlink()
        with pytest.raises(Failed, match=f"already runs as process {holder.pid} "):
            ControlSocket.bind(path)
        assert not path.exists()
    finally:
        end(holder)


def test_what_a_killed_daemon_left_behind_is_replaced(path: Path) -> None:
    end(hold(path))
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert not answers(path)
    with ControlSocket.bind(path):
        assert answers(path)


def test_a_daemon_whose_lock_was_removed_keeps_its_socket(path: Path) -> None:
    holder = hold(path)
    try:
        path.with_name("control.sock.lock").unlink()
        with pytest.raises(Failed, match=f"already runs as process {holder.pid} "):
            ControlSocket.bind(path)
        assert answers(path)
    finally:
        end(holder)


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(Failed) as failed:
        ControlSocket.bind(path)
    assert str(failed.value) == f"cannot open the control socket {path}: there is something else, which is not a socket"
    assert path.read_text() == "precious"
    path.unlink()
    path.symlink_to("/dev/null")
    with pytest.raises(Failed, match="which is not a socket"):
        ControlSocket.bind(path)


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    path = Path("/") / ("x" * 107)
    with pytest.raises(Failed) as failed:
        ControlSocket.bind(path)
    assert str(failed.value) == f"cannot open the control socket {path}: its path is 108 bytes long (at most 107)"


def test_a_directory_that_cannot_be_made(path: Path) -> None:
    path.parent.write_text("in the way")
    with pytest.raises(Failed) as failed:
        ControlSocket.bind(path)
    assert str(failed.value) == f"cannot open the control socket {path}: {path.parent}: file exists"


def test_the_lock_is_not_reached_through_a_link(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.with_name("control.sock.lock").symlink_to(victim)
    with pytest.raises(Failed, match="too many levels of symbolic links"):
        ControlSocket.bind(path)
    assert victim.read_text() == "precious"


def test_a_removed_socket_is_noticed_and_restored(path: Path) -> None:
    with ControlSocket.bind(path) as listener:
        assert listener.is_there()
        path.unlink()
        assert not listener.is_there()
        listener.restore()
        assert listener.is_there()
        assert answers(path)
    assert not path.exists()


def test_a_removed_directory_is_made_again_with_its_lock(path: Path) -> None:
    with ControlSocket.bind(path) as listener:
        path.unlink()
        path.with_name("control.sock.lock").unlink()
        path.parent.rmdir()
        listener.restore()
        assert answers(path)
        with pytest.raises(Failed, match=f"already runs as process {os.getpid()} "):
            ControlSocket.bind(path)
        assert answers(path)


def test_a_socket_that_another_daemon_has_taken_is_not_taken_back(path: Path) -> None:
    listener = ControlSocket.bind(path)
    path.unlink()
    path.with_name("control.sock.lock").unlink()
    holder = hold(path)
    try:
        assert not listener.is_there()
        with pytest.raises(Failed, match=f"already runs as process {holder.pid} "):
            listener.restore()
        assert listener.socket.fileno() >= 0
    finally:
        listener.close()
        assert answers(path), "the end of one daemon took the socket of the other"
        end(holder)


# From one code to the next, in the same process.


def test_who_waits_at_the_socket_is_answered_by_the_code_that_comes(path: Path) -> None:
    """Nobody is refused in between, the path leads to the same socket, and the lock stays."""
    with ControlSocket.bind(path) as before:
        inode = path.stat().st_ino
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.connect(str(path))
            waiting.sendall(b"question")
            listening, lock = before.hand_over()
            with ControlSocket.inherit(path, listening, lock) as after:
                accepted, _ = after.socket.accept()
                with accepted:
                    assert accepted.recv(100) == b"question"
                assert after.is_there()
                assert path.stat().st_ino == inode
                assert not after.socket.getblocking()
                with pytest.raises(Failed, match=f"already runs as process {os.getpid()} "):
                    ControlSocket.bind(path)
    assert not path.exists()
    with ControlSocket.bind(path):
        pass


def test_what_was_handed_over_is_closed_by_nobody_but_its_heir(path: Path) -> None:
    """The end of the code before leaves the socket, its file and its lock alone."""
    with ControlSocket.bind(path) as before:
        listening, lock = before.hand_over()
    assert answers(path)
    with ControlSocket.inherit(path, listening, lock):
        assert answers(path)
    assert not path.exists()
    for descriptor in (listening, lock):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_an_heir_restores_a_socket_that_was_removed(path: Path) -> None:
    with ControlSocket.bind(path) as before:
        listening, lock = before.hand_over()
        path.unlink()
        with ControlSocket.inherit(path, listening, lock) as after:
            assert not after.is_there()
            after.restore()
            assert answers(path)
    assert not path.exists()


def test_descriptors_that_are_something_else_are_one_sentence(path: Path, tmp_path: Path) -> None:
    with ControlSocket.bind(path), (tmp_path / "file").open("w") as file:
        with pytest.raises(Failed) as failed:
            ControlSocket.inherit(path, file.fileno(), file.fileno())
        assert str(failed.value) == (f"cannot take over the control socket {path}: socket operation on non-socket")
        closed = os.dup(file.fileno())
        os.close(closed)
        with pytest.raises(Failed, match="bad file descriptor"):
            ControlSocket.inherit(path, closed, closed)


def test_a_lock_that_another_daemon_has_is_not_taken_over(path: Path) -> None:
    holder = hold(path)
    try:
        lock = os.open(path.with_name("control.sock.lock"), os.O_RDWR)
        listening = socket.socket(socket.AF_UNIX)
        try:
            with pytest.raises(Failed, match="cannot take over the control socket"):
                ControlSocket.inherit(path, listening.fileno(), lock)
        finally:
            os.close(lock)
        assert answers(path)
    finally:
        listening.close()
        end(holder)


def test_an_heir_whose_directory_has_another_socket_leaves_that_alone(path: Path) -> None:
    """Somebody has removed socket and lock, and another daemon has taken the path meanwhile."""
    with ControlSocket.bind(path) as before:
        listening, lock = before.hand_over()
        path.unlink()
        path.with_name("control.sock.lock").unlink()
        holder = hold(path)
        try:
            after = ControlSocket.inherit(path, listening, lock)
            assert not after.is_there()
            after.close()
            assert answers(path), "the end of one daemon took the socket of the other"
        finally:
            end(holder)
