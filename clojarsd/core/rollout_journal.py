"""The journal of a rollout: what is written before and after each move, and what all of it says together.

A record is a JSON object with a word under `what`. The first is `asked`, with the wish; a journal without an `ended`
is of a rollout that is under way, and there is no other lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from clojarsd.core.errors import Failed
from clojarsd.core.rollout_facts import GoingBack, Kind, Outcome, Rollout, StepName, Wish

Record: TypeAlias = Mapping[str, Any]


def asked(wish: Wish) -> Record:
    """Somebody wants it."""
    return {
        "what": "asked",
        "id": wish.id,
        "kind": wish.kind.value,
        "tag": wish.tag,
        "commit": wish.commit,
        "artifact": wish.artifact,
        "release": wish.release,
        "previous": wish.previous,
        "by": wish.by,
        "at": wish.at,
        "steps": [step.value for step in wish.steps],
    }


def begun(step: StepName, at: str, until: str | None = None) -> Record:
    """The step is to be carried out from here on. until: when the answer is due (UTC) that it waits for."""
    return {"what": "begun", "step": step.value, "at": at} | ({"until": until} if until is not None else {})


def done(step: StepName, at: str, seconds: float, **facts: str | None) -> Record:
    """The step has come to its good end. facts: `release`, where it has brought one."""
    return {"what": "done", "step": step.value, "at": at, "seconds": round(seconds, 3), **facts}


def failed(step: StepName, at: str, why: str) -> Record:
    """A step on the way back has failed."""
    return {"what": "failed", "step": step.value, "at": at, "why": why}


def approved(by: str, at: str) -> Record:
    """Somebody has approved that the primary gets the release."""
    return {"what": "approved", "by": by, "at": at}


def turned(back: GoingBack, at: str) -> Record:
    """It does not go on, but back."""
    return {
        "what": "turned",
        "why": back.why,
        "step": back.step.value,
        "abort": back.is_abort,
        "by": back.by,
        "output": list(back.output),
        "at": at,
    }


def ended(outcome: Outcome, message: str, at: str) -> Record:
    """Nothing is left to be done."""
    return {"what": "ended", "outcome": outcome.value, "message": message, "at": at}


def told(records: Iterable[Record]) -> Rollout:
    """The rollout that the records tell of.

    Raises:
        Failed: they are no journal that this version knows.
    """
    records = iter(records)
    try:
        first = next(records)
        if first["what"] != "asked":
            raise Failed(f"it begins with {first['what']}, not with what was asked for")
        rollout = Rollout(_wish(first))
        rollout = replace(rollout, release=rollout.wish.release)
        for record in records:
            rollout = after(rollout, record)
    except StopIteration:
        raise Failed("it is empty") from None
    except (KeyError, ValueError, TypeError) as error:
        raise Failed(f"a record of it cannot be understood: {type(error).__name__}: {error}") from error
    return rollout


def after(rollout: Rollout, record: Record) -> Rollout:
    """The rollout with one more record.

    Raises:
        KeyError, ValueError, TypeError: it is no such record.
    """
    match record["what"]:
        case "begun":
            step = StepName(record["step"])
            count = {**rollout.begun, step: rollout.begun.get(step, 0) + 1}
            return replace(rollout, begun=count, at_step=step, step_at=record["at"], until=record.get("until"))
        case "done":
            step = StepName(record["step"])
            return replace(
                _at_none(rollout),
                done={**rollout.done, step: float(record["seconds"])},
                release=record.get("release", rollout.release),
            )
        case "failed":
            return replace(_at_none(rollout), failed=rollout.failed | {StepName(record["step"])})
        case "approved":
            return replace(rollout, approved_by=record["by"])
        case "turned":
            step, output = StepName(record["step"]), tuple(record["output"])
            back = GoingBack(record["why"], step, record["abort"], record["by"], output)
            return replace(_at_none(rollout), back=back, failed=rollout.failed | {step})
        case "ended":
            return replace(_at_none(rollout), outcome=Outcome(record["outcome"]), message=record["message"])
        case other:
            raise ValueError(f"no record is called {other}")


def _at_none(rollout: Rollout) -> Rollout:
    return replace(rollout, at_step=None, step_at=None, until=None)


def _wish(record: Record) -> Wish:
    return Wish(
        id=record["id"],
        kind=Kind(record["kind"]),
        tag=record["tag"],
        commit=record["commit"],
        artifact=record["artifact"],
        release=record["release"],
        previous=record["previous"],
        by=record["by"],
        at=record["at"],
        steps=tuple(StepName(step) for step in record["steps"]),
    )
