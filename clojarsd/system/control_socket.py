"""The Unix socket that orders come in by: one daemon alone has it, and it is really there.

Who is alive is decided by a lock on a file beside the socket, which the kernel lets go of with its process: so what a
dead daemon has left behind is told from what a living one uses, and only the holder of the lock removes anything.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Self

from clojarsd.core.errors import Failed, reason_of

LONGEST_PATH = 107
"""Bytes of a path that fit into an address, see unix(7)."""
BACKLOG = 128
_CREDENTIALS = struct.Struct("iII")


class ControlSocket:
    """A listening socket at a path that is ours. Made with `bind`; daemon.py makes and closes it, nothing runs inside.

    Attributes:
        socket: the listening socket; another one after `restore`.
    """

    def __init__(self, path: Path, lock: int, listening: socket.socket) -> None:
        self.path = path
        self._lock = lock
        self.socket = listening
        self._inode = _inode(path)
        self._is_handed_over = False

    @classmethod
    def bind(cls, path: Path) -> Self:
        """A socket that listens at the path, in a directory that is made if missing.

        Raises:
            Failed: another daemon has it, or it cannot be made there; the text says which.
        """
        if len(os.fsencode(path)) > LONGEST_PATH:
            length = len(os.fsencode(path))
            raise Failed(
                f"cannot open the control socket {path}: its path is {length} bytes long (at most {LONGEST_PATH})"
            )
        try:
            _make_directory(path)
            lock = _lock(path)
        except OSError as error:
            raise Failed(f"cannot open the control socket {path}: {_reason(error)}") from error
        try:
            return cls(path, lock, _listen(path))
        except OSError as error:
            os.close(lock)
            raise Failed(f"cannot open the control socket {path}: {_reason(error)}") from error
        except Failed:
            os.close(lock)
            raise

    @classmethod
    def inherit(cls, path: Path, listening: int, lock: int) -> Self:
        """The socket of the code that this process was before, with the callers that wait on it.

        Raises:
            Failed: the descriptors are not what they should be.
        """
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            inherited = socket.socket(fileno=listening)
            inherited.setblocking(False)
        except OSError as error:
            raise Failed(f"cannot take over the control socket {path}: {_reason(error)}") from error
        made = cls(path, lock, inherited)
        if made._lock_was_removed() and not made._is_ours():
            made._inode = None  # another daemon has taken the path since
        return made

    def hand_over(self) -> tuple[int, int]:
        """The descriptors of the socket and of its lock, for `inherit`; they are no longer ours to close."""
        handed, self._is_handed_over = (self.socket.detach(), self._lock), True
        return handed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._is_handed_over:
            self.close()

    def close(self) -> None:
        """Take the socket away, unless another one has taken its place, and let the next daemon have the path."""
        if self._inode is not None and _inode(self.path) == self._inode:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.socket.close()
        os.close(self._lock)

    def is_there(self) -> bool:
        """Whether the path still leads to this socket."""
        return self._inode is not None and _inode(self.path) == self._inode

    def restore(self) -> None:
        """Listen at the path again after the socket was removed, with a new `socket`; the old one is closed.

        Raises:
            Failed: another daemon has taken the path, or it cannot be made there; the old socket stays.
        """
        if self._lock_was_removed():
            again = self.bind(self.path)
            os.close(self._lock)
            self._lock, listening = again._lock, again.socket
        else:
            try:
                listening = _listen(self.path)
            except OSError as error:
                raise Failed(f"cannot open the control socket {self.path}: {_reason(error)}") from error
        self.socket.close()
        self.socket = listening
        self._inode = _inode(self.path)

    def _is_ours(self) -> bool:
        """Whether it is this process that listens at the path."""
        try:
            return _listener(self.path) in ("", str(os.getpid()))
        except OSError:
            return False

    def _lock_was_removed(self) -> bool:
        """Whether another daemon could lock the path too, because our lock is no longer where it looks."""
        mine = os.fstat(self._lock)
        return _inode(_lock_path(self.path)) != (mine.st_dev, mine.st_ino)


def _make_directory(path: Path) -> None:
    """The directory that everybody may pass through and only its owner may change."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o755)  # whatever the umask is


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _lock(path: Path) -> int:
    """The descriptor of the locked file, which then holds our process number.

    The file itself is never removed: a lock on a file that has lost its name keeps nobody out.
    """
    lock = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            raise _taken(path, holder) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _listen(path: Path) -> socket.socket:
    """A listening socket at the path, for everybody to connect to: what a caller may do is decided by who it is.

    To be called by the holder of the lock; a socket that is there already is removed if nobody listens on it.
    """
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listening.bind(os.fsencode(path))
        os.chmod(path, 0o666)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _remove_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise Failed(f"cannot open the control socket {path}: there is something else, which is not a socket")
    listener = _listener(path)
    if listener is not None:
        raise _taken(path, listener)
    path.unlink()


def _listener(path: Path) -> str | None:
    """The process that listens there in spite of our lock, whose own lock must have been removed; None for nobody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fsencode(path))
        except BlockingIOError:
            return ""  # its queue is full
        except ConnectionRefusedError:
            return None
        pid, _, _ = _CREDENTIALS.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return str(pid)


def _taken(path: Path, holder: str) -> Failed:
    number = holder if holder.isdecimal() else "(number unknown)"
    return Failed(f"cannot start: clojarsd already runs as process {number} (control socket {path})")


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _reason(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename is not None and error.errno != errno.EADDRINUSE else ""
    return f"{where}{reason_of(error)}"
