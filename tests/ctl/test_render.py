"""What people read about the pair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from clojarsd.core.history import EventName, PastEvent
from clojarsd.core.names import ExitStatus, Goal, Health, Incarnation, Role, UnitState
from clojarsd.core.unit import Unit
from clojarsd.core.view import CheckView, DaemonView, FrontendView, InstanceView, LastExit, Next, PairView
from clojarsd.core.warmup import Outcome, Warmup
from clojarsd.ctl.render import WIDTH, age, clean, event_line, memory_text, plain, status_lines, step_text, substance
from tests.support.control import instance

NOW = datetime(2026, 11, 23, 14, 5, 9, tzinfo=UTC)
AT = "2026-11-23T12:00:09.000Z"


def frontend(active: Role | None, mode_reason: str | None = None) -> FrontendView:
    counts = {Role.PRIMARY: 12, Role.BACKUP: 0, None: 3}
    return FrontendView(("127.0.0.1:8080", "[::1]:8080"), "relay", mode_reason, active, counts, {Role.PRIMARY: 70000})


def picture(*instances: InstanceView, **frontends: FrontendView) -> dict[str, Any]:
    daemon = DaemonView("0.1.0", 812, "2026-11-20T12:00:00.000Z", "/etc/clojarsd.toml")
    pair = PairView("clojars", daemon, {seen.role: seen for seen in instances}, frontends, "clojars-web-0.8.1.jar")
    seen: dict[str, Any] = json.loads(json.dumps(pair.as_json()))
    return seen


def read(status: Mapping[str, Any]) -> str:
    return plain(status_lines(status, NOW))


def test_a_pair_that_serves() -> None:
    status = picture(
        instance(Role.PRIMARY), instance(Role.BACKUP), http=frontend(Role.PRIMARY), ftp=frontend(Role.PRIMARY)
    )
    assert (
        read(status)
        == """\
clojars: primary and backup can serve; primary serves http, ftp
clojarsd 0.1.0, process 812, for 3 d 2 h, release clojars-web-0.8.1.jar

primary   ready    for 2 h 5 min     health up       goal up    process 901
          clojars, launch 3, restarts 0, release app.jar
          http: 200 in 3 ms (2 h 5 min ago)
backup    ready    for 2 h 5 min     health up       goal up    process 901
          clojars-backup, launch 3, restarts 0, release app.jar
          http: 200 in 3 ms (2 h 5 min ago)

frontend  listens on                  mode   serves   open p/b/held  total p/b
http      127.0.0.1:8080, [::1]:8080  relay  primary  12/0/3         70000/0
ftp       127.0.0.1:8080, [::1]:8080  relay  primary  12/0/3         70000/0"""
    )


def test_a_pair_in_trouble() -> None:
    reason = "exited with 1; given up after 10 restarts within 120 s; `clojarsctl start primary` tries again"
    failed = instance(
        Role.PRIMARY,
        state=UnitState.FAILED,
        health=Health.UNKNOWN,
        pid=None,
        restarts=10,
        reason=reason,
        since="2026-11-23T14:03:59.000Z",
        last_exit=LastExit(ExitStatus(1, None), "2026-11-23T14:03:59.000Z"),
        checks=(CheckView("http", Health.UNKNOWN, None, None), CheckView("nailgun", Health.DOWN, "refused", AT)),
    )
    down = InstanceView(
        role=Role.BACKUP,
        name="clojars-backup",
        unit=Unit(goal=Goal.DOWN, state=UnitState.STOPPED, incarnation=Incarnation(0)),
        health=Health.UNKNOWN,
        pid=None,
        since=AT,
        restarts=0,
        last_exit=LastExit(ExitStatus(None, 9), AT),
        reason="not started yet",
        release=None,
        ports={},
        checks=(),
    )
    status = picture(failed, down, http=frontend(None, "it may not load BPF programs: operation not permitted"))
    assert (
        read(status)
        == """\
