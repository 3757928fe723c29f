"""Telling processes apart for ever, and how one has ended that is no child of ours.

Source: proc(5), `PIDFD_GET_INFO` in linux/pidfd.h.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from clojarsd.core.identity import MARK, InstanceMark, ProcessIdentity
from clojarsd.core.names import UNKNOWN_END, ExitStatus

_INFO = struct.Struct("=QQ11Ii")
_INFO_EXIT = 1 << 3
_GET_INFO = 3 << 30 | _INFO.size + (-_INFO.size % 8) << 16 | 0xFF << 8 | 11
_DEAD = frozenset("ZX")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """What the kernel says of a process.

    Attributes:
        name: what it runs, cut to 15 characters, or what it calls itself.
        state: its letter in ps(1); Z for one that has ended and is not reaped.
        exit_code: as wait(2) has it; 0 while it runs, and to whom may not see it.
    """

    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int
    started_ticks: int
    exit_code: int

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.state in _DEAD


def stat_of(pid: int) -> ProcessStat | None:
    """What the kernel says of a process; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    end = text.rindex(b")")  # the name may hold parentheses and spaces
    name, fields = os.fsdecode(text[text.index(b"(") + 1 : end]), text[end + 2 :].split()
    parent, group, session = map(int, fields[1:4])
    return ProcessStat(pid, name, fields[0].decode(), parent, group, session, int(fields[19]), int(fields[49]))


@cache
def boot_id() -> str:
    """Which boot of this machine this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int, *, with_executable: bool = True) -> ProcessIdentity | None:
    """Which process has this number now; None when there is none, or it has ended and was reaped."""
    stat = stat_of(pid)
    if stat is None:
        return None
    return ProcessIdentity(pid, stat.started_ticks, boot_id(), _executable(pid) if with_executable else None)


def is_same(identity: ProcessIdentity) -> bool:
    """Whether that very process still has its number, be it as one that has ended and is not reaped.

    The start decides: a number is not given twice within one clock tick. The executable is a further witness where it
    can be seen; an instance of ours may have become another command since (`exec` in a wrapper), which its mark shows.
    """
    now = identify(identity.pid)
    if now is None or (now.started_ticks, now.boot_id) != (identity.started_ticks, identity.boot_id):
        return False
    unseen = None in (now.executable, identity.executable)
    return unseen or now.executable == identity.executable or mark_of(identity.pid) is not None


def mark_of(pid: int) -> InstanceMark | None:
    """Which launch the process comes from; None when from none, or when that cannot be seen."""
    text = variable_of(pid, MARK)
    return InstanceMark.parse(text) if text is not None else None


def variable_of(pid: int, name: str) -> str | None:
    """A variable of the environment that the process began with; None when it has none, or that cannot be seen."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    wanted = os.fsencode(name) + b"="
    for variable in environment.split(b"\0"):
        if variable.startswith(wanted):
            return os.fsdecode(variable.removeprefix(wanted))
    return None


def user_of(pid: int) -> int | None:
    """The number of the user who has started the process, whoever it acts as; None when that cannot be seen."""
    try:
        lines = Path(f"/proc/{pid}/status").read_bytes().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(b"Uid:")), None)


def is_between_programs(pid: int) -> bool:
    """Whether nothing can be seen of its environment now, as in the middle of an exec; or it has none at all.

    Where it is not ours to see (another user's process without CAP_SYS_PTRACE, as in most containers; a program with
    capabilities of its own) its words, which everybody may see, tell the same.
    """
    with suppress(OSError):
        try:
            return not Path(f"/proc/{pid}/environ").read_bytes()
        except PermissionError:
            return not Path(f"/proc/{pid}/cmdline").read_bytes()
    return True


def how_it_ended(pid: int, pidfd: int) -> ExitStatus:
    """How a process has ended that is no child of ours: `UNKNOWN_END` where the kernel does not tell.

    It tells it by the pidfd from Linux 6.15 on, once the parent has reaped it, and by /proc before.
    """
    for _ in range(2):  # it may be reaped between the two looks
        status = _told_by_pidfd(pidfd)
        if status is not None:
            return status
        stat = stat_of(pid)
        if stat is not None and stat.has_ended and _may_see(pid):
            return status_of(stat.exit_code)
    return UNKNOWN_END


def status_of(code: int) -> ExitStatus:
    """What a code of wait(2) means."""
    number = os.WTERMSIG(code) if os.WIFSIGNALED(code) else None
    return ExitStatus(None, number) if number is not None else ExitStatus(os.WEXITSTATUS(code), None)


def _told_by_pidfd(pidfd: int) -> ExitStatus | None:
    buffer = bytearray(_INFO.size + (-_INFO.size % 8))
    struct.pack_into("=Q", buffer, 0, _INFO_EXIT)
    with suppress(OSError):  # an old kernel
        fcntl.ioctl(pidfd, _GET_INFO, buffer, True)
        mask, *_, code = _INFO.unpack_from(buffer)
        return status_of(code) if mask & _INFO_EXIT else None
    return None


def _may_see(pid: int) -> bool:
    """Whether /proc tells us the exit code of the ended process: to others it says 0."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except PermissionError:
        return False
    except OSError:
        return True
    return True


def _executable(pid: int) -> tuple[int, int] | None:
    try:
        found = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return None
    return found.st_dev, found.st_ino
