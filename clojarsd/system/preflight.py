"""The look at the machine before a deploy begins: everything that would stop it later, all at once.

For a thread. What belongs to the service user is looked at and made with that user's rights.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clojarsd.core.errors import reason_of
from clojarsd.core.preflight import Disk, Found, Tool, disk_problems, tool_problem
from clojarsd.system.acting_as import Actor, acting_as

_SHARED = 0o022
"""Bits of a directory that others may change."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a deploy needs.

    Attributes:
        user: the service user, for people.
        actor: the same by number; None: this process is that user.
        work_dir: None when nothing is built.
        link: to the current release, in the directory of releases.
        log_dir, state_dir: the daemon's own.
        min_free: bytes.
        tools: that the commands need, see `core.preflight.tools_of`.
    """

    user: str
    actor: Actor | None
    work_dir: Path | None
    link: Path
    log_dir: Path
    state_dir: Path
    min_free: int
    tools: Sequence[Tool] = ()

    def problems(self) -> tuple[str, ...]:
        """What is wrong, one sentence for each. Directories for releases and work are made if need be. Blocks."""
        of_user = {"releases": self.link.parent, **({"work_dir": self.work_dir} if self.work_dir is not None else {})}
        own = {"state_dir": self.state_dir, "log_dir": self.log_dir}
        found = [problem for name, path in of_user.items() if (problem := self._prepare(name, path)) is not None]
        found += [f"{name}: {problem}" for name, path in own.items() if (problem := _trial(path)) is not None]
        found += self._link_problems()
        found += disk_problems(_disks({**of_user, **own}), self.min_free, self._release_size())
        with acting_as(self.actor):
            looked = [(tool, *find_tool(tool)) for tool in self.tools]
        found += [
            problem for tool, what, at in looked if (problem := tool_problem(tool, what, at, self.user)) is not None
        ]
        return tuple(found)

    def _prepare(self, name: str, path: Path) -> str | None:
        """Make the directory if need be; what is wrong with it."""
        try:
            make_directory(path, self.actor)
        except OSError as error:
            by_hand = f"; make it for {self.user}: install -d -o {self.user} {path}"
            return f"{name}: {path} cannot be made: {reason_of(error)}{by_hand}"
        with acting_as(self.actor):
            problem = _trial(path)
        return f"{name}: {problem} (as user {self.user})" if problem is not None else None

    def _link_problems(self) -> Iterator[str]:
        with suppress(OSError):
            mode = os.lstat(self.link).st_mode
            if not stat.S_ISLNK(mode):
                what = "a directory" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "something else"
                yield f"current: {self.link} is {what}, and must be a link or not be there"

    def _release_size(self) -> int:
        """Bytes of the current release; 0 when there is none, or it cannot be looked at."""
        with acting_as(self.actor), suppress(OSError):
            return _size(self.link)
        return 0


def make_directory(path: Path, actor: Actor | None) -> None:
    """See to it that the directory is there and, if it is made, that it belongs to the actor.

    Where the actor may not make it, root does, if nobody but root could have a hand in where that is.

    Raises:
        OSError: it cannot be made, or is something else.
    """
    try:
        with acting_as(actor):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        return
    except PermissionError:
        if actor is None or os.geteuid() != 0:
            raise
        missing = [directory for directory in (path, *path.parents) if not os.path.lexists(directory)]
        if not missing or not all(_is_roots_own(directory) for directory in missing[-1].parents):
            raise
    for directory in reversed(missing):
        os.mkdir(directory, 0o755)
        os.chown(directory, actor.uid, actor.gid, follow_symlinks=False)


def find_tool(tool: Tool) -> tuple[Found, str]:
    """What is where this user, whom the thread acts as, would get the tool from; and where that is."""
    directories = [""] if "/" in tool.word else [directory or "." for directory in tool.path.split(os.pathsep)]
    best = Found.NOTHING, tool.word
    for directory in directories:
        path = os.path.join(directory, tool.word)
        if os.path.isdir(path):
            seen = Found.DIRECTORY
        elif not os.path.exists(path):
            continue
        elif os.access(path, os.X_OK, effective_ids=True):
            return Found.TOOL, path
        else:
            seen = Found.NOT_EXECUTABLE
        if best[0] is Found.NOTHING:
            best = seen, path
    return best


def _is_roots_own(directory: Path) -> bool:
    seen = os.lstat(directory)
    return stat.S_ISDIR(seen.st_mode) and seen.st_uid == 0 and not seen.st_mode & _SHARED


def _trial(path: Path) -> str | None:
    """Why nothing can be written in the directory; None when it can. What is tried leaves nothing."""
    try:
        try:
            os.close(os.open(path, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
                raise
            named = path / f".clojarsd-trial-{os.getpid()}"  # where the file system has no files without a name
            os.close(os.open(named, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            os.unlink(named)
    except OSError as error:
        return f"nothing can be written in {path}: {reason_of(error)}"
    return None


def _disks(directories: dict[str, Path]) -> list[Disk]:
    """The file systems of the directories, each once; of one that is not there, that of its nearest parent."""
    found: dict[int, tuple[dict[str, str], Path]] = {}
    for name, path in directories.items():
        there = next((one for one in (path, *path.parents) if os.path.isdir(one)), Path("/"))
        found.setdefault(os.stat(there).st_dev, ({}, there))[0][name] = str(path)
    disks = []
    for named, there in found.values():
        seen = os.statvfs(there)
        free = seen.f_bavail * seen.f_frsize if seen.f_blocks else None  # some say nothing of their size
        disks.append(Disk(named, free, seen.f_favail if seen.f_files else None))
    return disks


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(os.lstat(os.path.join(inside, name)).st_size for inside, _, names in os.walk(path) for name in names)
