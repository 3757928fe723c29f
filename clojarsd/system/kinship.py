"""Which processes are an instance's."""

from __future__ import annotations

import os

from clojarsd.core.identity import InstanceMark
from clojarsd.system.identity import mark_of, stat_of


def belongs(pid: int, leader: int, mark: InstanceMark | None = None) -> bool:
    """Whether the process with this number is one of the leader's: of its session, of its group, or of its launch.

    Args:
        leader: the number of the instance's main process.
        mark: of its launch; None: whoever has left session and group is a stranger.
    """
    stat = stat_of(pid)
    if stat is None:
        return False
    if leader in (stat.pid, stat.session, stat.group):
        return True
    return mark is not None and mark_of(pid) == mark


def members(leader: int, mark: InstanceMark | None = None) -> list[int]:
    """The running processes that are the leader's: what `belongs` tells of, and what descends from it; itself first.

    Looks at every process of the machine, some 30 us for each.

    Args:
        mark: as for `belongs`.
    """
    seen = {int(name): stat for name in os.listdir("/proc") if name.isdecimal() and (stat := stat_of(int(name)))}
    found = [pid for pid in seen if belongs(pid, leader, mark)]
    known = set(found)
    for pid in found:  # it grows
        children = [child for child, stat in seen.items() if stat.parent == pid and child not in known]
        known.update(children)
        found.extend(children)
    return sorted((pid for pid in found if not seen[pid].has_ended), key=lambda pid: (pid != leader, pid))
