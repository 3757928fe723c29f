"""What is explained, situation by situation, word for word."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import pytest

from clojarsd.core.history import EventName, PastEvent, stamp
from clojarsd.core.names import ExitStatus, Goal, Health, LaunchStage, Role, UnitState
from clojarsd.core.unit_events import NotLaunched
from clojarsd.core.view import CheckView, DaemonView, FrontendView, InstanceView, LastExit, Next, PairView
from clojarsd.core.warmup import Outcome, Warmup
from clojarsd.core.why import MOST_LATELY, explain
from tests.support.control import instance

TODAY = "2026-11-23"
NOON = datetime.fromisoformat("2026-11-23T12:00:00Z")
PRIMARY, BACKUP = Role.PRIMARY, Role.BACKUP
EXITED, READY, ORDER = EventName.INSTANCE_EXITED, EventName.INSTANCE_READY, EventName.ORDER
FAILOVER, FAILBACK = EventName.FAILOVER, EventName.FAILBACK


def at(seconds: float) -> str:
    """An instant so long after noon."""
    return stamp(NOON + timedelta(seconds=seconds))


class Story:
    """Events in the order in which the daemon records them."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._ids = count(7)

    def tell(self, seconds: float, event: EventName, message: str, role: Role | None = None, **detail: Any) -> Story:
        by = message.split()[0] if event is ORDER else None
        past = PastEvent(next(self._ids), at(seconds), event, role, by, message, detail)
        self.events.append(json.loads(json.dumps(past.as_json())))
        return self

    def order(self, seconds: float, verb: str, role: Role, **detail: Any) -> Story:
        return self.tell(
            seconds, ORDER, f"ann orders: {verb} {role.value}", role, verb=verb, roles=[role.value], **detail
        )

    def move(self, seconds: float, event: EventName, to: Role) -> Story:
        message = f"new connections of frontend http go to {to.value}"
        return self.tell(seconds, event, message, to, frontend="http", before=to.other.value)


def serving(role: Role, **changes: Any) -> InstanceView:
    return instance(role, since=at(9), **changes)


def picture(
    primary: InstanceView | None = None,
    backup: InstanceView | None = None,
    active: Role | None = PRIMARY,
    held: int = 0,
    **frontend: Any,
) -> dict[str, Any]:
    """What the API says of such a pair with one frontend."""
    instances = {PRIMARY: primary or serving(PRIMARY), BACKUP: backup or serving(BACKUP)}
    http = FrontendView(("127.0.0.1:8080",), "relay", None, active, {None: held}, {}, **frontend)
    daemon = DaemonView("1.0.0", 812, at(0), "/etc/clojarsd.toml")
    seen: dict[str, Any] = json.loads(json.dumps(PairView("clojars", daemon, instances, {"http": http}).as_json()))
    return seen


KILLED = (
    Story()
    .move(180.0, FAILOVER, BACKUP)
    .tell(180.001, EXITED, "primary was killed by SIGKILL", PRIMARY, code=None, signal=9)
    .tell(181.2, EventName.INSTANCE_STARTED, "primary was launched as process 902", PRIMARY)
)
CRASHING = serving(
    PRIMARY,
    state=UnitState.BACKOFF,
    health=Health.UNKNOWN,
    pid=None,
    restarts=3,
    reason=f"was killed by SIGKILL; next try at {at(188)}",
    last_exit=LastExit(ExitStatus(None, 9), at(180.001)),
    next=Next("it is launched again", at(188)),
)


def test_a_pair_that_serves_and_of_which_nothing_is_known() -> None:
    assert explain(picture(), [], today=TODAY) == {
        "verdict": "primary and backup can serve",
        "rollout": [],
        "frontends": {"http": ["primary serves http"]},
        "instances": {
            "primary": ["primary can serve: ready since 12:00:09Z, and its checks pass"],
            "backup": ["backup can serve: ready since 12:00:09Z, and its checks pass"],
        },
        "lately": [],
        "next": [],
        "todo": [],
    }


