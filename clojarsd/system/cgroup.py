"""Control groups of our own below the one that is delegated to us: one for each launched instance.

Version 2 of the hierarchy only, also where it is mounted beside version 1. A group knows its processes wherever they
went, and ends all of them at once, which nothing else on Linux can.

Source: Documentation/admin-guide/cgroup-v2.rst of Linux; CGROUP_DELEGATION.md of systemd; cgroups(7).
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import structlog

from clojarsd.core.errors import LaunchFailed
from clojarsd.core.identity import InstanceMark
from clojarsd.core.names import LaunchStage
from clojarsd.system.freezer import thaw
from clojarsd.system.inotify import IN_MODIFY

log = structlog.get_logger()

SUPERVISOR = "supervisor"
"""The group of the daemon itself: where controllers are shared out, an inner group may hold no process."""
ROLLOUT = "rollout"
"""What the groups of rollouts' commands begin with; the rollout's id follows."""
_FILES = "user.clojarsd.files"
"""The attribute of a group that keeps what was written into its files."""
_DELEGATED = ("user.delegate", "trusted.delegate")
_EVENT = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


def find_delegated() -> Path | None:
    """The group below which this process may make others; None where none was delegated.

    It is marked as such by systemd; or is none of systemd's, and belongs to our user or is the top that a container
    sees. The top of a whole machine is nobody's to divide, even if root could.
    """
    own = _own_group()
    if own is None:
        return None
    base = own.parent if own.name == SUPERVISOR else own
    try:
        owner = os.stat(base).st_uid
    except OSError:
        return None
    writable = all(os.access(base / name, os.W_OK) for name in ("", "cgroup.procs", "cgroup.subtree_control"))
    if not writable or not (base / "cgroup.events").exists():
        return None
    if any(_has_attribute(base, name) for name in _DELEGATED):
        return base
    of_systemd = base.name.endswith((".service", ".scope", ".slice"))
    is_ours = (os.geteuid() != 0 and owner == os.geteuid()) or os.path.ismount(base)
    return base if is_ours and not of_systemd else None


class Groups:
    """The groups below a delegated one. Made by the daemon, which closes it; the groups of what runs on stay.

    Attributes:
        base: the delegated group.
    """

    def __init__(self, base: Path, on_memory: Callable[[InstanceMark, str, int], None] | None = None) -> None:
        """Take the delegated group over.

        Args:
            on_memory: told in the thread that calls `read_events` what happens to a group's memory: the name of the
                event as in memory.events (`oom`, `oom_kill`, ...), and how often since last told.

        Raises:
            OSError: this process cannot move into a leaf of it.
        """
        self.base = base
        self._on_memory = on_memory
        self._watches: dict[int, tuple[InstanceMark, Path]] = {}
        self._seen: dict[Path, dict[str, int]] = {}
        self.join(self.leaf(SUPERVISOR), os.getpid())
        for left in (*base.glob("instance-*"), *base.glob(f"{ROLLOUT}-*")):
            if not is_populated(left):
                remove(left)  # the daemon before was killed on its way
        self._inotify: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._inotify < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def close(self) -> None:
        """Watch no more; groups and processes stay as they are."""
        if self._inotify >= 0:
            os.close(self._inotify)
            self._inotify = -1

    def fileno(self) -> int:
        """A descriptor that is readable when `read_events` has something to tell."""
        return self._inotify

    def leaf(self, name: str) -> Path:
        """A group below the delegated one, made if need be."""
        path = self.base / name
        path.mkdir(exist_ok=True)
        return path

    def join(self, path: Path, pid: int) -> None:
        """Move a process into a group. Raises OSError."""
        _write(path / "cgroup.procs", str(pid))

    def of(self, mark: InstanceMark) -> Path | None:
        """The group of a launch, if it exists."""
        path = self._path(mark)
        return path if path.is_dir() else None

    def make(self, mark: InstanceMark, files: Mapping[str, str]) -> Path:
        """A new group for a launch, with the values written into its files; its memory is watched.

        Raises:
            LaunchFailed: it cannot be made, or a value is refused; nothing is left then.
        """
        path = self.make_named(self._path(mark).name, files)
        self.watch(mark)
        return path

    def make_named(self, name: str, files: Mapping[str, str]) -> Path:
        """A group of that name below the delegated one, with the values written into its files. Raises as `make`."""
        path = self.base / name
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise _failed(f"{path}: {_reason(error)}") from error
        try:
            for file, value in files.items():
                self._set(path, file, value)
        except LaunchFailed:
            remove(path)
            raise
        with suppress(OSError):  # a file system without attributes
            os.setxattr(path, _FILES, json.dumps(dict(files)).encode())
        return path

    def take_over(self, mark: InstanceMark) -> None:
        """Go on with the group of a launch by another daemon: its values are written again, its memory watched.

        They may be gone: before systemd 254 a service cannot be started again while controllers are shared out below
        it, so that its unit takes them back first. What is refused now is told in the log; the instance runs.
        """
        path = self._path(mark)
        thaw(path)  # a daemon that died while it cut a log may have left it frozen
        try:
            files = json.loads(os.getxattr(path, _FILES))
        except OSError:
            files = {}
        for file, value in files.items():
            try:
                self._set(path, file, value)
            except LaunchFailed as failed:
                log.warning("cgroup_value_lost", role=mark.role.value, reason=failed.reason)
        self.watch(mark)

    def watch(self, mark: InstanceMark) -> None:
        """Tell what happens to the memory of this launch's group from now on; nothing where memory is not counted."""
        events = self._path(mark) / "memory.events"
        if events.exists() and self._on_memory is not None:
            number = _libc.inotify_add_watch(self._inotify, os.fsencode(events), IN_MODIFY)
            if number >= 0:
                self._watches[number] = mark, events
                self._seen[events] = _numbers(events)

    def read_events(self) -> None:
        """Tell what has happened to watched groups; never waits."""
        try:
            news = os.read(self._inotify, 65536)
        except BlockingIOError:
            return
        numbers, at = set(), 0
        while at < len(news):
            number, _, _, length = _EVENT.unpack_from(news, at)
            numbers.add(number)
            at += _EVENT.size + length
        for number in numbers & self._watches.keys():
            mark, events = self._watches[number]
            now, before = _numbers(events), self._seen[events]
            self._seen[events] = now
            for name, count in now.items():
                if count > before.get(name, 0) and self._on_memory is not None:
                    self._on_memory(mark, name, count - before.get(name, 0))

    def forget(self, mark: InstanceMark) -> None:
        """Remove the empty group of a launch that is over; says so when that cannot be."""
        path = self._path(mark)
        for number, (_, events) in list(self._watches.items()):
            if events.parent == path:
                self.read_events()
                del self._watches[number], self._seen[events]
                _libc.inotify_rm_watch(self._inotify, number)
        remove(path)

    def _path(self, mark: InstanceMark) -> Path:
        return self.base / f"instance-{mark.role.value}-{mark.incarnation}"

    def _set(self, path: Path, file: str, value: str) -> None:
        """Write one value; the controller that has the file is shared out before."""
        controller = file.partition(".")[0]
        target, wish = path / file, f"{file} = {value}"
        if not target.exists():
            try:
                known = (self.base / "cgroup.controllers").read_text().split()
                if controller in known:
                    _write(self.base / "cgroup.subtree_control", f"+{controller}")
            except OSError as error:
                raise _failed(f"{wish}: controller {controller} cannot be shared out: {_reason(error)}") from error
            if controller not in known:
                available = ", ".join(known) or "none"
                raise _failed(f"{wish}: no controller {controller} is delegated here (available: {available})")
            if not target.exists():
                raise _failed(f"{wish}: the kernel has no such file")
        try:
            _write(target, value)
        except OSError as error:
            raise _failed(f"{wish}: {_reason(error)}") from error


