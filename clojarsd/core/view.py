"""The picture of the pair that operators and programs see: plain values, and their JSON of version 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clojarsd.core.names import ExitStatus, Health, Role
from clojarsd.core.routing import is_eligible
from clojarsd.core.unit import Unit


@dataclass(frozen=True, slots=True)
class CheckView:
    """One check of one instance. `last` says what was seen and `at` when; both None before the first result."""

    kind: str
    health: Health
    last: str | None
    at: str | None


@dataclass(frozen=True, slots=True)
class LastExit:
    """How the latest process ended, and when."""

    status: ExitStatus
    at: str


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance.

    Attributes:
        pid: of its process, or None.
        since: when the present state began (UTC).
        restarts: launches that followed an unasked end, since the daemon started.
        reason: why it gets no connections, in words; None when it may.
        release: the file name of the release it was launched with, or None.
    """

    role: Role
    name: str
    unit: Unit
    health: Health
    pid: int | None
    since: str
    restarts: int
    last_exit: LastExit | None
    reason: str | None
    release: str | None
    ports: Mapping[str, int]
    checks: tuple[CheckView, ...]

    @property
    def is_eligible(self) -> bool:
        """Whether it may get connections."""
        return is_eligible(self.unit.state, self.health)

    def as_json(self) -> dict[str, Any]:
        """The instance as `GET /v1/status` gives it."""
        last = self.last_exit
        return {
            "name": self.name,
            "goal": self.unit.goal.value,
            "state": self.unit.state.value,
            "health": self.health.value,
            "eligible": self.is_eligible,
            "pid": self.pid,
            "incarnation": self.unit.incarnation,
            "since": self.since,
            "restarts": self.restarts,
            "last_exit": last and {"code": last.status.code, "signal": last.status.signal, "at": last.at},
            "reason": self.reason,
            "release": self.release,
            "ports": dict(self.ports),
            "checks": [
                {"kind": check.kind, "up": check.health is Health.UP, "last": check.last, "at": check.at}
                for check in self.checks
            ],
            "jvm": None,
        }


@dataclass(frozen=True, slots=True)
class FrontendView:
    """One frontend. The mappings count by role, and by None what is or was held."""

    listen: tuple[str, ...]
    mode: str
    mode_reason: str | None
    active: Role | None
    connections: Mapping[Role | None, int]
    accepted_total: Mapping[Role | None, int]

    def as_json(self) -> dict[str, Any]:
        """The frontend as `GET /v1/status` gives it."""
        return {
            "listen": list(self.listen),
            "mode": self.mode,
            "mode_reason": self.mode_reason,
            "active": self.active.value if self.active is not None else None,
            "connections": _by_role(self.connections),
            "accepted_total": _by_role(self.accepted_total),
        }


@dataclass(frozen=True, slots=True)
class DaemonView:
    """The daemon itself. `config` is the path of its configuration file."""

    version: str
    pid: int
    started_at: str
    config: str


@dataclass(frozen=True, slots=True)
class PairView:
    """Everything at one moment."""

    service: str
    daemon: DaemonView
    instances: Mapping[Role, InstanceView]
    frontends: Mapping[str, FrontendView]
    current_release: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The body of `GET /v1/status`."""
        return {
            "version": 1,
            "service": self.service,
            "daemon": {
                "version": self.daemon.version,
                "pid": self.daemon.pid,
                "started_at": self.daemon.started_at,
                "config": self.daemon.config,
            },
            "instances": {role.value: self.instances[role].as_json() for role in Role},
            "frontends": {name: frontend.as_json() for name, frontend in self.frontends.items()},
            "release": {"current": self.current_release, "previous": None},
            "rollout": None,
        }


def _by_role(counts: Mapping[Role | None, int]) -> dict[str, int]:
    return {
        "primary": counts.get(Role.PRIMARY, 0),
        "backup": counts.get(Role.BACKUP, 0),
        "held": counts.get(None, 0),
    }
