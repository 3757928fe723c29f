"""The picture of the pair that operators and programs see: plain values, and their JSON of version 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.frontend_plan import CountedFrom
from clojarsd.core.names import ExitStatus, Health, Role
from clojarsd.core.rollout_view import RolloutView
from clojarsd.core.routing import NO_CAPS, Caps, is_down, is_eligible
from clojarsd.core.unit import Unit
from clojarsd.core.warmup import Warmup


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
class Next:
    """What happens by itself if nothing else does: a sentence that says `it` of whom it is about, and when (UTC).

    Attributes:
        reason: why it takes longer than usual, or None.
    """

    what: str
    at: str
    reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        """It as `GET /v1/status` gives it."""
        return {"what": self.what, "at": self.at} | ({"reason": self.reason} if self.reason is not None else {})


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance.

    Attributes:
        pid: of its process, or None.
        since: when the present state began (UTC).
        restarts: launches that followed an unasked end, since the daemon started.
        reason: why it gets no connections, in words; None when it may.
        release: the file name of the release it was launched with, or None.
        other_release: that it runs another one than the link names, in words, while no rollout explains that; or None.
        goal_by: the user whose order made the goal what it is, or None when nobody's did.
        goal_at: when they gave it (UTC), or None.
        started_at: when its process began (UTC), or None.
        adopted: whether its process was started by an earlier daemon.
        memory_bytes: its share of memory (PSS), or None.
        cpu_seconds: of its process so far, or None.
        status_text: what it says of itself (STATUS= of sd_notify), or None.
        next: what happens by itself, such as the next launch or the end of a deadline, or None.
        reload_signal: the number of the signal that asks it to reload.
        trouble: what is wrong with it though it may get connections, in words; None when nothing is.
        stalls: how often it has been found to accept no connections; stall_seconds: for how long in all.
        start_seconds: from the launch of its process until its checks passed for the first time, or None.
        cds: whether its process maps the class-data archive of its release; None until its checks have passed.
        drained: what has become of its connections in the latest drain that is over; None: it is not, or not known.
        warmup: that of its latest process, or None without one.
        ended: how its latest process ended, without what comes next, in words; None before the first end.
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
    goal_by: str | None = None
    goal_at: str | None = None
    started_at: str | None = None
    adopted: bool = False
    memory_bytes: int | None = None
    cpu_seconds: float | None = None
    status_text: str | None = None
    next: Next | None = None
    reload_signal: int = 1
    trouble: str | None = None
    stalls: int = 0
    stall_seconds: float = 0.0
    drained: DrainTally | None = None
    other_release: str | None = None
    warmup: Warmup | None = None
    ended: str | None = None
    start_seconds: float | None = None
    cds: bool | None = None

    @property
    def is_eligible(self) -> bool:
        """Whether it may get connections."""
        return is_eligible(self.unit.state, self.health)

    @property
    def is_down(self) -> bool:
        """Whether it may not because something is wrong with it, and not because it is to leave."""
        return is_down(self.unit.state, self.health)

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
            "lacks": self.unit.lacks,
            "release": self.release,
            "other_release": self.other_release,
            "ports": dict(self.ports),
            "checks": [
                {"kind": check.kind, "up": check.health is Health.UP, "last": check.last, "at": check.at}
                for check in self.checks
            ],
            "jvm": None,
            "goal_by": self.goal_by,
            "goal_at": self.goal_at,
            "started_at": self.started_at,
            "adopted": self.adopted,
            "memory_bytes": self.memory_bytes,
            "cpu_seconds": self.cpu_seconds,
            "status_text": self.status_text,
            "next": self.next and self.next.as_json(),
            "trouble": self.trouble,
            "stalls": self.stalls,
            "stall_seconds": round(self.stall_seconds, 3),
            "warmup": self.warmup and self.warmup.as_json(),
            "start_seconds": self.start_seconds and round(self.start_seconds, 3),
            "cds": self.cds,
        }


@dataclass(frozen=True, slots=True)
class PausedView:
    """An operator's wish that new connections wait. `until`: UTC; `by`: whose wish."""

    until: str
    by: str


