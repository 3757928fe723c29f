"""What goes into the history: the names of events, and one of them as a value."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from clojarsd.core.names import Role


class EventName(enum.Enum):
    """The events that operators and hooks may rely on."""

    INSTANCE_STARTED = "instance-started"
    INSTANCE_READY = "instance-ready"
    INSTANCE_EXITED = "instance-exited"
    INSTANCE_FAILED = "instance-failed"
    INSTANCE_STALLED = "instance-stalled"
    INSTANCE_RECOVERED = "instance-recovered"
    INSTANCE_HUNG = "instance-hung"
    WARMUP_FINISHED = "warmup-finished"
    WARMUP_FAILED = "warmup-failed"
    OOM = "oom"
    DEADLOCK = "deadlock"
    FAILOVER = "failover"
    FAILBACK = "failback"
    HOLD_STARTED = "hold-started"
    HOLD_ENDED = "hold-ended"
    DRAIN_STARTED = "drain-started"
    DRAIN_FINISHED = "drain-finished"
    DEPLOY_STARTED = "deploy-started"
    DEPLOY_STEP = "deploy-step"
    DEPLOY_WAITING = "deploy-waiting"
    DEPLOY_FINISHED = "deploy-finished"
    DEPLOY_FAILED = "deploy-failed"
    DEPLOY_ABORTED = "deploy-aborted"
    ROLLBACK_FINISHED = "rollback-finished"
    ORDER = "order"
    CONFIG_RELOADED = "config-reloaded"
    DAEMON_STARTED = "daemon-started"
    DAEMON_UPGRADED = "daemon-upgraded"
    DAEMON_ADOPTED = "daemon-adopted"


def stamp(at: datetime) -> str:
    """An aware instant of the wall clock as every answer and event writes it: `2026-11-23T12:00:00.000Z`."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class PastEvent:
    """One line of the history.

    Attributes:
        id: grows by one with each event, also over restarts of the daemon.
        at: UTC, as `2026-11-23T12:00:00.000Z`.
        role: of which instance, or None.
        by: the user whose order it was, or None.
        message: a sentence for people.
        detail: JSON values by name.
    """

    id: int
    at: str
    event: EventName
    role: Role | None
    by: str | None
    message: str
    detail: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The event as the API and hooks give it."""
        return {
            "id": self.id,
            "at": self.at,
            "event": self.event.value,
            "role": self.role.value if self.role is not None else None,
            "by": self.by,
            "message": self.message,
            "detail": dict(self.detail),
        }
