"""A log of JSON objects, one a line, that is only appended to and survives power loss and a full disk.

Each line is one JSON object whose last member is the checksum of everything before it: `{"a":1,"crc":"0a1b2c3d"}`. The
first line has the format: `{"format":1,"crc":"…"}`. Space that is reserved for later records is NULs behind the last.
So `tr -d '\\0' <FILE | jq .` shows a log.

What is true after a power loss: every record whose `append` has returned is there; of one that had not, either all or
nothing counts. Source: the ordering that fdatasync(2) promises; fallocate(2) on what it holds ready.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import stat
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from clojarsd.core.errors import Failed, reason_of

FORMAT: Final = 1
MODE: Final = 0o600
LARGEST: Final = 64 * 1024**2
"""Bytes. A log takes some kilobytes; what is larger is something else."""
CHECKSUM: Final = "crc"
"""The member of each line that no record may have."""
_CANNOT: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
_BLOCK: Final = bytes(65536)

Record = Mapping[str, Any]

_libc = ctypes.CDLL(None, use_errno=True)


class RecordLog:
    """A log that is open. One process at a time has it, and one thread at a time calls its methods, which block.

    Attributes:
        problem: what was wrong with the file when it was opened, in a sentence; None when nothing was.
        lacks_records: whether something between other records could not be read, so that a record is missing. One that
            was torn at the end is not missed: nobody was told that it had been written.
        reserve_is_sure: whether the file system can hold space ready. False after a `reserve` where it cannot: NULs
            were written instead, which is as good only where a file system writes in place.
    """

    def __init__(self, path: Path, file: int, found: _Found) -> None:
        self._path = path
        self._file = file
        self._records = list(found.records)
        self._end = found.end
        self._dirty = found.dirty
        self.problem = found.problem
        self.lacks_records = found.lacks_records
        self.reserve_is_sure = True

    @classmethod
    def open(cls, path: Path, *, create: bool) -> Self:
        """The log at that path, with what it holds.

        Args:
            create: make it where there is none; its directory must be there.

        Raises:
            Failed: there is none, it cannot be had, or it is no log that this version knows; nothing was changed.
        """
        try:
            file, is_new = _open(path, create)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not create:
                raise Failed(f"cannot open the log {path}: there is none") from None
            raise Failed(f"cannot open the log {path}: {reason_of(error)}") from error
        try:
            found = _Found() if is_new else _read(path, file)
            log = cls(path, file, found)
            if is_new:
                log._begin()
        except OSError as error:
            os.close(file)
            raise Failed(f"cannot open the log {path}: {reason_of(error)}") from error
        except Failed:
            os.close(file)
            raise
        return log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was appended is safe already."""
        os.close(self._file)

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._path

    def records(self) -> tuple[Record, ...]:
        """Every record, in the order in which they were appended."""
        return tuple(self._records)

    @property
    def reserved(self) -> int:
        """Bytes that can be appended without new space."""
        return max(0, os.fstat(self._file).st_size - max(self._end, len(_HEAD)))

    def reserve(self, size: int) -> None:
        """See to it that so many bytes can be appended from now on without new space on the disk.

        Raises:
            Failed: there is no room for them; the file is as it was.
        """
        start = max(self._end, len(_HEAD))
        before = os.fstat(self._file).st_size
        try:
            self._allocate(start, start + size, before)
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)  # also gives back what was allocated behind the end
            raise Failed(f"cannot reserve {size} bytes for the log {self._path}: {reason_of(error)}") from error

    def append(self, record: Record) -> None:
        """Write a record behind the others; on return it is safe on the disk.

        Raises:
            Failed: it could not be written, and is not in the log.
        """
        text = line(record)
        content = text if self._end else _HEAD + text
        behind = self._end + len(content)
        try:
            _write_at(self._file, self._end, content)
            _clear(self._file, behind, self._dirty)
            os.fdatasync(self._file)
        except OSError as error:
            self._take_back(behind)
            raise Failed(
                f"cannot write to the log {self._path}: {reason_of(error)}; the record is not in it"
            ) from error
        self._end = self._dirty = behind
        self._records.append(_record_in(text) or {})

    def _begin(self) -> None:
        """Make a file that was just created a log, safe on the disk; raises OSError, and it is gone again."""
        try:
            os.fchmod(self._file, MODE)  # whatever the umask
            _write_at(self._file, 0, _HEAD)
            os.fsync(self._file)
            _flush_directory(self._path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                self._path.unlink()
            raise
        self._end = self._dirty = len(_HEAD)

    def _allocate(self, start: int, end: int, size: int) -> None:
        """Raises OSError."""
        length = end - start
        if length <= 0 or _libc.fallocate(self._file, 0, ctypes.c_long(start), ctypes.c_long(length)) == 0:
            return
        number = ctypes.get_errno()
        if number not in _CANNOT:
            raise OSError(number, os.strerror(number))
        self.reserve_is_sure = False
        _clear(self._file, size, end)

    def _take_back(self, behind: int) -> None:
        """Make a record that failed unreadable; where that fails too, the next append writes over it."""
        size = os.fstat(self._file).st_size
        self._dirty = max(self._dirty, min(behind, size))
        with contextlib.suppress(OSError):
            _clear(self._file, self._end, self._dirty)
            os.fdatasync(self._file)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a file holds.

    Attributes:
        end: where the next record goes; 0 where not even the first line is whole.
        dirty: from where on there is nothing but NULs.
    """

    records: tuple[Record, ...] = ()
    end: int = 0
    dirty: int = 0
    problem: str | None = None
    lacks_records: bool = False


def line(record: Record) -> bytes:
    """The record as a line of the log: ASCII, without NULs, ended by a newline.

    Raises:
        ValueError, TypeError: it is no JSON object, or has a member named as the checksum: a bug.
    """
    if CHECKSUM in record:
        raise ValueError(f"a record has a member {CHECKSUM}, which is the checksum's name")
    text = json.dumps(record, separators=(",", ":"), allow_nan=False)[:-1].encode("ascii")
    return text + _tail(text)


def _tail(text: bytes) -> bytes:
    """What ends a line that begins with the text."""
    comma = b"" if text == b"{" else b","
    return comma + f'"{CHECKSUM}":"{zlib.crc32(text):08x}"}}\n'.encode("ascii")


_HEAD: Final = line({"format": FORMAT})
_TAIL_LENGTH: Final = len(_tail(b""))


def _record_in(text: bytes) -> dict[str, Any] | None:
    """The record of a line, newline included; None when it is not whole."""
    for length in (_TAIL_LENGTH, _TAIL_LENGTH - 1):  # with a comma, and without in an empty record
        begin, tail = text[:-length], text[-length:]
        if begin.startswith(b"{") and tail == _tail(begin):
            with contextlib.suppress(ValueError):
                found: dict[str, Any] = json.loads(begin + b"}")
                return found
    return None


def _open(path: Path, create: bool) -> tuple[int, bool]:
    """The file, and whether it was made just now. Raises OSError."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would make us wait
    try:
        return os.open(path, flags), False
    except FileNotFoundError:
        if not create:
            raise
    return os.open(path, flags | os.O_CREAT | os.O_EXCL, MODE), True


def _read(path: Path, file: int) -> _Found:
    """What the file holds. Raises OSError, and Failed when that is no log of this version."""
    seen = os.fstat(file)
    if not stat.S_ISREG(seen.st_mode):
        raise Failed(f"cannot open the log {path}: it is no regular file")
    if seen.st_size > LARGEST:
        raise Failed(f"cannot open the log {path}: it is larger than {LARGEST} bytes")
    with open(file, "rb", closefd=False) as reading:
        reading.seek(0)
        return _parse(path, reading.read())


def _parse(path: Path, content: bytes) -> _Found:
    """What the bytes hold. Raises Failed when they are no log of this version."""
    written = content.rstrip(b"\0")
    if _HEAD.startswith(written) and written != _HEAD:  # it was torn when it was made: there can be nothing more
        return _Found(dirty=len(written), problem=f"the log {path} was empty: not even its first line was whole")
    lines = written.split(b"\n")
    torn = lines.pop()
    records, damaged = list[Record](), list[int]()
    for number, text in enumerate(lines, 1):
        record = _record_in(text + b"\n")
        if record is None:
            damaged.append(number)
        elif number > 1:
            records.append(record)
        elif record != {"format": FORMAT}:
            shown = record.get("format")
            raise Failed(f"cannot open the log {path}: it has format {shown}, and this version knows {FORMAT}")
    if len(damaged) == len(lines):
        raise Failed(f"cannot open the log {path}: it is something else, or damaged beyond use; it was left as it is")
    if not torn and damaged and damaged[-1] == len(lines):
        damaged.pop()
        torn = lines[-1] + b"\n"
    end = len(written) - len(torn)
    return _Found(tuple(records), end, len(written), _problem(path, damaged, len(torn)), bool(damaged))


def _problem(path: Path, damaged: list[int], torn: int) -> str | None:
    """What is wrong with the numbered lines and with so many bytes at the end, in a sentence; None for nothing."""
    told = []
    if damaged:
        lines = f"line {damaged[0]}" if len(damaged) == 1 else f"lines {', '.join(map(str, damaged))}"
        told.append(f"{lines} of the log {path} cannot be read; all others stand")
    if torn:
        told.append(f"the last record of the log {path} was not written to its end ({torn} bytes) and does not count")
    return "; ".join(told) or None


def _write_at(file: int, offset: int, content: bytes) -> None:
    """Write all of it. Raises OSError; a part may be written then."""
    left = memoryview(content)
    while left:
        count = os.pwrite(file, left, offset)
        left, offset = left[count:], offset + count


def _clear(file: int, start: int, end: int) -> None:
    """Write NULs between the two places. Raises OSError."""
    while start < end:
        start += os.pwrite(file, _BLOCK[: end - start], start)


def _flush_directory(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