def test_a_killed_primary_that_is_tried_again() -> None:
    assert explain(picture(primary=CRASHING, active=BACKUP), KILLED.events, today=TODAY) == {
        "verdict": "only backup can serve",
        "rollout": [],
        "frontends": {"http": ["backup serves http since 12:03:00Z: primary was killed by SIGKILL"]},
        "instances": {
            "primary": [
                "primary cannot serve: backoff since 12:00:09Z:"
                " was killed by SIGKILL; next try at 2026-11-23T12:03:08.000Z",
                "its process before was killed by SIGKILL, at 12:03:00Z",
                "it was started again 3 times without an order",
            ],
            "backup": ["backup can serve: ready since 12:00:09Z, and its checks pass"],
        },
        "lately": [
            {"at": at(180.0), "message": "new connections of frontend http go to backup"},
            {"at": at(180.001), "message": "primary was killed by SIGKILL"},
            {"at": at(181.2), "message": "primary was launched as process 902"},
        ],
        "next": [{"at": at(188), "of": "primary", "what": "it is launched again"}],
        "todo": ["`clojarsctl logs primary` shows its last words; it is tried again without an order"],
    }


def test_times_of_another_day_have_a_date() -> None:
    why = explain(picture(primary=CRASHING, active=BACKUP), KILLED.events)
    assert why["frontends"]["http"] == ["backup serves http since 2026-11-23 12:03:00Z: primary was killed by SIGKILL"]


def test_nobody_serves() -> None:
    failed = serving(
        BACKUP, state=UnitState.FAILED, health=Health.UNKNOWN, pid=None, reason="exited with 1; given up after 10"
    )
    story = Story().tell(60, EventName.HOLD_STARTED, "connections of frontend http wait", frontend="http")
    why = explain(picture(primary=CRASHING, backup=failed, active=None, held=3), story.events, today=TODAY)
    assert why["verdict"] == "nothing can serve"
    assert why["frontends"]["http"] == [
        "nobody serves http: primary is backoff and backup is failed",
        "its connections wait since 12:01:00Z; 3 wait now",
    ]
    assert why["todo"][1] == "`clojarsctl logs backup` shows its last words; `clojarsctl start backup` tries again"
    story.tell(61, EventName.HOLD_ENDED, "no connection of frontend http waits any more", frontend="http")
    why = explain(picture(primary=CRASHING, backup=failed, active=None, held=1), story.events, today=TODAY)
    assert why["frontends"]["http"][1] == "its connections wait; 1 waits now"


@pytest.mark.parametrize(
    ("events", "cause"),
    [
        pytest.param(
            Story().order(100, "restart", PRIMARY).move(100.01, FAILOVER, BACKUP)
            .tell(100.02, EventName.DRAIN_STARTED, "primary gets no new connections; open ones may end", PRIMARY)
            .tell(100.5, EXITED, "primary exited with 143", PRIMARY),
            "ann orders: restart primary",
            id="an order, though the process ends soon after",
        ),
        pytest.param(
            Story().move(100, FAILOVER, BACKUP)
            .tell(100.01, EventName.DRAIN_STARTED, "primary gets no new connections; open ones may end", PRIMARY),
            "primary gets no new connections; open ones may end",
            id="an order that is forgotten",
        ),
        pytest.param(
            Story().order(90, "stop", BACKUP).order(95, "restart", PRIMARY, refused="backup is stopped")
            .move(100, FAILOVER, BACKUP).tell(100.001, EXITED, "primary exited with 3", PRIMARY),
            "primary exited with 3",
            id="neither orders to the other one nor refused ones",
        ),
        pytest.param(
            Story().tell(99.9, ORDER, "restart primary: it hangs", PRIMARY, verb="restart", reason="it hangs")
            .move(100, FAILOVER, BACKUP)
            .tell(100.01, EventName.DRAIN_STARTED, "primary gets no new connections; open ones may end", PRIMARY),
            "restart primary: it hangs",
            id="what the daemon orders by itself",
        ),
        pytest.param(
            Story().order(70, "drain", PRIMARY).order(80, "undrain", PRIMARY)
            .move(100, FAILOVER, BACKUP).tell(100.001, EXITED, "primary exited with 3", PRIMARY),
            "primary exited with 3",
            id="an exit, whatever was ordered before",
        ),
        pytest.param(
            Story().tell(99, EventName.OOM, "primary is out of heap: java.lang.OutOfMemoryError", PRIMARY)
            .move(100, FAILOVER, BACKUP).tell(100.001, EXITED, "primary exited with 3", PRIMARY),
            "primary exited with 3; primary is out of heap: java.lang.OutOfMemoryError",
            id="an exit with what was found out about it",
        ),
        pytest.param(
            Story().tell(99.9, EventName.INSTANCE_STALLED, "primary accepts nothing since 0.4 s", PRIMARY)
            .move(100, FAILOVER, BACKUP),
            "primary accepts nothing since 0.4 s",
            id="a stall",
        ),
        pytest.param(
            Story().tell(10, EXITED, "primary exited with 3", PRIMARY).move(100, FAILOVER, BACKUP),
            "primary is ready: its checks fail (http: 503 in 3 ms)",
            id="nothing recorded: what is now",
        ),
    ],
)  # fmt: skip
def test_why_the_backup_serves(events: Story, cause: str) -> None:
    sick = serving(PRIMARY, health=Health.DOWN, reason="its checks fail (http: 503 in 3 ms)")
    why = explain(picture(primary=sick, active=BACKUP), events.events, today=TODAY)
    assert why["frontends"]["http"][0] == f"backup serves http since 12:01:40Z: {cause}"


