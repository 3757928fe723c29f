"""Pipes for splicing, lent to whoever moves much at the moment and taken back empty."""

from __future__ import annotations

import contextlib
import fcntl
import os

SIZES = (1 << 20, 1 << 19, 1 << 18, 1 << 17)
"""Capacities asked for, in bytes, the best first. The kernel limits a plain user's sum (pipe-user-pages-soft)."""
SMALLEST = 1 << 16
"""A pipe below this moves no more at a time than the plain way does, and is not worth having."""


class Pipe:
    """Both descriptors of a non-blocking pipe. Whoever borrows one knows how much is in it."""

    __slots__ = ("read_fd", "write_fd")

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd

    def close(self) -> None:
        """Close both descriptors; what was in the pipe is gone."""
        os.close(self.read_fd)
        os.close(self.write_fd)


class PipePool:
    """At most `limit` pipes at a time, made when first wanted and kept until `close`.

    Attributes:
        limit: pipes that may exist, lent and free ones together; 0 means never any.
    """

    __slots__ = ("_closed", "_free", "_lent", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._free: list[Pipe] = []
        self._lent = 0
        self._closed = False

    @property
    def free(self) -> int:
        """How many pipes wait here to be lent."""
        return len(self._free)

    @property
    def lent(self) -> int:
        """How many pipes are out."""
        return self._lent

    def lend(self) -> Pipe | None:
        """An empty pipe; None when all are out or the kernel gives none, and the caller does without."""
        if self._free:
            self._lent += 1
            return self._free.pop()
        if self._closed or self._lent >= self.limit:
            return None
        pipe = _new_pipe()
        if pipe is not None:
            self._lent += 1
        return pipe

    def adopt(self, pipe: Pipe) -> None:
        """Count a pipe of another process as lent, also beyond the limit: it has bytes in it and cannot be refused."""
        self._lent += 1

    def take_back(self, pipe: Pipe, *, left: int) -> None:
        """End a loan. A pipe with `left` bytes still in it is closed: the next borrower must not send them.

        So is one beyond the limit, which was adopted.
        """
        self._lent -= 1
        if left or self._closed or self._lent + len(self._free) >= self.limit:
            pipe.close()
        else:
            self._free.append(pipe)

    def close(self) -> None:
        """Close the free pipes now and each lent one when it comes back."""
        self._closed = True
        while self._free:
            self._free.pop().close()


def _new_pipe() -> Pipe | None:
    """A pipe as large as the kernel allows; None when that is not worth having, or no descriptors are left."""
    try:
        pipe = Pipe(*os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError:
        return None
    for size in SIZES:
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe.write_fd, fcntl.F_SETPIPE_SZ, size)
            return pipe
    if fcntl.fcntl(pipe.write_fd, fcntl.F_GETPIPE_SZ) >= SMALLEST:
        return pipe
    pipe.close()
    return None
