"""Rotation of a log that its writer never closes, without losing, doubling or reordering a byte.

The writer has the file open with O_APPEND, so where it writes follows the file's end. A rotation

1. copies the head of `NAME`, whole blocks of it, to `NAME.rotating`, and flushes that;
2. overwrites the first bytes of `NAME` with a mark that says how long the copied head is: the commit point;
3. renames `NAME.1` to `NAME.2` and so on, and `NAME.rotating` to `NAME.1`;
4. removes the head, and the mark with it, from `NAME`.

Where the file system can remove no head, 4 copies the rest to `NAME.1` as well, and truncates `NAME`; see `log_cut`.

A process that is killed before 2 leaves a copy that nothing refers to; one that is killed after 2 leaves the mark, and
whoever comes next goes on from there: that the mark is there says that the head was not removed, and that
`NAME.rotating` is there says that it was not renamed. How much of a log that is to be truncated was copied, the length
of `NAME.1` says. The files, `NAME` last, are at all other times exactly what was
written; a line may be cut where one ends, and goes on where the next begins.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import threading
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path

from clojarsd.core.errors import Failed, reason_of
from clojarsd.system.fallocate import Removal, first_byte, flush_range, removal_for, remove_head
from clojarsd.system.log_cut import Cut, Writer, catch_up, copy_range, cut
from clojarsd.system.log_names import give_like, inode_of, is_there, open_latest, remove_name, rename_in

PACKED = ".gz"
_MARK = b"clojarsd moved %020d bytes of this log to a rotated file, and goes on with that when it runs again\n"
_MARK_LENGTH = len(_MARK % 0)
_MARK_PATTERN = re.compile(re.escape(_MARK).replace(rb"%020d", rb"(\d{20})"))
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_MOST_REMEMBERED = 1000
"""Rotations that a slow reader may be behind."""


class LogFile:
    """One log and its rotated files. One per log and process, shared by who rotates it and who reads it.

    Its methods block and may be called from any thread; only one thread rotates and packs.

    Attributes:
        path: the file that its writer has open.
        most: bytes beyond which it is rotated, and that go to one rotated file.
        keep: how many rotated files there may be; with 0, what is removed is gone.
        way: how heads are to be removed; None: in the best way that the file system knows.
        writer: who writes to it, as far as that is known.
        cut: what the last rotation that was a truncation has come to.
        stray: where the writer's file can still be opened when it has lost the path, and which file that is.
        changing: held while names and places change together. A reader that found `generation` the same before and
            after a read, and even, has read undisturbed.
        generation: how often that began or ended.
    """

    def __init__(self, path: Path, most: int = 64 * 1024**2, keep: int = 5, way: Removal | None = None) -> None:
        self.path = path
        self.most = most
        self.keep = keep
        self.way = way
        self.writer = Writer()
        self.cut: Cut | None = None
        self.stray: tuple[str, tuple[int, int]] | None = None
        self.changing = threading.Lock()
        self.generation = 0
        self._inode: tuple[int, int] | None = None
        self._removed = 0
        self._hole = 0
        self._rotated: deque[int] = deque(maxlen=_MOST_REMEMBERED)
        self._way: tuple[Removal, int] | None = None
        self._way_on: int | None = None
        self._name_pattern = re.compile(rf"{re.escape(path.name)}\.([1-9]\d{{0,5}})(\.gz)?")

    def size(self) -> int:
        """Bytes of the log that count for rotation; 0 when there is no log.

        Raises:
            OSError: it cannot be known.
        """
        try:
            seen = os.lstat(self.path)
        except FileNotFoundError:
            return 0
        holes = self._way is not None and self._way[0] is Removal.PUNCH
        return min(seen.st_size, seen.st_blocks * 512) if holes else seen.st_size

    def removed(self, inode: tuple[int, int]) -> int:
        """Bytes by which what stands in that file has moved towards its beginning since this object was made."""
        return self._removed if inode == self._inode else 0

    def hole(self, inode: tuple[int, int]) -> int:
        """Where that file begins, if this object has punched a hole into its head."""
        return self._hole if inode == self._inode else 0

    def rotate(self) -> Iterator[str]:
        """The steps of one rotation: each is carried out before its name is given. None when the log is short enough.

        What an interrupted one left is brought to its end first.

        Raises:
            Failed: it could not be done; nothing of the log was lost, though old rotated files may have made room.
        """
        with self._opened() as opened:
            if opened is None:
                return
            directory, file = opened
            try:
                keep = self.keep
                yield from self._recover(directory, file)
                way, unit = self._ways(directory)
                start, size = first_byte(file), os.fstat(file).st_size
                if size - start <= max(self.most, 2 * unit):
                    return
                end = max(start // unit + 1, min(start + self.most, size - 1) // unit) * unit
                if way is Removal.TRUNCATE:
                    end = size - 1  # a mark counts as such only where something follows what it speaks of
                if keep > 0:
                    end = yield from self._copy(directory, file, start, end)
                yield from self._commit(directory, file, (start, end), keep)
            except OSError as error:
                with contextlib.suppress(OSError):  # or it is done when the next rotation begins
                    if self._marked(file) is None:
                        remove_name(self._temporary, directory)
                raise Failed(f"cannot rotate the log {self.path}: {reason_of(error)}") from error

    def recover(self) -> Iterator[str]:
        """The steps that bring an interrupted rotation to its end; at most `keep` rotated files are left then.

        Raises:
            Failed: it could not be done.
        """
        with self._opened() as opened:
            if opened is None:
                return
            directory, file = opened
            try:
                yield from self._recover(directory, file)
                self._drop_beyond(directory, self.keep)
            except OSError as error:
                raise Failed(f"cannot rotate the log {self.path}: {reason_of(error)}") from error

    def open(self) -> int:
        """The file that the writer appends to, for reading; the caller closes it.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be opened; ELOOP for a symbolic link.
        """
        # not through a link: the directory may be the instances' user's, and we may read what that user may not
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        if (stray := self.stray) is not None:
            with contextlib.suppress(OSError):  # its writer has ended
                opened = os.open(stray[0], flags)
                if inode_of(os.fstat(opened)) == stray[1]:
                    return opened
                os.close(opened)
        return os.open(self.path, flags | os.O_NOFOLLOW)

    def rotated(self, directory: int) -> dict[int, str]:
        """The names of the rotated files, by number: 1 is the latest. To be relied on while `changing` is held."""
        found: dict[int, str] = {}
        for name in os.listdir(directory):
            if (match := self._name_pattern.fullmatch(name)) and (match[2] or int(match[1]) not in found):
                found[int(match[1])] = name  # the packed one is complete: the other was about to be removed
        return dict(sorted(found.items()))

    def rotated_lengths(self) -> tuple[int, ...]:
        """Bytes of each head that this object has moved to a rotated file, the latest first; see `changing`."""
        return tuple(self._rotated)

    @property
    def _temporary(self) -> str:
        return f"{self.path.name}.rotating"

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[int, int] | None]:
        """The directory and the log, which nobody else rotates meanwhile; None when there is no log.

        The directory may belong to a user with fewer rights than ours, so nothing follows a link, and a file that has
        a name elsewhere is not touched.
        """
        with contextlib.ExitStack() as stack:
            try:
                directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, directory)
                flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                file = os.open(self.path.name, flags, dir_fd=directory)
                stack.callback(os.close, file)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                yield None
                return
            except BlockingIOError as error:
                raise Failed(f"cannot rotate the log {self.path}: another process does") from error
            except OSError as error:
                raise Failed(f"cannot rotate the log {self.path}: {reason_of(error)}") from error
            seen = os.fstat(file)
            if not stat.S_ISREG(seen.st_mode) or seen.st_nlink != 1:
                raise Failed(f"cannot rotate the log {self.path}: it is not a regular file with one name")
            yield directory, file

    def _ways(self, directory: int) -> tuple[Removal, int]:
        device = os.fstat(directory).st_dev
        if self._way_on != device:
            remove_name(f"{self._temporary}-trial", directory)
            self._way = removal_for(directory, f"{self._temporary}-trial", self.way)
            self._way_on = device
        assert self._way is not None
        return self._way

    def _copy(self, directory: int, file: int, start: int, end: int) -> Generator[str, None, int]:
        """Copy the range to the temporary file; when the disk is full, rotated files make room, the oldest first.

        Returns how far it was copied: further, where all is to be copied sooner or later.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        copy = os.open(self._temporary, flags, 0o600, dir_fd=directory)
        try:
            yield "made"
            give_like(copy, os.fstat(file))
            while True:
                try:
                    os.posix_fallocate(copy, 0, end - start)
                    break
                except OSError as error:
                    if error.errno not in _FULL or not self._drop_oldest(directory):
                        raise
            copy_range(file, copy, start, end)
            os.fsync(copy)
            if self._ways(directory)[0] is Removal.TRUNCATE:
                catch_up(file, copy, end)
                end = start + os.lseek(copy, 0, os.SEEK_CUR) - 1
                os.ftruncate(copy, end - start)
            yield "copied"
        finally:
            os.close(copy)
        if self._ways(directory)[0] is not Removal.TRUNCATE:
            flush_range(file, end, 0)  # or the removal would write it, and the writer wait for that
        return end

    def _commit(self, directory: int, file: int, head: tuple[int, int], keep: int) -> Iterator[str]:
        with self._change():
            if keep > 0:
                os.pwrite(file, _MARK % (head[1] - head[0]), head[0])
                flush_range(file, head[0], 4096)
                yield "marked"
                yield from self._rename(directory, keep)
            yield from self._remove(directory, file, head, kept=keep > 0)

    def _recover(self, directory: int, file: int) -> Iterator[str]:
        """See the module's docstring."""
        length = self._marked(file)
        if length is None:
            remove_name(self._temporary, directory)
            return
        start = first_byte(file)
        self._ways(directory)
        with self._change():
            if is_there(self._temporary, directory):
                yield from self._rename(directory, max(self.keep, 1))
            yield from self._remove(directory, file, (start, start + length), kept=True)

    def _rename(self, directory: int, keep: int) -> Iterator[str]:
        """Give the copy the number 1, and those before it the next ones, up to the first number that is free."""
        self._drop_beyond(directory, keep - 1)
        names = self.rotated(directory)
        run = 0
        while run + 1 in names:
            run += 1
        for number in range(run, 0, -1):
            name = names[number]
            if name.endswith(PACKED):
                remove_name(name.removesuffix(PACKED), directory)
            ending = PACKED if name.endswith(PACKED) else ""
            rename_in(directory, name, f"{self.path.name}.{number + 1}{ending}")
            yield f"moved {number}"
        rename_in(directory, self._temporary, f"{self.path.name}.1")
        os.fsync(directory)
        yield "renamed"

    def _remove(self, directory: int, file: int, head: tuple[int, int], *, kept: bool) -> Iterator[str]:
        assert self._way is not None
        start, end = head
        inode = inode_of(os.fstat(file))
        if self._inode != inode:
            self._inode, self._removed, self._hole = inode, 0, 0
            self._rotated.clear()
        with contextlib.ExitStack() as stack:
            if kept and self._way[0] is Removal.TRUNCATE:
                copy = open_latest(f"{self.path.name}.1", directory, end - start, file)
                stack.callback(os.close, copy)
                self.cut = self._cut(directory, file, copy, start)
                end = start + self.cut.copied
                stack.callback(os.fsync, copy)
            else:
                remove_head(file, 0, end, self._way[0])
            if self._way[0] is Removal.PUNCH:
                self._hole = end
            else:
                self._removed += end
                self._hole = 0
            if kept:
                self._rotated.appendleft(end - start)
            else:
                self._rotated.clear()
        yield "removed"

    def _cut(self, directory: int, file: int, copy: int, start: int) -> Cut:
        while True:
            try:
                return cut(file, copy, start, self.writer)
            except OSError as error:
                numbers = self.rotated(directory)
                if error.errno not in _FULL or len(numbers) < 2:  # the first one is the copy
                    raise
                self._drop(directory, max(numbers))

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        with self.changing:
            self.generation += 1
            try:
                yield
            finally:
                self.generation += 1

    def _marked(self, file: int) -> int | None:
        """The length of the head that was copied and not removed, where there is one."""
        start = first_byte(file)
        match = _MARK_PATTERN.fullmatch(os.pread(file, _MARK_LENGTH, start))
        if match is None or start + int(match[1]) >= os.fstat(file).st_size:
            return None
        return int(match[1])

    def _drop_beyond(self, directory: int, keep: int) -> None:
        for number in self.rotated(directory):
            if number > keep:
                self._drop(directory, number)

    def _drop_oldest(self, directory: int) -> bool:
        numbers = self.rotated(directory)
        if numbers:
            self._drop(directory, max(numbers))
        return bool(numbers)

    def _drop(self, directory: int, number: int) -> None:
        for ending in ("", PACKED):
            remove_name(f"{self.path.name}.{number}{ending}", directory)
