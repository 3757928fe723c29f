"""The log of a rollout's commands: headers, what a command has written, and that told while it is written.

The file is never rotated, and each command appends to it through a descriptor of its own, so that places in it stay.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from clojarsd.core.command_output import clean_line, last_lines, left_out
from clojarsd.core.errors import Failed
from clojarsd.system.inotify import EntryWatch

log = structlog.get_logger()

TELL_EVERY: Final = 0.1
"""Seconds between two tellings of new output: a command that writes line by line wakes nobody for each."""
MOST_TOLD: Final = 64 * 1024
MOST_LINES: Final = 500
"""Bytes and lines that are told at once; of more that has come meanwhile only the end is."""
_LAST: Final = 64 * 1024
"""Bytes of the end of the output in which the last lines are looked for."""


class RolloutLog:
    """The log, once it is open at the place where one command's output begins. Its methods block.

    Whoever makes it closes it; that never blocks: what is under way in a thread then lets go of the file itself.

    Attributes:
        path: where it is.
        start: where in the file the output begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = 0
        self._lock = threading.Lock()
        self._closed = False
        self._file: int | None = None

    def open(self, head: str) -> None:
        """Open it, made with its directory if need be, and write the head.

        Raises:
            OSError: it cannot be opened.
        """
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with self._lock:
            self._file = os.open(self.path, flags, 0o640)
        with self._reading() as file:
            with suppress(OSError):  # the disk is full: the command is to say so, if it minds
                os.write(file, head.encode(errors="replace"))
            self.start = os.fstat(file).st_size

    def close(self) -> None:
        """Let go of the file, now or as soon as a read that is under way ends."""
        self._closed = True
        self._leave_if_idle()

    def size(self) -> int:
        """Bytes that the log has now."""
        with self._reading() as file:
            return os.fstat(file).st_size

    def read(self, position: int, most: int) -> bytes:
        """What stands at that place of the file; empty at its end."""
        with self._reading() as file:
            return os.pread(file, most, position)

    def last_lines(self) -> tuple[str, ...]:
        """The last lines of the command's output; none where it cannot be read."""
        with suppress(OSError):
            begin = max(self.start, self.size() - _LAST)
            return last_lines(self.read(begin, _LAST).decode(errors="replace"))
        return ()

    def output(self, most: int) -> str:
        """The command's output from its beginning, at most so many bytes of it."""
        return self.read(self.start, most).decode(errors="replace")

    @contextmanager
    def _reading(self) -> Iterator[int]:
        try:
            with self._lock:
                if self._file is None:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                yield self._file
        finally:
            if self._closed:
                self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        """Close the file, unless somebody reads it, who then does this on leaving."""
        if self._lock.acquire(blocking=False):
            try:
                if self._file is not None:
                    os.close(self._file)
                    self._file = None
            finally:
                self._lock.release()


class OutputTail:
    """Tells a command's output while it is written, whole lines, at most some at a time.

    Args:
        tell: called in the loop's thread with the lines that have come.
        on_size: called with the bytes that the command has written so far.
    """

    def __init__(
        self, written: RolloutLog, tell: Callable[[Sequence[str]], None] | None, on_size: Callable[[int], None]
    ) -> None:
        self._log = written
        self._tell = tell
        self._on_size = on_size
        self._position = written.start

    async def follow(self) -> None:
        """Tell what comes, for ever; to be cancelled, and then brought to its end by `finish`."""
        try:
            with EntryWatch(self._log.path) as watch:
                while True:
                    await self._tell_news(is_end=False)
                    await asyncio.sleep(TELL_EVERY)  # not to wait for something: to let more lines come
                    await watch.change()
        except (Failed, OSError) as error:  # all is told at the end
            log.warning("output_not_followed", log=str(self._log.path), reason=str(error))

    async def finish(self) -> None:
        """Tell what was not told yet."""
        try:
            await self._tell_news(is_end=True)
        except OSError as error:
            log.warning("output_not_followed", log=str(self._log.path), reason=str(error))

    async def _tell_news(self, *, is_end: bool) -> None:
        """Tell what has come, up to its last line end. What a cancellation leaves untold stays so for the next time."""
        size, position, lines = await asyncio.to_thread(self._read, is_end)
        self._on_size(size - self._log.start)
        self._position = position
        if lines and self._tell is not None:
            self._tell(lines)

    def _read(self, is_end: bool) -> tuple[int, int, list[str]]:
        """The log's size, up to where it is to be told now, and the lines until there. All the work is done here."""
        size, start = self._log.size(), self._position
        if size - start > MOST_TOLD:
            start = size - MOST_TOLD
            start += self._log.read(start, MOST_TOLD).find(b"\n") + 1
        block = self._log.read(start, size - start)
        whole = block if is_end else block[: block.rfind(b"\n") + 1] or (block if len(block) >= MOST_TOLD else b"")
        end = start + len(whole)
        if not whole:
            return size, end, [left_out(start - self._position)] if start > self._position else []
        lines = whole.removesuffix(b"\n").split(b"\n")
        if len(lines) > MOST_LINES:
            start += sum(len(line) + 1 for line in lines[:-MOST_LINES])
            lines = lines[-MOST_LINES:]
        skipped = [left_out(start - self._position)] if start > self._position else []
        return size, end, [*skipped, *(clean_line(line.decode(errors="replace")) for line in lines)]
