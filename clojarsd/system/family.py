"""What a launched process has started: found by its mark and by parentage, and ended with it.

All of this looks through /proc and waits, so it runs in a thread: a look at everything costs about 30 us for each
process of the machine.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from clojarsd.core.identity import HOOK, MAIN, ROLLOUT, InstanceMark, ProcessIdentity
from clojarsd.core.names import Address, HookName, Incarnation, Role
from clojarsd.system.identity import (
    ProcessStat,
    identify,
    is_between_programs,
    mark_of,
    stat_of,
    user_of,
    variable_of,
)
from clojarsd.system.sockets import holder_of

CHILDREN = Path("/proc/thread-self/children")
"""Exists where the kernel can list children (CONFIG_PROC_CHILDREN)."""
_ONE_WAIT = 0.05
_SECOND_LOOK = 0.005
_MOST_AT_ONCE = 256
"""So many are ended at a time: each takes a descriptor, and the daemon's are counted."""


@dataclass(frozen=True, slots=True)
class Family:
    """What belongs to a launched process.

    Attributes:
        main: the number of the process itself, which has ended.
        is_child: it is a child of ours and not reaped, so that its number is still its own, as a session too; and we
            got the children of all its descendants that have ended.
        mark: of its launch; None: only parentage tells.
        spare_us: the numbers of our children that are something else, as they are now.
        known: numbers and starts of those that were seen to descend from it while it ran.
    """

    main: int
    is_child: bool
    mark: InstanceMark | None
    spare_us: Callable[[], set[int]]
    known: frozenset[tuple[int, int]] = frozenset()


def children_of(pid: int) -> set[int]:
    """The numbers of a process's children, ended ones that are not reaped among them; empty when it is gone."""
    found: set[int] = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
                found.update(map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()))
    return found


def descendants_of(pid: int) -> frozenset[tuple[int, int]]:
    """Numbers and starts of the processes that descend from a running one; empty where children are not listed."""
    return frozenset((stat.pid, stat.started_ticks) for stat in _below(children_of(pid)).values())


def end_family(family: Family, within: float) -> tuple[str, ...]:
    """End what belongs to the process, and reap what of it is ours; returns when nothing of it runs.

    Each is killed through a descriptor of its own, after a look whether it is still the one that was found.

    Args:
        within: seconds after which it is given up.

    Returns:
        What could not be ended, as `process 4242 (java)`.
    """
    deadline = time.monotonic() + within
    looked_twice = False
    while True:
        try:
            members, unclear = _members(family)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_ONE_WAIT)  # in a thread: no descriptor is left to look with, and nothing tells when one is
            continue
        alive = [stat for stat in members if not stat.has_ended]
        _reap(stat.pid for stat in members if stat.has_ended and stat.parent == os.getpid())
        if time.monotonic() > deadline:
            return tuple(f"process {stat.pid} ({stat.name})" for stat in alive)
        if alive:
            looked_twice = False
            _kill(alive[:_MOST_AT_ONCE], min(_ONE_WAIT, within))
        elif unclear and not looked_twice:
            looked_twice = True
            time.sleep(_SECOND_LOOK)  # in a thread: nothing tells when a process has come out of its exec
        else:
            return ()


def strangers(ours: Collection[int]) -> list[ProcessStat]:
    """The running children that came to us as the subreaper and bear no mark: what instances have let go of.

    Such a process has left the session of its instance, outlived its parent and cleared its environment, so that
    nobody can tell whose it was. What a command of a rollout has started is the rollout's.

    Args:
        ours: numbers of the children that somebody here watches.
    """
    found = []
    for pid in children_of(os.getpid()) - set(ours):
        stat = stat_of(pid)
        is_unmarked = mark_of(pid) is None and variable_of(pid, ROLLOUT) is None
        if stat is not None and not stat.has_ended and is_unmarked and _has_words(pid):
            found.append(stat)
    return found


def _has_words(pid: int) -> bool:
    """Whether the process runs a program: in the middle of an exec it has neither words nor an environment."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def end_strangers(ours: Callable[[], Collection[int]], within: float) -> tuple[str, ...]:
    """End those, and all that comes from them; to be called when no instance is left. What could not be ended."""
    return end_found(lambda: strangers(ours()), within)


def find_marked(
    state_dir: str | os.PathLike[str], users: Collection[int] = ()
) -> dict[Role, list[tuple[Incarnation, ProcessIdentity]]]:
    """The running instances that daemons with this state directory have launched, the latest incarnation first.

    Only the main processes: what they have started has their mark too, but not their number. Anybody can give a process
    such a mark, so that of a stranger's says nothing.

    Args:
        users: numbers of the users that instances run as, besides root and this one.
    """
    found: dict[Role, list[tuple[Incarnation, ProcessIdentity]]] = {}
    trusted = {0, os.geteuid(), *users}
    for pid in _all_pids():
        mark, stat = mark_of(pid), stat_of(pid)
        if mark is None or stat is None or stat.has_ended or mark.state_dir != os.fspath(state_dir):
            continue
        if user_of(pid) not in trusted:
            continue
        identity = identify(pid)
        if identity is not None and stat.session == pid and variable_of(pid, MAIN) == str(pid):
            found.setdefault(mark.role, []).append((mark.incarnation, identity))
    for instances in found.values():
        instances.sort(key=lambda found: (-found[0], found[1].started_ticks))
    return found


def end_hook(mark: InstanceMark, hook: HookName, users: Collection[int] = (), within: float = 5.0) -> bool:
    """End what an earlier daemon has begun of a hook, so that it can be run again; whether nothing of it is left.

    Args:
        users: as for `find_marked`: what somebody else has started is left alone.
    """
    trusted = {0, os.geteuid(), *users}

    def look() -> list[ProcessStat]:
        return [stat for pid in _all_pids() if (stat := _of_hook(pid, mark, hook, trusted)) is not None]

    return not end_found(look, within)


def _of_hook(pid: int, mark: InstanceMark, hook: HookName, users: Collection[int]) -> ProcessStat | None:
    """The process with that number, if it runs and is one of the hook's."""
    stat = stat_of(pid) if mark_of(pid) == mark and variable_of(pid, HOOK) == hook.value else None
    return stat if stat is not None and not stat.has_ended and user_of(pid) in users else None


