"""What operators have ordered about one frontend: a pause, limits, and from where on is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from clojarsd.core.frontend_plan import CountedFrom, Pause
from clojarsd.core.history import stamp
from clojarsd.core.routing import Caps
from clojarsd.core.view import PausedView


class Gate:
    """Ends a pause when its time has come; the frontend, or whoever has its orders, makes and closes it.

    Args:
        changed: called when something was ordered, or a pause has ended by itself.

    Attributes:
        is_open: whether there is nothing to be heeded: neither a pause nor a limit.
        counted_from: what is shown is counted from there; None: from the beginning.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: structlog.typing.FilteringBoundLogger,
        caps: Caps,
        changed: Callable[[], None],
    ) -> None:
        self._caps = caps
        self.is_open = not caps.are_set
        self.counted_from: CountedFrom | None = None
        self._loop = loop
        self._log = log
        self._changed = changed
        self._pause: Pause | None = None
        self._shown: PausedView | None = None
        self._end: asyncio.TimerHandle | None = None

    @property
    def paused(self) -> Pause | None:
        """Until when new connections wait, in the loop's time; None: they do not."""
        return self._pause

    @property
    def caps(self) -> Caps:
        """How many connections there may be."""
        return self._caps

    @caps.setter
    def caps(self, caps: Caps) -> None:
        self._caps = caps
        self._look()

    def _look(self) -> None:
        self.is_open = self._pause is None and not self._caps.are_set

    def view(self) -> PausedView | None:
        """The pause as it is shown."""
        return self._shown if self._pause is not None else None

    def pause(self, pause: Pause) -> None:
        """Have new connections wait until then, whatever was wished before."""
        self.close()
        self._take(pause)
        self._log.info("pause_begun", by=pause.by, seconds=round(pause.until - self._loop.time(), 3))
        self.watch()
        self._changed()

    def resume(self) -> None:
        """Let them wait no more."""
        if self._pause is not None:
            self.close()
            self._pause = None
            self._look()
            self._log.info("pause_ended")
            self._changed()

    def cap(self, caps: Caps) -> None:
        """Have no more connections than that; who has come already stays."""
        self.caps = caps
        self._changed()

    def count_from(self, counted_from: CountedFrom) -> None:
        """Show what is counted from there on."""
        self.counted_from = counted_from
        self._changed()

    def watch(self) -> None:
        """End the pause, if there is one, when its time has come."""
        if self._pause is not None:
            self._end = self._loop.call_at(self._pause.until, self.resume)

    def thaw(self, pause: Pause | None, caps: Caps | None, counted_from: CountedFrom | None) -> None:
        """Become what another process's was, without ending the pause until `watch`."""
        self._take(pause)
        self.caps = caps or self.caps
        self.counted_from = counted_from

    def _take(self, pause: Pause | None) -> None:
        self._pause = pause
        self._look()
        self._shown = None if pause is None else PausedView(wall_clock(self._loop, pause.until), pause.by)

    def close(self) -> None:
        """End no pause any more."""
        if self._end is not None:
            self._end.cancel()
            self._end = None


def wall_clock(loop: asyncio.AbstractEventLoop, instant: float) -> str:
    """The loop's instant as people read it."""
    return stamp(datetime.now(UTC) + timedelta(seconds=instant - loop.time()))
