"""The Unix socket at which a relay process is found by the next supervisor."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Collection
from pathlib import Path

from clojarsd.core.errors import Failed, reason_of
from clojarsd.system.confinement import Account

BACKLOG = 8
_CREDENTIALS = struct.Struct("iII")


class RelaySocket:
    """Listens at the path, for processes of root and of these users. Whoever makes it closes it.

    What was there before is replaced in one step: whoever ends another relay process does so before. The directory is
    held open, so that a process that has given up being root listens there again also where it may not pass by.

    Args:
        callers: numbers of users; None: our own.

    Attributes:
        socket: the listening socket, non-blocking; another one after `restore`.
    """

    def __init__(self, path: Path, directory: int | None = None, callers: Collection[int] | None = None) -> None:
        """Listen.

        Args:
            directory: a descriptor of where the path is, which is ours from here on; None: it is opened.

        Raises:
            OSError: it cannot be made there.
        """
        self.path = path
        self._callers = {0, *(callers if callers is not None else (os.geteuid(),))}
        self._directory = open_directory(path) if directory is None else directory
        try:
            self.socket = self._listen()
        except BaseException:
            os.close(self._directory)
            raise
        self._inode = _inode(path.name, self._directory)

    def is_gone(self) -> bool:
        """Whether nothing is at the path any more."""
        return os.fstat(self._directory).st_nlink == 0 or _inode(self.path.name, self._directory) is None

    def restore(self) -> None:
        """Listen at the path again, with a new socket.

        Raises:
            OSError: it cannot be made there; the old socket stays.
        """
        if os.fstat(self._directory).st_nlink == 0:  # removed; another one may be there
            directory = open_directory(self.path)
            os.close(self._directory)
            self._directory = directory
        listening = self._listen()
        self.socket.close()
        self.socket = listening
        self._inode = _inode(self.path.name, self._directory)

    def accept(self) -> tuple[socket.socket, int] | None:
        """The next connection that may be served, with the number of its process; None when none waits.

        Raises:
            OSError: it cannot be accepted, for want of descriptors.
        """
        while True:
            try:
                end, _ = self.socket.accept()
            except BlockingIOError:
                return None
            pid, uid = credentials_of(end)
            if uid in self._callers:
                return end, pid
            end.close()

    def close(self, *, leaves_path: bool = False) -> None:
        """Listen no more, and take the path away unless something else is there by now.

        Args:
            leaves_path: somebody else is to listen there in this moment. What is there may become theirs between the
                look and the act, so it is not touched.
        """
        is_ours = self._inode is not None and _inode(self.path.name, self._directory) == self._inode
        if is_ours and not leaves_path:
            with contextlib.suppress(OSError):
                os.unlink(self.path.name, dir_fd=self._directory)
        self.socket.close()
        os.close(self._directory)

    def _listen(self) -> socket.socket:
        beside = f"{self.path.name}.new"
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:  # by way of the directory's descriptor, which also makes a path of any length fit into an address
            listening.setblocking(False)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=self._directory)
            listening.bind(f"/proc/self/fd/{self._directory}/{beside}")
            os.chmod(beside, 0o600, dir_fd=self._directory)
            listening.listen(BACKLOG)
            os.rename(beside, self.path.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except BaseException:
            listening.close()
            raise
        return listening


def open_directory(path: Path) -> int:
    """A descriptor of the directory of the path, which is good for nothing else. Raises OSError."""
    return os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def make_room(directory: Path, account: Account | None) -> None:
    """Make a directory for a socket that the account, or else who we are, may enter alone; or make one be so.

    Raises:
        OSError: it cannot be made, or there is something else.
    """
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        seen = os.fstat(opened)
        if account is not None and (seen.st_uid, seen.st_gid) != (account.uid, account.gid):
            os.fchown(opened, account.uid, account.gid)
        if stat.S_IMODE(seen.st_mode) != 0o700:
            os.fchmod(opened, 0o700)
    finally:
        os.close(opened)


def clear_room(path: Path) -> None:
    """Take the directory of a socket away on which nobody listens any more, if it can be."""
    with contextlib.suppress(OSError):
        for name in (f"{path.name}.new", path.name):
            path.with_name(name).unlink(missing_ok=True)
        path.parent.rmdir()


def connect(path: Path) -> socket.socket | None:
    """A connection to who listens at the path; None when nobody does whom we trust.

    That is the owner of its directory, or somebody who runs as we do. Of the owner's is also that the path is no
    link: else whoever may write there could have us take any other process for the relay.

    Raises:
        Failed: the path cannot be used, or nothing more can be queued there; says which.
    """
    try:
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            return None
        raise _unreachable(path, error) from error
    try:
        with contextlib.ExitStack() as undo:
            end = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            end.setblocking(False)
            end.connect(f"/proc/self/fd/{place}")
            if os.fstat(place).st_nlink <= 1 and credentials_of(end)[1] in (path.parent.stat().st_uid, os.geteuid()):
                undo.pop_all()
                return end
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    except OSError as error:
        raise _unreachable(path, error) from error
    finally:
        os.close(place)
    return None


def _unreachable(path: Path, error: OSError) -> Failed:
    return Failed(f"cannot reach the relay process at {path}: {reason_of(error)}")


def credentials_of(end: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end of a Unix socket; of a listening one, who made it listen."""
    pid, uid, _ = _CREDENTIALS.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def _inode(name: str, directory: int) -> tuple[int, int] | None:
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino
