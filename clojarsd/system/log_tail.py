"""The last lines of a log, and those that come: read in blocks, over rotation and truncation."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from clojarsd.core.errors import Failed, Refused
from clojarsd.system.inotify import EntryWatch
from clojarsd.system.threads import Threads

BLOCK = 65536
LONGEST_LINE = 65536
"""Bytes of a line that are shown; the rest is cut off, and the cut is marked."""
CUT = " [cut]"
MOST_SCANNED = 64 * 1024 * 1024
"""Bytes before the end in which the last lines are looked for; beyond that there are fewer of them."""
MOST_THREADS = 4
"""Reads under way at once, of all readers together; more wait, and hold up nothing but each other."""
_PAGE = 4096
_ANCHOR = 64

T = TypeVar("T")


async def last_lines(path: Path, count: int) -> AsyncGenerator[Sequence[str], None]:
    """The last lines up to the end that the file has now, some at a time.

    Raises:
        Refused: there is no such file.
        Failed: it cannot be read.
    """
    reader = LogReader(path)
    try:
        await _threads.run(reader.open_at_end, count)
        while lines := await _threads.run(reader.read_to_known_end):
            yield lines
    finally:
        reader.close()


async def follow(path: Path, count: int) -> AsyncGenerator[Sequence[str], None]:
    """The last lines, then those that come, some at a time; a file that is not there yet is waited for.

    A line is given when it is complete, or when the file is replaced. Nothing is read ahead of the caller.

    Raises:
        Failed: it cannot be read or watched.
    """
    reader = LogReader(path)
    try:
        with EntryWatch(path) as watch:
            with contextlib.suppress(Refused):  # then it is read from its beginning when it comes
                await _threads.run(reader.open_at_end, count)
            while True:
                while lines := await _threads.run(reader.read):
                    yield lines
                await watch.change()
    finally:
        reader.close()


_threads = Threads("log-reader", MOST_THREADS)
"""For reads alone: slow ones starve no other work."""


class LogReader:
    """Reads one log, line by line, wherever its file goes. Its methods block; they may be called from several threads.

    The file may grow, be cut to nothing, lose whole pages at its head, or be replaced by another one; a place in it is
    known by the bytes before it. Whoever makes it closes it; that never blocks: a read that is under way ends soon and
    lets go of the file itself.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._closed = False
        self._file: int | None = None
        self._position = 0
        self._known_end = 0
        self._anchor = b""
        self._unfinished = b""

    def open_at_end(self, count: int) -> None:
        """Begin where the last `count` lines do.

        Raises:
            Refused: there is no such file.
            Failed: it cannot be read.
        """
        with self._reading():
            if not self._open():
                raise Refused(f"there is no log at {self._path} yet")
            assert self._file is not None
            self._known_end = os.fstat(self._file).st_size
            self._position = self._start_of_last(self._known_end, count)
            self._remember_place()

    def read(self) -> list[str]:
        """The next complete lines, of one block or so; none when there are no more yet.

        Raises:
            Failed: the file cannot be read.
        """
        with self._reading():
            replaced = False
            while not self._closed and (self._file is not None or self._open()):
                assert self._file is not None
                self._find_place()
                if lines := self._read_block(BLOCK):
                    return lines
                if not self._at_end():
                    continue
                if not replaced:
                    if not self._is_replaced():
                        break
                    replaced = True  # once more: what was written between the last read and the replacement
                elif lines := self._leave():
                    return lines
                else:
                    replaced = False
            return []

    def read_to_known_end(self) -> list[str]:
        """As `read`, but not beyond the end that the file had when it was opened; an unfinished line counts there."""
        with self._reading():
            while not self._closed and self._file is not None and self._position < self._known_end:
                before = self._position
                lines = self._read_block(min(BLOCK, self._known_end - self._position))
                if lines or self._position == before:  # no progress: it was truncated meanwhile
                    return lines or self._leave()
            return self._leave()

    def close(self) -> None:
        """Let go of the file, now or as soon as a read that is under way ends. Never blocks."""
        self._closed = True
        self._leave_if_idle()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Alone with the file. Whoever finds the reader closed afterwards lets go of it for `close`."""
        try:
            with self._lock:
                yield
        finally:
            if self._closed:
                self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        """Close the file, unless somebody reads it, who then does this on leaving."""
        if self._lock.acquire(blocking=False):
            try:
                self._leave()
            finally:
                self._lock.release()

    def _open(self) -> bool:
        """Whether the file is there, and is then open at its beginning."""
        if self._closed:
            return False
        try:
            # not through a link: the directory may be the instances' user's, and we may read what that user may not
            opened = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError as error:
            reason = "it is a symbolic link" if error.errno == errno.ELOOP else (error.strerror or str(error)).lower()
            raise Failed(f"cannot read the log {self._path}: {reason}") from error
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            os.close(opened)
            raise Failed(f"cannot read the log {self._path}: it is not a regular file")
        self._file, self._position, self._anchor, self._unfinished = opened, 0, b"", b""
        return True

    def _leave(self) -> list[str]:
        """Close the file; its unfinished line is finished by that."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        rest, self._unfinished = self._unfinished, b""
        return [_text(rest)] if rest else []

    def _read_block(self, size: int) -> list[str]:
        assert self._file is not None
        try:
            block = os.pread(self._file, size, self._position)
        except OSError as error:
            raise Failed(f"cannot read the log {self._path}: {(error.strerror or str(error)).lower()}") from error
        self._position += len(block)
        self._anchor = (self._anchor + block)[-_ANCHOR:]
        *lines, unfinished = (self._unfinished + block).split(b"\n")
        self._unfinished = unfinished[: LONGEST_LINE + 1]
        return [_text(line) for line in lines]

    def _remember_place(self) -> None:
        assert self._file is not None
        start = max(0, self._position - _ANCHOR)
        self._anchor = os.pread(self._file, self._position - start, start)

    def _find_place(self) -> None:
        """Go to where the bytes read last are now: pages may have been removed before them, or all is new."""
        if self._anchored_at(self._position):
            return
        for position in range(self._position - _PAGE, 0, -_PAGE):
            if self._closed:
                return
            if self._anchored_at(position):
                self._position = position
                return
        self._position, self._anchor, self._unfinished = 0, b"", b""

    def _anchored_at(self, position: int) -> bool:
        start = position - len(self._anchor)
        assert self._file is not None
        return start >= 0 and os.pread(self._file, len(self._anchor), start) == self._anchor

    def _start_of_last(self, size: int, count: int) -> int:
        """Where the last `count` lines before `size` begin; an unfinished one counts.

        Of a log with too much in them, where the first of the whole lines in its last `MOST_SCANNED` bytes begins.
        """
        assert self._file is not None
        if count == 0 or size == 0:
            return size
        end = size - 1 if os.pread(self._file, 1, size - 1) == b"\n" else size
        lowest = max(0, size - MOST_SCANNED)
        first = None  # where the first whole line seen begins
        while end > lowest and not self._closed:
            start = max(lowest, end - BLOCK)
            block = os.pread(self._file, end - start, start)
            found = block.count(b"\n")
            if found >= count:
                at = len(block)
                for _ in range(count):
                    at = block.rindex(b"\n", 0, at)
                return start + at + 1
            if found:
                first = start + block.index(b"\n") + 1
            count -= found
            end = start
        return lowest if lowest == 0 or first is None else first

    def _at_end(self) -> bool:
        assert self._file is not None
        return self._position >= os.fstat(self._file).st_size

    def _is_replaced(self) -> bool:
        """Whether another file has the name now; one that has merely lost it may still be written to."""
        assert self._file is not None
        mine = os.fstat(self._file)
        try:
            named = os.lstat(self._path)
        except OSError:
            return False
        return (named.st_dev, named.st_ino) != (mine.st_dev, mine.st_ino)


def _text(line: bytes) -> str:
    if len(line) > LONGEST_LINE:
        return line[:LONGEST_LINE].decode(errors="replace") + CUT
    return line.decode(errors="replace")
