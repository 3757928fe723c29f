"""Whether a listener accepts connections: looks at its accept queue in, a verdict out.

::

    quiet ──not empty──► suspicious ──some looks without progress──► confirming ──no progress──► stalled
      ▲                    ▲                                             │                         │
      └────────────────────┴──progress: from the start again─────────────┘                         │
      └────────────────────┴──a probe was accepted, and the queue does not grow────────────────────┘

The close look is most of the time that `after` allows, so that the books (`has_moved`), which alone show that a queue
moves that is always full, are kept for long, and the verdict comes soon after `after` all the same.

From the start again means quiet when nothing waits, and suspicious otherwise.

Progress is a queue that is shorter than at the look before, a probe that was accepted, or more arrivals than the queue
has grown by (`has_moved`). All is counted in looks as well as in seconds: when this process itself has had no turn, it
has seen less, and says less.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace
from typing import Final

CONFIRM_TIME: Final = 0.2
"""Seconds that a confirmation takes, at the least."""
CONFIRM_EVERY: Final = 0.01
"""Seconds between two looks in it."""
BEYOND_AFTER: Final = 0.05
"""Seconds of those that are beyond `after`."""
_CONFIRM_LOOKS: Final = 16
_PROBE_AFTER: Final = 10
"""Looks of a confirmation before its probe: a queue that moves is mostly seen before, and the application spared."""
_LEAST_LOOKS: Final = 2
_ROUNDING: Final = 1e-9
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 0.25
"""Seconds from one probe of a stalled listener to the next, the first time and at the most."""


class Stage(enum.Enum):
    """How far the suspicion has come."""

    QUIET = "nothing waits"
    SUSPICIOUS = "something waits"
    CONFIRMING = "it is looked at closely"
    STALLED = "it does not accept"


class Probe(enum.Enum):
    """What became of our own connection to the listener."""

    NONE = "there is none"
    UNANSWERED = "the kernel has not taken it: the accept queue is full"
    WAITING = "it is in the accept queue"
    ACCEPTED = "it was accepted"
    LOST = "it was reset"


@dataclass(frozen=True, slots=True)
class StallPolicy:
    """The settings: seconds from one look to the next, and for how long something may wait without progress."""

    sample: float
    after: float

    @property
    def closely_after(self) -> float:
        """Seconds without progress after which it is looked at closely."""
        return max(self.after + BEYOND_AFTER - CONFIRM_TIME, self.after / 2)

    @property
    def looks(self) -> int:
        """Looks without progress that a suspicion needs besides those seconds."""
        return max(_LEAST_LOOKS, math.ceil(self.closely_after / self.sample - _ROUNDING))


@dataclass(frozen=True, slots=True)
class Look:
    """One look at an accept queue.

    Attributes:
        at: monotonic instant.
        waiting: connections in it.
        probe: our own one, which is among those if it waits.
    """

    at: float
    waiting: int
    probe: Probe = Probe.NONE


@dataclass(frozen=True, slots=True)
class Listener:
    """What is thought of one listener.

    Attributes:
        since: instant since when it is not known to have accepted anything while something waited.
        entered_at: instant at which the stage began; looks: how many there were in it since.
        waiting: in the queue at the last look.
        probe_at: a stalled one: instant from which another probe may be made; pause: seconds from that to the next.
    """

    stage: Stage = Stage.QUIET
    since: float = 0.0
    entered_at: float = 0.0
    looks: int = 0
    waiting: int = 0
    probe_at: float = 0.0
    pause: float = _FIRST_PAUSE

    def wants_probe(self, seen: Look) -> bool:
        """Whether to make a probe now, in place of the one that there may be: never two at a time."""
        if self.stage is Stage.CONFIRMING:
            return seen.probe in (Probe.NONE, Probe.LOST) and self.looks >= _PROBE_AFTER
        return self.stage is Stage.STALLED and seen.probe is not Probe.WAITING and seen.at >= self.probe_at

    def probed(self, at: float) -> Listener:
        """The same after a probe was made."""
        return replace(self, probe_at=at + self.pause, pause=min(2 * self.pause, _LONGEST_PAUSE))

    def is_confirmed(self, at: float) -> bool:
        """Whether the close look is over and has seen no progress: `has_moved` has the last word, see `settle`."""
        lasted = at - self.entered_at >= CONFIRM_TIME - CONFIRM_EVERY / 2
        return self.stage is Stage.CONFIRMING and self.looks >= _CONFIRM_LOOKS and lasted

    def next_look(self, policy: StallPolicy) -> float:
        """Seconds until it should be looked at again."""
        return CONFIRM_EVERY if self.stage is Stage.CONFIRMING else policy.sample


def look(before: Listener, seen: Look, policy: StallPolicy) -> Listener:
    """What is thought of the listener after one more look.

    A stalled one that has recovered begins anew. One whose confirmation is through stays in it: see `settle`.
    """
    return _ACTS[before.stage](before, seen, policy)


def settle(before: Listener, at: float, *, moved: bool) -> Listener:
    """The end of a confirmation that has seen no progress: stalled, unless the queue has moved all the same.

    Args:
        moved: as `has_moved` says.
    """
    if moved:
        return _begin(at, before.waiting)
    return replace(before, stage=Stage.STALLED, entered_at=at, looks=0, probe_at=at, pause=_FIRST_PAUSE)


def resumed(at: float, waiting_since: float) -> Listener:
    """One that an earlier daemon has found stalled: it is, until a probe says something else."""
    return Listener(Stage.STALLED, since=waiting_since, entered_at=at, probe_at=at)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Who waits at one moment.

    Attributes:
        length: of the accept queue.
        cookies: of the connections in it that are open; who has reset its own is in the queue all the same.
        accepted: of open connections that are in it no more.
    """

    length: int
    cookies: frozenset[int] = frozenset()
    accepted: frozenset[int] = frozenset()