def test_a_failback_and_what_it_came_after() -> None:
    story = Story().tell(200, READY, "primary is ready", PRIMARY).move(205, FAILBACK, PRIMARY)
    story.tell(206, READY, "primary is ready", PRIMARY)
    assert explain(picture(), story.events, today=TODAY)["frontends"]["http"] == [
        "primary serves http since 12:03:25Z: primary is ready (12:03:20Z)"
    ]
    assert explain(picture(), story.events[1:2], today=TODAY)["frontends"]["http"] == [
        "primary serves http since 12:03:25Z"
    ]


def test_a_failback_because_the_backup_went() -> None:
    story = Story().tell(200, READY, "primary is ready", PRIMARY).order(201, "stop", BACKUP)
    story.move(201.01, FAILBACK, PRIMARY)
    assert explain(picture(), story.events, today=TODAY)["frontends"]["http"] == [
        "primary serves http since 12:03:21Z: ann orders: stop backup"
    ]
    story = Story().order(190, "restart", BACKUP).tell(200, READY, "primary is ready", PRIMARY)
    story.move(205, FAILBACK, PRIMARY)
    assert explain(picture(), story.events, today=TODAY)["frontends"]["http"] == [
        "primary serves http since 12:03:25Z: primary is ready (12:03:20Z)"
    ]


def test_events_that_do_not_go_back_far_enough() -> None:
    story = Story().tell(200, READY, "backup is ready", BACKUP)
    assert explain(picture(), story.events, today=TODAY)["frontends"]["http"] == [
        "primary serves http: no switch since 12:03:20Z, as far as events go back"
    ]


def test_an_event_that_the_picture_contradicts_is_not_believed() -> None:
    """The picture is asked for first: a switch may come between it and the events."""
    assert explain(picture(), KILLED.events, today=TODAY)["frontends"]["http"] == [
        "primary serves http: no switch since 12:03:00Z, as far as events go back"
    ]


def failed_back() -> Story:
    """The backup was killed while it served, and the primary took its place."""
    story = Story().tell(190, READY, "primary is ready", PRIMARY).move(200, FAILBACK, PRIMARY)
    return story.tell(200.001, EXITED, "backup was killed by SIGKILL", BACKUP, code=None, signal=9)


def who_serves(story: Story, active: Role = PRIMARY) -> str:
    told: str = explain(picture(active=active), story.events, today=TODAY)["frontends"]["http"][0]
    return told


