"""The JSON of `clojarsctl status --json`, field by field as the contract has it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from clojarsd.core.frontend_plan import CountedFrom
from clojarsd.core.names import ExitStatus, Goal, Health, Incarnation, Role, UnitState
from clojarsd.core.routing import Caps
from clojarsd.core.unit import Unit
from clojarsd.core.view import CheckView, DaemonView, FrontendView, InstanceView, LastExit, Next, PairView, PausedView
from clojarsd.core.warmup import Outcome, Warmup

PRIMARY = InstanceView(
    role=Role.PRIMARY,
    name="clojars",
    unit=Unit(Goal.UP, UnitState.READY, incarnation=Incarnation(3)),
    health=Health.UP,
    pid=901,
    since="2026-11-23T12:00:09.000Z",
    restarts=2,
    last_exit=LastExit(ExitStatus(1, None), "2026-11-23T12:00:00.000Z"),
    reason=None,
    warmup=Warmup(20, Outcome.SETTLED, 7, first=0.0402, latency=0.00312, seconds=2.1),
    release="clojars-web-0.8.1-standalone.jar",
    goal_by="ann",
    goal_at="2026-11-23T11:00:00.000Z",
    started_at="2026-11-23T12:00:05.000Z",
    adopted=True,
    memory_bytes=536870912,
    cpu_seconds=34.5,
    status_text="serving",
    next=Next("it gets SIGKILL", "2026-11-23T12:01:00.000Z"),
    trouble="it has not said within 10 s that it is alive (watchdog)",
    stalls=2,
    stall_seconds=1.23456,
    start_seconds=1.41834,
    cds=True,
    ports={"http": 8001, "nailgun": 8101},
    checks=(
        CheckView("http", Health.UP, "200 in 3 ms", "2026-11-23T12:00:10.000Z"),
        CheckView("tcp", Health.UNKNOWN, None, None),
        CheckView("tcp", Health.DOWN, "127.0.0.1:8101 refused", "2026-11-23T12:00:11.000Z"),
    ),
)
BACKUP = InstanceView(
    role=Role.BACKUP,
    name="clojars-backup",
    unit=Unit(),
    health=Health.UNKNOWN,
    pid=None,
    since="2026-11-23T12:00:00.000Z",
    restarts=0,
    last_exit=None,
    reason="not started yet",
    release=None,
    ports={"http": 8002},
    checks=(),
)
HTTP = FrontendView(
    ("127.0.0.1:8080", "[::1]:8080"),
    "steer",
    None,
    Role.PRIMARY,
    {Role.PRIMARY: 2},
    {Role.PRIMARY: 5, None: 11},
    Next("primary gets its new connections", "2026-11-23T12:00:14.000Z", "it has failed twice"),
    paused=PausedView("2026-11-23T12:00:20.000Z", "ada"),
    caps=Caps(100, 60),
    counted_from=CountedFrom({Role.PRIMARY: 5, None: 4}, "2026-11-23T12:00:01.000Z", "ada"),
    draining={Role.PRIMARY: "2026-11-23T12:00:30.000Z"},
    failures=2,
    share=0.05,
)
LINE = FrontendView(
    ("127.0.0.1:8700",), "relay", "no CAP_BPF", None, {None: 1}, {Role.PRIMARY: 100, Role.BACKUP: 3, None: 4}
)
PAIR = PairView(
    "clojars",
    DaemonView(
        "1.0.0", 812, "2026-11-23T12:00:00Z", "/etc/clojarsd.toml", generation=3, relay_pid=813, relay_pids=(813, 814)
    ),
    {Role.BACKUP: BACKUP, Role.PRIMARY: PRIMARY},
    {"http": HTTP, "line": LINE},
    "clojars-web-0.8.1-standalone.jar",
)


def test_the_whole_picture() -> None:
    assert PAIR.as_json() == {
        "version": 1,
        "service": "clojars",
        "daemon": {
            "version": "1.0.0",
            "pid": 812,
            "started_at": "2026-11-23T12:00:00Z",
            "config": "/etc/clojarsd.toml",
            "generation": 3,
            "relay_pid": 813,
            "relay_pids": [813, 814],
        },
        "instances": {
            "primary": {
                "name": "clojars",
                "goal": "up",
                "state": "ready",
                "health": "up",
                "eligible": True,
                "pid": 901,
                "incarnation": 3,
                "since": "2026-11-23T12:00:09.000Z",
                "restarts": 2,
                "last_exit": {"code": 1, "signal": None, "at": "2026-11-23T12:00:00.000Z"},
                "reason": None,
                "release": "clojars-web-0.8.1-standalone.jar",
                "other_release": None,
                "ports": {"http": 8001, "nailgun": 8101},
                "checks": [
                    {"kind": "http", "up": True, "last": "200 in 3 ms", "at": "2026-11-23T12:00:10.000Z"},
                    {"kind": "tcp", "up": False, "last": None, "at": None},
                    {"kind": "tcp", "up": False, "last": "127.0.0.1:8101 refused", "at": "2026-11-23T12:00:11.000Z"},
                ],
                "jvm": None,
                "goal_by": "ann",
                "goal_at": "2026-11-23T11:00:00.000Z",
                "started_at": "2026-11-23T12:00:05.000Z",
                "adopted": True,
                "memory_bytes": 536870912,
                "cpu_seconds": 34.5,
                "status_text": "serving",
                "next": {"what": "it gets SIGKILL", "at": "2026-11-23T12:01:00.000Z"},
                "trouble": "it has not said within 10 s that it is alive (watchdog)",
                "stalls": 2,
                "stall_seconds": 1.235,
                "lacks": None,
                "start_seconds": 1.418,
                "cds": True,
                "warmup": {
                    "rounds": 7,
                    "of": 20,
                    "latency_ms": 3.1,
                    "first_ms": 40.2,
                    "outcome": "settled",
                    "seconds": 2.1,
                    "failure": None,
                },
            },
            "backup": {
                "name": "clojars-backup",
                "goal": "down",
                "state": "stopped",
                "health": "unknown",
                "eligible": False,
                "pid": None,
                "incarnation": 0,
                "since": "2026-11-23T12:00:00.000Z",
                "restarts": 0,
                "last_exit": None,
                "reason": "not started yet",
                "release": None,
                "other_release": None,
                "ports": {"http": 8002},
                "checks": [],
                "jvm": None,
                "goal_by": None,
                "goal_at": None,
                "started_at": None,
                "adopted": False,
                "memory_bytes": None,
                "cpu_seconds": None,
                "status_text": None,
                "next": None,
                "trouble": None,
                "stalls": 0,
                "stall_seconds": 0.0,
                "lacks": None,
                "start_seconds": None,
                "cds": None,
                "warmup": None,
            },
        },
        "frontends": {
            "http": {
                "listen": ["127.0.0.1:8080", "[::1]:8080"],
                "mode": "steer",
                "mode_reason": None,
                "active": "primary",
                "connections": {"primary": 2, "backup": 0, "held": 0},
                "accepted_total": {"primary": 0, "backup": 0, "held": 7},
                "next": {
                    "what": "primary gets its new connections",
                    "at": "2026-11-23T12:00:14.000Z",
                    "reason": "it has failed twice",
                },
                "paused": {"until": "2026-11-23T12:00:20.000Z", "by": "ada"},
                "caps": {"total": 100, "primary": 60, "backup": 0},
                "counters_since": {"at": "2026-11-23T12:00:01.000Z", "by": "ada"},
                "draining": {"primary": {"until": "2026-11-23T12:00:30.000Z", "left": 2}},
                "recent_failovers": 2,
                "share_percent": 5.0,
            },
            "line": {
                "listen": ["127.0.0.1:8700"],
                "mode": "relay",
                "mode_reason": "no CAP_BPF",
                "active": None,
                "connections": {"primary": 0, "backup": 0, "held": 1},
                "accepted_total": {"primary": 100, "backup": 3, "held": 4},
                "next": None,
                "paused": None,
                "caps": {"total": 0, "primary": 0, "backup": 0},
                "counters_since": None,
                "draining": {},
                "recent_failovers": 0,
                "share_percent": 0.0,
            },
        },
        "release": {"current": "clojars-web-0.8.1-standalone.jar", "previous": None},
        "rollout": None,
        "last_rollout": None,
    }


def test_the_picture_is_plain_json_with_the_primary_first() -> None:
    seen = json.loads(json.dumps(PAIR.as_json()))
    assert seen == PAIR.as_json()
    assert list(seen["instances"]) == ["primary", "backup"]


def test_without_a_release_its_name_is_null() -> None:
    assert replace(PAIR, current_release=None).as_json()["release"] == {"current": None, "previous": None}
    seen = replace(PAIR, current_release="2.jar", previous_release="1.jar").as_json()
    assert seen["release"] == {"current": "2.jar", "previous": "1.jar"}


@pytest.mark.parametrize("state", UnitState)
@pytest.mark.parametrize("health", Health)
def test_eligible_is_ready_and_up(state: UnitState, health: Health) -> None:
    seen = replace(PRIMARY, unit=replace(PRIMARY.unit, state=state), health=health)
    assert seen.as_json()["eligible"] == (state is UnitState.READY and health is Health.UP)
    assert (seen.as_json()["state"], seen.as_json()["health"]) == (state.value, health.value)


def test_a_death_by_signal_has_no_code() -> None:
    seen = replace(PRIMARY, last_exit=LastExit(ExitStatus(None, 9), "then")).as_json()
    assert seen["last_exit"] == {"code": None, "signal": 9, "at": "then"}
