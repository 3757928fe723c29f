"""Looks at what the instances use, and has one restarted whose memory stays above its limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import structlog

from clojarsd.core.errors import Refused, reason_of
from clojarsd.core.memory import RESTART_BEGUN, MemoryRecord, count, describe_excess, may_exceed
from clojarsd.core.names import Role
from clojarsd.system.threads import Threads
from clojarsd.system.usage import Usage, usages, with_pss

log = structlog.get_logger()

EVERY = 5.0
"""Seconds between two samples."""
PSS_TIMEOUT = 4.0
"""Seconds after which a figure that the kernel has not given is no longer waited for; until it comes none is asked."""


class MemoryWatch:
    """What both instances use, as long as the daemon lives; `run` belongs to the daemon's task group.

    Args:
        limits: bytes for each role, None for no limit.
        restart: restarts the instance without an outage, for the reason given in words; raises Refused while that is
            not possible, and is then called again after each further sample above the limit. A restart that was begun
            and comes to nothing is asked for again some minutes later.
        look, measure: see `system.usage`; they block, and are called in threads.
    """

    def __init__(
        self,
        limits: Mapping[Role, int | None],
        restart: Callable[[Role, str], None],
        look: Callable[[Iterable[int]], Mapping[int, Usage]] = usages,
        measure: Callable[[Usage], Usage] = with_pss,
    ) -> None:
        self._limits = limits
        self._restart = restart
        self._look = look
        self._measure = measure
        self._pids: dict[Role, int] = {}
        self._latest: dict[Role, Usage] = {}
        self._records: dict[Role, MemoryRecord] = {}
        self._refused: set[Role] = set()
        self._measured: set[Role] = set()
        self._is_blind = False
        self._looking = Threads("usage")
        self._measuring = {role: Threads(f"memory-{role.value}") for role in Role}

    def begin(self, role: Role, pid: int) -> None:
        """Look at this process and its family from now on; what was seen of the one before is forgotten."""
        self.end(role)
        self._pids[role] = pid

    def end(self, role: Role) -> None:
        """The process is gone, or is being ended."""
        for memory in (self._pids, self._latest, self._records):
            memory.pop(role, None)
        self._refused.discard(role)

    def latest(self, role: Role) -> Usage | None:
        """What the instance used when it was last looked at; None when it has not been yet."""
        return self._latest.get(role)

    async def run(self) -> NoReturn:
        """Look until cancelled."""
        try:
            while True:
                await self.sample()
                await asyncio.sleep(EVERY)
        finally:
            self.close()

    def close(self) -> None:
        """End the threads; `run` does this at its end."""
        for threads in (self._looking, *self._measuring.values()):
            threads.close()

    async def sample(self) -> None:
        """Look once at each instance, and act on what is seen."""
        pids = dict(self._pids)
        if not pids:
            return
        try:
            seen = await self._looking.run(self._look, tuple(pids.values()))
        except OSError as error:  # no descriptor is left to look with: the next sample tries again
            if not self._is_blind:
                self._is_blind = True
                log.warning("memory_not_seen", reason=reason_of(error))
            return
        self._is_blind = False
        async with asyncio.TaskGroup() as group:
            for role, pid in pids.items():
                if pid in seen and self._pids.get(role) == pid:
                    group.create_task(self._judge(role, pid, seen[pid]))

    async def _judge(self, role: Role, pid: int, seen: Usage) -> None:
        limit = self._limits.get(role)
        self._latest[role] = seen
        if limit is None:
            return
        used = seen.rss_bytes
        if may_exceed(used, limit):
            exact = await self._exactly(role, seen)
            if exact is None or exact.pss_bytes is None or self._pids.get(role) != pid:
                return
            self._latest[role], used = exact, exact.pss_bytes
        record = self._records[role] = count(self._records.get(role, MemoryRecord()), used, limit)
        if not record.above:
            self._refused.discard(role)
        if record.is_excessive:
            self._ask_for_restart(role, describe_excess(used, limit))

    async def _exactly(self, role: Role, seen: Usage) -> Usage | None:
        """The usage with its PSS; None when the kernel is still busy with that of an earlier one, or takes too long."""
        if role in self._measured:
            return None
        self._measured.add(role)

        def measure() -> Usage:
            try:
                return self._measure(seen)
            finally:
                self._measured.discard(role)  # in the thread: it may end long after nobody waits for it

        try:
            async with asyncio.timeout(PSS_TIMEOUT):
                return await self._measuring[role].run(measure)
        except TimeoutError:
            log.warning("memory_not_measured", role=role.value, timeout_s=PSS_TIMEOUT)
            return None

    def _ask_for_restart(self, role: Role, reason: str) -> None:
        try:
            self._restart(role, reason)
        except Refused as refused:
            if role not in self._refused:
                self._refused.add(role)
                log.warning("memory_restart_put_off", role=role.value, reason=reason, refused=str(refused))
        else:
            log.warning("memory_restart_begun", role=role.value, reason=reason)
            self._records[role] = RESTART_BEGUN
            self._refused.discard(role)
