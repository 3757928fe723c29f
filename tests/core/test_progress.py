"""When an order has come to its end, and what is said on the way, word for word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clojarsd.core.api import Awaited, Verb
from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.names import Goal, Health, HookName, Incarnation, LaunchStage, Role, Rotation, UnitState
from clojarsd.core.progress import (
    Verdict,
    already,
    as_sentence,
    connections,
    describe_reached,
    gets_traffic,
    judge,
    narrate,
    what_serves,
    why_not_launch,
    why_not_reload,
    why_not_restart,
    why_not_with_environment,
    why_still_waiting,
)
from clojarsd.core.unit import EndCause, Unit
from clojarsd.core.unit_events import NotLaunched
from clojarsd.core.view import DaemonView, FrontendView, InstanceView, PairView
from clojarsd.core.warmup import Outcome, Warmup

FIRST, SECOND = Incarnation(1), Incarnation(2)
READY = Unit(Goal.UP, UnitState.READY, incarnation=FIRST)
PARKED = replace(READY, state=UnitState.DRAINING, rotation=Rotation.OUT)
DRAINING = replace(READY, state=UnitState.DRAINING, cause=EndCause.RESTART)
STOPPING = replace(DRAINING, state=UnitState.STOPPING)
STARTING = replace(READY, state=UnitState.STARTING, incarnation=SECOND)
BACKOFF = replace(STARTING, state=UnitState.BACKOFF)
FAILED = replace(STARTING, state=UnitState.FAILED)
FINISHED = replace(STARTING, state=UnitState.STOPPED)
RESTING = replace(FINISHED, last_end=NotLaunched(SECOND, LaunchStage.RELEASE, "no release: clojarsctl deploy TAG"))
STOPPED = replace(FINISHED, goal=Goal.DOWN)
RENEWED = replace(READY, incarnation=SECOND)


def instance(
    unit: Unit, role: Role = Role.BACKUP, health: Health = Health.UP, reason: str | None = None, pid: int | None = 7
) -> InstanceView:
    return InstanceView(role, role.value, unit, health, pid, "then", 0, None, reason, None, {}, ())


def pair(
    backup: InstanceView, primary: Unit = READY, left: int = 0, *active: Role | None, reason: str | None = None
) -> PairView:
    frontends = {
        str(number): FrontendView((), "relay", None, role, {Role.BACKUP: left, Role.PRIMARY: 100, None: 50}, {})
        for number, role in enumerate(active or (Role.PRIMARY, Role.PRIMARY))
    }
    other = instance(primary, Role.PRIMARY, reason=reason)
    return PairView("demo", DaemonView("1", 1, "then", "x"), {Role.PRIMARY: other, Role.BACKUP: backup}, frontends)


def verdict(
    verb: Verb, unit: Unit, before: Incarnation = FIRST, *, health: Health = Health.UP, reason: str = "R", left: int = 0
) -> Verdict | None:
    return judge(verb, Role.BACKUP, pair(instance(unit, health=health, reason=reason), READY, left), before)


UP = Verdict(True, "backup is up")
PARTED = Verdict(True, "backup is up and out of rotation by order; R")
TOLD_TO_STOP = Verdict(False, "backup was told to stop meanwhile")


@pytest.mark.parametrize(
    ("unit", "health", "reason", "expected"),
    [
        (READY, Health.UP, "", UP),
        (READY, Health.DOWN, "its checks fail", None),
        (STARTING, Health.UNKNOWN, "no check has passed yet", None),
        (STOPPING, Health.UP, "", None),
        (DRAINING, Health.UP, "", None),
        (PARKED, Health.UP, "out of rotation by order; R", PARTED),
        (PARKED, Health.DOWN, "out of rotation by order; R", None),
        (
            BACKOFF,
            Health.UNKNOWN,
            "exited with 1; next try at N",
            Verdict(False, "backup exited with 1; next try at N"),
        ),
        (FAILED, Health.UNKNOWN, "exited with 1; given up", Verdict(False, "backup exited with 1; given up")),
        (FINISHED, Health.UNKNOWN, "exited with 0, which", Verdict(False, "backup exited with 0, which")),
        (RESTING, Health.UNKNOWN, "R", Verdict(False, "no release: clojarsctl deploy TAG")),
        (STOPPED, Health.UNKNOWN, "stopped by order", TOLD_TO_STOP),
        (replace(DRAINING, goal=Goal.DOWN, cause=EndCause.STOP), Health.UP, "", TOLD_TO_STOP),
    ],
)
def test_a_start_and_a_new_process_are_judged_alike(
    unit: Unit, health: Health, reason: str, expected: Verdict | None
) -> None:
    assert verdict(Verb.START, unit, health=health, reason=reason) == expected
    renewed = replace(unit, incarnation=SECOND)
    assert verdict(Verb.RESTART, renewed, health=health, reason=reason) == expected


def test_without_a_release_an_order_that_needs_a_new_process_is_refused() -> None:
    no_release = "no release: clojarsctl deploy TAG"
    for verb, units in {
        Verb.START: (RESTING, STOPPED, BACKOFF, FAILED, STOPPING),
        Verb.RESTART: (RESTING, STOPPED, READY, PARKED, DRAINING, STARTING),
    }.items():
        for unit in units:
            why = why_not_launch(verb, Role.BACKUP, pair(instance(unit)), no_release)
            assert why == f"cannot {verb.value} backup: {no_release}; nothing was done"
            assert why_not_launch(verb, Role.BACKUP, pair(instance(unit)), None) is None
    for unit in (READY, PARKED, DRAINING, STARTING):
        assert why_not_launch(Verb.START, Role.BACKUP, pair(instance(unit)), no_release) is None


def test_a_start_that_comes_to_rest_says_what_is_missing() -> None:
    before, after = pair(instance(STARTING, pid=None)), pair(instance(RESTING, pid=None, health=Health.UNKNOWN))
    told = "cannot start backup: no release: clojarsctl deploy TAG"
    assert narrate(Role.BACKUP, before, after) == (told,)
    assert narrate(Role.BACKUP, before, pair(instance(STOPPED, pid=None))) == ("is stopped",)


@pytest.mark.parametrize("unit", [BACKOFF, FAILED])
def test_what_cannot_be_started_is_told_once(unit: Unit) -> None:
    """Whoever tells that a start has failed begins with `cannot start backup` as well."""
    reason = "cannot start backup: running pre_start: /bin/false exited with 1; next try at N"
    told = "running pre_start: /bin/false exited with 1; next try at N"
    assert verdict(Verb.START, unit, health=Health.UNKNOWN, reason=reason) == Verdict(False, told)
    assert verdict(Verb.RESTART, unit, health=Health.UNKNOWN, reason=reason) == Verdict(False, reason)


@pytest.mark.parametrize("unit", [DRAINING, STOPPING])
def test_a_restart_waits_while_the_old_process_ends(unit: Unit) -> None:
    assert verdict(Verb.RESTART, unit) is None


def test_a_restart_that_later_orders_have_called_off_is_not_waited_for() -> None:
    """A stop and then a start, in time, leave the old process serving: no new one will come."""
    assert verdict(Verb.RESTART, replace(DRAINING, goal=Goal.DOWN, cause=EndCause.STOP)) == TOLD_TO_STOP
    assert verdict(Verb.RESTART, READY) == Verdict(False, "backup was told to stop and to start meanwhile, and runs on")
    assert verdict(Verb.RESTART, replace(STOPPED, incarnation=FIRST)) == TOLD_TO_STOP


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (STOPPED, Verdict(True, "backup is stopped")),
        (replace(STOPPING, goal=Goal.DOWN), None),
        (replace(DRAINING, goal=Goal.DOWN), None),
        (STOPPING, Verdict(False, "backup was told to start meanwhile")),
    ],
)
def test_a_stop(unit: Unit, expected: Verdict | None) -> None:
    assert verdict(Verb.STOP, unit) == expected


@pytest.mark.parametrize(
    ("unit", "left", "expected"),
    [
        (PARKED, 3, None),
        (PARKED, 0, Verdict(True, "backup is out of rotation and has no connections left")),
        (
            replace(STARTING, rotation=Rotation.OUT),
            3,
            Verdict(True, "backup is starting and gets no connections when it is ready"),
        ),
        (
            replace(BACKOFF, rotation=Rotation.OUT),
            0,
            Verdict(True, "backup waits for its next launch and gets no connections when it is ready"),
        ),
        (READY, 3, Verdict(False, "backup was brought back into rotation or stopped meanwhile")),
    ],
)
def test_a_drain(unit: Unit, left: int, expected: Verdict | None) -> None:
    assert verdict(Verb.DRAIN, unit, left=left) == expected


@pytest.mark.parametrize("left", [0, 3])
def test_a_drain_of_steered_connections_ends_when_none_is_waited_for(left: int) -> None:
    """Silent ones stay open, and how many there are is only known as of the latest look."""
    relayed = pair(instance(PARKED), READY, left)
    frontends = {name: replace(one, mode="steer") for name, one in relayed.frontends.items()}
    steered = replace(relayed, frontends=frontends)
    done = Verdict(True, "backup is out of rotation and waits for none of its connections")
    assert judge(Verb.DRAIN, Role.BACKUP, steered, FIRST) == done
    frontends["1"] = replace(frontends["1"], draining={Role.PRIMARY: "soon"})
    assert judge(Verb.DRAIN, Role.BACKUP, steered, FIRST) == done
    frontends["1"] = replace(frontends["1"], draining={Role.BACKUP: "soon"})
    assert judge(Verb.DRAIN, Role.BACKUP, steered, FIRST) is None


@pytest.mark.parametrize(
    ("unit", "health", "expected"),
    [
        (PARKED, Health.UP, Verdict(False, "backup was taken out of rotation meanwhile")),
        (READY, Health.UP, Verdict(True, "backup gets connections again")),
        (
            READY,
            Health.DOWN,
            Verdict(True, "backup gets connections as soon as it can serve; now it is ready"),
        ),
        (
            BACKOFF,
            Health.UNKNOWN,
            Verdict(True, "backup gets connections as soon as it can serve; now it waits for its next launch"),
        ),
    ],
)
def test_an_undrain(unit: Unit, health: Health, expected: Verdict) -> None:
    assert verdict(Verb.UNDRAIN, unit, health=health) == expected


@pytest.mark.parametrize(
    ("verb", "unit", "sentence"),
    [
        (Verb.START, READY, "backup is already up"),
        (Verb.START, PARKED, None),
        (Verb.STOP, STOPPED, "backup is already stopped"),
        (Verb.STOP, FINISHED, None),
        (Verb.STOP, READY, None),
        (Verb.UNDRAIN, READY, "backup is already in rotation"),
        (Verb.UNDRAIN, PARKED, None),
        (Verb.RESTART, READY, None),
        (Verb.DRAIN, PARKED, None),
    ],
)
def test_what_holds_already_is_said(verb: Verb, unit: Unit, sentence: str | None) -> None:
    assert already(verb, instance(unit)) == sentence


def test_a_restart_needs_the_other() -> None:
    alone = pair(instance(READY), STOPPED, reason="stopped by order")
    assert why_not_restart(Role.BACKUP, alone) == (
        "cannot restart backup: primary could not take over, it is stopped (stopped by order)"
    )
    assert why_not_restart(Role.BACKUP, pair(instance(READY), BACKOFF, reason="exited with 3")) == (
        "cannot restart backup: primary could not take over, it waits for its next launch (exited with 3)"
    )
    assert why_not_restart(Role.BACKUP, pair(instance(READY))) is None
    for gone in (STOPPED, BACKOFF, FAILED, FINISHED):
        assert why_not_restart(Role.BACKUP, pair(instance(gone), STOPPED)) is None, "it serves nobody anyway"


def test_a_reload_is_done_when_it_is_told() -> None:
    assert verdict(Verb.RELOAD, READY) == Verdict(True, "backup was told to reload (SIGHUP)")
    other = replace(instance(STARTING), reload_signal=10)
    assert judge(Verb.RELOAD, Role.BACKUP, pair(other), FIRST) == Verdict(True, "backup was told to reload (SIGUSR1)")
    assert already(Verb.RELOAD, instance(READY)) is None


@pytest.mark.parametrize(
    ("unit", "pid", "state"),
    [
        (STOPPED, None, "is stopped"),
        (STARTING, None, "is starting"),
        (BACKOFF, None, "waits for its next launch"),
        (STOPPING, 7, "is stopping"),
    ],
)
def test_a_reload_needs_somebody_who_is_told(unit: Unit, pid: int | None, state: str) -> None:
    seen = pair(instance(unit, reason="R", pid=pid))
    assert why_not_reload(Role.BACKUP, seen) == f"cannot reload backup: it {state} (R); nothing was done"


@pytest.mark.parametrize("unit", [READY, STARTING, DRAINING, PARKED])
def test_whoever_runs_can_be_told_to_reload(unit: Unit) -> None:
    assert why_not_reload(Role.BACKUP, pair(instance(unit))) is None


def test_an_environment_needs_a_start() -> None:
    running = pair(instance(READY))
    assert why_not_with_environment(Verb.START, Role.BACKUP, running) == (
        "cannot start backup with this environment: it runs already, as process 7;"
        " nothing was done; `clojarsctl restart backup --env ...` gives it to a new one"
    )
    assert why_not_with_environment(Verb.START, Role.BACKUP, pair(instance(STARTING, pid=None))) == (
        "cannot start backup with this environment: it runs already;"
        " nothing was done; `clojarsctl restart backup --env ...` gives it to a new one"
    )
    assert why_not_with_environment(Verb.RESTART, Role.BACKUP, running) is None
    assert why_not_with_environment(Verb.START, Role.BACKUP, pair(instance(BACKOFF))) is None


def test_what_was_waited_for_in_words() -> None:
    assert describe_reached(Awaited.READY, (Role.BACKUP,)) == "backup is ready"
    assert describe_reached(Awaited.DOWN, (Role.BACKUP, Role.PRIMARY)) == "backup and primary are down"
    seen = pair(instance(STARTING, health=Health.UNKNOWN, reason="no check has passed yet"), DRAINING)
    both = (Role.BACKUP, Role.PRIMARY)
    assert why_still_waiting(Awaited.READY, both, seen, 90.0) == (
        "backup and primary were not ready within 90 s:"
        " backup is starting (no check has passed yet); primary is draining"
    )
    assert why_still_waiting(Awaited.STOPPED, (Role.PRIMARY,), pair(instance(READY)), 0.5) == (
        "primary was not stopped within 0.5 s: primary is ready"
    )


def test_steps_as_sentences() -> None:
    assert as_sentence(Role.BACKUP, "is ready") == "backup is ready"
    assert as_sentence(Role.BACKUP, "cannot start backup: x") == "cannot start backup: x"


def test_connections_count_over_all_frontends() -> None:
    seen = pair(instance(READY), READY, 3)
    assert [connections(seen, role) for role in Role] == [200, 6]
    assert connections(replace(seen, frontends={}), Role.BACKUP) == 0


def test_who_still_serves() -> None:
    assert what_serves(pair(instance(READY))) == "primary and backup still serve"
    assert what_serves(pair(instance(STOPPED))) == "primary still serves"
    assert what_serves(pair(instance(READY), STOPPED)) == "backup still serves"
    assert what_serves(pair(instance(STOPPED), STOPPED)) == "nothing serves now"


def test_traffic_means_every_frontend() -> None:
    assert gets_traffic(Role.PRIMARY, pair(instance(READY)))
    assert not gets_traffic(Role.PRIMARY, pair(instance(READY), READY, 0, Role.PRIMARY, Role.BACKUP))
    assert not gets_traffic(Role.PRIMARY, pair(instance(READY), READY, 0, None))
    assert gets_traffic(Role.PRIMARY, replace(pair(instance(READY)), frontends={}))


@pytest.mark.parametrize(
    ("before", "after", "left", "sentence"),
    [
        (instance(READY), instance(DRAINING), 0, "gets no new connections; 0 open ones may end"),
        (instance(READY), instance(PARKED), 1, "gets no new connections; 2 open ones may end"),
        (instance(DRAINING), instance(STOPPING), 0, "ends (process 7)"),
        (instance(DRAINING), instance(STOPPING, pid=None), 0, "ends"),
        (
            instance(READY),
            instance(replace(STOPPING, hook=HookName.POST_STOP), pid=None, reason="exited with 3; its post_stop runs"),
            0,
            "exited with 3; its post_stop runs",
        ),
        (instance(STOPPING), instance(STARTING, pid=8), 0, "starts (process 8)"),
        (instance(STOPPING), instance(STARTING, pid=None), 0, None),
        (instance(STARTING, pid=None), instance(STARTING, pid=8), 0, "starts (process 8)"),
        (instance(STARTING), instance(RENEWED), 0, "is ready"),
        (instance(READY), instance(READY, health=Health.DOWN, reason="its checks fail (x)"), 0, None),
        (instance(STOPPING), instance(STOPPED, pid=None), 0, "is stopped"),
        (
            instance(STARTING),
            instance(BACKOFF, reason="exited with 1; next try at N"),
            0,
            "exited with 1; next try at N",
        ),
        (instance(BACKOFF), instance(FAILED, reason="cannot start backup: x"), 0, "cannot start backup: x"),
        (instance(READY), instance(READY), 5, None),
    ],
)
def test_a_step_in_words(before: InstanceView, after: InstanceView, left: int, sentence: str | None) -> None:
    if after.reason == "its checks fail (x)":
        sentence = "is ready, but its checks fail (x)"
    assert narrate(Role.BACKUP, pair(before), pair(after, READY, left)) == (() if sentence is None else (sentence,))


def test_one_connection_is_one() -> None:
    seen = pair(instance(DRAINING), READY, 1, Role.PRIMARY)
    assert narrate(Role.BACKUP, pair(instance(READY)), seen) == ("gets no new connections; 1 open one may end",)


NONE_NEW = "gets no new connections; 0 open ones may end"
TWO_CUT = DrainTally(ended=7, cut=2, after=30.0)


CUT = "2 of 9 connections were cut after 30 s (drain)"


def test_a_step_says_how_many_connections_were_cut() -> None:
    before, after = instance(DRAINING), replace(instance(STOPPING), drained=TWO_CUT)
    assert narrate(Role.BACKUP, pair(before), pair(after)) == (f"ends (process 7), and {CUT}",)
    after = replace(before, drained=TWO_CUT)
    assert narrate(Role.BACKUP, pair(before), pair(after)) == (f"is drained, and {CUT}",)
    assert narrate(Role.BACKUP, pair(after), pair(after)) == ()
    assert narrate(Role.BACKUP, pair(before), pair(replace(before, drained=DrainTally(ended=1)))) == ()


@pytest.mark.parametrize(
    ("before", "after", "sentences"),
    [
        (READY, replace(instance(PARKED), drained=TWO_CUT), (NONE_NEW, f"is drained, and {CUT}")),
        (PARKED, replace(instance(READY), drained=TWO_CUT), (f"is drained, and {CUT}", "is ready")),
        (
            DRAINING,
            replace(instance(replace(STOPPED, incarnation=FIRST), pid=None), drained=TWO_CUT),
            (f"is drained, and {CUT}", "is stopped"),
        ),
        (
            DRAINING,
            replace(instance(STARTING, pid=8), drained=TWO_CUT),
            (f"ends (process 7), and {CUT}", "starts (process 8)"),
        ),
        (DRAINING, instance(STARTING, pid=8), ("ends (process 7)", "starts (process 8)")),
        (DRAINING, instance(STARTING, pid=None), ("ends (process 7)",)),
        (DRAINING, instance(RENEWED, pid=8), ("ends (process 7)", "starts (process 8)", "is ready")),
        (STOPPING, instance(RENEWED, pid=8), ("starts (process 8)", "is ready")),
        (STOPPING, instance(replace(PARKED, incarnation=SECOND), pid=8), ("starts (process 8)", NONE_NEW)),
        (
            DRAINING,
            instance(FAILED, pid=None, reason="cannot start backup: x"),
            ("ends (process 7)", "cannot start backup: x"),
        ),
    ],
)
def test_steps_that_no_picture_has_shown_are_told_all_the_same(
    before: Unit, after: InstanceView, sentences: tuple[str, ...]
) -> None:
    """Whoever is to tell them may get to look late, on a machine that has much to do."""
    assert narrate(Role.BACKUP, pair(instance(before)), pair(after)) == sentences


def test_the_end_of_a_drain_says_how_many_connections_were_cut() -> None:
    seen = replace(instance(PARKED), drained=TWO_CUT)
    verdict = judge(Verb.DRAIN, Role.BACKUP, pair(seen), FIRST)
    assert verdict == Verdict(
        True,
        "backup is out of rotation and has no connections left; 2 of 9 connections were cut after 30 s (drain)",
    )


WARMING = replace(STARTING, warming_since=1.0)
BEGUN = Warmup(20)
WARM = replace(BEGUN, outcome=Outcome.SETTLED, rounds=12, first=0.04, latency=0.003)


@pytest.mark.parametrize(
    ("before", "after", "steps"),
    [
        (instance(STARTING), replace(instance(WARMING), warmup=BEGUN), ("is warming up (at most 20 rounds)",)),
        (replace(instance(WARMING), warmup=BEGUN), replace(instance(WARMING), warmup=replace(BEGUN, rounds=3)), ()),
        (
            replace(instance(WARMING), warmup=BEGUN),
            replace(instance(RENEWED), warmup=WARM),
            ("is warm: 40 ms -> 3.0 ms in 12 rounds", "is ready"),
        ),
        (
            replace(instance(READY), warmup=WARM),
            replace(instance(WARMING, pid=8), warmup=BEGUN),
            ("ends (process 7)", "starts (process 8)", "is warming up (at most 20 rounds)"),
        ),
        (
            replace(instance(READY), warmup=WARM),
            replace(instance(RENEWED, pid=8), warmup=WARM),
            ("ends (process 7)", "starts (process 8)", "is warm: 40 ms -> 3.0 ms in 12 rounds", "is ready"),
        ),
        (replace(instance(READY), warmup=WARM), replace(instance(READY), warmup=WARM), ()),
        (
            replace(instance(WARMING), warmup=BEGUN),
            replace(instance(replace(PARKED, incarnation=SECOND), reason="by order"), warmup=WARM),
            ("is warm: 40 ms -> 3.0 ms in 12 rounds", "gets no new connections; 0 open ones may end"),
        ),
    ],
)
def test_a_warm_up_in_words(before: InstanceView, after: InstanceView, steps: tuple[str, ...]) -> None:
    assert narrate(Role.BACKUP, pair(before), pair(after)) == steps