def end_found(look: Callable[[], list[ProcessStat]], within: float) -> tuple[str, ...]:
    """Kill the processes that a look finds, until another finds none; what could not be ended. Blocks.

    Args:
        within: seconds after which it is given up.
    """
    deadline = time.monotonic() + within
    while members := look():
        if time.monotonic() > deadline:
            return tuple(f"process {stat.pid} ({stat.name})" for stat in members)
        _kill(members[:_MOST_AT_ONCE], min(_ONE_WAIT, within))
    return ()


def with_descendants(roots: Collection[int], among: Mapping[int, ProcessStat]) -> list[ProcessStat]:
    """The processes with these numbers and all that descend from them, in the order of their numbers."""
    return [among[pid] for pid in sorted(_closure(set(roots), among))]


def all_processes() -> dict[int, ProcessStat]:
    """What the kernel says of every process of the machine, by number; some 15 us for each."""
    return {pid: stat for pid in _all_pids() if (stat := stat_of(pid)) is not None}


def still_taken(ports: Mapping[str, Address]) -> str | None:
    """Which of the ports cannot be bound, and who has them, as a sentence; None when all are free."""
    taken = []
    for name, address in ports.items():
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((address.host, address.port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    continue
                holder = holder_of(address.port, None if address.host.isalpha() else address.host)
                by = f" by {holder}" if holder is not None else ""
                taken.append(f"port {address.port} ({name}) is still taken{by}")
    return "; ".join(taken) or None


def _members(family: Family) -> tuple[list[ProcessStat], bool]:
    """Everything that belongs to the process, and whether something may belong to it that cannot be told now."""
    ours = family.spare_us() - {family.main}
    if family.is_child and CHILDREN.exists():
        seen = _below(children_of(os.getpid()) - ours - {family.main})
    else:
        seen = all_processes()
    seen = {pid: stat for pid, stat in seen.items() if pid not in (os.getpid(), family.main)}
    not_its = _closure(ours & seen.keys(), seen)
    certain, unclear = set(), False
    for pid, stat in seen.items():
        if pid in not_its:
            continue
        mark = mark_of(pid)
        by_mark = mark is not None and family.mark is not None and family.mark.covers(mark)
        by_session = family.is_child and family.main in (stat.session, stat.group)
        is_ended_orphan = stat.has_ended and family.is_child and stat.parent == os.getpid()
        if by_mark or by_session or is_ended_orphan or (pid, stat.started_ticks) in family.known:
            certain.add(pid)
        unclear = unclear or (mark is None and family.is_child and not stat.has_ended and is_between_programs(pid))
    belonging = _closure(certain, seen) - not_its
    return [seen[pid] for pid in sorted(belonging)], unclear


def _below(roots: Iterable[int]) -> dict[int, ProcessStat]:
    """The processes with these numbers, and all their descendants."""
    found: dict[int, ProcessStat] = {}
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        stat = stat_of(pid) if pid not in found else None
        if stat is not None:
            found[pid] = stat
            waiting.extend(children_of(pid))
    return found


def _closure(roots: set[int], among: Mapping[int, ProcessStat]) -> set[int]:
    """The roots and everything that descends from them."""
    children: dict[int, list[int]] = {}
    for pid, stat in among.items():
        children.setdefault(stat.parent, []).append(pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return found


def _kill(members: Iterable[ProcessStat], within: float) -> None:
    """End the processes, and wait until they have or the seconds are over; ours are reaped in the next look."""
    deadline = time.monotonic() + within
    with ExitStack() as opened:
        poller = select.poll()
        waited_for = set()
        for member in members:
            try:
                pidfd = os.pidfd_open(member.pid)
            except OSError:
                continue  # it is gone, or there is no descriptor left: the next look finds it
            opened.callback(os.close, pidfd)
            now = stat_of(member.pid)
            if now is None or now.started_ticks != member.started_ticks:
                continue  # somebody else has the number now
            with suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poller.register(pidfd, select.POLLIN)
            waited_for.add(pidfd)
        while waited_for and (left := deadline - time.monotonic()) > 0:
            for pidfd, _ in poller.poll(left * 1000):
                poller.unregister(pidfd)
                waited_for.discard(pidfd)


def _reap(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ChildProcessError):  # reaped by somebody else of us
            os.waitpid(pid, os.WNOHANG)


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
