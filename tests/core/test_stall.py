"""The verdict about an accept queue, look by look, and against queues that live and die by chance."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from clojarsd.core import stall
from clojarsd.core.stall import (
    CONFIRM_EVERY,
    CONFIRM_TIME,
    Listener,
    Look,
    Probe,
    Stage,
    StallPolicy,
    Waiting,
    has_moved,
    look,
    resumed,
    settle,
)

POLICY = StallPolicy(0.05, 0.3)
SUSPICIOUS = Listener(Stage.SUSPICIOUS, since=10.0, entered_at=10.0, waiting=3)
CONFIRMING = Listener(Stage.CONFIRMING, since=9.7, entered_at=10.0, waiting=3)
STALLED = settle(replace(CONFIRMING, looks=20), 10.2, moved=False)


def through(listener: Listener, *waiting: int, at: float = 10.0, every: float = POLICY.sample) -> Listener:
    """What is thought after these lengths were seen, one after the other."""
    for number, length in enumerate(waiting, start=1):
        listener = look(listener, Look(at + number * every, length), POLICY)
    return listener


def test_an_empty_queue_is_quiet() -> None:
    assert through(Listener(), 0, 0, 0).stage is Stage.QUIET


def test_something_that_waits_is_suspicious_from_then_on() -> None:
    assert through(Listener(), 0, 2) == Listener(Stage.SUSPICIOUS, since=10.1, entered_at=10.1, waiting=2)


@pytest.mark.parametrize("lengths", [(3, 3, 3), (3, 4, 5)], ids=["the same", "growing"])
def test_what_waits_throughout_is_looked_at_closely(lengths: tuple[int, ...]) -> None:
    assert through(SUSPICIOUS, *lengths[:-1]).stage is Stage.SUSPICIOUS
    seen = through(SUSPICIOUS, *lengths)
    assert (seen.stage, seen.looks, seen.waiting) == (Stage.CONFIRMING, 0, lengths[-1])
    assert seen.since == SUSPICIOUS.since


@pytest.mark.parametrize("before", [SUSPICIOUS, replace(SUSPICIOUS, looks=5), CONFIRMING, replace(CONFIRMING, looks=9)])
def test_a_shorter_queue_is_progress(before: Listener) -> None:
    seen = look(before, Look(12.0, 2), POLICY)
    assert seen == Listener(Stage.SUSPICIOUS, since=12.0, entered_at=12.0, waiting=2)
    assert look(before, Look(12.0, 0), POLICY).stage is Stage.QUIET


def test_a_probe_that_is_accepted_is_progress_also_where_the_queue_grows() -> None:
    assert look(CONFIRMING, Look(12.0, 4, Probe.ACCEPTED), POLICY).stage is Stage.SUSPICIOUS
    for probe in set(Probe) - {Probe.ACCEPTED}:
        assert look(CONFIRMING, Look(12.0, 3, probe), POLICY) == replace(CONFIRMING, looks=1)


def test_few_looks_in_a_long_time_do_not_count_as_many() -> None:
    """This process had no turn: so nobody may have had."""
    assert through(SUSPICIOUS, 3, 3, every=10.0).stage is Stage.SUSPICIOUS
    confirming = through(CONFIRMING, *[3] * 15, every=10.0)
    assert not confirming.is_confirmed(200.0)


def test_many_looks_in_a_short_time_do_not_count_as_a_long_one() -> None:
    assert through(SUSPICIOUS, *[3] * 50, every=0.001).stage is Stage.SUSPICIOUS
    assert not through(CONFIRMING, *[3] * 50, every=0.001).is_confirmed(10.05)


def test_a_look_that_comes_a_little_early_still_counts() -> None:
    assert through(SUSPICIOUS, *[3] * 3, every=0.0495).stage is Stage.CONFIRMING


def test_a_sample_as_long_as_the_time_needs_more_than_one() -> None:
    policy = StallPolicy(0.3, 0.3)
    first = look(SUSPICIOUS, Look(10.3, 3), policy)
    assert first.stage is Stage.SUSPICIOUS
    assert look(first, Look(10.6, 3), policy).stage is Stage.CONFIRMING


def test_a_confirmation_ends_after_its_looks_and_its_time() -> None:
    looks = round(CONFIRM_TIME / CONFIRM_EVERY)
    almost = through(CONFIRMING, *[3] * (looks - 2), every=CONFIRM_EVERY)
    assert not almost.is_confirmed(10.0 + CONFIRM_EVERY * (looks - 2))
    full = through(CONFIRMING, *[3] * looks, every=CONFIRM_EVERY)
    assert full.is_confirmed(10.0 + CONFIRM_TIME)
    assert not SUSPICIOUS.is_confirmed(99.0)
    stalled = settle(full, 10.2, moved=False)
    assert (stalled.stage, stalled.since, stalled.entered_at) == (Stage.STALLED, 9.7, 10.2)
    assert settle(full, 10.2, moved=True) == Listener(Stage.SUSPICIOUS, since=10.2, entered_at=10.2, waiting=3)


def test_the_default_settings_find_a_stall_400_ms_after_the_first_who_waits() -> None:
    """With a whole sample until it is first seen; 300 ms are left to take traffic away and to rescue."""
    at, listener = POLICY.sample, Listener()
    while not listener.is_confirmed(at):
        listener = look(listener, Look(at, 3), POLICY)
        at += 0.0 if listener.is_confirmed(at) else listener.next_look(POLICY)
    assert at <= 0.401


@pytest.mark.parametrize(("after", "closely"), [(0.3, 0.15), (0.05, 0.025), (0.2, 0.1), (1.0, 0.85), (30.0, 29.85)])
def test_the_close_look_is_part_of_the_time_that_is_allowed(after: float, closely: float) -> None:
    policy = StallPolicy(0.05, after)
    assert policy.closely_after == pytest.approx(closely)
    assert policy.looks == max(2, round(closely / 0.05 + 0.4))


def test_a_confirmation_makes_one_probe_and_not_at_once() -> None:
    free = Look(10.05, 3)
    assert not replace(CONFIRMING, looks=9).wants_probe(free)
    assert replace(CONFIRMING, looks=10).wants_probe(free)
    assert replace(CONFIRMING, looks=12).wants_probe(replace(free, probe=Probe.LOST))
    for probe in (Probe.UNANSWERED, Probe.WAITING, Probe.ACCEPTED):
        assert not replace(CONFIRMING, looks=12).wants_probe(replace(free, probe=probe))
    assert not SUSPICIOUS.wants_probe(free)
    assert not Listener().wants_probe(free)


def test_a_stalled_listener_has_one_probe_which_stays_while_it_waits() -> None:
    assert STALLED.wants_probe(Look(10.2, 3))
    assert not STALLED.wants_probe(Look(99.0, 3, Probe.WAITING))
    for probe in (Probe.UNANSWERED, Probe.LOST, Probe.NONE, Probe.ACCEPTED):
        assert STALLED.wants_probe(Look(10.2, 3, probe))


def test_the_pauses_between_probes_grow_to_a_quarter_of_a_second() -> None:
    listener, pauses = STALLED, []
    for _ in range(6):
        listener = listener.probed(0.0)
        pauses.append(listener.probe_at)
        assert not listener.wants_probe(Look(listener.probe_at - 0.001, 3))
        assert listener.wants_probe(Look(listener.probe_at, 3))
    assert pauses == [0.05, 0.1, 0.2, 0.25, 0.25, 0.25]


def test_a_stalled_listener_recovers_when_a_probe_is_accepted_and_the_queue_does_not_grow() -> None:
    assert look(STALLED, Look(11.0, 0, Probe.ACCEPTED), POLICY) == Listener(since=11.0, entered_at=11.0)
    assert look(STALLED, Look(11.0, 3, Probe.ACCEPTED), POLICY).stage is Stage.SUSPICIOUS
    assert look(STALLED, Look(11.0, 4, Probe.ACCEPTED), POLICY).stage is Stage.STALLED


@pytest.mark.parametrize("probe", [probe for probe in Probe if probe is not Probe.ACCEPTED])
def test_a_queue_that_was_emptied_alone_is_no_recovery(probe: Probe) -> None:
    """It may be this daemon that has rescued those who waited."""
    assert look(STALLED, Look(11.0, 0, probe), POLICY).stage is Stage.STALLED


def test_one_that_was_found_stalled_by_an_earlier_daemon_is_probed_at_once() -> None:
    listener = resumed(5.0, 1.0)
    assert (listener.stage, listener.since) == (Stage.STALLED, 1.0)
    assert listener.wants_probe(Look(5.0, 0))


def test_looks_are_close_only_in_a_confirmation() -> None:
    assert [one.next_look(POLICY) for one in (Listener(), SUSPICIOUS, CONFIRMING, STALLED)] == [0.05, 0.05, 0.01, 0.05]


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        (Waiting(3, frozenset({1, 2, 3})), Waiting(3, frozenset({1, 2, 3})), False),
        (Waiting(3, frozenset({1, 2, 3})), Waiting(4, frozenset({1, 2, 3, 4})), False),
        (Waiting(3, frozenset({1, 2, 3})), Waiting(3, frozenset({2, 3, 4})), True),  # a full queue that moves
        (Waiting(3, frozenset({1, 2, 3})), Waiting(4, frozenset({2, 3, 4, 5})), True),
        (Waiting(3, frozenset({1, 2, 3})), Waiting(3, frozenset({3})), False),  # two have reset theirs
        (Waiting(3, frozenset({1, 2, 3})), Waiting(4, frozenset({3, 4})), False),
        (Waiting(3, frozenset({1, 2, 3})), Waiting(2, frozenset({2, 3})), True),
        (Waiting(3), Waiting(5, frozenset({7, 8})), False),
        (Waiting(3), Waiting(5), False),
        (
            Waiting(2, frozenset({1, 2})),
            Waiting(2, frozenset({2}), frozenset({1})),
            True,
        ),  # one was accepted, one reset
        (Waiting(2, frozenset({1, 2})), Waiting(2, frozenset({1, 2}), frozenset({3, 4})), False),
    ],
)
def test_a_queue_that_grows_by_less_than_have_come_has_moved(before: Waiting, after: Waiting, moved: bool) -> None:
    assert has_moved(before, after) is moved


class Queue:
    """An accept queue with clients that come and give up by chance, and an instance that accepts while it lives.

    Clients have some patience: who comes, is reset and leaves no trace within one confirmation cannot be told apart.
    """

    def __init__(self, dice: random.Random, limit: int) -> None:
        self.dice = dice
        self.limit = limit
        self.queue: list[int | None] = []  # None: its client has reset it
        self.numbers = 0
        self.came: dict[int, float] = {}
        self.probe: int | None = None
        self.probe_state = Probe.NONE
        self.accepted: set[int] = set()

    def arrive(self, now: float) -> int | None:
        if len(self.queue) > self.limit:
            return None
        self.numbers += 1
        self.came[self.numbers] = now
        self.queue.append(self.numbers)
        return self.numbers

    def accept(self) -> None:
        if self.queue:
            taken = self.queue.pop(0)
            if taken is not None:
                self.accepted.add(taken)
            if taken is not None and taken == self.probe:
                self.probe_state = Probe.ACCEPTED

    def give_up(self, now: float) -> None:
        if self.queue:
            place = self.dice.randrange(len(self.queue))
            client = self.queue[place]
            if client is not None and client != self.probe and now - self.came[client] > 0.5:
                self.queue[place] = None

    def make_probe(self, now: float) -> None:
        self.probe = self.arrive(now)
        self.probe_state = Probe.UNANSWERED if self.probe is None else Probe.WAITING

    def waiting(self) -> Waiting:
        open_ones = frozenset(one for one in self.queue if one is not None)
        return Waiting(len(self.queue), open_ones, frozenset(self.accepted))


def live(dice: random.Random, *, accepts_every: float | None, seconds: float) -> tuple[Listener, set[tuple[str, str]]]:
    """What is thought of a queue in the end, or as soon as it is stalled; and the changes of stage."""
    queue, listener, now, changes = Queue(dice, dice.choice([0, 1, 5, 50])), Listener(), 0.0, set()
    arrivals, leaves = dice.choice([0.002, 0.02, 0.2]), dice.choice([0.0, 0.01])
    before = Waiting(0)
    next_look = next_accept = 0.0
    for _ in range(dice.choice([0, 60])):
        queue.arrive(0.0)
    while now < seconds:
        now += 0.001
        if dice.random() < 0.001 / arrivals:
            queue.arrive(now)
        if dice.random() < leaves:
            queue.give_up(now)
        elif not leaves:
            queue.accepted.clear()  # served at once, and gone
        if accepts_every is not None and now >= next_accept:
            queue.accept()
            next_accept = now + accepts_every * dice.uniform(0.5, 1.0)
        if now < next_look:
            continue
        seen = Look(now, len(queue.queue), queue.probe_state)
        was, listener = listener.stage, look(listener, seen, POLICY)
        if listener.stage is Stage.CONFIRMING and was is not Stage.CONFIRMING:
            before = queue.waiting()
        if listener.wants_probe(seen):
            queue.make_probe(now)
            listener = listener.probed(now)
        if listener.is_confirmed(now):
            listener = settle(listener, now, moved=has_moved(before, queue.waiting()))
        if listener.stage not in (Stage.CONFIRMING, Stage.STALLED):
            queue.probe, queue.probe_state = None, Probe.NONE
        if listener.stage is not was:
            changes.add((was.name, listener.stage.name))
        if listener.stage is Stage.STALLED:
            break
        next_look = now + listener.next_look(POLICY) * dice.choice([1.0, 1.0, 1.0, 1.5])
    return listener, changes


def test_an_instance_that_accepts_now_and_then_is_never_called_stalled_and_one_that_does_not_always_is() -> None:
    """However full its queue is, and whoever leaves it: one accept within each confirmation is enough."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice, changes = random.Random(seed), set[tuple[str, str]]()
    for _ in range(150):
        rate = dice.choice([0.001, 0.01, 0.05, 0.1, 0.18])
        listener, seen = live(dice, accepts_every=rate, seconds=5.0)
        assert listener.stage is not Stage.STALLED, (seed, rate)
        changes |= seen
    for _ in range(150):
        dead = random.Random(dice.random())
        listener, seen = live(dead, accepts_every=None, seconds=5.0)
        assert listener.stage in (Stage.STALLED, Stage.QUIET), (seed, listener)  # quiet: nobody came
        changes |= seen
    drawn = {
        ("QUIET", "SUSPICIOUS"), ("SUSPICIOUS", "QUIET"), ("SUSPICIOUS", "CONFIRMING"),
        ("CONFIRMING", "SUSPICIOUS"), ("CONFIRMING", "QUIET"), ("CONFIRMING", "STALLED"),
    }  # fmt: skip
    assert changes <= drawn
    assert drawn - changes <= {("CONFIRMING", "QUIET")}


def test_every_stage_is_looked_at() -> None:
    assert set(stall._ACTS) == set(Stage)
