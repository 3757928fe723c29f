"""Where a frontend writes down what happened."""

from __future__ import annotations

from typing import Any, Protocol

from clojarsd.core.history import EventName
from clojarsd.core.names import Role


class History(Protocol):
    """Keeps what happened."""

    def record(
        self, event: EventName, message: str, role: Role | None = None, by: str | None = None, **detail: Any
    ) -> None:
        """Add an event."""
