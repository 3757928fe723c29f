"""Rotated files as a reader sees them: from a place in them to their end, packed or not."""

from __future__ import annotations

import os
import stat
import zlib
from collections import deque
from collections.abc import Callable
from typing import Protocol

from clojarsd.system.log_file import PACKED, LogFile

BLOCK = 65536
_GZIP = 31


class PastFile(Protocol):
    """A file that nobody writes to any more, open at a place in it."""

    def start_of_last(self, count: int, lowest: int) -> tuple[int | None, int]:
        """Where what follows the last `count` line ends begins, or None when there are fewer; and how many there are.

        Args:
            lowest: before this byte they are not looked for.
        """

    def go_to(self, place: int) -> None:
        """What is read next begins so many bytes from the file's beginning."""

    def read(self) -> bytes:
        """The next block; nothing at the end."""

    def length(self) -> int:
        """Bytes, unpacked; a guess where it is packed and longer than 4 GiB."""

    def close(self) -> None:
        """Let go of the file."""


def open_past(log: LogFile, directory: int, number: int) -> PastFile:
    """A rotated file by its number; to be called while `log.changing` is held.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    for ending, kind in ((PACKED, Packed), ("", Plain)):
        try:
            opened = os.open(f"{log.path.name}.{number}{ending}", flags, dir_fd=directory)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(os.fstat(opened).st_mode):
            return kind(opened)
        os.close(opened)
    raise FileNotFoundError(f"no rotated file {number}")


class Plain:
    """A rotated file as it was written; see `PastFile`."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._place = 0

    def start_of_last(self, count: int, lowest: int) -> tuple[int | None, int]:
        """See `PastFile`."""
        return scan_back(self._file, self.length(), count, lowest)

    def go_to(self, place: int) -> None:
        """See `PastFile`."""
        self._place = place

    def read(self) -> bytes:
        """See `PastFile`."""
        block = os.pread(self._file, BLOCK, self._place)
        self._place += len(block)
        return block

    def length(self) -> int:
        """See `PastFile`."""
        return os.fstat(self._file).st_size

    def close(self) -> None:
        """See `PastFile`."""
        os.close(self._file)


class Packed:
    """A rotated file that gzip has packed; see `PastFile`. It is read from its beginning whatever is wanted of it."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._unpacker = zlib.decompressobj(_GZIP)
        self._skipped = 0

    def start_of_last(self, count: int, lowest: int) -> tuple[int | None, int]:
        """See `PastFile`."""
        self.go_to(lowest)
        starts: deque[int] = deque(maxlen=count)
        place = lowest
        while block := self.read():
            at = block.find(b"\n")
            while at >= 0:
                starts.append(place + at + 1)
                at = block.find(b"\n", at + 1)
            place += len(block)
        return (starts[0] if len(starts) == count else None), len(starts)

    def go_to(self, place: int) -> None:
        """See `PastFile`."""
        os.lseek(self._file, 0, os.SEEK_SET)
        self._unpacker = zlib.decompressobj(_GZIP)
        self._skipped = place

    def read(self) -> bytes:
        """See `PastFile`."""
        while not self._unpacker.eof:
            packed = self._unpacker.unconsumed_tail or os.read(self._file, BLOCK)
            try:
                block = self._unpacker.decompress(packed, BLOCK)
            except zlib.error as error:
                raise OSError(f"it is broken: {error}") from error
            if not packed and not block:
                raise OSError("it is broken: it has no end")
            skipped = min(self._skipped, len(block))
            self._skipped -= skipped
            if len(block) > skipped:
                return block[skipped:]
        return b""

    def length(self) -> int:
        """See `PastFile`."""
        size = os.fstat(self._file).st_size
        return int.from_bytes(os.pread(self._file, 4, max(0, size - 4)), "little")

    def close(self) -> None:
        """See `PastFile`."""
        os.close(self._file)


def scan_back(
    file: int, end: int, count: int, lowest: int, is_closed: Callable[[], bool] = lambda: False
) -> tuple[int | None, int]:
    """Where what follows the last `count` line ends before `end` begins, or None; and how many there are."""
    found = 0
    while end > lowest and not is_closed():
        start = max(lowest, end - BLOCK)
        block = os.pread(file, end - start, start)
        here = block.count(b"\n")
        if found + here >= count:
            at = len(block)
            for _ in range(count - found):
                at = block.rindex(b"\n", 0, at)
            return start + at + 1, count
        found += here
        end = start
    return None, found