@dataclass(frozen=True, slots=True)
class FrontendView:
    """One frontend. The mappings count by role, and by None what is or was held.

    Attributes:
        accepted_total: counted since the frontend began; never less than before.
        next: what happens by itself, such as the failback, or None.
        paused: until when (UTC) new connections wait by order, and by whose, or None.
        caps: how many connections there may be.
        counted_from: what is shown is counted from there; None: from the beginning.
        draining: the instances whose open connections are let end, and until when (UTC); those without any left are
            not among them.
        failures: how often in a row the primary has ceased to serve before it had served for long.
        share: the part of new connections, from 0 to 0.5, that goes to the backup by order while the primary is active
            and both may get some.
    """

    listen: tuple[str, ...]
    mode: str
    mode_reason: str | None
    active: Role | None
    connections: Mapping[Role | None, int]
    accepted_total: Mapping[Role | None, int]
    next: Next | None = None
    paused: PausedView | None = None
    caps: Caps = NO_CAPS
    counted_from: CountedFrom | None = None
    draining: Mapping[Role, str] = field(default_factory=dict)
    failures: int = 0
    share: float = 0.0

    @property
    def accepted(self) -> Mapping[Role | None, int]:
        """What was accepted since an operator has begun to count anew, if one has."""
        before = self.counted_from.accepted if self.counted_from is not None else {}
        return {one: max(count - before.get(one, 0), 0) for one, count in self.accepted_total.items()}

    def as_json(self) -> dict[str, Any]:
        """The frontend as `GET /v1/status` gives it."""
        return {
            "listen": list(self.listen),
            "mode": self.mode,
            "mode_reason": self.mode_reason,
            "active": self.active.value if self.active is not None else None,
            "connections": _by_role(self.connections),
            "accepted_total": _by_role(self.accepted),
            "next": self.next and self.next.as_json(),
            "paused": self.paused and {"until": self.paused.until, "by": self.paused.by},
            "caps": {"total": self.caps.total, "primary": self.caps.primary, "backup": self.caps.backup},
            "counters_since": self.counted_from and {"at": self.counted_from.at, "by": self.counted_from.by},
            "draining": {
                role.value: {"until": until, "left": self.connections.get(role, 0)}
                for role, until in self.draining.items()
            },
            "recent_failovers": self.failures,
            "share_percent": round(self.share * 100, 2),
        }


@dataclass(frozen=True, slots=True)
class DaemonView:
    """The daemon itself.

    Attributes:
        config: the path of its configuration file.
        generation: how many times code was executed under this pid; each upgrade raises it.
        relay_pid: of the process that relays connections, the first where there are several, or None.
        relay_pids: of all of them, also of those that only let their connections end.
    """

    version: str
    pid: int
    started_at: str
    config: str
    generation: int = 1
    relay_pid: int | None = None
    relay_pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PairView:
    """Everything at one moment.

    Attributes:
        current_release: the file name of what the link names, or None.
        rollout: the deploy or rollback that is under way, or was the latest.
        previous_release: the file name of the last good release before the current one, or None.
    """

    service: str
    daemon: DaemonView
    instances: Mapping[Role, InstanceView]
    frontends: Mapping[str, FrontendView]
    current_release: str | None = None
    rollout: RolloutView | None = None
    previous_release: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The body of `GET /v1/status`."""
        rollout = self.rollout
        return {
            "version": 1,
            "service": self.service,
            "daemon": {
                "version": self.daemon.version,
                "pid": self.daemon.pid,
                "started_at": self.daemon.started_at,
                "config": self.daemon.config,
                "generation": self.daemon.generation,
                "relay_pid": self.daemon.relay_pid,
                "relay_pids": list(self.daemon.relay_pids),
            },
            "instances": {role.value: self.instances[role].as_json() for role in Role},
            "frontends": {name: frontend.as_json() for name, frontend in self.frontends.items()},
            "release": {"current": self.current_release, "previous": self.previous_release},
            "rollout": rollout.as_json() if rollout is not None and rollout.is_under_way else None,
            "last_rollout": rollout.as_past() if rollout is not None and not rollout.is_under_way else None,
        }


def _by_role(counts: Mapping[Role | None, int]) -> dict[str, int]:
    return {
        "primary": counts.get(Role.PRIMARY, 0),
        "backup": counts.get(Role.BACKUP, 0),
        "held": counts.get(None, 0),
    }
