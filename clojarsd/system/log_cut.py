"""Cuts a log to nothing, once it is copied: what is left where a file system can remove the head of no file.

What the writer appends between the last copy and the truncation would be lost. Against that

* the writer is held still for that moment, where it has a control group;
* else the page in which the log ends is held: what is appended there is still read after the truncation. More was
  appended only if that page is full then; the kernel's count of what the process has written says how much at most.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clojarsd.system.freezer import Freezer
from clojarsd.system.last_page import PAGE, LastPage

COPIED_AT_ONCE = 8 * 1024 * 1024
NEAR = 64 * 1024
"""Bytes that are left to copy when the last step begins."""
ROUNDS = 20
"""Attempts to come that near to the end of a log that grows."""
TRIES = 200
"""Attempts to find the end of the log where much can be appended to its page."""
ROOM = PAGE * 3 // 4
"""Bytes that can be appended at a good moment."""
NAP = 0.0005
_BLOCK = 64 * 1024
_keeping_the_lock = ctypes.PyDLL(None)
"""Calls that do not let another thread of ours run before they return."""
_keeping_the_lock.lseek.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_int]
_keeping_the_lock.lseek.restype = ctypes.c_long
_CANNOT_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes to a log.

    Attributes:
        pid: of the process that has it as its stdout; None: none that is known.
        group: the control group of everything that writes to it, or None.
    """

    pid: int | None = None
    group: Path | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """What a truncation has come to.

    Attributes:
        copied: bytes of the log that are in its rotated file.
        lost: bytes written in the last moment that may be in neither file; None: it cannot be known.
        still: seconds for which the writer was held still; None: it was not.
    """

    copied: int
    lost: int | None
    still: float | None


def cut(log: int, copy: int, start: int, writer: Writer) -> Cut:
    """Bring the copy, which has the log from `start` to some place, up to the end of the log, and truncate the log.

    The last of the copy is not flushed yet: the longer that moment, the more may be lost.

    Raises:
        OSError: it was not truncated; the copy has more of it than before, or as much.
    """
    position = catch_up(log, copy, start + os.lseek(copy, 0, os.SEEK_END))
    with Freezer(writer.group) as freezer:
        position = catch_up(log, copy, position)  # its guard took a while to start
        stands_still = freezer.freeze()
        with _undisturbed():
            last = _truncate(log, copy, position, writer.pid, stands_still=stands_still)
    lost = last.counted
    if last.is_all or (freezer.whole and last.is_all is None):
        lost = 0
    return Cut(last.position - start, lost, freezer.seconds)


def catch_up(log: int, copy: int, position: int) -> int:
    """Copy what is behind that place, flushed, until little is left to copy; the place up to which it was copied.

    Raises:
        OSError: not all could be copied; or somebody else has truncated the log (ESTALE).
    """
    for _ in range(ROUNDS):
        end = os.fstat(log).st_size
        if end < position:
            raise _truncated()
        if end == position:
            break
        copy_range(log, copy, position, end)
        os.fsync(copy)
        position, before = end, position
        if position - before <= NEAR:
            break
    return position


def copy_range(log: int, copy: int, start: int, end: int) -> None:
    """Copy a range of the log to where the copy is. Raises OSError."""
    position = start
    while position < end:
        copied = _copy_some(log, copy, min(COPIED_AT_ONCE, end - position), position)
        if copied == 0:
            raise _truncated()
        position += copied


@dataclass(frozen=True, slots=True)
class _Last:
    """What the last step has come to.

    Attributes:
        position: up to where the log was copied.
        is_all: whether that is all that was written; None: nobody has looked.
        counted: bytes that the writer has written besides, to whatever; None: not known.
    """

    position: int
    is_all: bool | None
    counted: int | None


def _truncate(log: int, copy: int, position: int, pid: int | None, *, stands_still: bool) -> _Last:
    """Copy the rest and truncate, at a moment when as little as possible can be lost."""
    tries = TRIES
    while True:
        before, began, size = position, _bytes_written(pid), os.fstat(log).st_size
        position = _copy_rest(log, copy, position)
        with _last_page(log, position) as page:
            tries -= 1
            idle = stands_still or position == before or (page is None and tries < TRIES // 2)
            if tries > 0 and not _is_good_moment(log, position, page, idle=idle):
                continue
            os.ftruncate(log, 0)
            ended = _bytes_written(pid)
            appended, is_full = page.appended() if page is not None else (b"", None)
        try:
            _write_all(copy, appended)
        except OSError:  # no room for it any more
            appended, is_full = b"", True
        seen = position - size + len(appended)
        counted = None if began is None or ended is None else ended - began - seen
        if counted is not None and counted < 0:
            counted = None  # others write to the log, too
        return _Last(position + len(appended), None if is_full is None else not is_full, counted)


def _is_good_moment(log: int, position: int, page: LastPage | None, *, idle: bool) -> bool:
    size: int = _keeping_the_lock.lseek(log, 0, os.SEEK_END)
    if page is None:
        return size == position and idle
    return size - position < page.room and (idle or page.room >= ROOM)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Come before all ordinary threads, if we may: a pause between a look and the truncation is what loses lines."""
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        time.sleep(NAP)  # whoever has just slept is preempted later
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, policy, parameter)


@contextlib.contextmanager
def _last_page(log: int, position: int) -> Iterator[LastPage | None]:
    try:
        page = LastPage(log, position)
    except OSError:
        yield None
        return
    with page:
        yield page


def _copy_rest(log: int, copy: int, position: int) -> int:
    """Copy to the end as it is by then; where that is."""
    if os.fstat(log).st_size < position:
        raise _truncated()
    while block := os.pread(log, _BLOCK, position):
        _write_all(copy, block)
        position += len(block)
    return position


def _write_all(file: int, block: bytes) -> None:
    while block:
        block = block[os.write(file, block) :]


def _copy_some(source: int, target: int, count: int, position: int) -> int:
    """Bytes copied from that position to where the target is."""
    try:
        return os.copy_file_range(source, target, count, position)
    except OSError as error:
        if error.errno not in _CANNOT_COPY:
            raise
        return os.sendfile(target, source, position, count)


def _bytes_written(pid: int | None) -> int | None:
    """Bytes that the process has written so far, to whatever; None where that cannot be known."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("wchar: "):
                return int(line.removeprefix("wchar: "))
    return None


def _truncated() -> OSError:
    return OSError(errno.ESTALE, "it was truncated meanwhile")
