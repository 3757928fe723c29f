"""Looks which release the process of an instance really has open, whatever it was launched with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from clojarsd.core.errors import ClojarsdError
from clojarsd.core.names import Role
from clojarsd.system.family import descendants_of
from clojarsd.system.releases import ReleaseStore
from clojarsd.system.threads import Threads

log = structlog.get_logger()

LOOK_EVERY: Final = 10.0
"""Seconds for which what was seen of a process holds: a release that is a directory may have thousands of files."""
LOOK_TIMEOUT: Final = 0.5
"""Seconds after which a picture is shown without what a disk that hangs does not tell."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a process had open, and when that was seen (monotonic)."""

    pid: int
    names: frozenset[str]
    at: float


class ReleaseLook:
    """What instances really run. Made by daemon.py; its one thread needs no closing.

    Args:
        store: gives the directory of releases; raises Refused where there is none.
        pid_of: the number of an instance's process, or None.
    """

    def __init__(self, store: Callable[[], ReleaseStore], pid_of: Callable[[Role], int | None]) -> None:
        self._store = store
        self._pid_of = pid_of
        self._seen: dict[Role, _Seen] = {}
        self._thread = Threads("release-look")
        self._is_looking = False

    async def look(self) -> None:
        """Look again where that is due; returns soon, also where a look is stuck."""
        now = asyncio.get_running_loop().time()
        due = {role: pid for role in Role if (pid := self._pid_of(role)) is not None and self._is_due(role, pid, now)}
        if not due or self._is_looking:
            return
        try:
            async with asyncio.timeout(LOOK_TIMEOUT):
                found = await self._thread.run(self._look, due)
        except TimeoutError:
            return
        except (ClojarsdError, OSError) as error:
            log.debug("release_not_looked_at", reason=str(error))
            return
        for role, names in found.items():
            if names:  # before it has opened anything there is nothing to keep
                self._seen[role] = _Seen(due[role], names, now)

    def runs(self, role: Role, launched_with: str | None) -> str | None:
        """What the process runs: what it has open, if that was seen and is something else; None when nobody knows."""
        seen = self._seen.get(role)
        if seen is None or seen.pid != self._pid_of(role) or launched_with in seen.names:
            return launched_with
        return max(seen.names)

    def _is_due(self, role: Role, pid: int, now: float) -> bool:
        seen = self._seen.get(role)
        return seen is None or seen.pid != pid or now - seen.at >= LOOK_EVERY

    def _look(self, due: dict[Role, int]) -> dict[Role, frozenset[str]]:
        """What each process and its descendants have open. In the thread."""
        self._is_looking = True
        try:
            families = {role: {pid, *(one for one, _ in descendants_of(pid))} for role, pid in due.items()}
            used = self._store().in_use({pid for family in families.values() for pid in family})
            return {
                role: frozenset(name for name, pids in used.items() if family.intersection(pids))
                for role, family in families.items()
            }
        finally:
            self._is_looking = False
