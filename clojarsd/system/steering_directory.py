"""Where a daemon's steering is pinned: `ROOT/clojarsd/NAME`, which one daemon has at a time.

A lock on the directory itself decides who has it, which the kernel lets go of with its process.

Source: flock(2); proc_locks(5); bpffs allows no dot in a name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Self

from clojarsd.core.errors import CannotSteer, reason_of
from clojarsd.core.steering_reasons import (
    Powers,
    why_impossible,
    why_no_file_system,
    why_not_made,
    why_not_ours,
    why_taken,
)
from clojarsd.system import bpf
from clojarsd.system.bpf_fs import is_bpf_fs, mount_bpf_fs, unmount_ours

ROOT: Final = Path("/sys/fs/bpf")
FAMILY: Final = "clojarsd"
"""The directory of all our daemons, below the root."""
LINK: Final = "link"
_NEW: Final = "-new"
_ATTEMPTS: Final = 10
"""How often a directory may vanish under us, because another daemon is just being removed."""


class SteeringDirectory:
    """A directory of pins that is ours. Made by `open`; KernelSteering has it, and closes it."""

    def __init__(self, root: Path, path: Path, descriptor: int) -> None:
        self._root = root
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, root: Path, name: str, powers: Powers) -> Self:
        """The directory, locked; made if it is missing, with a file system to hold it.

        Raises:
            CannotSteer: it cannot be, or is another's; what was made on the way is gone again.
        """
        return cls._open(root, root / FAMILY / _file_name(name), name, powers)

    def again(self, powers: Powers) -> Self:
        """This directory if it stands; else another one in its place, as `open` makes it, beside which this one stays.

        Raises:
            CannotSteer: as `open`.
            OSError: it cannot be looked at.
        """
        return self if self.holds(()) else self._open(self._root, self.path, self.path.name, powers)

    @classmethod
    def _open(cls, root: Path, path: Path, name: str, powers: Powers) -> Self:
        for _ in range(_ATTEMPTS):
            _have_file_system(root, powers)
            try:
                return cls(root, path, _lock(path, name, powers))
            except FileNotFoundError:
                continue  # whoever had it last has just taken it away
            except CannotSteer:
                if not is_bpf_fs(root):
                    continue  # and the file system with it
                sweep(root)
                raise
        raise CannotSteer(why_not_made(str(path), errno.ENOENT, "it vanishes again and again", powers.user))

    def is_empty(self) -> bool:
        """Whether nothing is pinned there. Raises OSError."""
        return not any(self.path.iterdir())

    def pinned(self, name: str) -> int | None:
        """A descriptor of what is pinned by that name; None: nothing, or nothing of use to us. The caller closes it."""
        try:
            return bpf.get_pinned(self.path / name)
        except OSError:
            return None

    def pin(self, descriptor: int, name: str) -> None:
        """Pin the object, in place of what has the name now, at one instant. Raises OSError."""
        new = self.path / (name + _NEW)
        with contextlib.suppress(FileNotFoundError):
            new.unlink()  # of a daemon that died here
        bpf.pin(descriptor, new)
        new.rename(self.path / name)

    def holds(self, names: Iterable[str]) -> bool:
        """Whether it is where it was made, and something is pinned by each of the names. Raises OSError."""
        try:
            for name in names:
                (self.path / name).lstat()
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except (FileNotFoundError, NotADirectoryError):
            return False

    def close(self) -> None:
        """Let another daemon have the directory; what is pinned stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def remove(self) -> None:
        """Take out what is pinned, the directory, and the file system if it is ours and nobody else needs it.

        The link goes first: connections go on as without us from there on. A directory that was made for a plain user
        stays, and is empty. One that stands in the place of ours, which somebody has removed, is another daemon's.

        Raises:
            OSError: something cannot be taken out.
        """
        if self.holds(()):
            self._empty()
        self.close()  # nobody can be in it now: who comes next makes another one
        sweep(self._root)

    def _empty(self) -> None:
        link = self.pinned(LINK)
        try:
            if link is not None:
                with contextlib.suppress(OSError):  # the namespace is gone, or it is no link
                    bpf.detach(link)
            with contextlib.suppress(FileNotFoundError):
                (self.path / LINK).unlink()  # takes no descriptor, and is enough where nobody else has the link
        finally:
            if link is not None:
                os.close(link)
        with contextlib.suppress(FileNotFoundError):  # somebody has removed it under us
            for entry in self.path.iterdir():
                entry.unlink()
            with contextlib.suppress(PermissionError):
                self.path.rmdir()


