"""What a relay process has shown last of its frontends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Role
from clojarsd.core.view import FrontendView

_NONE_OPEN: dict[Role | None, int] = {Role.PRIMARY: 0, Role.BACKUP: 0, None: 0}


class Shown:
    """One frontend.

    Args:
        steer: adds what the kernel does to what the relay process shows.

    Attributes:
        last: what a relay process has shown last, also when that has gone; None before the first time.
    """

    def __init__(self, plan: FrontendPlan, steer: Callable[[FrontendView], FrontendView]) -> None:
        self._steer = steer
        self.last: FrontendView | None = None
        self._now = FrontendView(
            listen=tuple(map(str, plan.listen)),
            mode="relay",
            mode_reason=plan.mode_reason,
            active=None,
            connections=_NONE_OPEN,
            accepted_total=_NONE_OPEN,
        )

    def view(self) -> FrontendView:
        """The frontend as it is, as far as is known."""
        return self._steer(self._now)

    def show(self, view: FrontendView) -> bool:
        """Take another one. Whether what somebody may wait for is different: who is active, or whether clients wait."""
        before, self._now, self.last = self._now, view, view
        return (
            before.active is not view.active
            or (before.paused, before.caps, before.counted_from) != (view.paused, view.caps, view.counted_from)
            or before.share != view.share
            or bool(before.connections[None]) != bool(view.connections[None])
        )

    def mourn(self) -> None:
        """The process has gone, and with it all connections; new ones wait."""
        self._now = replace(self._now, active=None, connections=_NONE_OPEN)
