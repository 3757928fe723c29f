"""What a daemon that begins makes of the saved state and of the processes that are there: every combination."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clojarsd.core.adoption import Adoption, Expectation, adopt, resumed
from clojarsd.core.health import CheckRecord
from clojarsd.core.identity import ProcessIdentity
from clojarsd.core.names import Goal, Health, HookName, Incarnation, Role, Rotation, UnitState
from clojarsd.core.restart import RestartPolicy, RestartWhen
from clojarsd.core.saved import InForce, SavedInstance, SavedPair
from clojarsd.core.unit_facts import Unit, UnitPolicy
from clojarsd.core.warmup import MARGIN
from tests.support.saved import BOOT, LATER, NOON, a_pair, a_unit, an_instance

P, B = Role.PRIMARY, Role.BACKUP
NOW = 5000.0
IN_FORCE = InForce("127.0.0.1", {"http": 9001})
START_TIMEOUT = 120.0


def process(number: int) -> ProcessIdentity:
    return ProcessIdentity(number, 777, BOOT, (1, 2))


def found(*incarnations: int) -> tuple[tuple[Incarnation, ProcessIdentity], ...]:
    """Main processes of these launches, whose numbers tell which is which."""
    return tuple((Incarnation(number), process(900 + number)) for number in incarnations)


def adopted(
    saved: SavedInstance | None, *incarnations: int, serves: bool = False, checks: int = 2
) -> tuple[SavedInstance | None, Adoption]:
    """What becomes of the primary, and all that was made of it; nothing is known of the backup."""
    pair = None
    if saved is not None:
        pair = replace(a_pair(), instances={P: saved, B: SavedInstance(Unit(), NOON)})
    expected = {role: Expectation(IN_FORCE, checks, START_TIMEOUT, serves and role is P) for role in Role}
    adoption = adopt(pair, {P: found(*incarnations)}, expected, NOW, LATER)
    return adoption.instances.get(P), adoption


def leftovers(adoption: Adoption) -> list[int]:
    assert all(role is P for role, _ in adoption.leftovers)
    return [incarnation for _, incarnation in adoption.leftovers]


def stopped(incarnation: int, **changes: object) -> SavedInstance:
    return replace(an_instance(), unit=Unit(incarnation=Incarnation(incarnation)), process=None, **changes)  # type: ignore[arg-type]


def starting(process: ProcessIdentity | None) -> SavedInstance:
    unit = Unit(goal=Goal.UP, state=UnitState.STARTING, incarnation=Incarnation(3), deadline=NOW + 60)
    return replace(an_instance(), unit=unit, process=process)


def test_with_nothing_saved_and_nothing_there_everything_begins_anew() -> None:
    instance, adoption = adopted(None)
    assert instance is None
    assert adoption == Adoption({}, (), ())


def test_without_a_process_what_was_saved_is_taken_up_as_it_stands() -> None:
    """Also where a process should be: the runner finds that it is gone, and acts on that."""
    for before in (stopped(3), an_instance(), starting(process(901)), starting(None)):
        instance, adoption = adopted(before)
        assert instance == before
        assert (adoption.leftovers, adoption.notes) == ((), ())


def test_who_ended_with_a_daemon_that_was_ending_the_pair_has_not_failed() -> None:
    """A service manager sweeps what a killed daemon could not end any more; the next start is like any other."""
    before = an_instance()
    ending = replace(a_pair(), instances={P: before, B: before}, ending=True)
    expected = dict.fromkeys(Role, Expectation(IN_FORCE, 2, START_TIMEOUT, serves=False))
    adoption = adopt(ending, {B: found(before.unit.incarnation)}, expected, NOW, LATER)
    assert adoption.instances[B] == before, "it runs on, and is taken up"
    gone = adoption.instances[P]
    assert (gone.unit.state, gone.unit.goal, gone.process, gone.in_force) == (
        UnitState.STOPPED,
        Goal.DOWN,
        None,
        None,
    )
    assert (gone.unit.incarnation, gone.wanted, gone.goal_by) == (
        before.unit.incarnation,
        before.wanted,
        before.goal_by,
    )
    assert gone.unit.failures == Unit().failures


def test_a_process_that_the_state_knows_is_taken_up_as_it_stands() -> None:
    """Even if the marks told of another number: the identity that was saved is the better evidence."""
    before = an_instance()
    instance, adoption = adopted(before, 3)
    assert instance == before
    assert (leftovers(adoption), adoption.notes) == ([], ())


def test_a_process_that_was_made_but_not_saved_in_time_is_found_by_its_mark() -> None:
    """The state speaks of the launch, and not yet of its process."""
    before = starting(None)
    instance, adoption = adopted(before, 3)
    assert instance == replace(before, process=process(903))
    assert (leftovers(adoption), adoption.notes) == ([], ())


def test_a_launch_whose_process_is_another_ones_mark_has_none() -> None:
    instance, adoption = adopted(starting(None), 2)
    assert instance == starting(None)
    assert leftovers(adoption) == [2]


@pytest.mark.parametrize("incarnations", [(2,), (2, 1), (1,)])
def test_processes_of_earlier_launches_are_left_over(incarnations: tuple[int, ...]) -> None:
    before = an_instance()
    instance, adoption = adopted(before, *incarnations)
    assert instance == before
    assert leftovers(adoption) == list(incarnations)


def test_of_several_launches_the_saved_one_goes_on_and_the_others_are_left_over() -> None:
    instance, adoption = adopted(an_instance(), 3, 2, 1)
    assert instance == an_instance()
    assert leftovers(adoption) == [2, 1]


@pytest.mark.parametrize("state", [UnitState.STOPPED, UnitState.BACKOFF, UnitState.FAILED])
def test_a_process_of_a_launch_that_has_ended_is_left_over(state: UnitState) -> None:
    """The state says that this incarnation is over, whatever still runs with its mark."""
    before = stopped(3)
    before = replace(before, unit=replace(before.unit, state=state))
    instance, adoption = adopted(before, 3)
    assert instance == before
    assert leftovers(adoption) == [3]


@pytest.mark.parametrize("hook", [HookName.PRE_START, HookName.POST_STOP])
def test_beside_a_hook_there_is_no_process_to_go_on_with(hook: HookName) -> None:
    state = UnitState.STARTING if hook is HookName.PRE_START else UnitState.STOPPING
    before = stopped(3)
    before = replace(before, unit=replace(before.unit, state=state, hook=hook))
    instance, adoption = adopted(before, 3)
    assert instance == before
    assert leftovers(adoption) == [3]


@pytest.mark.parametrize("saved", [None, stopped(3), an_instance()], ids=["no state", "stopped", "running"])
@pytest.mark.parametrize("serves", [True, False])
def test_a_process_newer_than_the_state_is_taken_up_by_its_mark(saved: SavedInstance | None, serves: bool) -> None:
    """It is ready if clients are sent to it already, and has to prove itself if not."""
    instance, adoption = adopted(saved, 4, serves=serves)
    assert instance is not None
    unit = instance.unit
    assert (unit.goal, unit.incarnation, instance.process) == (Goal.UP, 4, process(904))
    assert instance.in_force == IN_FORCE
    if serves:
        assert (unit.state, unit.ready_at, unit.deadline) == (UnitState.READY, NOW, None)
        assert instance.records == (CheckRecord(Health.UP),) * 2
    else:
        assert (unit.state, unit.ready_at, unit.deadline) == (UnitState.STARTING, None, NOW + START_TIMEOUT)
        assert instance.records == (CheckRecord(),) * 2
    assert instance.checked_at == (None, None)
    assert instance.since == LATER
    assert leftovers(adoption) == []
    assert adoption.notes == ("primary runs as process 904, of which the state knows nothing",)


def test_what_was_saved_of_an_earlier_process_does_not_hold_for_a_newer_one() -> None:
    """Neither what it has said of itself, nor its release, nor when it was started."""
    before = an_instance()
    assert before.noticed
    instance, _ = adopted(before, 4)
    assert instance is not None
    assert (instance.noticed, instance.status_text, instance.release, instance.started_at) == (False, None, None, None)
    assert instance.unit.last_end is None


def test_what_is_counted_and_wanted_goes_over_to_a_newer_process() -> None:
    before = an_instance()
    instance, _ = adopted(before, 4)
    assert instance is not None
    assert (instance.restarts, instance.last_exit) == (before.restarts, before.last_exit)
    assert (instance.wanted, instance.goal_by, instance.goal_at) == (Goal.UP, "ann", NOON)
    assert (instance.unit.rotation, instance.unit.failures) == (Rotation.OUT, a_unit().failures)


def test_whoever_launched_a_newer_process_wanted_it_up() -> None:
    """The last that the state knows is an order to stop: it was overtaken by a start."""
    instance, _ = adopted(stopped(3, wanted=Goal.DOWN), 4)
    assert instance is not None
    assert (instance.wanted, instance.goal_by, instance.goal_at) == (Goal.UP, None, None)


def test_of_several_newer_processes_the_newest_goes_on() -> None:
    instance, adoption = adopted(stopped(3), 6, 5, 3)
    assert instance is not None
    assert instance.process == process(906)
    assert leftovers(adoption) == [5, 3]


def test_both_roles_are_looked_at_each_for_itself() -> None:
    pair = SavedPair("clojars", BOOT, 1, {P: an_instance(), B: stopped(3)}, LATER)
    expected = {role: Expectation(IN_FORCE, 1, START_TIMEOUT, serves=role is B) for role in Role}
    adoption = adopt(pair, {P: found(3, 2), B: found(4, 1)}, expected, NOW, LATER)
    assert adoption.instances[P] == an_instance()
    assert adoption.instances[B].unit.state is UnitState.READY
    assert adoption.leftovers == ((P, 2), (B, 1))
    assert adoption.notes == ("backup runs as process 904, of which the state knows nothing",)


# Deadlines.

POLICY = UnitPolicy(
    START_TIMEOUT,
    30.0,
    ((15, 10.0),),
    frozenset({0}),
    RestartPolicy(RestartWhen.ON_FAILURE, 1.0, 1.0, 1.0, 9, 1.0),
    hooks={HookName.PRE_STOP: 45.0},
)


@pytest.mark.parametrize("state", UnitState)
@pytest.mark.parametrize("deadline", [None, NOW + 20])
def test_a_deadline_that_is_to_come_goes_on(state: UnitState, deadline: float | None) -> None:
    unit = Unit(goal=Goal.UP, state=state, deadline=deadline)
    assert resumed(unit, NOW, POLICY) is unit


@pytest.mark.parametrize("deadline", [NOW - 500, NOW])
@pytest.mark.parametrize("state", UnitState)
def test_only_a_start_that_nobody_saw_has_its_time_again(state: UnitState, deadline: float) -> None:
    """Of a stop, a drain or a backoff the time is over, whoever was there to see that."""
    unit = Unit(goal=Goal.UP, state=state, deadline=deadline)
    expected = NOW + START_TIMEOUT if state is UnitState.STARTING else deadline
    assert resumed(unit, NOW, POLICY).deadline == expected


@pytest.mark.parametrize("deadline", [NOW - 500, NOW + 1])
@pytest.mark.parametrize(("warmup", "seconds"), [(20.0, 20.0 + MARGIN), (None, MARGIN)])
def test_a_warm_up_begins_again_with_its_whole_time(warmup: float | None, seconds: float, deadline: float) -> None:
    """Also one that the settings no longer have, which is over at once."""
    unit = Unit(state=UnitState.STARTING, warming_since=1.0, deadline=deadline)
    policy = replace(POLICY, warmup=warmup)
    assert resumed(unit, NOW, policy) == replace(unit, warming_since=NOW, deadline=NOW + seconds)


@pytest.mark.parametrize("deadline", [NOW - 500, NOW + 1])
@pytest.mark.parametrize(("hook", "seconds"), [(HookName.PRE_STOP, 45.0), (HookName.POST_STOP, START_TIMEOUT)])
def test_a_hook_that_is_run_again_has_its_whole_time_again(hook: HookName, seconds: float, deadline: float) -> None:
    """Also one that the settings no longer have, which is over at once."""
    unit = Unit(state=UnitState.STOPPING, hook=hook, deadline=deadline)
    assert resumed(unit, NOW, POLICY) == replace(unit, deadline=NOW + seconds)
