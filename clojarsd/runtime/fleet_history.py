"""What several relay processes tell of one frontend, recorded once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from clojarsd.core.history import EventName
from clojarsd.core.names import Role
from clojarsd.runtime.frontend_history import History

_MOVES = frozenset({EventName.FAILOVER, EventName.FAILBACK})
_HOLDS = frozenset({EventName.HOLD_STARTED, EventName.HOLD_ENDED})


class FleetHistory:
    """Takes what the relay processes tell, each by its number; made by the fleet, nothing to close.

    A failover or failback is recorded when the first process that is there tells it. A hold is on while it is in any.

    Args:
        history: where the events go.
        first: gives the number of the first process that is there, and whether it is the only one.
    """

    def __init__(self, history: History, first: Callable[[], tuple[int | None, bool]]) -> None:
        self._history = history
        self._first = first
        self._loop = asyncio.get_running_loop()
        self._holding: dict[str, set[int]] = {}
        self._since: dict[str, float] = {}

    def of(self, number: int) -> History:
        """Where the process of that number tells its events."""
        return _Teller(self, number)

    def holds(self, number: int, frontend: str) -> None:
        """Clients wait there already."""
        self._holding.setdefault(frontend, set()).add(number)

    def lost(self, number: int) -> None:
        """The process has gone, and who waited there with it."""
        for holding in self._holding.values():
            holding.discard(number)

    def tell(self, number: int, event: EventName, message: str, role: Role | None, detail: dict[str, Any]) -> None:
        """The process of that number has told this."""
        first, is_alone = self._first()
        if is_alone or (event not in _MOVES and event not in _HOLDS):
            self._history.record(event, message, role, None, **detail)
        elif event in _MOVES or "happened_at" in detail:  # what happened without us was the same in all
            if number == first:
                self._history.record(event, message, role, None, **detail)
        else:
            self._hold(number, event, message, detail)

    def _hold(self, number: int, event: EventName, message: str, detail: dict[str, Any]) -> None:
        frontend = str(detail.get("frontend"))
        holding = self._holding.setdefault(frontend, set())
        was_held = bool(holding)
        if event is EventName.HOLD_STARTED:
            holding.add(number)
            if not was_held:
                self._since[frontend] = self._loop.time()
                self._history.record(event, message, None, None, **detail)
            return
        holding.discard(number)
        if not holding:
            since = self._since.pop(frontend, None)
            if since is not None:
                lasted = self._loop.time() - since
                message = f"no connection of frontend {frontend} waits any more, after {lasted:.3g} s"
                detail = {**detail, "seconds": round(lasted, 3)}
            self._history.record(event, message, None, None, **detail)


class _Teller:
    """One process's way to the history of all."""

    def __init__(self, fleet: FleetHistory, number: int) -> None:
        self._fleet = fleet
        self._number = number

    def record(
        self, event: EventName, message: str, role: Role | None = None, by: str | None = None, **detail: Any
    ) -> None:
        """Add an event, if nobody has told it."""
        self._fleet.tell(self._number, event, message, role, detail)
