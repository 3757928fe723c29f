"""The pauses that operators have ordered, as the supervisor knows them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from clojarsd.core.frontend_plan import Pause


class Pauses:
    """By the name of the frontend; each ends by itself.

    Args:
        changed: called with the names of the paused frontends when one has begun or has ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, changed: Callable[[Collection[str]], None]) -> None:
        self._loop = loop
        self._changed = changed
        self._paused: dict[str, _Paused] = {}

    @property
    def paused(self) -> Mapping[str, Pause]:
        """Those that have not ended."""
        return {name: paused.pause for name, paused in self._paused.items()}

    def begin(self, name: str, pause: Pause) -> None:
        """Keep one, in place of another one of the same frontend."""
        self._forget(name)
        self._paused[name] = _Paused(pause, self._loop.call_at(pause.until, self.end, name))
        self._changed(self._paused)

    def end(self, name: str) -> None:
        """End one, if there is one."""
        self._forget(name)
        self._changed(self._paused)

    def forget_all(self) -> None:
        """Keep none, and tell nobody."""
        for name in list(self._paused):
            self._forget(name)

    def _forget(self, name: str) -> None:
        if (paused := self._paused.pop(name, None)) is not None:
            paused.end.cancel()


@dataclass(slots=True)
class _Paused:
    pause: Pause
    end: asyncio.TimerHandle