def is_populated(path: Path) -> bool:
    """Whether a process runs in the group or below; False where there is no group. Raises OSError."""
    try:
        return "populated 1" in (path / "cgroup.events").read_text()
    except FileNotFoundError:
        return False


def has_killed(path: Path) -> bool:
    """Whether the kernel has ended a process of the group for want of memory; False where that is not counted."""
    return _numbers(path / "memory.events").get("oom_kill", 0) > 0


def end_group(path: Path, within: float) -> bool:
    """Kill everything in the group and below, and wait; whether it is empty then. For a thread."""
    try:
        events = (path / "cgroup.events").open()
    except FileNotFoundError:
        return True
    deadline = time.monotonic() + within
    with events:
        poller = select.poll()
        poller.register(events, select.POLLPRI)
        while "populated 1" in events.read():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            _kill(path)
            poller.poll(min(left, 1.0) * 1000)
            events.seek(0)
    return True


def remove(path: Path) -> None:
    """Remove an empty group, and what its processes have made below it."""
    for directory, _, _ in os.walk(path, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("cgroup_left", path=directory, reason=_reason(error))
            return


def no_groups(files: Mapping[str, str]) -> LaunchFailed:
    """Why a launch that wants these values written cannot be, where no group is delegated."""
    file, value = next(iter(files.items()))
    return _failed(f"{file} = {value}: no control group is delegated to clojarsd (systemd: Delegate=yes)")


def _kill(path: Path) -> None:
    try:
        _write(path / "cgroup.kill", "1")  # from Linux 5.14 on
    except OSError:
        for procs in path.rglob("cgroup.procs"):
            with suppress(OSError):
                for pid in map(int, procs.read_text().split()):
                    _kill_member(pid, procs)


def _kill_member(pid: int, procs: Path) -> None:
    """Kill a process if it is in the group while a descriptor of it is held."""
    with suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            if str(pid) in procs.read_text().split():
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def _own_group() -> Path | None:
    """The directory of the version 2 group of this process; None where there is none, or it cannot be reached."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    for line in mounts:
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        if not after.startswith("cgroup2 ") or own is None or "/.." in own:
            continue
        if os.path.commonpath([root, own]) == root:
            return Path(point) / os.path.relpath(own, root)
    return None


def _has_attribute(path: Path, name: str) -> bool:
    try:
        return os.getxattr(path, name) in (b"1", b"yes")
    except OSError:
        return False


def _numbers(events: Path) -> dict[str, int]:
    """The counters of a file of events; empty when the group is gone."""
    try:
        return {name: int(count) for name, count in map(str.split, events.read_text().splitlines())}
    except OSError:
        return {}


def _write(file: Path, value: str) -> None:
    with file.open("wb", buffering=0) as opened:
        opened.write(value.encode())


def _failed(reason: str) -> LaunchFailed:
    return LaunchFailed(LaunchStage.CGROUP, reason)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)
