"""What can be seen of a log from outside: its size, its disk, and whether its writer still writes to its path.

Source: proc_pid_fd(5), statvfs(3).
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from clojarsd.system.log_file import LogFile
from clojarsd.system.log_names import inode_of

ROOM = 1024 * 1024
"""Bytes that must be free again before a disk that was full no longer counts as such."""
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class LogLook:
    """One look.

    Attributes:
        size: bytes that count for rotation; of the writer's own file.
        free: bytes that a plain user may still write, or None where it cannot be known.
        lost_path: where the writer's file is now, or "" if it was removed; None while it is the log's.
    """

    size: int
    free: int | None
    lost_path: str | None


def look(log: LogFile, known: tuple[int, int] | None, pid: int | None) -> tuple[LogLook, tuple[int, int] | None]:
    """What is seen now, and which file the path leads to, or led to before its writer lost it. Blocks.

    Readers of `log` are told by its `stray` where the writer's file is.

    Args:
        known: what this returned last.
        pid: of the writer, which has the log as its stdout; None while there is none.

    Raises:
        OSError: nothing can be seen.
    """
    named = _inode_at(log.path)
    stray, lost_path, size = None, None, log.size()
    if pid is not None and (written := _written(pid)) is not None and written[0] != named:
        inode, at, links, written_size = written
        removed = links == 0 and at == f"{log.path}{_DELETED}"
        if inode == known or removed:  # and not any file that the writer has put there to be shown it
            stray, lost_path, size = (f"/proc/{pid}/fd/1", inode), at, written_size
            lost_path = "" if links == 0 else at
            named = inode
    log.stray = stray
    return LogLook(size, _free(log.path.parent), lost_path), named


def restore_directory(path: Path, like: os.stat_result | None) -> os.stat_result | None:
    """Make the directory again if it has gone, as it was; what it is now, or None when that cannot be. Blocks."""
    try:
        return os.stat(path)
    except OSError:
        pass
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        if like is not None:
            os.chown(path, like.st_uid, like.st_gid)
            os.chmod(path, like.st_mode & 0o7777)
        return os.stat(path)
    except OSError:
        return None


def _inode_at(path: Path) -> tuple[int, int] | None:
    try:
        return inode_of(os.lstat(path))
    except FileNotFoundError:
        return None


def _written(pid: int) -> tuple[tuple[int, int], str, int, int] | None:
    """Which file the process has as stdout, where that is, how many names it has and how long it is."""
    link = f"/proc/{pid}/fd/1"
    try:
        seen = os.stat(link)
        return inode_of(seen), os.readlink(link), seen.st_nlink, seen.st_size
    except OSError:  # it has ended, or is not ours to look at
        return None


def _free(directory: Path) -> int | None:
    with contextlib.suppress(OSError):
        seen = os.statvfs(directory)
        return seen.f_bavail * seen.f_frsize if seen.f_blocks else None  # some say nothing of their size
    return None
