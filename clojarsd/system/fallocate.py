"""Takes a range out of a file that somebody else writes to, without stopping the writer.

Source: fallocate(2), sync_file_range(2), lseek(2).
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_COLLAPSE_RANGE = 0x08
_SYNC_WAIT_WRITE_WAIT = 0x07
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_SMALLEST_UNIT = 4096
_LARGEST_UNIT = 1024 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class Removal(enum.Enum):
    """How the head of a file is removed. The writer of a file opened with O_APPEND notices none of them."""

    COLLAPSE = "collapse"
    """What follows moves to the file's beginning (ext4, xfs)."""
    PUNCH = "punch"
    """Its space is given back, and the file keeps its size: a hole takes its place (tmpfs, btrfs)."""
    TRUNCATE = "truncate"
    """All of it is, which every file system can; what comes in the last moment is in danger."""


def removal_for(directory: int, scratch: str, forced: Removal | None = None) -> tuple[Removal, int]:
    """How heads can be removed on the directory's file system, and of which they must be multiples.

    Args:
        scratch: the name of a file that is made and removed in the directory.
        forced: the one way that is wanted, instead of the best one.

    Raises:
        OSError: it cannot be tried, or is not possible in the way that is forced.
    """
    if forced is Removal.TRUNCATE:
        return forced, _SMALLEST_UNIT
    unit = max(os.fstatvfs(directory).f_bsize, _SMALLEST_UNIT)
    trial = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        os.unlink(scratch, dir_fd=directory)
        for way in (Removal.COLLAPSE, Removal.PUNCH) if forced is None else (forced,):
            for step in (unit, 65536, _LARGEST_UNIT):  # clusters may be larger than blocks
                os.ftruncate(trial, 2 * step)
                try:
                    remove_head(trial, 0, step, way)
                except OSError as error:
                    if error.errno not in _UNSUPPORTED:
                        raise
                else:
                    return way, step
        if forced is not None:
            raise OSError(errno.EOPNOTSUPP, f"its file system cannot {forced.value}")
        return Removal.TRUNCATE, _SMALLEST_UNIT
    finally:
        os.close(trial)


def remove_head(file: int, start: int, end: int, way: Removal) -> None:
    """Remove what is before `end`, where everything before `start` is a hole already; with TRUNCATE, what follows too.

    Raises:
        OSError: nothing was removed.
    """
    if way is Removal.TRUNCATE:
        os.ftruncate(file, 0)
        return
    mode = _COLLAPSE_RANGE if way is Removal.COLLAPSE else _PUNCH_HOLE | _KEEP_SIZE
    length = end - start
    if _libc.fallocate(file, mode, ctypes.c_long(start), ctypes.c_long(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def flush_range(file: int, start: int, length: int) -> None:
    """Write these bytes to the disk, without the file's other facts; length 0 is up to the end.

    Raises:
        OSError: they could not be written.
    """
    if _libc.sync_file_range(file, ctypes.c_long(start), ctypes.c_long(length), _SYNC_WAIT_WRITE_WAIT) != 0:
        number = ctypes.get_errno()
        if number not in _UNSUPPORTED:
            raise OSError(number, os.strerror(number))


def first_byte(file: int) -> int:
    """Where the file begins behind a hole; its size when there is nothing in it."""
    try:
        return os.lseek(file, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.fstat(file).st_size
