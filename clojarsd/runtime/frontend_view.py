"""A frontend as operators and programs see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clojarsd.core.names import Role
from clojarsd.core.view import FrontendView

if TYPE_CHECKING:
    from clojarsd.runtime.frontend import Frontend


def view_of(frontend: Frontend) -> FrontendView:
    """The frontend now. A part of it, set apart."""
    dialling = [dial.role for dial in frontend._dials]
    counts: dict[Role | None, int] = {role: len(frontend.open_sessions(role)) + dialling.count(role) for role in Role}
    return FrontendView(
        listen=tuple(map(str, frontend.addresses() or frontend.plan.listen)),
        mode="relay",
        mode_reason=frontend.plan.mode_reason,
        active=frontend._router.active,
        connections={**counts, None: len(frontend._hold)},
        accepted_total=dict(frontend._accepted),
        next=frontend._router.next(),
    )
