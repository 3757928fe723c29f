"""The last lines of a log, and those that come: read in blocks, over rotation and truncation."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import TypeVar

from clojarsd.core.errors import Failed, Refused, reason_of
from clojarsd.system.inotify import EntryWatch
from clojarsd.system.log_file import LogFile
from clojarsd.system.log_names import inode_of
from clojarsd.system.log_past import PastFile, open_past, scan_back
from clojarsd.system.threads import Threads

BLOCK = 65536
LONGEST_LINE = 65536
"""Bytes of a line that are shown; the rest is cut off, and the cut is marked."""
CUT = " [cut]"
MOST_SCANNED = 64 * 1024 * 1024
"""Bytes before the end in which the last lines are looked for; beyond that there are fewer of them."""
MOST_FILES = 16
"""Rotated files in which the last lines are looked for."""
DIRECTORY_LOOK = 10.0
"""Seconds without news after which a follower looks whether the directory is still there."""
MOST_THREADS = 4
"""Reads under way at once, of all readers together; more wait, and hold up nothing but each other."""
_PAGE = 4096
_ANCHOR = 64

T = TypeVar("T")


async def last_lines(log: LogFile, count: int) -> AsyncGenerator[Sequence[str], None]:
    """The last lines up to the end that the file has now, some at a time; rotated files included.

    Raises:
        Refused: there is no such file.
        Failed: it cannot be read.
    """
    reader = LogReader(log)
    try:
        await _threads.run(reader.open_at_end, count)
        while lines := await _threads.run(reader.read_to_known_end):
            yield lines
    finally:
        reader.close()


async def follow(log: LogFile, count: int) -> AsyncGenerator[Sequence[str], None]:
    """The last lines, then those that come, some at a time; a file that is not there yet is waited for.

    A line is given when it is complete, or when the file is replaced. Nothing is read ahead of the caller.

    Raises:
        Failed: it cannot be read or watched, or was rotated away before it was read.
    """
    reader = LogReader(log)
    try:
        with EntryWatch(log.path, log.stray[0] if log.stray is not None else None) as watch:
            with contextlib.suppress(Refused):  # then it is read from its beginning when it comes
                await _threads.run(reader.open_at_end, count)
            while True:
                while lines := await _threads.run(reader.read):
                    yield lines
                try:
                    async with asyncio.timeout(DIRECTORY_LOOK):
                        await watch.change()
                except TimeoutError:
                    if not await _threads.run(watch.has_directory):
                        raise Failed(
                            f"cannot go on with the log {log.path}: its directory was removed or renamed"
                        ) from None
    finally:
        reader.close()


_threads = Threads("log-reader", MOST_THREADS)
"""For reads alone: slow ones starve no other work."""


class LogReader:
    """Reads one log, line by line, wherever its file goes. Its methods block; they may be called from several threads.

    The file may grow, be rotated, be cut to nothing, lose whole pages at its head, or be replaced by another one. What
    rotation has moved to other files is read from there. Where it was not our rotation, a place in the file is known
    by the bytes before it. Whoever makes it closes it; that never blocks: a read that is under way ends soon and lets
    go of the files itself.
    """

    def __init__(self, log: LogFile) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._closed = False
        self._file: int | None = None
        self._inode = (0, 0)
        self._past: deque[PastFile] = deque()
        self._position = 0
        self._known_end = 0
        self._removed = 0
        self._anchor = b""
        self._unfinished = b""
        self._first_is_cut = False

    def open_at_end(self, count: int) -> None:
        """Begin where the last `count` lines do.

        Raises:
            Refused: there is no such file.
            Failed: it cannot be read.
        """
        with self._reading(), self._log.changing:
            if not self._open():
                raise Refused(f"there is no log at {self._log.path} yet")
            assert self._file is not None
            self._known_end = os.fstat(self._file).st_size
            self._go_to_last(count)
            start = max(0, self._position - _ANCHOR)
            self._anchor = os.pread(self._file, self._position - start, start)

    def read(self) -> list[str]:
        """The next complete lines, of one block or so; none when there are no more yet.

        Raises:
            Failed: the file cannot be read.
        """
        with self._reading():
            replaced = False
            while not self._closed and (self._file is not None or self._open()):
                assert self._file is not None
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
            while not self._closed and self._file is not None and (self._past or self._position < self._known_end):
                before = (len(self._past), self._position, self._removed)
                lines = self._read_block(max(0, min(BLOCK, self._known_end - self._position)))
                after = (len(self._past), self._position, self._removed)
                if lines or (before == after and not self._past):  # no progress: it was truncated meanwhile
                    return lines or self._leave()
            return self._leave()

    def finish(self) -> list[str]:
        """What is left when nothing more is to be read: a line that has no end yet counts as one."""
        with self._reading():
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
        except OSError as error:
            raise Failed(f"cannot read the log {self._log.path}: {reason_of(error)}") from error
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
            opened = self._log.open()
        except FileNotFoundError:
            return False
        except OSError as error:
            reason = "it is a symbolic link" if error.errno == errno.ELOOP else reason_of(error)
            raise Failed(f"cannot read the log {self._log.path}: {reason}") from error
        seen = os.fstat(opened)
        if not stat.S_ISREG(seen.st_mode):
            os.close(opened)
            raise Failed(f"cannot read the log {self._log.path}: it is not a regular file")
        self._file, self._inode, self._anchor, self._unfinished = opened, inode_of(seen), b"", b""
        self._removed = self._log.removed(self._inode)
        self._position = self._log.hole(self._inode)
        return True

    def _leave(self) -> list[str]:
        """Close the files; an unfinished line is finished by that."""
        while self._past:
            self._past.popleft().close()
        if self._file is not None:
            os.close(self._file)
            self._file = None
        rest, self._unfinished = self._unfinished, b""
        return [_text(rest)] if rest else []

    def _read_block(self, size: int) -> list[str]:
        block = b""
        while not block and not self._closed:
            if self._past:
                block = self._past[0].read()
                if not block:
                    self._past.popleft().close()
            elif (seen := self._read_undisturbed(size)) is not None:
                block = seen
                self._position += len(block)
                self._anchor = (self._anchor + block)[-_ANCHOR:]
                break
        *lines, unfinished = (self._unfinished + block).split(b"\n")
        self._unfinished = unfinished[: LONGEST_LINE + 1]
        if self._first_is_cut and lines:
            self._first_is_cut = False
            del lines[0]
        return [_text(line) for line in lines]

    def _read_undisturbed(self, size: int) -> bytes | None:
        """What follows in the file, read while nobody rotated it; None when a rotated file has what is next."""
        log = self._log
        while not self._closed and self._file is not None:
            generation = log.generation
            if generation % 2:
                with log.changing:  # that is, once it has changed
                    continue
            removed = log.removed(self._inode)
            position = self._position - (removed - self._removed)
            missing = max(log.hole(self._inode) - position, 0)
            if log.generation != generation:
                continue
            if missing:
                self._go_back()
                return None
            self._known_end -= removed - self._removed
            self._position, self._removed = position, removed
            self._anchor = self._anchor[-position:] if position else b""
            found = self._found_place()
            block = os.pread(self._file, size, found if found is not None else 0)
            if log.generation == generation:
                if found is None:
                    self._anchor, self._unfinished = b"", b""
                self._position = found or 0
                return block
        return b""

    def _go_back(self) -> None:
        """Go to the rotated files that have what was not read yet."""
        log = self._log
        with log.changing:
            removed, hole = log.removed(self._inode), log.hole(self._inode)
            missing = hole - (self._position - (removed - self._removed))
            lengths = log.rotated_lengths()
            number = reached = 0
            while reached < missing and number < len(lengths):
                reached += lengths[number]
                number += 1
            try:
                if reached < missing:
                    raise FileNotFoundError
                for newer in range(1, number + 1):
                    self._open_past(newer)
            except FileNotFoundError:
                raise Failed(
                    f"cannot go on with the log {log.path}: this reader was too slow, and {missing} bytes that come"
                    " next were rotated away; `clojarsctl logs` shows what is left"
                ) from None
            self._past[0].go_to(reached - missing)
            self._known_end -= removed - self._removed
            self._position, self._removed, self._anchor = hole, removed, b""

    def _open_past(self, number: int) -> None:
        """Read that rotated file before those that are to be read already."""
        directory = os.open(self._log.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._past.appendleft(open_past(self._log, directory, number))
        finally:
            os.close(directory)

    def _found_place(self) -> int | None:
        """Where the bytes read last are now: pages may have been removed before them, or all is new, which is None."""
        if self._anchored_at(self._position):
            return self._position
        for position in range(self._position - _PAGE, 0, -_PAGE):
            if self._closed:
                break
            if self._anchored_at(position):
                return position
        return None

    def _anchored_at(self, position: int) -> bool:
        start = position - len(self._anchor)
        assert self._file is not None
        return start >= 0 and os.pread(self._file, len(self._anchor), start) == self._anchor

    def _go_to_last(self, count: int) -> None:
        """Go to where the last `count` lines begin; an unfinished one counts.

        Of a log with too much in them, to where the first of the whole lines in its last `MOST_SCANNED` bytes begins.
        """
        assert self._file is not None
        begin, end = self._log.hole(self._inode), self._known_end
        self._position = end
        if count == 0:
            return
        if end > begin:
            last = end - 1 if os.pread(self._file, 1, end - 1) == b"\n" else end
            lowest = max(begin, end - MOST_SCANNED)
            start, found = scan_back(self._file, last, count, lowest, lambda: self._closed)
            if start is None and lowest > begin:
                start = self._first_line_after(lowest, last)
            if start is not None:
                self._position = start
                return
            count -= found
        self._position = begin
        if self._log.stray is None:
            self._go_to_last_rotated(count, end - begin)
        elif begin or self._removed:
            self._first_is_cut = True

    def _go_to_last_rotated(self, count: int, scanned: int) -> None:
        """Go to where the last `count` line ends in the rotated files are followed by something."""
        if self._position == self._known_end:
            count += 1  # the last line end of all ends the last line
        lowest, left, number = 0, MOST_SCANNED - scanned, 0
        while left > 0 and number < MOST_FILES and not self._closed:
            try:
                self._open_past(number + 1)
            except FileNotFoundError:
                break
            number += 1
            length = self._past[0].length()
            lowest = max(0, length - left)
            start, found = self._past[0].start_of_last(count, lowest)
            if start is not None:
                self._past[0].go_to(start)
                return
            self._past[0].go_to(0)
            count, left = count - found, left - length
        if self._past:
            self._past[0].go_to(lowest)
        # the oldest one there may have had a predecessor, with the beginning of its first line
        self._first_is_cut = lowest > 0 or (number >= self._log.keep and (number > 0 or self._removed > 0))

    def _first_line_after(self, place: int, end: int) -> int:
        """Where the first line that begins after that place does; the place itself when there is none."""
        assert self._file is not None
        for start in range(place, end, BLOCK):
            if (at := os.pread(self._file, BLOCK, start).find(b"\n")) >= 0:
                return start + at + 1
        return place

    def _at_end(self) -> bool:
        assert self._file is not None
        return not self._past and self._position >= os.fstat(self._file).st_size

    def _is_replaced(self) -> bool:
        """Whether another file has the name now; one that has merely lost it may still be written to."""
        if self._log.stray is not None and self._log.stray[1] == self._inode:
            return False
        try:
            return inode_of(os.lstat(self._log.path)) != self._inode
        except OSError:
            return False


def _text(line: bytes) -> str:
    if len(line) > LONGEST_LINE:
        return line[:LONGEST_LINE].decode(errors="replace") + CUT
    return line.decode(errors="replace")
