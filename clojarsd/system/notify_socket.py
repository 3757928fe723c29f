"""The socket on which an instance tells how it is: datagrams, each with the process that the kernel says sent it.

Source: sd_notify(3) for what senders expect, SCM_CREDENTIALS and SCM_RIGHTS in unix(7).
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from clojarsd.core.errors import Failed, reason_of
from clojarsd.core.instance_notify import LARGEST_DATAGRAM

LONGEST_PATH = 107
"""Bytes of a path that fit into an address, see unix(7)."""
MOST_DESCRIPTORS = 253
"""What one datagram can carry; room for fewer would have the kernel cut the message."""
_CREDENTIALS = struct.Struct("iII")
_ANCILLARY_ROOM = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(MOST_DESCRIPTORS * 4)


@dataclass(frozen=True, slots=True)
class Datagram:
    """One message. pid: who sent it, 0 when that is out of sight. content: None when it was too large."""

    pid: int
    content: bytes | None


class NotifySocket:
    """A datagram socket at a path. Whoever makes it ends it, with `close` or with `detach`; nothing runs inside.

    The path is given to the socket by a rename, so that a sender finds the one or the other and never none.

    Attributes:
        socket: non-blocking; another one after `restore`.
    """

    def __init__(self, path: Path, owner: int | None = None, adopted: int | None = None) -> None:
        """Be reachable at the path, in place of whatever is there, in a directory that is made if missing.

        Args:
            owner: the number of the only user besides root that may send; None for the daemon's own.
            adopted: the descriptor of a socket at this path, with what waits in it; it is used up.

        Raises:
            Failed: it cannot be made there.
        """
        self.path = path
        self._owner = owner
        self._inode: tuple[int, int] | None = None
        if adopted is not None:
            self.socket = socket.socket(fileno=adopted)
            self.socket.setblocking(False)
            self.socket.set_inheritable(False)
            self._inode = _inode(path)
        else:
            self.socket = self._bind()

    def give_to(self, owner: int) -> None:
        """Let that user send from now on instead, as the next instance may run as another. Raises OSError."""
        self._owner = owner
        if self.is_there() and self.path.lstat().st_uid != owner:
            os.chown(self.path, owner, -1, follow_symlinks=False)

    def close(self) -> None:
        """Take the socket away, unless another one has taken its place."""
        if self.is_there():
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.detach()

    def detach(self) -> None:
        """Let go of the socket and leave its path for a successor, who is found there as soon as it has bound."""
        self.socket.close()

    def is_there(self) -> bool:
        """Whether the path still leads to this socket."""
        return self._inode is not None and _inode(self.path) == self._inode

    def restore(self) -> None:
        """Be reachable at the path again, with a new `socket`; the old one is closed.

        Raises:
            Failed: it cannot be made there; the old socket stays.
        """
        before, self.socket = self.socket, self._bind()
        before.close()

    def receive(self) -> Datagram | None:
        """The next message, None when there is none for now. Descriptors in it are closed: a barrier is passed so."""
        try:
            content, ancillary, flags, _ = self.socket.recvmsg(
                LARGEST_DATAGRAM, _ANCILLARY_ROOM, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return None
        pid = 0
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                _close_all(value)
            elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid, _, _ = _CREDENTIALS.unpack(value[: _CREDENTIALS.size])
        return Datagram(pid, None if flags & socket.MSG_TRUNC else content)

    def _bind(self) -> socket.socket:
        beside = self.path.with_name(f"{self.path.name}.new")
        if len(os.fsencode(beside)) > LONGEST_PATH:
            most = LONGEST_PATH - len(".new")
            raise Failed(f"cannot open the notify socket {self.path}: its path is too long (at most {most} bytes)")
        try:
            if not self.path.parent.is_dir():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.parent.chmod(0o755)  # whatever the umask is
            beside.unlink(missing_ok=True)
            bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            try:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # before anybody can send
                bound.bind(os.fsencode(beside))
                os.chmod(beside, 0o600)
                if self._owner is not None and self._owner != os.geteuid():
                    os.chown(beside, self._owner, -1, follow_symlinks=False)
                inode = _inode(beside)
                beside.rename(self.path)
            except BaseException:
                bound.close()
                raise
        except OSError as error:
            reason = reason_of(error)
            raise Failed(f"cannot open the notify socket {self.path}: {reason}") from error
        self._inode = inode
        return bound


def _close_all(value: bytes) -> None:
    descriptors = array.array("i")
    descriptors.frombytes(value[: len(value) - len(value) % descriptors.itemsize])
    for descriptor in descriptors:
        os.close(descriptor)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