def test_what_was_before_the_daemon_was_started_is_no_cause_of_what_is_now() -> None:
    story = failed_back()
    assert who_serves(story) == "primary serves http since 12:03:20Z: backup was killed by SIGKILL"
    story.tell(205, EXITED, "primary was killed by SIGKILL", PRIMARY, code=None, signal=9)
    story.tell(208, EventName.DAEMON_STARTED, "clojarsd 1.0.0 started")
    assert who_serves(story) == "primary serves http: no switch since clojarsd was started (12:03:28Z)"
    story.move(210, FAILOVER, BACKUP)
    assert who_serves(story, BACKUP) == "backup serves http since 12:03:30Z"


def test_a_daemon_that_found_the_pair_running_has_changed_nothing() -> None:
    story = failed_back().tell(207.9, EventName.DAEMON_ADOPTED, "primary was found running as process 901", PRIMARY)
    story.tell(208, EventName.DAEMON_STARTED, "clojarsd 1.0.0 started")
    assert who_serves(story) == "primary serves http since 12:03:20Z: backup was killed by SIGKILL"
    story.tell(300, EventName.DAEMON_ADOPTED, "primary was found running as process 901", PRIMARY)
    story.tell(300.1, EventName.DAEMON_UPGRADED, "clojarsd 1.0.1 took over from 1.0.0")
    assert who_serves(story) == "primary serves http since 12:03:20Z: backup was killed by SIGKILL"
    story.tell(400, EventName.DAEMON_STARTED, "clojarsd 1.0.1 started")
    assert who_serves(story) == "primary serves http: no switch since clojarsd was started (12:06:40Z)"


def test_what_was_before_everything_was_stopped_is_no_cause_of_what_is_now() -> None:
    story = failed_back().tell(
        210, ORDER, "ann orders: stop backup and primary", verb="stop", roles=["backup", "primary"]
    )
    story.tell(220, ORDER, "ann orders: start backup and primary", verb="start", roles=["backup", "primary"])
    assert who_serves(story) == "primary serves http: no switch since everything was stopped (12:03:30Z)"


@pytest.mark.parametrize("between", ["start", "restart"])
def test_stopping_one_after_the_other_stops_everything_too(between: str) -> None:
    story = failed_back().order(210, "stop", BACKUP)
    assert who_serves(story) == "primary serves http since 12:03:20Z: backup was killed by SIGKILL"
    both = failed_back().order(210, "stop", BACKUP).order(211, "stop", PRIMARY)
    assert who_serves(both) == "primary serves http: no switch since everything was stopped (12:03:31Z)"
    both.order(212, "start", BACKUP).move(214, FAILOVER, BACKUP)
    assert who_serves(both, BACKUP) == "backup serves http since 12:03:34Z: ann orders: stop primary"
    story.order(211, between, BACKUP).order(212, "stop", PRIMARY, refused="clojarsd is stopping")
    story.order(213, "start", BACKUP).order(214, "stop", PRIMARY).order(215, "start", PRIMARY)
    assert who_serves(story) == "primary serves http since 12:03:20Z: backup was killed by SIGKILL"


def test_what_waited_before_a_daemon_was_started_waits_no_more() -> None:
    story = Story().tell(60, EventName.HOLD_STARTED, "connections of frontend http wait", frontend="http")
    story.tell(70, EventName.DAEMON_STARTED, "clojarsd 1.0.0 started")
    down = stopped(PRIMARY), stopped(BACKUP)
    why = explain(picture(*down, active=None, held=1), story.events, today=TODAY)
    assert why["frontends"]["http"][1] == "its connections wait; 1 waits now"


def test_a_failback_that_is_due() -> None:
    due = Next("primary gets its new connections", at(210))
    why = explain(picture(active=BACKUP, next=due), [], today=TODAY)
    assert why["next"] == [{"at": at(210), "of": "http", "what": "primary gets its new connections"}]
    assert why["frontends"]["http"] == ["backup serves http"]
    assert explain(picture(active=BACKUP), [], today=TODAY)["frontends"]["http"][1] == (
        "primary can serve again, and gets the new connections when it has been able to for long enough"
    )


def test_connections_that_wait_although_somebody_serves_and_how_they_go() -> None:
    status = picture(held=1)
    status["frontends"]["http"]["mode_reason"] = "no CAP_BPF"
    assert explain(status, [], today=TODAY)["frontends"]["http"][1:] == [
        "1 connection of it waits to be connected",
        "its connections go by relay: no CAP_BPF",
    ]


