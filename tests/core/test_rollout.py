"""The plan of a rollout, walked exhaustively: every move may succeed, fail, or be cut before or after its effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from clojarsd.core import rollout_journal as journal
from clojarsd.core.names import Role
from clojarsd.core.rollout import (
    MOST_RETURNS,
    Do,
    End,
    Move,
    Relaunch,
    Switch,
    TurnBack,
    broken_rule,
    held_back,
    next_move,
    steps_for,
    why_not_abort,
    why_not_resumed,
)
from clojarsd.core.rollout_facts import (
    BACK,
    FORWARD,
    GATES,
    GoingBack,
    HeldBack,
    Kind,
    Outcome,
    Rollout,
    Seen,
    SeenInstance,
    StepName,
    Wish,
)

OLD, NEW = "old.jar", "new.jar"
AT = "2026-11-28T12:00:00.000Z"
ALL = steps_for(Kind.DEPLOY, from_tag=True, tests=True, asks=True, smokes=True, archives=True, gates=frozenset(GATES))
ROLLBACK = steps_for(
    Kind.ROLLBACK, from_tag=False, tests=True, asks=True, smokes=True, archives=True, gates=frozenset(GATES)
)


def wish(kind: Kind = Kind.DEPLOY, previous: str | None = OLD, steps: tuple[StepName, ...] = ALL) -> Wish:
    release = NEW if kind is Kind.ROLLBACK else None
    tag = None if kind is Kind.ROLLBACK else "1.2.0"
    commit = None if tag is None else "c0ffee"
    return Wish("20261128-120000", kind, tag, commit, None, release, previous, "root", AT, steps)


def seen(link: str | None, primary: SeenInstance, backup: SeenInstance) -> Seen:
    return Seen(link, {Role.PRIMARY: primary, Role.BACKUP: backup})


UP_OLD, UP_NEW = SeenInstance(OLD, True), SeenInstance(NEW, True)
DOWN_NEW, GONE = SeenInstance(NEW, False), SeenInstance(None, False)


def set_instance(now: Seen, role: Role, there: SeenInstance) -> Seen:
    return replace(now, instances={**now.instances, role: there})


# The world in which a plan is carried out: each function gives every way in which its move can go.


@dataclass(frozen=True)
class At:
    """Where a walk stands. daemons: how many have carried it out; harmed: whether something failed on the way back."""

    rollout: Rollout
    now: Seen
    daemons: int = 1
    harmed: bool = False

    def key(self) -> object:
        told = self.rollout
        return (
            tuple(sorted((step.value, count) for step, count in told.begun.items())),
            tuple(sorted(step.value for step in told.done)),
            tuple(sorted(step.value for step in told.failed)),
            told.at_step,
            told.approved_by,
            told.back and told.back.is_abort,
            told.outcome,
            self.now.link,
            tuple(self.now.instances[role] for role in Role),
            self.daemons,
            self.harmed,
        )


MOST_DAEMONS = 3


def write(at: At, record: journal.Record) -> At:
    return replace(at, rollout=journal.after(at.rollout, record))


def turn(at: At, why: str, step: StepName, *, is_abort: bool = False) -> At:
    return write(at, journal.turned(GoingBack(why, step, is_abort), AT))


def facts(step: StepName) -> dict[str, str | None]:
    return {"release": NEW} if step is StepName.INSTALL else {}


def finish(at: At, step: StepName) -> At:
    return write(at, journal.done(step, AT, 1.0, **facts(step)))


def resumed(at: At) -> Iterator[At]:
    """The daemon is killed here, and the next one takes up what it finds."""
    if at.daemons == MOST_DAEMONS:
        return
    at = replace(at, daemons=at.daemons + 1)
    why = why_not_resumed(at.rollout)
    yield at if why is None else write(at, journal.turned(why, AT))


def effects(at: At, move: Move) -> Iterator[tuple[bool, At]]:
    """Every way in which a move can leave the world, and whether that is a success."""
    match move:
        case Do():
            yield True, at
            yield False, at
        case Switch(_, release):
            yield True, replace(at, now=replace(at.now, link=release))
            yield False, at
        case Relaunch(_, role, into, _, True):
            yield True, at
            yield False, replace(at, now=set_instance(at.now, role, SeenInstance(into, False)))
        case Relaunch(_, role, into, _, False):
            good = GONE if into is None else SeenInstance(into, True)
            yield True, replace(at, now=set_instance(at.now, role, good))
            yield False, at  # the order itself was refused
            for left in (SeenInstance(into, False), GONE):
                yield False, replace(at, now=set_instance(at.now, role, left))


def results(at: At, move: Move) -> Iterator[At]:
    if isinstance(move, TurnBack):
        yield write(at, journal.turned(move.back, AT))
        return
    if isinstance(move, End):
        yield write(at, journal.ended(move.outcome, "", AT))
        return
    step = move.step
    at = write(at, journal.begun(step, AT))
    yield from resumed(at)
    if step is StepName.APPROVE:
        yield finish(write(at, journal.approved("root", AT)), step)
        yield turn(at, "no", step, is_abort=True)
        return
    is_back = at.rollout.back is not None
    for is_good, after in effects(at, move):
        yield from resumed(after)
        if is_good:
            yield finish(after, step)
        elif is_back:
            yield replace(write(after, journal.failed(step, AT, "it did not work")), harmed=True)
        elif step is StepName.PRUNE:  # nothing goes back any more
            yield write(after, journal.failed(step, AT, "it did not work"))
        elif step is StepName.ARCHIVE:
            yield finish(after, step)
        else:
            yield turn(after, "it did not work", step)
        if why_not_abort(after.rollout) is None:
            yield turn(after, "aborted", step, is_abort=True)


def walk(start: At) -> Iterator[tuple[At, Move | None]]:
    """Every place that can be reached, with the move that is made there."""
    known, open_to = {start.key()}, [start]
    while open_to:
        at = open_to.pop()
        if at.rollout.outcome is not None:
            yield at, None
            continue
        move = next_move(at.rollout, at.now)
        yield at, move
        for after in results(at, move):
            if after.key() not in known:
                known.add(after.key())
                open_to.append(after)


def start(asked: Wish, now: Seen) -> At:
    return At(journal.told([journal.asked(asked)]), now)


def approved(at: At) -> At:
    return write(at, journal.approved("root (--yes)", AT))


PAIR = seen(OLD, UP_OLD, UP_OLD)
AUTOMATIC = tuple(step for step in ALL if step is not StepName.APPROVE)
STARTS = {
    "deploy": start(wish(), PAIR),
    "deploy that nobody is asked about": approved(start(wish(steps=AUTOMATIC), PAIR)),
    "rollback": start(wish(Kind.ROLLBACK, steps=ROLLBACK), PAIR),
    "rollback of a pair of which nothing serves": start(
        wish(Kind.ROLLBACK, steps=ROLLBACK), seen(OLD, SeenInstance(OLD, False), GONE)
    ),
    "rollback with one instance": start(wish(Kind.ROLLBACK, steps=ROLLBACK), seen(OLD, UP_OLD, GONE)),
    "rollback since the primary serves nobody": start(
        wish(Kind.ROLLBACK, steps=ROLLBACK), seen(OLD, SeenInstance(OLD, False), UP_OLD)
    ),
    "first deploy": start(wish(previous=None), seen(None, GONE, GONE)),
    "deploy of what is there already": start(wish(Kind.ROLLBACK, NEW, ROLLBACK), seen(NEW, UP_NEW, UP_NEW)),
    "return to what the link names": start(wish(Kind.ROLLBACK, NEW, ROLLBACK), seen(NEW, UP_OLD, UP_OLD)),
}


@pytest.mark.parametrize("name", STARTS)
def test_every_way_through_keeps_the_rules_and_ends_well(name: str) -> None:
    begin = STARTS[name]
    both_served = all(begin.now.is_eligible(role) for role in Role)
    previous = begin.rollout.wish.previous
    seen_outcomes = set()
    for at, move in walk(begin):
        if both_served:
            assert any(at.now.is_eligible(role) for role in Role), at
        if StepName.PRIMARY in at.rollout.begun and name != "rollback since the primary serves nobody":
            assert at.rollout.approved_by is not None
            assert StepName.BACKUP in at.rollout.done
        if move is not None:
            assert broken_rule(at.rollout, at.now, move) is None, (at, move)
            continue
        outcome = at.rollout.outcome
        seen_outcomes.add(outcome)
        if outcome is Outcome.DONE:
            assert at.now.link == NEW
            assert at.rollout.approved_by is not None
            assert all(at.now.instances[role].serves(NEW) for role in Role)
        elif outcome is Outcome.STUCK:
            assert at.harmed or not both_served, at
        elif at.rollout.has_changed:
            assert at.now.link == previous
            for role, there in at.now.instances.items():
                served = there.serves(previous) or not both_served
                assert served if at.rollout.touched(role) else there == begin.now.instances[role], at
        else:
            assert at.now == begin.now
    assert seen_outcomes >= {Outcome.DONE, Outcome.FAILED, Outcome.ABORTED}


def test_steps_come_in_the_order_of_a_whole_deploy() -> None:
    at, taken = approved(start(wish(steps=AUTOMATIC), PAIR)), []
    while not isinstance(move := next_move(at.rollout, at.now), End):
        assert isinstance(move, Do | Switch | Relaunch)
        taken.append(move.step)
        at = write(at, journal.begun(move.step, AT))
        _, after = next(iter(effects(at, move)))
        at = finish(after, move.step)
    assert tuple(taken) == AUTOMATIC == tuple(step for step in FORWARD if step is not StepName.APPROVE)
    assert move.outcome is Outcome.DONE


def after_steps(*steps: StepName, now: Seen = PAIR, asked: Wish | None = None) -> At:
    at = start(asked or wish(), now)
    for step in steps:
        at = finish(write(at, journal.begun(step, AT)), step)
    return at


TO_SWITCH = ALL[: ALL.index(StepName.SWITCH) + 1]
TO_PRIMARY = ALL[: ALL.index(StepName.PRIMARY)]


def test_a_link_that_somebody_has_changed_turns_it_back() -> None:
    at = after_steps(*TO_SWITCH)
    move = next_move(at.rollout, replace(at.now, link="other.jar"))
    back = GoingBack("somebody has changed the link, which names other.jar now", StepName.BACKUP)
    assert move == TurnBack(back)
    gone = next_move(at.rollout, replace(at.now, link=None))
    assert isinstance(gone, TurnBack)
    assert gone.back.why == "somebody has changed the link, which names nothing now"


def test_a_primary_is_not_restarted_when_the_backup_cannot_take_over() -> None:
    at = after_steps(*TO_PRIMARY, now=seen(NEW, UP_OLD, DOWN_NEW))
    move = next_move(at.rollout, at.now)
    assert move == TurnBack(GoingBack("backup cannot take over while primary is restarted", StepName.PRIMARY))


def test_the_one_that_cannot_serve_comes_back_first() -> None:
    at = after_steps(*TO_PRIMARY, now=seen(NEW, DOWN_NEW, UP_NEW))
    at = turn(write(at, journal.begun(StepName.PRIMARY, AT)), "it did not come up", StepName.PRIMARY)
    assert next_move(at.rollout, at.now) == Switch(StepName.SWITCH_BACK, OLD)
    at = replace(at, now=replace(at.now, link=OLD))
    assert next_move(at.rollout, at.now) == Relaunch(StepName.PRIMARY_BACK, Role.PRIMARY, OLD, alone=True)
    at = replace(at, now=set_instance(at.now, Role.PRIMARY, UP_OLD))
    assert next_move(at.rollout, at.now) == Relaunch(StepName.BACKUP_BACK, Role.BACKUP, OLD)


def test_the_last_one_that_serves_keeps_serving_when_the_other_does_not_come_back() -> None:
    at = after_steps(*TO_PRIMARY, now=seen(OLD, GONE, UP_NEW))
    at = turn(write(at, journal.begun(StepName.PRIMARY, AT)), "it did not come up", StepName.PRIMARY)
    at = write(at, journal.failed(BACK[Role.PRIMARY], AT, "it does not come up"))
    assert next_move(at.rollout, at.now) == End(Outcome.STUCK)


@pytest.mark.parametrize(
    ("at", "why"),
    [
        (start(wish(), PAIR), "clojarsd ended during checkout"),
        (write(start(wish(), PAIR), journal.begun(StepName.BUILD, AT)), "clojarsd ended during build"),
        (write(after_steps(*TO_SWITCH), journal.begun(StepName.BACKUP, AT)), None),
        (
            write(
                write(after_steps(*TO_SWITCH), journal.begun(StepName.BACKUP, AT)), journal.begun(StepName.BACKUP, AT)
            ),
            "clojarsd ended twice during backup",
        ),
        (after_steps(*ALL[:-1], now=seen(NEW, UP_NEW, UP_NEW)), None),
        (turn(start(wish(), PAIR), "no", StepName.BUILD), None),
    ],
)
def test_what_the_next_daemon_makes_of_it(at: At, why: str | None) -> None:
    back = why_not_resumed(at.rollout)
    assert (back and back.why) == why


def test_waiting_for_an_answer_is_taken_up_any_number_of_times() -> None:
    at = after_steps(*TO_SWITCH)
    for _ in range(5):
        at = write(at, journal.begun(StepName.APPROVE, AT, until=AT))
    assert why_not_resumed(at.rollout) is None


def test_what_can_be_aborted() -> None:
    assert why_not_abort(start(wish(), PAIR).rollout) is None
    good = after_steps(*ALL[: ALL.index(StepName.GOOD) + 1])
    assert why_not_abort(good.rollout) == (
        "new.jar is recorded as good already; clojarsctl rollback brings the former release back"
    )
    recording = write(after_steps(*ALL[: ALL.index(StepName.GOOD)]), journal.begun(StepName.GOOD, AT))
    assert why_not_abort(recording.rollout) == (
        "new.jar is just being recorded as good; clojarsctl rollback brings the former release back"
    )
    turned = turn(start(wish(), PAIR), "the disk is full", StepName.BUILD)
    assert why_not_abort(turned.rollout) == "it is on its way back already: the disk is full"


def test_an_instance_that_runs_it_already_is_looked_at_all_the_same() -> None:
    at = write(after_steps(*TO_SWITCH), journal.begun(StepName.BACKUP, AT))
    at = replace(at, now=seen(NEW, UP_OLD, UP_NEW))
    assert next_move(at.rollout, at.now) == Relaunch(StepName.BACKUP, Role.BACKUP, NEW, is_there=True)


def test_the_link_is_ahead_of_the_primary_until_the_gate_and_of_both_on_the_way_back() -> None:
    former = HeldBack(OLD, "deploy of 1.2.0 is under way")
    before = after_steps(*TO_SWITCH[:-1])
    assert [held_back(before.rollout, role) for role in Role] == [None, None]
    switching = write(before, journal.begun(StepName.SWITCH, AT))
    assert [held_back(switching.rollout, role) for role in Role] == [former, None]
    gate = after_steps(*TO_PRIMARY)
    assert [held_back(gate.rollout, role) for role in Role] == [former, None]
    primary = write(gate, journal.begun(StepName.PRIMARY, AT))
    assert [held_back(primary.rollout, role) for role in Role] == [None, None]
    back = turn(primary, "it did not come up", StepName.PRIMARY)
    assert [held_back(back.rollout, role) for role in Role] == [former, former]
    ended = write(back, journal.ended(Outcome.FAILED, "", AT))
    assert [held_back(ended.rollout, role) for role in Role] == [None, None]


def test_a_primary_that_never_had_the_release_does_not_get_it_from_a_link_that_did_not_come_back() -> None:
    back = turn(after_steps(*TO_PRIMARY), "nobody wants it", StepName.APPROVE)
    stuck = write(back, journal.ended(Outcome.STUCK, "", AT))
    kept = HeldBack(OLD, "deploy of 1.2.0 could not be taken back", only_from=NEW)
    assert [held_back(stuck.rollout, role) for role in Role] == [kept, None]
    begun = write(after_steps(*TO_PRIMARY), journal.begun(StepName.PRIMARY, AT))
    had_it = write(turn(begun, "it falls over", StepName.PRIMARY), journal.ended(Outcome.STUCK, "", AT))
    assert [held_back(had_it.rollout, role) for role in Role] == [None, None]


def test_rules_are_found_broken() -> None:
    good = after_steps(*ALL[: ALL.index(StepName.GOOD) + 1])
    back = Switch(StepName.SWITCH_BACK, OLD)
    assert broken_rule(good.rollout, PAIR, back) == "the release is good, and nothing goes back"
    early = start(wish(Kind.ROLLBACK, steps=ROLLBACK), PAIR)
    switch = Switch(StepName.SWITCH, NEW)
    assert broken_rule(early.rollout, PAIR, switch) == "the link is switched before the release is there"
    alone = seen(NEW, UP_OLD, DOWN_NEW)
    relaunch = Relaunch(StepName.PRIMARY, Role.PRIMARY, NEW)
    assert broken_rule(early.rollout, alone, relaunch) == "primary is the only one that serves"
    proved = "the primary is restarted before the release has proved itself"
    assert broken_rule(early.rollout, PAIR, relaunch) == proved
    assert broken_rule(approved(early).rollout, PAIR, relaunch) == proved
    assert broken_rule(approved(after_steps(*TO_PRIMARY)).rollout, PAIR, relaunch) is None


def test_steps_that_nothing_is_said_about_are_left_out() -> None:
    bare = steps_for(
        Kind.DEPLOY, from_tag=False, tests=True, asks=False, smokes=False, archives=False, gates=frozenset()
    )
    assert [step.value for step in bare] == [*("install", "switch", "backup", "primary", "soak", "good", "prune")]
    assert StepName.BUILD not in ROLLBACK
    assert StepName.ARCHIVE not in ROLLBACK


def test_a_link_that_is_switched_already_is_switched_once_more() -> None:
    """Who died in between may not have recorded it in the release log."""
    at = after_steps(*TO_SWITCH[:-1], now=replace(PAIR, link=NEW))
    assert next_move(at.rollout, at.now) == Switch(StepName.SWITCH, NEW)


def test_old_releases_that_cannot_be_removed_end_nothing() -> None:
    at = after_steps(*ALL[: ALL.index(StepName.GOOD) + 1], now=seen(NEW, UP_NEW, UP_NEW))
    assert next_move(at.rollout, at.now) == Do(StepName.PRUNE)
    at = write(write(at, journal.begun(StepName.PRUNE, AT)), journal.failed(StepName.PRUNE, AT, "it is read-only"))
    assert next_move(at.rollout, at.now) == End(Outcome.DONE)


def test_an_instance_that_does_not_stay_back_is_left_to_its_own_restarts() -> None:
    at = after_steps(*TO_SWITCH, now=seen(OLD, UP_OLD, GONE))
    at = turn(write(at, journal.begun(StepName.BACKUP, AT)), "it did not come up", StepName.BACKUP)
    for _ in range(MOST_RETURNS):
        assert next_move(at.rollout, at.now) == Relaunch(StepName.BACKUP_BACK, Role.BACKUP, OLD, alone=True)
        at = finish(write(at, journal.begun(StepName.BACKUP_BACK, AT)), StepName.BACKUP_BACK)
    assert next_move(at.rollout, at.now) == End(Outcome.STUCK)


def test_wishes_in_words() -> None:
    assert wish().text == "deploy of 1.2.0"
    assert replace(wish(), tag=None, artifact="/tmp/x.jar").text == "deploy of /tmp/x.jar"
    assert wish(Kind.ROLLBACK).text == "rollback to new.jar"
    assert after_steps(*ALL).rollout.next_step is StepName.PRUNE
