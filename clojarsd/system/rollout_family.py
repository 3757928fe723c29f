"""What the commands of a rollout have started: found by its mark, and ended.

This looks through /proc and waits, so it runs in a thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

from clojarsd.core.identity import ROLLOUT, RolloutMark
from clojarsd.system.cgroup import ROLLOUT as GROUP
from clojarsd.system.cgroup import end_group, is_populated, remove
from clojarsd.system.family import all_processes, end_found, with_descendants
from clojarsd.system.identity import ProcessStat, user_of, variable_of

_SECOND_LOOK = 0.005


def end_rollout(
    state_dir: str, rollout: str | None, users: Collection[int] = (), within: float = 5.0
) -> tuple[str, ...]:
    """End everything that carries the mark of the rollout, and what descends from that; what could not be ended.

    Args:
        rollout: its id; None: of every rollout of daemons with this state directory.
        users: numbers of the users that commands run as, besides root and this one. What somebody else has started is
            left alone: anybody can give a process such a mark.
        within: seconds after which it is given up.
    """
    trusted, deadline = {0, os.geteuid(), *users}, time.monotonic() + within

    def look() -> list[ProcessStat]:
        return find_rollout(state_dir, rollout, trusted)

    while not (left := end_found(look, deadline - time.monotonic())):
        time.sleep(_SECOND_LOOK)  # in a thread: nothing tells when a process has come out of its exec, with its mark
        if not look():
            return ()
    return left


def find_rollout(state_dir: str, rollout: str | None, users: Collection[int]) -> list[ProcessStat]:
    """The running processes of the rollout, or of all; see `end_rollout`. This process is never among them."""
    seen = all_processes()
    seen.pop(os.getpid(), None)
    roots = [pid for pid, stat in seen.items() if not stat.has_ended and _is_of(pid, state_dir, rollout, users)]
    return [stat for stat in with_descendants(roots, seen) if not stat.has_ended]


def end_leftovers(
    state_dir: str, users: Collection[int] = (), base: Path | None = None, within: float = 5.0
) -> tuple[str, ...]:
    """End what an earlier daemon's rollouts have left running; what could not be ended.

    To be called when no rollout of this daemon runs a command.

    Args:
        users: as for `end_rollout`.
        base: the control group that is delegated to the daemon; None where there is none.
        within: seconds after which each kind is given up.
    """
    left = []
    for group in base.glob(f"{GROUP}-*") if base is not None else ():
        if is_populated(group) and not end_group(group, within):
            left.append(f"processes in {group}")
        else:
            remove(group)
    return (*left, *end_rollout(state_dir, None, users, within))


def _is_of(pid: int, state_dir: str, rollout: str | None, users: Collection[int]) -> bool:
    text = variable_of(pid, ROLLOUT)
    mark = RolloutMark.parse(text) if text is not None else None
    if mark is None or mark.state_dir != state_dir or rollout not in (None, mark.rollout):
        return False
    return user_of(pid) in users
