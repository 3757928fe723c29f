"""Where the deploy or rollback is, in sentences for people, out of what `GET /v1/status` has of it.

Used at the caller's side, as `why` is: nothing is imported here that takes long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Json: TypeAlias = Mapping[str, Any]

ANSWER = "`clojarsctl promote` lets it go on to the primary, `clojarsctl abort` brings everything back"
_TOLD = frozenset({"stuck", "failed"})
"""Ends that somebody has to know of who asks why things are as they are."""


def rollout_line(rollout: Json) -> str:
    """What is under way and where it is: `deploy of 1.2.0 by ann: step 3 of 17, building it`."""
    place = rollout["step_text"]
    if rollout["state"] == "going back":
        place = "on its way back" + (f", {place}" if rollout["step_since"] is not None else "")
    else:
        place = f"step {rollout['step_number']} of {len(rollout['steps'])}, {place}"
    return f"{rollout['text']} by {rollout['by']}: {place}"


def rollout_sentences(status: Json, when: Callable[[str], str]) -> list[str]:
    """The rollout that is under way, or how the latest has ended where that matters; empty where it does not.

    Args:
        when: tells an instant.
    """
    rollout, last = status.get("rollout"), status.get("last_rollout")
    if rollout is not None:
        sentences = [f"{rollout_line(rollout)}, since {when(rollout['step_since'] or rollout['started_at'])}"]
        if rollout["failure"] is not None:
            sentences.append(f"it goes back: {rollout['failure']}")
        if rollout["question"] is not None:
            sentences.append(f"the backup runs {rollout['release']}, and it waits for an answer")
        return sentences
    if last is not None and last["outcome"] in _TOLD:
        return [f"the latest {last['text']} {_ENDED[last['outcome']]}", last["message"]]
    return []


def rollout_next(status: Json) -> list[dict[str, str]]:
    """What happens by itself, as `why` lists it."""
    rollout = status.get("rollout")
    if rollout is None or rollout["question"] is None:
        return []
    return [{"at": rollout["question"]["until"], "of": rollout["text"], "what": "it goes back, if nobody has answered"}]


def rollout_todo(status: Json) -> list[str]:
    """What an operator must do about it."""
    rollout, last = status.get("rollout"), status.get("last_rollout")
    if rollout is not None and rollout["question"] is not None:
        look = rollout["question"]["look"]
        return [*([f"look at the backup: {look[0]}"] if look else []), ANSWER]
    if rollout is None and last is not None and last["outcome"] == "stuck":
        return [
            "`clojarsctl releases` shows which instance runs what; `clojarsctl rollback RELEASE` brings both to one"
        ]
    return []


_ENDED: Mapping[str, str] = {"stuck": "is stuck between two releases", "failed": "has failed"}
