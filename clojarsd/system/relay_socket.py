"""The Unix socket at which a relay process is found by the next supervisor."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

from clojarsd.core.errors import Failed

LONGEST_PATH = 107
"""Bytes of a path that fit into an address, see unix(7)."""
BACKLOG = 8
_CREDENTIALS = struct.Struct("iII")


class RelaySocket:
    """Listens at the path, for processes of the same user and of root. Whoever makes it closes it.

    What was there before is replaced in one step: whoever ends another relay process does so before.

    Attributes:
        socket: the listening socket, non-blocking; another one after `restore`.
    """

    def __init__(self, path: Path) -> None:
        """Listen.

        Raises:
            OSError: it cannot be made there.
        """
        self.path = path
        self.socket = _listen(path)
        self._inode = _inode(path)

    def is_gone(self) -> bool:
        """Whether nothing is at the path any more."""
        return _inode(self.path) is None

    def restore(self) -> None:
        """Listen at the path again, with a new socket.

        Raises:
            OSError: it cannot be made there; the old socket stays.
        """
        listening = _listen(self.path)
        self.socket.close()
        self.socket = listening
        self._inode = _inode(self.path)

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
            if uid in (0, os.geteuid()):
                return end, pid
            end.close()

    def close(self) -> None:
        """Listen no more, and take the path away unless something else is there by now."""
        if self._inode is not None and _inode(self.path) == self._inode:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.socket.close()


def connect(path: Path) -> socket.socket | None:
    """A connection to who listens at the path; None when nobody does.

    Raises:
        Failed: the path cannot be used, or nothing more can be queued there; says which.
    """
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.setblocking(False)
    try:
        end.connect(address_of(path))
    except (FileNotFoundError, ConnectionRefusedError):
        end.close()
        return None
    except OSError as error:
        end.close()
        raise Failed(f"cannot reach the relay process at {path}: {(error.strerror or str(error)).lower()}") from error
    return end


def address_of(path: Path) -> bytes:
    """The path as an address.

    Raises:
        Failed: it is too long.
    """
    address = os.fsencode(path)
    if len(address) + len(".new") > LONGEST_PATH:
        raise Failed(f"cannot use {path} as a socket: its path is {len(address)} bytes long (at most 103)")
    return address


def credentials_of(end: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end of a Unix socket; of a listening one, who made it listen."""
    pid, uid, _ = _CREDENTIALS.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def _listen(path: Path) -> socket.socket:
    beside = path.with_name(f"{path.name}.new")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listening.setblocking(False)
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        listening.bind(os.fsencode(beside))
        beside.chmod(0o600)
        listening.listen(BACKLOG)
        beside.rename(path)
    except BaseException:
        listening.close()
        raise
    return listening


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
