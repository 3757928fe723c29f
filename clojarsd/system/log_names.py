"""Names in the directory of a log, which may belong to a user with fewer rights than ours."""

from __future__ import annotations

import contextlib
import errno
import os
import stat


def inode_of(seen: os.stat_result) -> tuple[int, int]:
    """What tells this file from all others, as long as it is open somewhere."""
    return seen.st_dev, seen.st_ino


def remove_name(name: str, directory: int) -> None:
    """Remove it if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def give_like(file: int, seen: os.stat_result) -> None:
    """Give the file the owner and the mode that were seen, as far as a plain user may."""
    with contextlib.suppress(PermissionError):
        os.fchown(file, seen.st_uid, seen.st_gid)
    os.fchmod(file, stat.S_IMODE(seen.st_mode))


def rename_in(directory: int, name: str, to: str) -> None:
    """Give a file of the directory another name, which is free or is taken from another."""
    os.rename(name, to, src_dir_fd=directory, dst_dir_fd=directory)


def open_latest(name: str, directory: int, length: int, log: int) -> int:
    """The rotated file that has so much of the log, to be gone on with; a new one if somebody has taken it away."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    opened = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        seen = os.fstat(opened)
        if not stat.S_ISREG(seen.st_mode) or seen.st_nlink != 1:
            raise OSError(errno.EINVAL, f"{name} is not a regular file with one name")
        if seen.st_size < length:
            os.ftruncate(opened, length)
            give_like(opened, os.fstat(log))
    except BaseException:
        os.close(opened)
        raise
    return opened


def is_there(name: str, directory: int) -> bool:
    """Whether the directory has that name, whatever it leads to."""
    try:
        os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True
