"""How much memory and processor time an instance uses, with everything that it has started.

Source: proc(5), the fields of /proc/PID/stat and smaps_rollup.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
_LARGEST_STAT = 4096


@dataclass(frozen=True, slots=True)
class Usage:
    """What one family of processes uses.

    Attributes:
        pss_bytes: resident memory where each shared page counts in parts; None when it was not asked for. Where the
            kernel does not tell it of a process, that one's whole resident memory is counted.
        rss_bytes: resident memory where each shared page counts for each, so never less than PSS but for what changed
            between two looks.
        cpu_seconds: processor time since the launch, with that of children that were waited for.
        pids: the processes.
    """

    pss_bytes: int | None
    rss_bytes: int
    cpu_seconds: float
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """One process. cpu_ticks: with the time of children that it has waited for."""

    pid: int
    parent: int
    group: int
    session: int
    cpu_ticks: int
    rss_pages: int


def usages(leaders: Iterable[int]) -> Mapping[int, Usage]:
    """The usage of each leader's family that exists, without PSS; one pass over the machine's processes for all.

    It blocks for some 10 us for each process of the machine; nothing in it waits for the processes looked at.
    """
    everybody = tuple(_everybody())
    found = {}
    for leader in leaders:
        family = family_of(leader, everybody)
        pids = tuple(member.pid for member in family)
        if leader in pids:
            rss = sum(member.rss_pages for member in family) * _PAGE
            found[leader] = Usage(None, rss, sum(member.cpu_ticks for member in family) / _TICK, pids)
    return found


def with_pss(usage: Usage) -> Usage:
    """The usage with its PSS. The kernel walks every page for it, and waits while a process changes its memory map."""
    return replace(usage, pss_bytes=sum(map(_pss, usage.pids)))


def usage(leader: int) -> Usage | None:
    """All of what the leader's family uses; None when there is no such process. Blocks: to be called in a thread."""
    found = usages((leader,)).get(leader)
    return with_pss(found) if found is not None else None


def family_of(leader: int, everybody: Iterable[Member]) -> tuple[Member, ...]:
    """The leader, its session and its group, and the descendants of all of these.

    Who has left the session and lost its parent is not among them.
    """
    found: dict[int, Member] = {}
    children: dict[int, list[Member]] = {}
    for member in everybody:
        children.setdefault(member.parent, []).append(member)
        if leader in (member.pid, member.session, member.group):
            found[member.pid] = member
    waiting = list(found)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child.pid not in found:
                found[child.pid] = child
                waiting.append(child.pid)
    return tuple(found.values())


def _everybody() -> Iterator[Member]:
    """Every process that this one can see."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and (text := _stat(name)) is not None:
            fields = text[text.rindex(b")") + 2 :].split()  # the name before it may hold anything
            parent, group, session = map(int, fields[1:4])
            yield Member(int(name), parent, group, session, sum(map(int, fields[11:15])), int(fields[21]))


def _stat(name: str) -> bytes | None:
    try:
        descriptor = os.open(f"/proc/{name}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, _LARGEST_STAT)
    except OSError:
        return None  # it has ended since
    finally:
        os.close(descriptor)


def _pss(pid: int) -> int:
    """Bytes; the RSS where the kernel tells no PSS, 0 for a process that has ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not ours to read, not known to this kernel, or it has ended
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0