def test_why_an_instance_cannot_be_connected_to_although_it_serves() -> None:
    failure = "primary: cannot assign requested address"
    story = Story().tell(60, EventName.HOLD_STARTED, "connections wait", frontend="http", connect_failed=failure)
    assert explain(picture(held=2), story.events, today=TODAY)["frontends"]["http"][1:] == [
        f"2 connections of it wait to be connected: {failure}",
    ]


def test_what_comes_next_is_in_its_order() -> None:
    backup = serving(BACKUP, next=Next("backup is late", at(30)))
    primary = serving(PRIMARY, next=Next("primary is late", at(40)))
    why = explain(picture(primary=primary, backup=backup, next=Next("http moves", at(35))), [])
    assert [one["what"] for one in why["next"]] == ["backup is late", "http moves", "primary is late"]


def stopped(role: Role, **changes: Any) -> InstanceView:
    seen = serving(role, state=UnitState.STOPPED, health=Health.UNKNOWN, pid=None, reason="stopped by order")
    return replace(seen, unit=replace(seen.unit, goal=Goal.DOWN), **changes)


STARTING = serving(
    BACKUP, state=UnitState.STARTING, health=Health.UNKNOWN, reason="no check has passed yet (http: no result yet)"
)
NO_LOG = "cannot start backup: opening its log: permission denied"
NO_RELEASE = "no release: clojarsctl deploy TAG"


def without_release(role: Role) -> InstanceView:
    seen = serving(role, state=UnitState.STOPPED, health=Health.UNKNOWN, pid=None, reason=NO_RELEASE)
    end = NotLaunched(seen.unit.incarnation, LaunchStage.RELEASE, NO_RELEASE)
    return replace(seen, unit=replace(seen.unit, last_end=end))


