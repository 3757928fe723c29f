"""Finds the listening sockets of a ready instance, and finds them again when they are others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from clojarsd.core.errors import Failed
from clojarsd.core.identity import InstanceMark
from clojarsd.core.names import Incarnation, Role
from clojarsd.system.instance_sockets import Listening, find_listening
from clojarsd.system.kinship import members

log = structlog.get_logger()

FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
"""Seconds until a listener that was not found is looked for again; doubled each time."""


@dataclass(frozen=True, slots=True)
class Target:
    """A process that is ready.

    Attributes:
        leader: its number.
        ports: those that clients use, each once.
    """

    incarnation: Incarnation
    leader: int
    mark: InstanceMark | None
    ports: tuple[int, ...]


class InstanceListeners:
    """The listeners of one role's process; `run` belongs to a task group of its owner.

    Args:
        on_found: called with all that are there whenever they are looked for and found to be others than before.
    """

    def __init__(self, role: Role, on_found: Callable[[Target, list[Listening]], None]) -> None:
        self.target: Target | None = None
        self._on_found = on_found
        self._found: list[Listening] | None = None
        """What was told last; None: whatever is found is news."""
        self._wanted = asyncio.Event()
        self._reason: str | None = None
        self._log = log.bind(role=role.value)

    def begin(self, target: Target) -> None:
        """Look for those of this process from now on."""
        self.target = target
        self._found = self._reason = None
        self._wanted.set()

    def end(self) -> None:
        """Look for nothing."""
        self.target = None
        self._wanted.set()

    def look_again(self) -> None:
        """One of them is not there any more."""
        self._found = None
        self._wanted.set()

    async def run(self) -> None:
        """Look whenever there is reason to, until cancelled."""
        delay = FIRST_DELAY
        while True:
            try:
                async with asyncio.timeout(delay if self._reason is not None else None):
                    await self._wanted.wait()
            except TimeoutError:
                delay = min(2 * delay, LONGEST_DELAY)
            else:
                delay = FIRST_DELAY
            self._wanted.clear()
            if (target := self.target) is None:
                self._reason = None
                continue
            found, reason = await asyncio.to_thread(_search, target)
            if target is not self.target:
                continue
            if reason is not None and reason != self._reason:
                self._log.warning("listener_not_found", reason=reason)
            self._reason = reason
            if found != self._found:
                self._found = found
                self._on_found(target, found)


def _search(target: Target) -> tuple[list[Listening], str | None]:
    """The listeners of the process's ports, and why there is none for one of them, in words. Blocks."""
    found: list[Listening] = []
    reason: str | None = None
    everybody: list[int] | None = None
    for port in target.ports:
        try:
            here = find_listening([target.leader], port)
            if not here:
                everybody = everybody or members(target.leader, target.mark)
                here = find_listening(everybody, port)
            if not here:
                reason = f"nothing of it listens on port {port}"
            found += here
        except Failed as failed:
            reason = str(failed)
    return found, reason
