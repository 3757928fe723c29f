"""Every sentence about why an instance gets no connections, word for word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clojarsd.core.names import (
    UNKNOWN_END,
    ExitStatus,
    Goal,
    Health,
    HookName,
    Incarnation,
    LaunchStage,
    Role,
    Rotation,
    UnitState,
)
from clojarsd.core.reasons import describe_end, why_not_eligible, why_unready
from clojarsd.core.restart import Failures, RestartPolicy, RestartWhen
from clojarsd.core.signal_names import signal_name
from clojarsd.core.unit import EndCause, Unit, UnitPolicy
from clojarsd.core.unit_events import Exited, NotLaunched
from clojarsd.core.view import CheckView
from clojarsd.core.warmup import Warmup

FIRST = Incarnation(1)
RESTARTS = RestartPolicy(RestartWhen.ON_FAILURE, 1.0, 30.0, 60.0, 3, 120.0)
POLICY = UnitPolicy(120.0, 30.0, ((3, 10.0), (15, 20.0)), frozenset({0, 143}), RESTARTS)
UNIT = Unit(Goal.UP, UnitState.STARTING, incarnation=FIRST)
CRASHED = Exited(FIRST, ExitStatus(3, None))
FINISHED = Exited(FIRST, ExitStatus(0, None))
TERMED = Exited(FIRST, ExitStatus(None, 15))
KILLED = Exited(FIRST, ExitStatus(None, 9))
UNSEEN = Exited(FIRST, UNKNOWN_END)
NO_RELEASE = NotLaunched(FIRST, LaunchStage.RELEASE, "no release: clojarsctl deploy TAG")
NO_LOG = NotLaunched(FIRST, LaunchStage.LOG, "/var/log/backup.log: permission denied")
GOOD = CheckView("tcp", Health.UP, "connected in 0 ms", "12:00")
BAD = CheckView("http", Health.DOWN, "127.0.0.1:8002 refused", "12:00")
NEW = CheckView("http", Health.UNKNOWN, None, None)


def why(
    unit: Unit,
    *checks: CheckView,
    health: Health = Health.UNKNOWN,
    policy: UnitPolicy = POLICY,
    at: str | None = None,
    stalled: str | None = None,
) -> str | None:
    return why_not_eligible(Role.BACKUP, unit, health, checks, policy, at, stalled=stalled)


@pytest.mark.parametrize(
    ("end", "by", "sentence"),
    [
        (CRASHED, None, "exited with 3"),
        (CRASHED, EndCause.STOP, "exited with 3"),
        (TERMED, EndCause.RESTART, "was killed by SIGTERM"),
        (Exited(FIRST, ExitStatus(None, 64)), None, "was killed by SIGRTMAX"),
        (TERMED, EndCause.START_TIMEOUT, "was not ready in time and was ended (was killed by SIGTERM)"),
        (TERMED, EndCause.POST_START, "was ended because its post_start failed (was killed by SIGTERM)"),
        (NO_RELEASE, None, "cannot start backup: no release: clojarsctl deploy TAG"),
        (NO_LOG, None, "cannot start backup: opening its log: /var/log/backup.log: permission denied"),
    ],
)
def test_how_a_process_ended(end: Exited | NotLaunched, by: EndCause | None, sentence: str) -> None:
    assert describe_end(Role.BACKUP, end, by, policy=POLICY, sent=0) == sentence


@pytest.mark.parametrize(
    ("end", "by", "sent", "sentence"),
    [
        (KILLED, EndCause.STOP, 3, "had not ended after SIGQUIT, SIGTERM and was killed"),
        (KILLED, EndCause.RESTART, 5, "had not ended after SIGQUIT, SIGTERM and was killed"),
        (UNSEEN, EndCause.STOP, 3, "had not ended after SIGQUIT, SIGTERM and was killed"),
        (
            KILLED,
            EndCause.START_TIMEOUT,
            3,
            "was not ready in time and was ended (had not ended after SIGQUIT, SIGTERM and was killed)",
        ),
        (KILLED, EndCause.STOP, 2, "was killed by SIGKILL"),
        (KILLED, None, 0, "was killed by SIGKILL"),
        (CRASHED, EndCause.STOP, 3, "exited with 3"),
        (UNSEEN, EndCause.STOP, 2, "ended (how is not known: it is no child of this daemon)"),
    ],
)
def test_one_that_outlasted_every_stop_signal_was_killed_by_us_and_not_by_a_person(
    end: Exited, by: EndCause | None, sent: int, sentence: str
) -> None:
    assert describe_end(Role.BACKUP, end, by, policy=POLICY, sent=sent) == sentence


@pytest.mark.parametrize(
    ("checks", "is_silent", "lacks"),
    [
        ((GOOD, BAD), False, "http: 127.0.0.1:8002 refused"),
        ((NEW, BAD), True, "http: no result yet, http: 127.0.0.1:8002 refused"),
        ((GOOD,), True, "it has not said READY=1"),
        ((), False, None),
    ],
)
def test_one_that_was_not_ready_in_time_says_what_it_lacked(
    checks: tuple[CheckView, ...], is_silent: bool, lacks: str | None
) -> None:
    unready = why_unready(checks, is_silent=is_silent)
    assert unready == lacks
    told = describe_end(Role.BACKUP, TERMED, EndCause.START_TIMEOUT, unready=unready, policy=POLICY, sent=0)
    why = f" ({lacks})" if lacks is not None else ""
    assert told == f"was not ready in time{why} and was ended (was killed by SIGTERM)"
    other = describe_end(Role.BACKUP, TERMED, EndCause.STOP, unready=unready, policy=POLICY, sent=0)
    assert other == "was killed by SIGTERM"


def test_the_reason_says_it_in_the_same_words() -> None:
    backoff = replace(UNIT, state=UnitState.BACKOFF, last_end=KILLED, ended_by=EndCause.START_TIMEOUT)
    assert why_not_eligible(Role.BACKUP, backoff, Health.UNKNOWN, (), POLICY, "N", ended_after=3) == (
        "was not ready in time and was ended (had not ended after SIGQUIT, SIGTERM and was killed); next try at N"
    )


@pytest.mark.parametrize(
    ("is_silent", "sentence"),
    [(True, "its checks pass; it has not said READY=1 yet"), (False, "its checks pass")],
)
def test_a_start_whose_checks_pass_says_that_it_waits_for_the_instance_itself(is_silent: bool, sentence: str) -> None:
    def told(unit: Unit) -> str | None:
        return why_not_eligible(Role.BACKUP, unit, Health.UP, (GOOD,), POLICY, None, is_silent=is_silent)

    assert told(UNIT) == sentence
    assert told(replace(UNIT, last_end=CRASHED)) == f"{sentence}; the one before exited with 3"
    assert told(replace(UNIT, hook=HookName.POST_START)) == "its checks have passed, its post_start runs"


def test_signals_have_names_where_there_are_some() -> None:
    assert [signal_name(number) for number in (9, 15, 40)] == ["SIGKILL", "SIGTERM", "signal 40"]


def test_one_that_rests_for_want_of_a_release_says_what_is_missing() -> None:
    assert why(replace(UNIT, state=UnitState.STOPPED, last_end=NO_RELEASE)) == "no release: clojarsctl deploy TAG"
    stopped = replace(UNIT, state=UnitState.STOPPED, goal=Goal.DOWN, last_end=NO_RELEASE)
    assert why(stopped) == "stopped by order"


def test_ready_needs_health_too() -> None:
    ready = replace(UNIT, state=UnitState.READY)
    assert why(ready, GOOD, health=Health.UP) is None
    assert why(ready, GOOD, BAD, NEW, health=Health.DOWN) == (
        "its checks fail (http: 127.0.0.1:8002 refused, http: no result yet)"
    )
    stalled = "it has not accepted 3 waiting connections for 0.5 s"
    assert why(ready, GOOD, health=Health.STALLED, stalled=stalled) == stalled
    assert why(ready, BAD, health=Health.DOWN, stalled=stalled) == (
        f"{stalled}; its checks fail (http: 127.0.0.1:8002 refused)"
    )


@pytest.mark.parametrize(
    ("end", "by", "checks", "sentence"),
    [
        (None, None, (NEW,), "no check has passed yet (http: no result yet)"),
        (None, None, (BAD, GOOD), "not every check has passed yet (http: 127.0.0.1:8002 refused)"),
        (CRASHED, None, (NEW,), "no check has passed yet (http: no result yet); the one before exited with 3"),
        (TERMED, EndCause.RESTART, (NEW,), "no check has passed yet (http: no result yet)"),
        (NO_LOG, None, (NEW,), "no check has passed yet (http: no result yet)"),
        (
            TERMED,
            EndCause.START_TIMEOUT,
            (BAD,),
            "no check has passed yet (http: 127.0.0.1:8002 refused);"
            " the one before was not ready in time and was ended (was killed by SIGTERM)",
        ),
    ],
)
def test_a_start_says_what_is_missing_and_why_the_one_before_is_gone(
    end: Exited | NotLaunched | None, by: EndCause | None, checks: tuple[CheckView, ...], sentence: str
) -> None:
    assert why(replace(UNIT, last_end=end, ended_by=by), *checks) == sentence


@pytest.mark.parametrize(
    ("cause", "sentence"),
    [
        (EndCause.STOP, "its connections may end before it is stopped"),
        (EndCause.RESTART, "its connections may end before it is restarted"),
        (None, "out of rotation by order; `clojarsctl undrain backup` brings it back"),
    ],
)
def test_a_drain_says_what_it_is_for(cause: EndCause | None, sentence: str) -> None:
    assert why(replace(UNIT, state=UnitState.DRAINING, cause=cause), GOOD, health=Health.UP) == sentence


@pytest.mark.parametrize(
    ("cause", "sent", "sentence"),
    [
        (EndCause.STOP, 1, "an order to stop: SIGQUIT sent"),
        (EndCause.RESTART, 2, "an order to restart: SIGQUIT, SIGTERM sent"),
        (EndCause.START_TIMEOUT, 3, "it was not ready in time: SIGQUIT, SIGTERM, SIGKILL sent"),
        (EndCause.START_TIMEOUT, 5, "it was not ready in time: SIGQUIT, SIGTERM, SIGKILL sent"),
    ],
)
def test_an_end_says_which_signals_were_sent(cause: EndCause, sent: int, sentence: str) -> None:
    assert why(replace(UNIT, state=UnitState.STOPPING, cause=cause, stop_step=sent)) == sentence


@pytest.mark.parametrize(
    ("hook", "sentence"),
    [
        (HookName.PRE_START, "its pre_start runs"),
        (HookName.POST_START, "its checks have passed, its post_start runs"),
    ],
)
def test_a_start_says_which_hook_it_waits_for(hook: HookName, sentence: str) -> None:
    assert why(replace(UNIT, hook=hook), GOOD) == sentence


@pytest.mark.parametrize(
    ("unit", "sentence"),
    [
        (Unit(cause=EndCause.STOP, hook=HookName.PRE_STOP), "an order to stop: its pre_stop runs"),
        (Unit(last_end=CRASHED, hook=HookName.POST_STOP), "exited with 3; its post_stop runs"),
        (
            Unit(cause=EndCause.POST_START, hook_failure="exited with 1", stop_step=1),
            "its post_start failed (exited with 1): SIGQUIT sent",
        ),
    ],
)
def test_an_end_says_what_its_hooks_do(unit: Unit, sentence: str) -> None:
    assert why(replace(unit, state=UnitState.STOPPING)) == sentence


def test_a_start_says_how_far_its_warm_up_is() -> None:
    warming = replace(UNIT, warming_since=1.0)
    assert why(warming, GOOD, health=Health.UP) == "warming up"
    told = why_not_eligible(
        Role.BACKUP, warming, Health.UP, (GOOD,), POLICY, None, warmup=Warmup(20, rounds=6, first=0.04, latency=0.003)
    )
    assert told == "warming up: round 7 of 20, 3.0 ms"


def test_a_failed_warm_up_is_told_while_it_ends_and_afterwards() -> None:
    ending = replace(
        UNIT, state=UnitState.STOPPING, cause=EndCause.WARMUP, warmup_failure="/ answered 500", stop_step=1
    )
    assert why(ending) == "its warm-up failed (/ answered 500): SIGQUIT sent"
    ended = replace(
        UNIT, state=UnitState.BACKOFF, last_end=TERMED, ended_by=EndCause.WARMUP, warmup_failure="/ answered 500"
    )
    assert why(ended, at="then") == (
        "was ended because its warm-up failed: / answered 500 (was killed by SIGTERM); next try at then"
    )
    assert why(replace(ended, warmup_failure=None), at="then") == (
        "was ended because its warm-up failed (was killed by SIGTERM); next try at then"
    )


def test_a_failed_post_start_is_told_with_the_next_try() -> None:
    again = replace(UNIT, last_end=TERMED, ended_by=EndCause.POST_START)
    assert why(again, NEW) == (
        "no check has passed yet (http: no result yet);"
        " the one before was ended because its post_start failed (was killed by SIGTERM)"
    )


def test_stopped_says_who_ordered_it_and_when() -> None:
    stopped = Unit(incarnation=FIRST, last_end=TERMED, ended_by=EndCause.STOP)

    def told(unit: Unit, by: str | None, at: str | None) -> str | None:
        return why_not_eligible(Role.BACKUP, unit, Health.UNKNOWN, (), POLICY, None, stopped_by=by, stopped_at=at)

    assert told(stopped, "ann", "2026-11-23T12:00:00.000Z") == (
        "stopped by ann at 2026-11-23T12:00:00.000Z; `clojarsctl start backup` starts it"
    )
    assert told(stopped, "ann", None) == "stopped by ann; `clojarsctl start backup` starts it"
    assert told(stopped, None, None) == "stopped by order"
    assert told(replace(UNIT, state=UnitState.READY), "ann", "then") == "its checks fail ()"


def test_a_pause_says_when_the_next_try_is() -> None:
    backoff = replace(UNIT, state=UnitState.BACKOFF, last_end=CRASHED, deadline=5.0)
    assert why(backoff, at="2026-11-23T12:00:00.000Z") == "exited with 3; next try at 2026-11-23T12:00:00.000Z"


@pytest.mark.parametrize(
    ("when", "count", "sentence"),
    [
        (RestartWhen.ON_FAILURE, 3, "after 3 restarts within 120 s"),
        (RestartWhen.ALWAYS, 1, "after 1 restart within 120 s"),
        (RestartWhen.NEVER, 3, "because restart is never"),
        (RestartWhen.NEVER, 1, "because restart is never"),
    ],
)
def test_given_up_says_by_which_limit(when: RestartWhen, count: int, sentence: str) -> None:
    """With `restart = "never"` the first failure gives up, however low the limit is."""
    relaunched = Failures(1, (1.0,)) if when is RestartWhen.NEVER else Failures(count, (1.0,) * count)
    failed = replace(UNIT, state=UnitState.FAILED, last_end=CRASHED, failures=relaunched)
    policy = replace(POLICY, restart=replace(RESTARTS, when=when, limit_count=count))
    assert why(failed, policy=policy) == f"exited with 3; given up {sentence}; `clojarsctl start backup` tries again"


@pytest.mark.parametrize(
    ("unit", "sentence"),
    [
        (Unit(), "not started yet"),
        (Unit(incarnation=FIRST, last_end=TERMED, ended_by=EndCause.STOP), "stopped by order"),
        (Unit(incarnation=FIRST, last_end=CRASHED), "stopped by order"),
        (Unit(incarnation=FIRST, last_end=TERMED, ended_by=EndCause.START_TIMEOUT), "stopped by order"),
        (
            Unit(Goal.UP, incarnation=FIRST, last_end=FINISHED, rotation=Rotation.OUT),
            "exited with 0, which is no failure, so it is not started again; `clojarsctl start backup` does",
        ),
    ],
)
def test_stopped_says_whose_wish_it_was(unit: Unit, sentence: str) -> None:
    """A unit that had crashed and was then stopped by order is stopped by order; its exit was a failure."""
    assert why(unit) == sentence