@pytest.mark.parametrize(
    ("seen", "events", "sentences", "todo"),
    [
        pytest.param(
            stopped(BACKUP, goal_by="ann", goal_at=at(5)),
            Story(),
            [
                "backup cannot serve: stopped since 12:00:09Z: stopped by order",
                "it is to be down: ordered by ann at 12:00:05Z",
            ],
            ["`clojarsctl start backup` starts it"],
            id="stopped by somebody",
        ),
        pytest.param(
            stopped(BACKUP, goal_by="ann", goal_at=at(5), reason=f"stopped by ann at {at(5)}; `x` starts it"),
            Story(),
            [f"backup cannot serve: stopped since 12:00:09Z: stopped by ann at {at(5)}; `x` starts it"],
            ["`clojarsctl start backup` starts it"],
            id="the reason says who",
        ),
        pytest.param(
            stopped(BACKUP),
            Story().order(4, "start", BACKUP).order(5, "stop", BACKUP).order(6, "start", BACKUP, refused="no"),
            [
                "backup cannot serve: stopped since 12:00:09Z: stopped by order",
                "the last order: ann orders: stop backup (12:00:05Z)",
            ],
            ["`clojarsctl start backup` starts it"],
            id="only the events know who",
        ),
        pytest.param(
            without_release(BACKUP),
            Story().tell(9, EXITED, f"cannot start backup: {NO_RELEASE}", BACKUP),
            [f"backup cannot serve: stopped since 12:00:09Z: {NO_RELEASE}"],
            [NO_RELEASE],
            id="there is no release",
        ),
        pytest.param(
            STARTING,
            Story().tell(5, EXITED, NO_LOG, BACKUP),
            [
                "backup cannot serve: starting since 12:00:09Z: no check has passed yet (http: no result yet)",
                f"the launch before: {NO_LOG} (12:00:05Z)",
            ],
            [],
            id="the launch before failed",
        ),
        pytest.param(
            replace(STARTING, reason=f"{NO_LOG}; next try at X"),
            Story().tell(5, EXITED, NO_LOG, BACKUP),
            [f"backup cannot serve: starting since 12:00:09Z: {NO_LOG}; next try at X"],
            [],
            id="the reason says how the launch failed",
        ),
        pytest.param(
            replace(STARTING, checks=(CheckView("http", Health.DOWN, "refused", at(8)),)),
            Story(),
            [
                "backup cannot serve: starting since 12:00:09Z: no check has passed yet (http: no result yet)",
                "its http check: refused (12:00:08Z)",
            ],
            [],
            id="a check that the reason does not tell",
        ),
        pytest.param(
            serving(BACKUP, health=Health.DOWN, reason="its checks fail (http: 503)",
                    checks=(CheckView("http", Health.DOWN, "503", at(8)), CheckView("tcp", Health.UP, "ok", at(8)))),
            Story(),
            ["backup cannot serve: ready since 12:00:09Z: its checks fail (http: 503)"],
            ["`clojarsctl logs backup` shows its last words; `clojarsctl restart backup` gives it a new process"],
            id="failing checks that the reason tells",
        ),
        pytest.param(
            serving(BACKUP, state=UnitState.DRAINING, reason="out of rotation by order"),
            Story().order(3, "drain", BACKUP).order(5, "reload", BACKUP),
            [
                "backup cannot serve: draining since 12:00:09Z: out of rotation by order",
                "the last order: ann orders: drain backup (12:00:03Z)",
            ],
            ["`clojarsctl undrain backup` brings it back into rotation"],
            id="out of rotation",
        ),
        pytest.param(
            serving(BACKUP, state=UnitState.DRAINING, reason="its connections may end before it is restarted"),
            Story().order(3, "restart", BACKUP),
            [
                "backup cannot serve: draining since 12:00:09Z: its connections may end before it is restarted",
                "the last order: ann orders: restart backup (12:00:03Z)",
            ],
            [],
            id="being restarted",
        ),
        pytest.param(
            serving(BACKUP, last_exit=LastExit(ExitStatus(3, None), at(5)), restarts=1, adopted=True,
                    status_text="serving 4 requests"),
            Story().tell(4, EventName.OOM, "backup is out of heap", BACKUP).tell(
                4.9, EventName.OOM, "primary is out of heap", PRIMARY),
            [
                "backup can serve: ready since 12:00:09Z, and its checks pass",
                "its process before exited with 3, at 12:00:05Z; backup is out of heap",
                "it was started again 1 time without an order",
                "it says of itself: serving 4 requests",
                "its process 901 was started by an earlier clojarsd, and adopted",
            ],
            [],
            id="a past that is over",
        ),
        pytest.param(
            serving(BACKUP, last_exit=LastExit(ExitStatus(None, 10), at(5))),
            Story(),
            [
                "backup can serve: ready since 12:00:09Z, and its checks pass",
                "its process before was killed by SIGUSR1, at 12:00:05Z",
            ],
            [],
            id="a signal has its name",
        ),
        pytest.param(
            serving(BACKUP, trouble="it has not said within 10 s that it is alive (watchdog); its restart is put off"),
            Story(),
            [
                "backup can serve: ready since 12:00:09Z, and its checks pass",
                "but it has not said within 10 s that it is alive (watchdog); its restart is put off",
            ],
            ["`clojarsctl logs backup` shows its last words; `clojarsctl restart backup` gives it a new process"],
            id="one that serves and is not well",
        ),
        pytest.param(
            serving(BACKUP, other_release="backup runs 1.jar, and the link names 2.jar: clojarsctl restart backup"),
            Story(),
            [
                "backup can serve: ready since 12:00:09Z, and its checks pass",
                "backup runs 1.jar, and the link names 2.jar: clojarsctl restart backup",
            ],
            [],
            id="one that runs another release than the link names",
        ),
        pytest.param(
            serving(BACKUP, last_exit=LastExit(ExitStatus(3, None), at(5))),
            Story().tell(5.001, EXITED, "backup was not ready in time and was ended (exited with 3)", BACKUP),
            [
                "backup can serve: ready since 12:00:09Z, and its checks pass",
                "its process before was not ready in time and was ended (exited with 3), at 12:00:05Z",
            ],
            [],
            id="an exit that the events know more of",
        ),
    ],
)  # fmt: skip
def test_one_instance(seen: InstanceView, events: Story, sentences: list[str], todo: list[str]) -> None:
    why = explain(picture(backup=seen), events.events, "backup", today=TODAY)
    assert why["instances"] == {"backup": sentences}
    assert why["todo"] == todo


