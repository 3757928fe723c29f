"""The file system in which BPF objects are pinned: whether one is there, and one of our own where none is.

A file system that we have mounted has our name as its source in /proc/self/mountinfo: so whoever takes it away later,
in whichever process, knows that it is ours, and `findmnt` shows it.

Source: statfs(2), mount(2), umount(2), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
import time
from pathlib import Path
from typing import Final

from clojarsd.core.errors import reason_of

OURS: Final = "clojarsd"
"""The source of what we have mounted."""
_MAGIC: Final = 0xCAFE4A11
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_UMOUNT_NOFOLLOW: Final = 8
_UNMOUNT_PAUSE: Final = 0.02

_libc = ctypes.CDLL(None, use_errno=True)


def is_bpf_fs(path: Path) -> bool:
    """Whether the path is in a BPF file system; one that does not exist is not. Raises OSError: it cannot be known."""
    buffer = ctypes.create_string_buffer(512)
    try:
        _check(_libc.statfs(os.fsencode(path), buffer))
    except FileNotFoundError:
        return False
    return _MAGIC in struct.unpack_from("=2I", buffer)  # `f_type` is a word of 4 or 8 bytes, of either order


def mount_bpf_fs(path: Path) -> None:
    """Mount one there, as a new one that only root may enter, and mark it as ours. Raises OSError.

    Of two that want to, one does: a second one on top would hide what is pinned in the first. The lock is on the
    directory below, and held for as long as this takes.
    """
    below = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(below, fcntl.LOCK_EX)
        if not is_bpf_fs(path):
            flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
            _check(_libc.mount(OURS.encode(), os.fsencode(path), b"bpf", flags, b"mode=0700"))
    finally:
        os.close(below)


def unmount_ours(path: Path, within: float = 0.0) -> str | None:
    """Take the file system away if it is ours and nothing is pinned in it; blocks.

    Args:
        within: seconds in which it is tried again where somebody is in it just now, as who looks at it is.

    Returns:
        Why it stays although it is ours and nothing is pinned in it; None: it is gone, or is to stay.
    """
    give_up_at = time.monotonic() + within
    while _source(path) == OURS:
        try:
            if any("." not in entry.name for entry in path.iterdir()):  # names with a dot are the kernel's own
                return None
            _check(_libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW))
        except OSError as error:
            if error.errno != errno.EBUSY:
                return None
            if time.monotonic() >= give_up_at:
                return reason_of(error)
            time.sleep(_UNMOUNT_PAUSE)
    return None


def _source(path: Path) -> str | None:
    """The source of the BPF file system that is mounted on this very path; None if there is none."""
    source = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        if point == str(path):
            kind, name = after.split()[:2]
            source = name if kind == "bpf" else None  # what is mounted last is on top
    return source


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
