"""What became of the connections of an instance that was drained: counted where they are, told in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clojarsd.core.end_reason import EndReason


@dataclass(frozen=True, slots=True)
class DrainTally:
    """How many connections have ended how, from the beginning of a drain to its end.

    Attributes:
        ended: those that the client or the instance has ended.
        moved: those that went to the other instance between two requests.
        silent: those that were closed while no answer was owed.
        stay: those that are silent and stay open, as nobody but the kernel carries them.
        cut: those that were reset when their time was over, whatever was owed.
        after: seconds for which those that were cut last had been let; 0.0: none was cut.
        is_sooner: whether that was less than the `drain` of their frontend.
        left: those that could not be reset.
        trouble: why not, or why they cannot even be seen; None: there was none.
    """

    ended: int = 0
    moved: int = 0
    silent: int = 0
    stay: int = 0
    cut: int = 0
    after: float = 0.0
    is_sooner: bool = False
    left: int = 0
    trouble: str | None = None

    @property
    def total(self) -> int:
        """How many there were."""
        return self.ended + self.moved + self.silent + self.stay + self.cut + self.left

    def __add__(self, other: DrainTally) -> DrainTally:
        return DrainTally(
            self.ended + other.ended,
            self.moved + other.moved,
            self.silent + other.silent,
            self.stay + other.stay,
            self.cut + other.cut,
            max(self.after, other.after),
            self.is_sooner or other.is_sooner,
            self.left + other.left,
            self.trouble or other.trouble,
        )

    def told(self) -> str:
        """It as the end of a sentence about the instance: `has no connections left: 2 of 9 connections were cut …`."""
        begin = (
            "waits for none of its connections" if self.stay or self.left or self.trouble else "has no connections left"
        )
        parts = [self.told_cut()] if self.cut else []
        parts += [f"{self.ended} ended by {'itself' if self.ended == 1 else 'themselves'}"] if self.ended else []
        parts += [f"{self.moved} moved to the other instance"] if self.moved else []
        parts += [f"{self.silent} {_were(self.silent)} silent and closed"] if self.silent else []
        parts += [f"{self.stay} {_are(self.stay)} silent and left open"] if self.stay else []
        parts += [f"{self.left or 'some'} may be open ({self.trouble})"] if self.trouble else []
        return f"{begin}: {', '.join(parts)}" if parts else begin

    def told_cut(self) -> str:
        """How many were cut and why: `2 of 9 connections were cut after 30 s (drain)`."""
        why = "sooner than drain" if self.is_sooner else "drain"
        noun = "connection" if self.total == 1 else "connections"
        return f"{self.cut} of {self.total} {noun} {_were(self.cut)} cut after {self.after:g} s ({why})"

    def detail(self) -> dict[str, Any]:
        """It as the detail of an event."""
        told: dict[str, Any] = {
            "ended": self.ended,
            "moved": self.moved,
            "silent": self.silent + self.stay,
            "cut": self.cut,
        }
        told |= {"cut_after_seconds": self.after} if self.cut else {}
        return told | ({"left": self.left, "trouble": self.trouble} if self.trouble is not None else {})


def with_end(tally: DrainTally, reason: EndReason, after: float, *, is_sooner: bool) -> DrainTally:
    """The tally with one more connection that has ended.

    Args:
        after: seconds that connections are let in this drain; is_sooner: whether they are fewer than `drain`.
    """
    match reason:
        case EndReason.MOVED:
            return tally + DrainTally(moved=1)
        case EndReason.DRAINED:
            return tally + DrainTally(silent=1)
        case EndReason.CUT | EndReason.DRAIN_DEADLINE:
            return tally + DrainTally(cut=1, after=after, is_sooner=is_sooner)
        case _:
            return tally + DrainTally(ended=1)


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
