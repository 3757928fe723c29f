"""Shows why the pair is as it is."""

from __future__ import annotations

import json
from typing import Any

from clojarsd.core.why import EVENTS_WANTED, explain
from clojarsd.ctl.client import Rejected
from clojarsd.ctl.look import show
from clojarsd.ctl.render import Line, clean, now, wrapped
from clojarsd.ctl.session import Session

_INDENT = 2


def show_why(session: Session, role: str | None = None) -> None:
    """The explanation of what is now."""
    with session.outcome():
        status = session.daemon.get("/v1/status")
        with session.daemon.stream("GET", f"/v1/events?n={EVENTS_WANTED}") as answer:
            events = [line for line in answer.lines() if "result" not in line]
        named = None if role is None else _role_named(role, status)
    if session.as_json:
        print(json.dumps(explain(status, events, named), indent=2))
    else:
        today = now().date().isoformat()
        show(why_lines(status["service"], explain(status, events, named, today=today), today))


def why_lines(service: str, why: dict[str, Any], today: str) -> list[Line]:
    """The explanation as text.

    Args:
        today: instants of that date are shown without it.
    """
    verdict = clean(why["verdict"])
    style = "bad" if verdict.startswith("nothing") else "warning" if verdict.startswith("only") else "good"
    lines: list[Line] = [[(f"{clean(service)}: ", "strong"), (verdict, style)]]
    told = [why["rollout"]] if why["rollout"] else []
    for sentences in (*told, *why["frontends"].values(), *why["instances"].values()):
        first, *others = sentences
        lines += [[], *wrapped(clean(first), "strong", 0)]
        lines += [line for sentence in others for line in wrapped(clean(sentence), "", _INDENT)]
    lately = [f"{_short(event['at'], today)} {clean(event['message'])}" for event in why["lately"]]
    coming = [f"{_short(one['at'], today)} {clean(one['of'])}: {clean(one['what'])}" for one in why["next"]]
    for title, listed in (("What led here", lately), ("What comes next", coming), ("What to do", why["todo"])):
        if listed:
            lines += [[], [(title, "faint")]]
            lines += [line for sentence in listed for line in wrapped(clean(sentence), "", _INDENT)]
    return lines


def _role_named(name: str, status: dict[str, Any]) -> str:
    """The role that is meant. Raises Rejected when there is none."""
    for role, seen in status["instances"].items():
        if name in (role, seen["name"]):
            return str(role)
    allowed = [*status["instances"], *(seen["name"] for seen in status["instances"].values())]
    raise Rejected("usage", f"there is no instance {name} ({', '.join(dict.fromkeys(allowed))})")


def _short(at: str, today: str) -> str:
    return f"{at[11:19]}Z" if at[:10] == today else f"{at[:10]} {at[11:19]}Z"
