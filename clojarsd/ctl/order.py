"""Gives one order, and tells what happens until it is carried out."""

from __future__ import annotations

import json
import sys
from typing import Any

from clojarsd.ctl.client import Unreachable
from clojarsd.ctl.render import clean, step_text
from clojarsd.ctl.session import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_UNREACHABLE,
    Session,
    narrate,
    offer,
    quoted,
)

SEE = "clojarsctl status | clojarsctl events -f"


def give_order(session: Session, verb: str, role: str, *, wait: bool, force: bool, timeout: float | None) -> None:
    """Give the order and end the command with how it went, whether or not that can be written anywhere."""
    options: dict[str, Any] = {"wait": wait, "force": force}
    if timeout is not None:
        options["timeout"] = timeout
    with session.outcome(interrupted=f"stopped; whether the order was taken is not known: {SEE}"):
        answer = session.daemon.stream("POST", f"/v1/instances/{quoted(role)}/{verb}", options)
    try:
        with answer:
            for line in answer.lines():
                if session.as_json:
                    offer(json.dumps(line))
                _tell(line, aloud=not session.as_json)
    except Unreachable as error:
        session.fail(EXIT_UNREACHABLE, "unreachable", f"{error}; how the order went is not known: {SEE}")
    except KeyboardInterrupt:
        narrate(f"stopped watching; the order goes on: {SEE}")
        sys.exit(EXIT_INTERRUPTED)


def _tell(line: dict[str, Any], *, aloud: bool) -> None:
    """Say what one line of the answer does; a failure ends the command."""
    if "step" in line:
        narrate(step_text(line["step"]))
    elif line.get("result") == "failed":
        narrate(clean(line["error"]["message"]))
        sys.exit(EXIT_FAILED)
    elif "result" in line and aloud:
        offer(clean(line["message"]))
