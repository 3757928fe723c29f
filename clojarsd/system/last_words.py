"""What a process has written to its log since a place in it: its last words, for the sentence that tells of its end."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from clojarsd.core.hook import last_words
from clojarsd.system.log_names import inode_of
from clojarsd.system.thread_signals import left_to_the_main_thread

READ_TIMEOUT: Final = 1.0
"""Seconds that they are waited for, should the disk hang."""
MOST_READ: Final = 4096
"""Bytes."""


@dataclass(frozen=True, slots=True)
class LogPlace:
    """The end of a log at one moment.

    Attributes:
        inode: device and number of the file; None when there was none.
        size: bytes that it had.
    """

    path: str
    inode: tuple[int, int] | None
    size: int


def place_in(path: str) -> LogPlace:
    """The end of the log as it is now."""
    try:
        seen = os.lstat(path)
    except OSError:  # the launch makes it, or not at all
        return LogPlace(path, None, 0)
    return LogPlace(path, inode_of(seen), seen.st_size)


def words_since(place: LogPlace) -> str:
    """The last words written after that place; "" when there are none, or nobody can tell. Blocks.

    In a log whose head was taken away meanwhile places are not known any more: then the end of it counts, whosever that
    is.
    """
    try:
        opened = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        now = os.fstat(opened)
        if not stat.S_ISREG(now.st_mode):
            return ""
        is_same = inode_of(now) == place.inode
        start = place.size if is_same and now.st_size >= place.size else 0
        start = max(start, now.st_size - MOST_READ)
        return last_words(os.pread(opened, MOST_READ, start).decode(errors="replace"))
    except OSError:
        return ""
    finally:
        os.close(opened)


class LastWords:
    """Reads them in a thread of its own: a disk that hangs holds nothing up for longer than `READ_TIMEOUT`.

    Args:
        tell: called once in the loop's thread with what `words_since` gives, or with "" when that takes too long; never
            while this is being made, never after `cancel`.
    """

    def __init__(self, place: LogPlace, tell: Callable[[str], None]) -> None:
        self._place = place
        self._tell: Callable[[str], None] | None = tell
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(READ_TIMEOUT, self._told, "")
        with suppress(RuntimeError), left_to_the_main_thread():  # no thread can be had
            threading.Thread(target=self._read, name="last-words", daemon=True).start()

    def cancel(self) -> None:
        """Tell nothing."""
        self._tell = None
        self._timer.cancel()

    def _read(self) -> None:
        words = words_since(self._place)
        with suppress(RuntimeError):  # the loop has been closed meanwhile
            self._loop.call_soon_threadsafe(self._told, words)

    def _told(self, words: str) -> None:
        tell, self._tell = self._tell, None
        self._timer.cancel()
        if tell is not None:
            tell(words)
