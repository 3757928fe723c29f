"""What becomes of the open connections of a frontend when new ones go elsewhere, where its settings say something.

Those of an instance that is down are reset, so that clients come to the other one; those of the backup are brought home
when the primary is back. Why in this way: docs/decisions/0013-what-the-relay-adds.md. A part of `Frontend`, set apart.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import structlog

from clojarsd.core.names import Role
from clojarsd.runtime import places
from clojarsd.runtime.drain import LOOKS_PER_IDLE_TIME
from clojarsd.system.relay import EndReason, Session
from clojarsd.system.relay_phases import Phase

if TYPE_CHECKING:
    import asyncio

    from clojarsd.runtime.frontend import Frontend

log = structlog.get_logger()

SHORTEST_PAUSE = 0.01
"""Seconds between two looks at the connections that are to go home."""
_LEAVES = (Phase.MOVING, Phase.LOST, Phase.ENDED)
"""Without its instance already, or soon: what is still carried is all that the client will get of it."""


class Switchover:
    """The frontend makes and closes it, and calls `look` when something has changed.

    Attributes:
        down: the instances that may get no connections because something is wrong with them.
        until: loop time until when the backup's silent connections are ended, or None.
    """

    def __init__(self, frontend: Frontend, loop: asyncio.AbstractEventLoop) -> None:
        self.down: frozenset[Role] = frozenset()
        self.until: float | None = None
        self._frontend = frontend
        self._loop = loop
        self._guests: dict[Session, tuple[int, float]] = {}
        """Who is to go home, how much that one had carried at the last look, and since when it has been silent."""
        self._next: asyncio.TimerHandle | None = None

    def look(self, down: Collection[Role] | None = None) -> None:
        """Do what is to be done by now.

        Args:
            down: the instances that something is wrong with; None: as before.
        """
        if down is not None:
            self.down = frozenset(down)
        frontend = self._frontend
        if not frontend.plan.moves_on_up:
            self.close()
        if not frontend.plan.cuts_on_down or frontend.gate.paused is not None or not frontend.listeners:
            return
        for role in self.down:
            is_drained = role in frontend._drains or frontend._router.eligible_since[role] is not None
            if not is_drained and places.may_serve(frontend, role.other):
                self._cut(role)

    def _cut(self, role: Role) -> None:
        doomed = [session for session in self._frontend.open_sessions(role) if session.phase not in _LEAVES]
        for session in doomed:
            session.cut(EndReason.DOWN)
        if doomed:
            log.warning("down_cut", frontend=self._frontend.name, role=role.value, connections=len(doomed))

    # Home.

    def route_changed(self) -> None:
        """When new connections go to the primary, those of the backup are to follow, where the settings want that.

        HTTP ones change sides with their next request, whenever that is. Others are ended when they have been silent
        for `drain_idle`, if that is within `drain` seconds from now; after that they are left alone.
        """
        self.close()
        frontend = self._frontend
        is_home = frontend._router.active is Role.PRIMARY and Role.BACKUP not in frontend._drains
        if not is_home or not frontend.plan.moves_on_up or not frontend.listeners:
            return
        if frontend.can_move:
            for session in list(frontend.open_sessions(Role.BACKUP)):
                session.move_at_next_request()
        else:
            self._begin(self._loop.time() + frontend.plan.drain)

    def _begin(self, until: float) -> None:
        self.until = until
        self._guests = dict.fromkeys(self._frontend.open_sessions(Role.BACKUP), (-1, 0.0))
        self._sweep()

    def _sweep(self) -> None:
        """End those who have been silent long enough and to whom no answer is owed."""
        self._next = None
        frontend, now = self._frontend, self._loop.time()
        is_home = frontend._router.active is Role.PRIMARY and Role.BACKUP not in frontend._drains
        if self.until is None or now >= self.until or not is_home:
            self.close()
            return
        idle = frontend.plan.drain_idle
        here = frontend.open_sessions(Role.BACKUP)
        for session, (carried_before, since) in list(self._guests.items()):
            carried, is_quiet = session.bytes_up + session.bytes_down, session.is_quiet()
            if session not in here:
                del self._guests[session]
            elif carried != carried_before or not is_quiet:
                self._guests[session] = (carried, now)
            elif now - since >= idle:
                session.finish(EndReason.HOME)  # not if something was said at this moment
        if self._guests:
            self._next = self._loop.call_later(max(idle / LOOKS_PER_IDLE_TIME, SHORTEST_PAUSE), self._sweep)
        else:
            self.close()

    # From one process to another.

    def stand_still(self) -> None:
        """End nothing until `go_on`, whatever the time."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def go_on(self) -> None:
        """Go on after `stand_still`, here or, with the same `until`, in another process; silence counts anew."""
        if self.until is not None:
            self.stand_still()
            self._begin(self.until)

    def close(self) -> None:
        """Leave the backup's connections alone."""
        self.stand_still()
        self.until = None
        self._guests = {}