def has_moved(before: Waiting, after: Waiting) -> bool:
    """Whether something was accepted between two moments.

    Either one that has waited is seen accepted, or the queue has grown by less than have arrived: nothing leaves a
    queue but by being accepted. That shows it of a queue that is always full, too, where no look sees a decrease and no
    probe gets in. It does not show that one was accepted and has ended, and another has come and been reset meanwhile.

    Args:
        before: its length was read no later than its cookies.
        after: its length was read no earlier than its cookies: otherwise one that arrives between the two readings
            would look like progress.
    """
    arrived = len(after.cookies - before.cookies)
    return after.length < before.length + arrived or not before.cookies.isdisjoint(after.accepted)


def _quiet(before: Listener, seen: Look, policy: StallPolicy) -> Listener:
    return _begin(seen.at, seen.waiting)


def _suspicious(before: Listener, seen: Look, policy: StallPolicy) -> Listener:
    if _is_progress(before, seen):
        return _begin(seen.at, seen.waiting)
    looks = before.looks + 1
    if looks >= policy.looks and seen.at - before.since >= policy.closely_after - policy.sample / 2:
        return replace(before, stage=Stage.CONFIRMING, entered_at=seen.at, looks=0, waiting=seen.waiting)
    return replace(before, looks=looks, waiting=seen.waiting)


def _confirming(before: Listener, seen: Look, policy: StallPolicy) -> Listener:
    if _is_progress(before, seen):
        return _begin(seen.at, seen.waiting)
    return replace(before, looks=before.looks + 1, waiting=seen.waiting)


def _stalled(before: Listener, seen: Look, policy: StallPolicy) -> Listener:
    if seen.probe is Probe.ACCEPTED and seen.waiting <= before.waiting:
        return _begin(seen.at, seen.waiting)
    return replace(before, looks=before.looks + 1, waiting=seen.waiting)


def _is_progress(before: Listener, seen: Look) -> bool:
    return seen.waiting < before.waiting or seen.probe is Probe.ACCEPTED or not seen.waiting


def _begin(at: float, waiting: int) -> Listener:
    """From the start again, at a moment at which it has accepted, as far as is known."""
    return Listener(Stage.SUSPICIOUS if waiting else Stage.QUIET, since=at, entered_at=at, waiting=waiting)


_ACTS: Final = {
    Stage.QUIET: _quiet,
    Stage.SUSPICIOUS: _suspicious,
    Stage.CONFIRMING: _confirming,
    Stage.STALLED: _stalled,
}
