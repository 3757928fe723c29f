"""All frontends together: who may get connections, and the drain of an instance over all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from clojarsd.core.names import Role
from clojarsd.runtime.frontend import Frontend


class Traffic:
    """The connections that clients have to the pair; for as long as the daemon lives."""

    def __init__(self, frontends: Sequence[Frontend]) -> None:
        self._frontends = tuple(frontends)
        self._loop = asyncio.get_running_loop()
        self._eligible_since: dict[Role, float | None] = dict.fromkeys(Role)

    def set_eligible(self, role: Role, eligible: bool) -> None:
        """Whether the instance may get new connections; acted on before this returns."""
        if eligible == (self._eligible_since[role] is not None):
            return
        self._eligible_since[role] = self._loop.time() if eligible else None
        for frontend in self._frontends:
            frontend.set_eligible(self._eligible_since)

    def begin_drain(self, role: Role, when_drained: Callable[[], None]) -> None:
        """Let open connections end, each within its frontend's time; call back when none is left in any."""
        left = {frontend.plan.name for frontend in self._frontends}

        def drained(name: str) -> None:
            left.discard(name)
            if not left:
                when_drained()

        for frontend in self._frontends:
            frontend.begin_drain(role, partial(drained, frontend.plan.name))
        if not self._frontends:
            when_drained()

    def end_drain(self, role: Role) -> None:
        """Leave open connections alone again."""
        for frontend in self._frontends:
            frontend.end_drain(role)

    def cut(self, role: Role) -> None:
        """Close the open connections with a reset."""
        for frontend in self._frontends:
            frontend.cut(role)