def is_left(name: str, root: Path) -> bool:
    """Whether a directory of that service name is there; not if it may not be looked for."""
    try:
        return (root / FAMILY / _file_name(name)).exists()
    except OSError:
        return False


def take_away(name: str, root: Path) -> bool:
    """Take out what a dead daemon of that service name has left. False: there is nothing, or a living one holds it.

    Raises:
        OSError: something cannot be taken out.
    """
    path = root / FAMILY / _file_name(name)
    try:
        directory = SteeringDirectory(root, path, _locked(path))
    except (FileNotFoundError, BlockingIOError):
        return False
    try:
        directory.remove()
    finally:
        directory.close()
    return True


def left_behind(root: Path) -> Iterator[SteeringDirectory]:
    """Each directory that no daemon holds, locked; it is closed when the next one is asked for.

    Raises:
        OSError: the directories cannot be looked at.
    """
    if not is_bpf_fs(root) or not (root / FAMILY).is_dir():
        return
    for path in sorted((root / FAMILY).iterdir()):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            directory = SteeringDirectory(root, path, _locked(path))
            try:
                yield directory
            finally:
                directory.close()


def sweep(root: Path, within: float = 0.0) -> str | None:
    """Remove the directory of all daemons and the file system, where they are ours and empty; blocks.

    Args:
        within: seconds in which it is tried again while somebody is in the file system.

    Returns:
        Why the file system stays, or None.
    """
    with contextlib.suppress(OSError):  # others are in it, or it is not ours to remove
        (root / FAMILY).rmdir()
    return unmount_ours(root, within)


def refuse_if_impossible(powers: Powers) -> None:
    """Raises CannotSteer: this process, or this kernel, cannot."""
    reason = why_impossible(powers)
    if reason is not None:
        raise CannotSteer(reason)


def _file_name(name: str) -> str:
    """The name as a file system for BPF takes it: no dot, no slash, not too long."""
    kept = "".join(letter if letter.isalnum() or letter in "-_" else f"%{ord(letter):02x}" for letter in name)
    return kept[:200]


def _have_file_system(root: Path, powers: Powers) -> None:
    try:
        if is_bpf_fs(root):
            return
    except OSError as error:
        raise CannotSteer(_not_made(root, error, powers)) from error
    if not powers.may_mount:
        raise CannotSteer(why_no_file_system(str(root), None))
    try:
        mount_bpf_fs(root)
    except OSError as error:
        raise CannotSteer(why_no_file_system(str(root), reason_of(error))) from error


def _lock(path: Path, name: str, powers: Powers) -> int:
    """The locked descriptor of the directory, which is made if need be. Raises FileNotFoundError: it vanished."""
    for directory, mode in ((path.parent, 0o755), (path, 0o700)):
        try:
            directory.mkdir(mode)
        except FileExistsError:
            pass
        except FileNotFoundError:
            raise
        except OSError as error:
            raise CannotSteer(_not_made(directory, error, powers)) from error
    try:
        owner = path.stat().st_uid
        if owner != powers.user:
            raise CannotSteer(why_not_ours(str(path), owner, powers.user))
        return _locked(path)
    except BlockingIOError:
        raise CannotSteer(why_taken(name, str(path), _holder(path))) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CannotSteer(_not_made(path, error, powers)) from error


def _locked(path: Path) -> int:
    """Raises BlockingIOError: somebody holds it; FileNotFoundError: it was removed meanwhile."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _holder(path: Path) -> int | None:
    """The process that holds the lock, as far as this one can see it."""
    with contextlib.suppress(OSError, ValueError):
        at = path.stat()
        place = f"{os.major(at.st_dev):02x}:{os.minor(at.st_dev):02x}:{at.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5] == place and int(words[4]) > 0:
                return int(words[4])
    return None


def _not_made(path: Path, error: OSError, powers: Powers) -> str:
    return why_not_made(str(path), error.errno or 0, reason_of(error), powers.user)
