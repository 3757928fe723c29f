"""Hears from the kernel when an entry of a directory changes.

Source: inotify(7).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from clojarsd.core.errors import Failed

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000

IN_DONT_FOLLOW = 0x2000000

_ENTRIES = IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
_SELF = IN_DELETE_SELF | IN_MOVE_SELF
_FILE = IN_MODIFY | IN_ATTRIB | _SELF
_COMES = IN_CREATE | IN_MOVED_TO
_HEAD = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class EntryWatch:
    """Watches one name in one directory, which need not exist in it. Whoever makes it closes it; use it in one task.

    Writes are heard of from the files that have or had the name alone: busy neighbours wake nobody.
    """

    def __init__(self, path: Path, also: str | None = None) -> None:
        """Begin to watch.

        Args:
            also: the path of a file that has lost the name.

        Raises:
            Failed: the directory cannot be watched.
        """
        self._name = os.fsencode(path.name)
        self._path = os.fsencode(path)
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise Failed(f"cannot watch {path}: {os.strerror(ctypes.get_errno())}")
        added = _libc.inotify_add_watch(self._descriptor, os.fsencode(path.parent), _ENTRIES | _SELF | IN_ONLYDIR)
        if added < 0:
            reason = os.strerror(ctypes.get_errno())
            os.close(self._descriptor)
            raise Failed(f"cannot watch {path.parent}: {reason}")
        self._directory = added
        self._parent = path.parent
        self._parent_inode = _inode(path.parent)
        self._watch_file()
        if also is not None:
            _libc.inotify_add_watch(self._descriptor, os.fsencode(also), _FILE)
        self._loop.add_reader(self._descriptor, self._read)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def has_directory(self) -> bool:
        """Whether the directory is still there; a new one in its place is not watched. Blocks.

        The kernel says nothing of its removal while somebody has a removed file of it open.
        """
        return self._parent_inode is not None and self._parent_inode == _inode(self._parent)

    async def change(self) -> None:
        """Return when the entry, or the directory itself, may have changed since this returned last."""
        await self._changed.wait()
        self._changed.clear()

    def _read(self) -> None:
        try:
            news = os.read(self._descriptor, 65536)
        except BlockingIOError:
            return
        for watch, mask, name in _events(news):
            if watch != self._directory or name == self._name or mask & (_SELF | IN_IGNORED | IN_Q_OVERFLOW):
                self._changed.set()
            if mask & IN_Q_OVERFLOW or (name == self._name and mask & _COMES):
                self._watch_file()

    def _watch_file(self) -> None:
        """Hear of writes to the file that has the name now; if there is none, the directory tells when it comes."""
        _libc.inotify_add_watch(self._descriptor, self._path, _FILE | IN_DONT_FOLLOW)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_dev, seen.st_ino


def _events(news: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Of each event the watch, the mask and the entry's name."""
    at = 0
    while at < len(news):
        watch, mask, _, length = _HEAD.unpack_from(news, at)
        at += _HEAD.size
        yield watch, mask, news[at : at + length].rstrip(b"\0")
        at += length
