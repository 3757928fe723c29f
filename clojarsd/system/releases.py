"""The directory of releases, and the link in it that names the current one.

A release is a file or a directory that is never changed. It is copied beside, flushed, made read-only and gets its name
by a rename that replaces nothing; the link is replaced by a rename. So whatever is cut at whatever moment, there is a
release under a name or there is none, and the link names the old one or the new one. What begins with a dot is not a
release: the leftovers of what was cut are named so, and taken away by the next `install`.

The directory belongs to the service user, and everything in it is done as that user: see acting_as.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clojarsd.core.errors import Failed, Refused, reason_of
from clojarsd.core.releases import ReleaseKind
from clojarsd.system.acting_as import Actor, acting_as
from clojarsd.system.release_checksum import checksum_of, difference
from clojarsd.system.release_copy import Measure, copy, measure, take_away
from clojarsd.system.release_use import index_of, users_of

INCOMING: Final = ".incoming-"
LINKING: Final = ".link-"
OUTGOING: Final = ".outgoing-"
_HERE: Final = -100
"""AT_FDCWD."""
_NOREPLACE: Final = 1
_CANNOT: Final = frozenset({errno.EINVAL, errno.ENOSYS})

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Installed:
    """A release that is in its place.

    Attributes:
        checksum: `sha256:…`; see release_checksum.
        size: bytes.
        was_there: it had been installed before, and is the same.
    """

    checksum: str
    size: int
    kind: ReleaseKind
    was_there: bool = False


@dataclass(frozen=True, slots=True)
class Current:
    """What the link says.

    Attributes:
        name: of what it names; None where there is no link.
        problem: why no instance can be started from it, in a sentence; None where one can, or there is no link.
    """

    name: str | None = None
    problem: str | None = None


class ReleaseStore:
    """The releases in a directory. One process at a time changes them, in one thread.

    Every method blocks, is to be called in a thread without an event loop, and raises `Failed` for what the disk or the
    rights of the user do not allow; nothing has changed then unless it says so.

    Args:
        link_name: the name of the link in the directory.
        actor: whom the directory belongs to; None: who we are.
    """

    def __init__(self, directory: Path, link_name: str, actor: Actor | None) -> None:
        self.directory = directory
        self._link = directory / link_name
        self._actor = actor

    def prepare(self) -> None:
        """Make the directory where it is missing, and what is above it."""
        with self._acting(f"make the directory of releases {self.directory}"):
            self.directory.mkdir(0o755, parents=True, exist_ok=True)

    def tidy(self) -> None:
        """Take away what was left by an `install`, a `switch` or a `remove` that was cut."""
        with self._acting(f"tidy up {self.directory}"):
            self._tidy()

    def checksum_of(self, source: Path) -> str:
        """`sha256:…` of an artefact anywhere, as `install` will find it.

        Raises:
            Refused: it cannot become a release.
        """
        with self._acting(f"read {source}"):
            measure(source)
            return checksum_of(str(source))

    def install(self, source: Path, name: str) -> Installed:
        """Copy the file or directory to its place, under a name that is free; on return it is safe on the disk.

        Raises:
            Refused: it cannot become a release, or the name is taken by something else.
        """
        place = self._place(name)
        with self._acting(f"install {name}"):
            self._tidy()
            wanted = measure(source)
            self._make_sure_of_room(name, wanted)
            incoming = self.directory / f"{INCOMING}{secrets.token_hex(8)}"
            try:
                checksum = copy(source, incoming)
                installed = Installed(checksum, wanted.size, wanted.kind)
                # from here on a death leaves the release under its name, or a leftover
                if not _rename_to_new(incoming, place):
                    return self._that_was_there(name, installed)
                _flush(self.directory)
            finally:
                with contextlib.suppress(OSError):
                    take_away(incoming)
        return installed

    def checksum(self, name: str) -> str:
        """What the release is now."""
        with self._acting(f"read the release {name}"):
            return checksum_of(str(self._place(name)))

    def found(self, name: str) -> Installed:
        """What somebody has put there under that name; raises Refused for what can be no release."""
        place = self._place(name)
        with self._acting(f"read the release {name}"):
            there = measure(place)
            return Installed(checksum_of(str(place)), there.size, there.kind, was_there=True)

    def verify(self, name: str, checksum: str) -> None:
        """Return when the release is what it was when it was installed.

        Raises:
            Failed: it is something else, or not there.
        """
        with self._acting(f"read the release {name}"):
            told = difference(str(self._place(name)), checksum)
        if told is not None:
            raise Failed(told)

    def switch(self, name: str) -> None:
        """Let the link name the release; on return that is safe on the disk.

        Raises:
            Refused: there is no such release, or what should be the link is something else.
        """
        place = self._place(name)
        with self._acting(f"switch {self._link} to {name}"):
            self._refuse_unless_link()
            if _kind_of(place) is None:
                raise Refused(f"cannot switch {self._link} to {name}: there is no such release in {self.directory}")
            beside = self.directory / f"{LINKING}{secrets.token_hex(8)}"
            os.symlink(name, beside)
            try:
                # from here on a death leaves the link as it was, or as it is to be
                os.rename(beside, self._link)
            except OSError:
                beside.unlink()
                raise
            _flush(self.directory)

    def unlink_current(self) -> None:
        """Let there be no link, as before the very first deploy; on return that is safe on the disk."""
        with self._acting(f"remove the link {self._link}"):
            self._refuse_unless_link()
            self._link.unlink(missing_ok=True)
            _flush(self.directory)

    def current(self) -> Current:
        """What the link names, and whether that can be started."""
        with self._acting(f"read the link {self._link}"):
            try:
                target = os.readlink(self._link)
            except FileNotFoundError:
                return Current()
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return Current(problem=f"{self._link} is no link, but {_what(self._link)}")
            path = self.directory / target
            if not path.exists():
                return Current(path.name, f"{self._link} names {target}, which is not there")
            if path.parent.resolve() != self.directory.resolve():
                return Current(path.name, f"{self._link} leads out of {self.directory}, to {target}")
            return Current(path.name)

    def remove(self, name: str) -> None:
        """Take a release away; one that is not there is no matter.

        Raises:
            Refused: the link names it.
            Failed: it could not be taken away; it is not used any more as soon as its name is gone.
        """
        place = self._place(name)
        with self._acting(f"remove the release {name}"):
            if self._link.is_symlink() and os.readlink(self._link) == name:
                raise Refused(f"cannot remove the release {name}: it is the current one")
            if place.is_dir() and not place.is_symlink():
                outgoing = self.directory / f"{OUTGOING}{secrets.token_hex(8)}"
                os.rename(place, outgoing)  # so that half of a directory is never taken for a release
                place = outgoing
            take_away(place)
            _flush(self.directory)

    def present(self) -> dict[str, ReleaseKind]:
        """The files and directories that may be releases, by name; whether they were installed the log knows."""
        with self._acting(f"list {self.directory}"):
            kinds = {name: _kind_of(self.directory / name) for name in sorted(self._names())}
            return {name: kind for name, kind in kinds.items() if kind is not None and name != self._link.name}

    def taken(self) -> frozenset[str]:
        """Every name in the directory that something has, whatever it is."""
        with self._acting(f"list {self.directory}"):
            return frozenset(self._names())

    def in_use(self, processes: Iterable[int] | None = None) -> dict[str, tuple[int, ...]]:
        """Which processes have a release, or something in it, open, mapped or as where they are, by its name.

        Args:
            processes: the numbers of those that are asked for, as of one instance, so that the answer is what it really
                runs, a release that was removed meanwhile included; None: all that can be looked into but this one.
        """
        names = self.present()
        with self._acting(f"list {self.directory}"):
            index = index_of(self.directory, names)
        return users_of(self.directory, index, processes)  # only root may look into the processes of others

    def _names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self.directory) if not name.startswith(".")]
        except FileNotFoundError:
            return []

    def _place(self, name: str) -> Path:
        """Where the release is or will be. Raises Refused for what can be no release's name."""
        if not name or name.startswith(".") or "/" in name or "\0" in name or name == self._link.name:
            raise Refused(f"{name!r} cannot be the name of a release in {self.directory}")
        return self.directory / name

    @contextlib.contextmanager
    def _acting(self, what: str) -> Iterator[None]:
        try:
            with acting_as(self._actor):
                yield
        except OSError as error:
            where = f"{os.fsdecode(error.filename)}: " if error.filename is not None and error.errno else ""
            raise Failed(f"cannot {what}: {where}{reason_of(error)}") from error

    def _tidy(self) -> None:
        with os.scandir(self.directory) as entries:
            left = [entry.path for entry in entries if entry.name.startswith((INCOMING, LINKING, OUTGOING))]
        for path in left:
            take_away(Path(path))

    def _make_sure_of_room(self, name: str, wanted: Measure) -> None:
        disk = os.statvfs(self.directory)
        free = disk.f_bavail * disk.f_frsize
        blocks = wanted.size + wanted.entries * disk.f_bsize
        if free < blocks:
            raise Failed(
                f"cannot install {name}: it takes {_mb(blocks)} and {self.directory} has {_mb(free)} free: remove what"
                " is not needed there"
            )
        if disk.f_files and disk.f_favail < wanted.entries:  # some file systems do not count
            raise Failed(
                f"cannot install {name}: it has {wanted.entries} files and {self.directory} has room for"
                f" {disk.f_favail}"
            )

    def _that_was_there(self, name: str, copied: Installed) -> Installed:
        """What has the name, if that is the same. Raises Refused, and OSError."""
        there = checksum_of(str(self.directory / name))
        if there != copied.checksum:
            raise Refused(
                f"cannot install {name}: {self.directory} has another release of that name"
                f" ({there[:15]}… instead of {copied.checksum[:15]}…); it was left as it is"
            )
        return Installed(copied.checksum, copied.size, copied.kind, was_there=True)

    def _refuse_unless_link(self) -> None:
        if os.path.lexists(self._link) and not self._link.is_symlink():
            raise Refused(f"{self._link} is no link, but {_what(self._link)}; it was left as it is: move it away")


def _rename_to_new(old: Path, new: Path) -> bool:
    """Whether it got the new name: not where something has that. Raises OSError.

    Where the file system cannot do that in one step a file gets a second name instead; a directory is looked for first.
    """
    flags = (ctypes.c_long(_HERE), os.fsencode(old), ctypes.c_long(_HERE), os.fsencode(new), ctypes.c_uint(_NOREPLACE))
    if _libc.renameat2(*flags) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EEXIST:
        return False
    if number not in _CANNOT:
        raise OSError(number, os.strerror(number), str(new))
    try:
        if old.is_dir():
            if os.path.lexists(new):
                return False
            os.rename(old, new)
        else:
            os.link(old, new)
    except FileExistsError:
        return False
    return True


def _kind_of(path: Path) -> ReleaseKind | None:
    """What it is, if it may be a release."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        return ReleaseKind.DIRECTORY
    return ReleaseKind.FILE if stat.S_ISREG(mode) else None


def _what(path: Path) -> str:
    return "a directory" if path.is_dir() else "a file"


def _flush(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