clojars: NOTHING CAN SERVE; nobody serves http
clojarsd 0.1.0, process 812, for 3 d 2 h, release clojars-web-0.8.1.jar

primary   failed   for 70 s          health unknown  goal up    no process
          exited with 1; given up after 10 restarts within 120 s; `clojarsctl
          start primary` tries again
          clojars, launch 3, restarts 10, last exit: code 1, 70 s ago, release
          app.jar
          http: no result yet
          nailgun: refused (2 h 5 min ago)
backup    stopped  for 2 h 5 min     health unknown  goal down  no process
          not started yet
          clojars-backup, never launched, restarts 0, last exit: SIGKILL, 2 h 5
          min ago

frontend  listens on                  mode   serves  open p/b/held  total p/b
http      127.0.0.1:8080, [::1]:8080  relay  nobody  12/0/3         70000/0
          http: it may not load BPF programs: operation not permitted"""
    )


def test_a_deploy_that_is_under_way() -> None:
    status = picture(instance(Role.PRIMARY), instance(Role.BACKUP))
    rollout = {
        "text": "deploy of 1.2.0",
        "by": "ann",
        "state": "running",
        "steps": ["build", "switch"],
        "step_number": 1,
        "step_text": "building it",
        "step_since": "2026-11-23T14:04:09.000Z",
        "started_at": AT,
        "failure": None,
        "question": None,
    }

    def told(**changes: Any) -> list[str]:
        lines = read({**status, "rollout": {**rollout, **changes}}).splitlines()
        return lines[2 : lines.index("")]

    assert told() == ["deploy of 1.2.0 by ann: step 1 of 2, building it, for 60 s"]
    assert told(step_since=None) == ["deploy of 1.2.0 by ann: step 1 of 2, building it, for 2 h 5 min"]
    assert told(question={"until": "2026-11-23T14:34:09.000Z"}) == [
        "deploy of 1.2.0 by ann: step 1 of 2, building it, for 60 s",
        "          `clojarsctl promote`, or `clojarsctl abort`, until 2026-11-23",
        "          14:34:09Z; then it goes back",
    ]
    assert told(state="going back", failure="lein ended\nwith code 1") == [
        "deploy of 1.2.0 by ann: on its way back, building it, for 60 s",
        "          it goes back: lein ended with code 1",
    ]
    assert substance({**status, "rollout": rollout}) != substance({**status, "rollout": {**rollout, "step_number": 2}})


def test_a_deploy_that_is_stuck_is_shown_and_one_that_has_failed_is_not() -> None:
    status = picture(instance(Role.PRIMARY), instance(Role.BACKUP))
    last = {"text": "deploy of 1.2.0", "outcome": "stuck", "message": "cannot deploy 1.2.0: so it is"}
    shown = read({**status, "last_rollout": last}).splitlines()
    assert shown[2] == "deploy of 1.2.0 is stuck: cannot deploy 1.2.0: so it is"
    assert read({**status, "last_rollout": {**last, "outcome": "failed"}}) == read(status)


def test_what_is_wrong_with_one_that_serves_is_shown() -> None:
    primary = instance(Role.PRIMARY, trouble="it has not said within 10 s that it is alive (watchdog)")
    status = picture(primary, instance(Role.BACKUP))
    assert read(status).splitlines()[4].strip() == "it has not said within 10 s that it is alive (watchdog)"
    well = picture(instance(Role.PRIMARY), instance(Role.BACKUP))
    assert substance(status) != substance(well), "whoever watches is told"
    del well["instances"]["primary"]["trouble"]
    assert "watchdog" not in read(well), "nor does a daemon that is older say it"


def test_another_release_than_the_link_names_is_shown() -> None:
    told = "primary runs 1.jar, and the link names 2.jar: clojarsctl restart primary"
    primary = instance(Role.PRIMARY, other_release=told)
    status = picture(primary, instance(Role.BACKUP))
    assert " ".join(line.strip() for line in read(status).splitlines()[4:6]).startswith(told)
    assert substance(status) != substance(picture(instance(Role.PRIMARY), instance(Role.BACKUP)))
    del status["instances"]["primary"]["other_release"]
    assert "the link" not in read(status), "a daemon that is older does not say it"


def test_what_an_instance_uses_and_what_comes_next() -> None:
    primary = instance(
        Role.PRIMARY,
        state=UnitState.STOPPING,
        reason="an order to stop: SIGTERM sent",
        memory_bytes=612 * 1024**2,
        cpu_seconds=34.56,
        adopted=True,
        status_text="closing\n3 uploads",
        next=Next("it is killed", "2026-11-23T14:05:39.000Z"),
    )
    backup = instance(
        Role.BACKUP,
        state=UnitState.BACKOFF,
        pid=None,
        reason="exited with 1; next try at 14:05",
        next=Next("it is launched again", "2026-11-23T14:05:20.000Z"),
    )
    due = replace(frontend(Role.BACKUP), next=Next("primary gets its new connections", "2026-11-23T14:05:15.000Z"))
    status = picture(primary, backup, http=due)
    status["daemon"]["relay_pid"] = 813
    lines = read(status).splitlines()
    assert lines[1] == ("clojarsd 0.1.0, process 812, for 3 d 2 h, relay process 813, release clojars-web-0.8.1.jar")
    status["daemon"]["relay_pids"] = [813, 814]
    assert "for 3 d 2 h, relay processes 813, 814, release" in read(status).splitlines()[1]
    assert [line.strip() for line in lines[4:9]] == [
        "an order to stop: SIGTERM sent",
        "at 2026-11-23 14:05:39Z: it is killed",
        "says: closing 3 uploads",
        "clojars, launch 3, restarts 0, adopted, memory 612 MiB, CPU 34.6 s,",
        "release app.jar",
    ]
    assert not any("launched again" in line for line in lines), "the reason says it already"
    assert lines[-1].strip() == "http: at 2026-11-23 14:05:15Z: primary gets its new connections"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 MiB"), (1024**2, "1 MiB"), (999 * 1024**2, "999 MiB"), (1024**3, "1.0 GiB"), (1536 * 1024**2, "1.5 GiB")],
)
def test_memory(size: int, text: str) -> None:
    assert memory_text(size) == text


def test_one_instance_that_can_serve_is_named() -> None:
    draining = instance(Role.PRIMARY, state=UnitState.DRAINING, reason="out of rotation by order")
    status = picture(draining, instance(Role.BACKUP), http=frontend(Role.BACKUP), ftp=frontend(None))
    assert read(status).splitlines()[0] == ("clojars: only backup can serve; nobody serves ftp; backup serves http")


def test_every_state_fits_eighty_columns() -> None:
    for state in UnitState:
        for health in Health:
            seen = instance(
                Role.PRIMARY,
                state=state,
                health=health,
                pid=4194304,
                since="2025-11-23T12:00:09.000Z",
                reason="because " * 30,
            )
            status = picture(seen, instance(Role.BACKUP), http=frontend(Role.PRIMARY))
            assert all(len(line) <= WIDTH for line in read(status).splitlines())


def test_what_a_check_has_seen_does_nothing_to_the_terminal() -> None:
    check = CheckView("exec", Health.DOWN, "\x1b[2J\x07evil\nline \u202e", AT)
    text = read(picture(instance(Role.PRIMARY, checks=(check,)), instance(Role.BACKUP)))
    assert "exec: [2J evil line (2 h 5 min ago)" in text
    assert clean("\x1b[31m") == "[31m"


@pytest.mark.parametrize(
    ("since", "text"),
    [
        ("2026-11-23T14:05:09.900Z", "0 s"),
        ("2026-11-23T14:05:02Z", "7 s"),
        ("2026-11-23T14:03:10.000Z", "119 s"),
        ("2026-11-23T14:03:09.000Z", "2 min"),
        ("2026-11-23T12:05:10.000Z", "119 min"),
        ("2026-11-23T12:05:09.000Z", "2 h 0 min"),
        ("2026-11-21T14:05:09.000Z", "2 d 0 h"),
        ("2026-11-23T14:06:00.000Z", "0 s"),  # the clock was set back
        ("...", "..."),
    ],
)
def test_ages(since: str, text: str) -> None:
    assert age(since, NOW) == text


def test_events() -> None:
    event = PastEvent(7, AT, EventName.INSTANCE_READY, Role.BACKUP, "ann", "backup is ready")
    said = "2026-11-23 12:00:09Z  instance-ready    backup is ready (ordered by ann)"
    assert plain([event_line(event.as_json())]) == said
    order = PastEvent(8, AT, EventName.ORDER, Role.BACKUP, "ann", "ann orders: stop backup")
    assert plain([event_line(order.as_json())]) == "2026-11-23 12:00:09Z  order             ann orders: stop backup"
    lonely = PastEvent(9, AT, EventName.FAILOVER, None, None, "backup serves http")
    assert plain([event_line(lonely.as_json())]) == "2026-11-23 12:00:09Z  failover          backup serves http"


def test_steps() -> None:
    assert step_text({"at": AT, "role": "backup", "message": "backup is ready"}) == "12:00:09 backup is ready"


def test_counters_and_single_checks_are_no_change_worth_printing() -> None:
    before = picture(instance(Role.PRIMARY), instance(Role.BACKUP), http=frontend(Role.PRIMARY))
    check = CheckView("http", Health.UP, "200 in 4 ms", AT)
    busier = FrontendView(("127.0.0.1:8080", "[::1]:8080"), "relay", None, Role.PRIMARY, {None: 9}, {None: 9})
    later = Next("it is launched again", AT)
    user = instance(Role.PRIMARY, checks=(check,), memory_bytes=1, cpu_seconds=1.0, next=later)
    after = picture(user, instance(Role.BACKUP), http=replace(busier, next=later))
    assert substance(before) == substance(after)
    moved = picture(instance(Role.PRIMARY), instance(Role.BACKUP), http=frontend(Role.BACKUP))
    assert substance(before) != substance(moved)


@pytest.mark.parametrize(
    ("warmup", "line"),
    [
        (
            Warmup(20, Outcome.SETTLED, 12, first=0.0402, latency=0.003),
            "warm-up: 40.2 ms -> 3 ms in 12 rounds, settled",
        ),
        (Warmup(20).after_round(0.04, 1.0).cut_short(1.0), "warm-up: 40 ms -> 40 ms in 1 round, cut short"),
        (Warmup(20).cut_short(0.0), "warm-up: 0 rounds, cut short"),
        (Warmup(20).timed_out(20.0), "warm-up failed: not one round was through within 20 s"),
        (Warmup(20), None),
    ],
)
def test_what_came_of_a_warm_up(warmup: Warmup, line: str | None) -> None:
    text = read(picture(replace(instance(Role.PRIMARY), warmup=warmup), instance(Role.BACKUP)))
    assert [one.strip() for one in text.splitlines() if "warm-up" in one] == ([line] if line else [])


def test_the_rounds_of_a_warm_up_are_no_change_worth_printing() -> None:
    def at(warmup: Warmup, reason: str) -> dict[str, Any]:
        primary = replace(instance(Role.PRIMARY), warmup=warmup, reason=reason)
        return substance(picture(primary, instance(Role.BACKUP)))

    assert at(Warmup(20, rounds=1), "round 1") == at(Warmup(20, rounds=2), "round 2")
    assert at(Warmup(20, rounds=1), "round 1") != at(Warmup(20).cut_short(0.0), "round 1")
