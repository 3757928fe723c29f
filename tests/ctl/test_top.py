"""What `top` makes of two looks at the pair."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest

from clojarsd.core.names import Role, UnitState
from clojarsd.core.view import DaemonView, FrontendView, InstanceView, PairView
from clojarsd.ctl.render import WIDTH, plain
from clojarsd.ctl.top import Look, top_json, top_lines
from tests.support.control import instance

NOON = datetime.fromisoformat("2026-11-23T12:00:00Z")


def running(role: Role, cpu: float | None, pid: int = 901, began: int = 0, **changes: Any) -> InstanceView:
    """An instance whose process began so many seconds after noon."""
    started = (NOON + timedelta(seconds=began)).isoformat()
    return instance(role, pid=pid, started_at=started, cpu_seconds=cpu, **changes)


def look(seconds: float, *instances: InstanceView, jvm: dict[str, int] | None = None) -> Look:
    """A look so many seconds after noon, with two frontends."""
    counts = {Role.PRIMARY: 12, Role.BACKUP: 0, None: 3}
    frontends = {name: FrontendView((), "relay", None, Role.PRIMARY, counts, {}) for name in ("http", "nailgun")}
    pair = PairView("clojars", DaemonView("1", 1, "then", "x"), {seen.role: seen for seen in instances}, frontends)
    status = json.loads(json.dumps(pair.as_json()))
    status["instances"]["primary"]["jvm"] = jvm
    return Look(status, NOON + timedelta(seconds=seconds))


def primary(seconds: float, cpu: float | None, pid: int = 901, began: int = 0) -> Look:
    return look(seconds, running(Role.PRIMARY, cpu, pid, began), instance(Role.BACKUP))


@pytest.mark.parametrize(
    ("before", "now", "percent"),
    [
        (None, primary(100, 25.0), 25.0),
        (primary(100, 25.0), primary(102, 28.0), 150.0),
        (primary(100, 25.0), primary(102, 1.0, pid=902, began=98), 25.0),
        (primary(100, None), primary(102, 51.0), 50.0),
        (primary(100, 25.0), primary(100, 25.0), None),
        (None, primary(0, 0.0), None),
        (None, primary(100, None), None),
        (primary(100, 25.0), primary(102, 24.9), 0.0),
    ],
)
def test_cpu_is_that_since_the_look_before_of_the_same_process(
    before: Look | None, now: Look, percent: float | None
) -> None:
    assert now.cpu_percent("primary", before) == percent


def test_an_instance_without_a_process_uses_nothing() -> None:
    assert look(9, instance(Role.PRIMARY), instance(Role.BACKUP)).cpu_percent("backup", None) is None


def test_the_table() -> None:
    seen = look(
        100,
        running(Role.PRIMARY, 3.21, memory_bytes=612 * 1024**2, restarts=1),
        instance(Role.BACKUP, state=UnitState.STOPPED, reason="x"),
        jvm={"heap_used_bytes": 120 * 1024**2, "threads": 40},
    )
    text = plain(top_lines(seen, None))
    assert (
        text
        == """\
clojars: only primary can serve; primary serves http, nailgun

          state     health   CPU %   memory     heap  threads  restarts   http  nailgun
primary   ready     up         3.2  612 MiB  120 MiB       40         1     12       12
backup    stopped   up           -        -        -        -         0      0        0
held                                                                         3        3"""
    )


def test_a_table_with_one_frontend_fits_the_usual_terminal() -> None:
    seen = primary(100, 25.0)
    del seen.status["frontends"]["nailgun"]
    assert all(len(line) <= WIDTH for line in plain(top_lines(seen, None)).splitlines())


def test_a_pair_without_frontends() -> None:
    seen = primary(100, 25.0)
    seen.status["frontends"].clear()
    assert "held" not in plain(top_lines(seen, None))
    assert top_json(seen, None)["instances"]["primary"]["connections"] == {}
