"""Takes the open connections of one instance away from it, politely and within a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from clojarsd.core.drain_tally import DrainTally, with_end
from clojarsd.core.names import Role
from clojarsd.system.relay import EndReason, Session

log = structlog.get_logger()

LOOKS_PER_IDLE_TIME = 4


class Drained(Protocol):
    """A frontend, as far as a drain needs it."""

    @property
    def plan(self) -> DrainPlan:
        """Its settings."""

    @property
    def can_move(self) -> bool:
        """Whether an open connection can leave its instance between two requests, and be served on."""

    def open_sessions(self, role: Role) -> set[Session]:
        """The relayed connections of the role."""

    def is_empty(self, role: Role) -> bool:
        """Whether no connection of the role is open or being opened."""

    def cut(self, role: Role, reason: EndReason = EndReason.CUT) -> None:
        """Close them with a reset."""


class DrainPlan(Protocol):
    """The settings of a drain: the seconds of `drain` and `drain_idle`."""

    @property
    def name(self) -> str:
        """The frontend's name."""

    @property
    def drain(self) -> float:
        """Seconds that open connections may last."""

    @property
    def drain_idle(self) -> float:
        """Seconds of silence after which a connection that owes no answer is not waited for."""


class Drain:
    """The drain of one role in one frontend, from its start until it is closed.

    An HTTP connection changes sides with its client's next request, or when it has been silent; another one is closed
    when it has been silent. A connection whose client waits for an answer is waited for until the deadline.

    Attributes:
        tally: what has become of its connections so far.
    """

    def __init__(
        self, frontend: Drained, role: Role, when_drained: Callable[[], None], within: float | None = None
    ) -> None:
        self.tally = DrainTally()
        self._frontend = frontend
        self._role = role
        self._when_drained: Callable[[], None] | None = when_drained
        self._loop = asyncio.get_running_loop()
        self._quiet_since: dict[Session, tuple[int, float]] = {}
        plan = frontend.plan
        self._began_at = self._loop.time()
        self._seconds = plan.drain if within is None else min(plan.drain, within)
        self._deadline = self._loop.call_later(self._seconds, self._expire)
        self._every = max(plan.drain_idle / LOOKS_PER_IDLE_TIME, 0.01)
        if frontend.can_move:
            for session in list(frontend.open_sessions(role)):
                session.move_at_next_request()
        self._next_look: asyncio.Handle = self._loop.call_soon(self._look_for_quiet)

    @property
    def until(self) -> float | None:
        """Until when connections may last, in the loop's time; None: none is left."""
        return self._deadline.when() if self._when_drained is not None else None

    def go_on(self, when_drained: Callable[[], None], within: float | None) -> None:
        """Call back somebody else, and sooner if connections may last only so many seconds from now."""
        assert self._when_drained is not None
        self._when_drained = when_drained
        if within is not None and self._loop.time() + within < self._deadline.when():
            self._deadline.cancel()
            self._seconds = self._loop.time() + within - self._began_at
            self._deadline = self._loop.call_later(within, self._expire)

    # From one process to another.

    def freeze(self) -> float | None:
        """Do nothing until `unfreeze`; until when connections may last, or None: none is left."""
        self._deadline.cancel()
        self._next_look.cancel()
        return self.until

    @classmethod
    def thaw(cls, frontend: Drained, role: Role, when_drained: Callable[[], None], deadline: float | None) -> Drain:
        """The same drain, in this process and still frozen, made before its connections are."""
        drain = cls(frontend, role, when_drained)
        drain.freeze()
        if deadline is None:
            drain._when_drained = None
        else:
            drain._deadline = drain._loop.call_at(deadline, drain._expire)
            drain._deadline.cancel()
        return drain

    def unfreeze(self) -> None:
        """Go on after `freeze` or `thaw`."""
        if self._when_drained is not None:
            self._deadline = self._loop.call_at(self._deadline.when(), self._expire)
            self._next_look = self._loop.call_soon(self._look_for_quiet)
            self._loop.call_soon(self.look)  # not before whoever unfreezes is ready to be told

    def quiet_since(self, session: Session) -> float | None:
        """Since when the session has been seen silent, or None."""
        carried, since = self._quiet_since.get(session, (-1, 0.0))
        return since if carried == session.bytes_up + session.bytes_down else None

    def was_quiet_since(self, session: Session, since: float) -> None:
        """Believe what another process has seen."""
        self._quiet_since[session] = (session.bytes_up + session.bytes_down, since)

    # The drain itself.

    def ended(self, reason: EndReason) -> None:
        """A connection has ended, or left the instance."""
        if self._when_drained is not None:
            is_sooner = self._seconds < self._frontend.plan.drain
            self.tally = with_end(self.tally, reason, round(self._seconds, 1), is_sooner=is_sooner)
        self.look()

    def look(self) -> None:
        """Call back if no connection is left."""
        if self._when_drained is not None and self._frontend.is_empty(self._role):
            when_drained, self._when_drained = self._when_drained, None
            self._deadline.cancel()
            self._next_look.cancel()
            when_drained()

    def close(self) -> None:
        """Leave what is open alone, and do not call back."""
        self._when_drained = None
        self._deadline.cancel()
        self._next_look.cancel()

    def _look_for_quiet(self) -> None:
        """End the connections that have been silent for `drain_idle` while no answer is owed."""
        plan, now = self._frontend.plan, self._loop.time()
        seen: dict[Session, tuple[int, float]] = {}
        for session in list(self._frontend.open_sessions(self._role)):
            carried = session.bytes_up + session.bytes_down
            before = self._quiet_since.get(session)
            since = before[1] if before is not None and before[0] == carried and session.is_quiet() else now
            seen[session] = (carried, since)
            if session.is_quiet() and now - since >= plan.drain_idle:
                if self._frontend.can_move:
                    session.move_now()
                else:
                    session.finish(EndReason.DRAINED)
        self._quiet_since = seen
        if self._when_drained is not None:
            self._next_look = self._loop.call_later(self._every, self._look_for_quiet)

    def _expire(self) -> None:
        left = len(self._frontend.open_sessions(self._role))
        log.warning("drain_cut", frontend=self._frontend.plan.name, role=self._role.value, connections=left)
        self._frontend.cut(self._role, EndReason.DRAIN_DEADLINE)
        self.look()
