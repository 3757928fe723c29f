"""A rollout as operators and programs see it: in `status`, and while they watch it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clojarsd.core.rollout_facts import DOING, Outcome, Rollout, StepName


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked before the primary gets the release.

    Attributes:
        until: when the answer is due (UTC).
        look: commands that show the backup.
        changes: what differs from the former release, a line each; empty where that is not known.
    """

    until: str
    look: tuple[str, ...]
    changes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The question as a line of a stream."""
        return {"until": self.until, "look": list(self.look), "changes": list(self.changes)}


@dataclass(frozen=True, slots=True)
class RolloutView:
    """A rollout that is under way, or the one that was the latest.

    Attributes:
        log: path of the whole output of its commands.
        question: while it is asked.
    """

    rollout: Rollout
    log: str
    question: Question | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether it has not ended."""
        return self.rollout.outcome is None

    @property
    def in_short(self) -> str | None:
        """It as monitoring is told: where it is, or that it is stuck; None when it has come to its end."""
        rollout = self.rollout
        if self.is_under_way:
            until = f", and waits for an answer until {self.question.until}" if self.question is not None else ""
            return f"{under_way(rollout)}{until}"
        return f"{rollout.wish.text} is stuck: clojarsctl why" if rollout.outcome is Outcome.STUCK else None

    def as_json(self) -> dict[str, Any]:
        """The rollout as `GET /v1/status` gives it while it is under way."""
        assert self.is_under_way
        rollout, wish = self.rollout, self.rollout.wish
        step = rollout.at_step if rollout.at_step is not None else rollout.next_step
        return {
            "id": wish.id,
            "kind": wish.kind.value,
            "text": wish.text,
            "tag": wish.tag,
            "commit": wish.commit,
            "release": rollout.release,
            "previous": wish.previous,
            "by": wish.by,
            "started_at": wish.at,
            "state": _state(rollout),
            "step": step.value,
            "step_text": DOING[step],
            "step_number": wish.steps.index(step) + 1 if step in wish.steps else None,
            "steps": [one.value for one in wish.steps],
            "step_since": rollout.step_at,
            "approved_by": rollout.approved_by,
            "failure": rollout.back and rollout.back.why,
            "question": self.question and self.question.as_json(),
            "log": self.log,
        }

    def as_past(self) -> dict[str, Any]:
        """The rollout as `GET /v1/status` gives it when it has ended."""
        rollout = self.rollout
        assert rollout.outcome is not None
        return {
            "id": rollout.wish.id,
            "text": rollout.wish.text,
            "outcome": rollout.outcome.value,
            "message": rollout.message,
            "log": self.log,
        }


def _state(rollout: Rollout) -> str:
    if rollout.back is not None:
        return "going back"
    return "waiting" if rollout.at_step is StepName.APPROVE else "running"


def under_way(rollout: Rollout) -> str:
    """`deploy of 1.2.0 by ann is at step 3 of 9 (building it), since 2026-11-28T12:00:00.000Z`."""
    since = rollout.step_at if rollout.step_at is not None else rollout.wish.at
    return f"{rollout.wish.text} by {rollout.wish.by} is at {place(rollout)}, since {since}"


def place(rollout: Rollout) -> str:
    """`step 3 of 9 (building it)`; on the way back without numbers."""
    step = rollout.at_step if rollout.at_step is not None else rollout.next_step
    if rollout.back is not None:
        return f"its way back ({DOING[step]})" if rollout.at_step is not None else "its way back"
    steps = rollout.wish.steps
    return f"step {steps.index(step) + 1} of {len(steps)} ({DOING[step]})"