def test_what_led_here_is_about_those_who_are_asked_for() -> None:
    story = (
        Story().tell(1, EventName.DAEMON_STARTED, "clojarsd 1.0.0 started").tell(2, READY, "primary is ready", PRIMARY)
    )
    story.tell(3, READY, "backup is ready", BACKUP).move(4, FAILOVER, BACKUP).tell(5, EventName.DEPLOY_STEP, "step 1")
    story.tell(6, ORDER, "ann orders: stop backup and primary", verb="stop", roles=["backup", "primary"])
    story.order(7, "stop", BACKUP).tell(8, EventName.DAEMON_UPGRADED, "clojarsd 1.0.0 took over", before="0.9.0")

    def told(role: str | None) -> list[str]:
        return [event["at"][18] for event in explain(picture(), story.events, role)["lately"]]

    assert told(None) == ["1", "2", "3", "4", "6", "7", "8"]
    assert told("primary") == ["1", "2", "4", "6", "8"]
    assert told("backup") == ["1", "3", "4", "6", "7", "8"]


def test_what_led_here_begins_after_a_long_silence_and_has_an_end() -> None:
    story = Story().tell(0, READY, "long ago", PRIMARY)
    for number in range(MOST_LATELY + 3):
        story.tell(3600 + number, READY, str(number), PRIMARY)
    lately = explain(picture(), story.events)["lately"]
    assert [event["message"] for event in lately] == [str(number) for number in range(3, MOST_LATELY + 3)]
    assert [event["message"] for event in explain(picture(), story.events[:3])["lately"]] == ["0", "1"]


def test_the_order_of_events_is_that_of_their_ids() -> None:
    backwards = list(reversed(KILLED.events))
    status = picture(primary=CRASHING, active=BACKUP)
    assert explain(status, backwards) == explain(status, KILLED.events)


@pytest.mark.parametrize("state", UnitState)
@pytest.mark.parametrize("health", Health)
def test_every_state_is_explained_with_and_without_events(state: UnitState, health: Health) -> None:
    for last in (None, LastExit(ExitStatus(None, 9), at(180))):
        seen = serving(PRIMARY, state=state, health=health, last_exit=last, reason="R")
        for events in ([], KILLED.events):
            why = explain(picture(primary=seen, active=None), events, today=TODAY)
            assert all(sentence for sentence in (*why["instances"]["primary"], *why["todo"]))


def test_a_daemon_that_says_less_is_explained_too() -> None:
    """One that is older than clojarsctl does not give the newer fields."""
    status = picture(primary=CRASHING, active=BACKUP)
    for part in (*status["instances"].values(), *status["frontends"].values()):
        for name in ("goal_by", "goal_at", "adopted", "status_text", "next", "trouble", "other_release"):
            part.pop(name, None)
    assert explain(status, [])["next"] == []


SETTLED = Warmup(20, Outcome.SETTLED, 12, first=0.0402, latency=0.003)


@pytest.mark.parametrize(
    ("warmup", "sentences"),
    [
        (SETTLED, ["its warm-up: 40.2 ms -> 3 ms, settled after 12 rounds"]),
        (Warmup(20).cut_short(0.0), ["its warm-up: cut short because nobody else could serve after 0 rounds"]),
        (Warmup(20).timed_out(20.0), ["its warm-up failed: not one round was through within 20 s"]),
        (Warmup(20), []),
        (None, []),
    ],
)
def test_what_came_of_a_warm_up_is_explained(warmup: Warmup | None, sentences: list[str]) -> None:
    seen = json.loads(json.dumps(replace(instance(PRIMARY), warmup=warmup).as_json()))
    status = {"instances": {"primary": seen}, "frontends": {}}
    told = explain(status, [], "primary", today=TODAY)["instances"]["primary"]
    assert [one for one in told if "warm-up" in one] == sentences
