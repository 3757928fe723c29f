"""The warm-up of an instance: how far it is, when its latency has settled, what came of it, and that in words.

A round asks each request once, one after the other; its latency is the mean time of one. A round in which a request
failed has none.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

WINDOW: Final = 5
"""Rounds over which the median of the latency is taken, so that one collection is not taken for a change."""
PATIENCE: Final = 5
"""Medians in a row that must not be better for the latency to have settled."""
BETTER: Final = 0.05
"""The share by which a median must be below the best one before it to count as better."""
SLOWEST: Final = 0.25
"""The share of the time for the whole warm-up that one request may take; then it has failed."""
MARGIN: Final = 1.0
"""Seconds beyond its time in which a warm-up shall have said what came of it."""


class Outcome(enum.Enum):
    """What came of a warm-up, or that it goes on."""

    WARMING = "warming"
    SETTLED = "settled"
    ROUNDS_DONE = "rounds done"
    TIMED_OUT = "timed out"
    FAILED = "failed"
    CUT_SHORT = "cut short"


def is_settled(latencies: Sequence[float]) -> bool:
    """Whether more rounds are not likely to make it faster.

    That is so when none of the latest `PATIENCE` medians, each of `WINDOW` rounds, is better by more than `BETTER` than
    the best one before them.

    Args:
        latencies: in seconds, of rounds that followed each other without a failure, the first one first.
    """
    ends = range(WINDOW, len(latencies) + 1)
    medians = [statistics.median(latencies[end - WINDOW : end]) for end in ends]
    earlier, latest = medians[:-PATIENCE], medians[-PATIENCE:]
    return bool(earlier) and min(latest) >= min(earlier) * (1 - BETTER)


@dataclass(frozen=True, slots=True)
class Warmup:
    """A warm-up as far as it has come.

    Attributes:
        of: how many rounds there are at most.
        rounds: how many are through.
        first, latency: seconds of the first and of the latest round in which no request failed; None without one.
        failure: what failed in the latest round, also in one that is not through, in words; None when nothing did. Of a
            warm-up that is over: why it has failed, or None.
        seconds: how long it has taken, as of the latest round, or to its end.
        latencies: of the rounds since the latest that failed; empty when it is over.
    """

    of: int
    outcome: Outcome = Outcome.WARMING
    rounds: int = 0
    first: float | None = None
    latency: float | None = None
    failure: str | None = None
    seconds: float = 0.0
    latencies: tuple[float, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether it has come to its end."""
        return self.outcome is not Outcome.WARMING

    def failed(self, failure: str) -> Warmup:
        """A request of the round that is under way has failed."""
        return replace(self, failure=failure)

    def after_round(self, latency: float | None, seconds: float) -> Warmup:
        """One more round is through, and with it everything if that was enough.

        Args:
            latency: seconds; None: a request of it has failed, which was said to `failed`.
            seconds: since the beginning.
        """
        rounds = self.rounds + 1
        if latency is None:
            through = replace(self, rounds=rounds, seconds=seconds, latencies=())
        else:
            first = latency if self.first is None else self.first
            through = replace(self, rounds=rounds, seconds=seconds, first=first, latency=latency, failure=None)
            through = replace(through, latencies=(*self.latencies, latency))
        if is_settled(through.latencies):
            return replace(through, outcome=Outcome.SETTLED, latencies=())
        if rounds < self.of:
            return through
        outcome = Outcome.ROUNDS_DONE if through.failure is None else Outcome.FAILED
        return replace(through, outcome=outcome, latencies=())

    def timed_out(self, timeout: float) -> Warmup:
        """Its time is over: it has failed if a request of the latest round did, or not one round was through."""
        over = replace(self, seconds=timeout, latencies=())
        if self.failure is not None:
            return replace(over, outcome=Outcome.FAILED)
        if not self.rounds:
            failure = f"not one round was through within {timeout:g} s"
            return replace(over, outcome=Outcome.TIMED_OUT, failure=failure)
        return replace(over, outcome=Outcome.TIMED_OUT)

    def cut_short(self, seconds: float) -> Warmup:
        """Nobody else can serve: it is over, and what has failed in it does not count."""
        return replace(self, outcome=Outcome.CUT_SHORT, seconds=seconds, failure=None, latencies=())

    def progress(self) -> str:
        """How far it has come: `round 7 of 20, 3.1 ms`, `round 2 of 20; / answered 503`."""
        where = f"round {min(self.rounds + 1, self.of)} of {self.of}"
        if self.failure is not None:
            return f"{where}; {self.failure}"
        return where if self.latency is None else f"{where}, {milliseconds(self.latency)}"

    def result(self) -> str:
        """What came of it, to follow upon `primary `; what it has failed by is told at the end."""
        gain = f"{_gain(self)} in {self.rounds} round{'' if self.rounds == 1 else 's'}"
        if self.failure is not None:
            return f"was not warmed up: {self.failure}"
        match self.outcome:
            case Outcome.CUT_SHORT:
                after = f" ({gain})" if self.rounds else ""
                return f"is not warmed up any longer, because nobody else can serve{after}"
            case Outcome.TIMED_OUT:
                return f"is as warm as it got within {self.seconds:g} s: {gain}"
            case _:
                return f"is warm: {gain}"

    def as_json(self) -> dict[str, Any]:
        """The warm-up as `GET /v1/status` gives it."""
        return {
            "rounds": self.rounds,
            "of": self.of,
            "latency_ms": _rounded(self.latency),
            "first_ms": _rounded(self.first),
            "outcome": self.outcome.value,
            "seconds": round(self.seconds, 3),
            "failure": self.failure,
        }


def milliseconds(seconds: float) -> str:
    """`40 ms`, `3.1 ms`."""
    value = seconds * 1000
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _gain(warmup: Warmup) -> str:
    """`40 ms -> 3.1 ms`."""
    if warmup.first is None or warmup.latency is None:
        return "no answer"
    return f"{milliseconds(warmup.first)} -> {milliseconds(warmup.latency)}"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
