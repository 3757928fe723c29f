"""Whether a process is one of an instance's."""

from __future__ import annotations

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
