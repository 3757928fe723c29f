"""Gives one order, or waits for what others do, and tells what happens until it is so."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from clojarsd.ctl.client import Answer, Unreachable
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

ORDER_TIMEOUT = 60
"""Seconds until an order is taken: the configuration is read first, and what is wanted is put on the disk."""
SEE = "clojarsctl status | clojarsctl events -f"


def give_order(
    session: Session,
    verb: str,
    role: str,
    *,
    wait: bool,
    force: bool,
    timeout: float | None,
    environment: Mapping[str, str] | None = None,
    within: float | None = None,
) -> None:
    """Give the order and end the command with how it went, whether or not that can be written anywhere."""
    options: dict[str, Any] = {"wait": wait, "force": force}
    if timeout is not None:
        options["timeout"] = timeout
    if within is not None:
        options["within"] = within
    if environment:
        options["environment"] = dict(environment)
    with session.outcome(interrupted=f"stopped; whether the order was taken is not known: {SEE}"):
        answer = session.daemon.stream("POST", f"/v1/instances/{quoted(role)}/{verb}", options, ORDER_TIMEOUT)
    _watch(
        session,
        answer,
        cut=f"how the order went is not known: {SEE}",
        interrupted=f"stopped watching; the order goes on: {SEE}",
    )


def make_archive(session: Session, role: str) -> None:
    """Have a class-data archive made, and end the command with how that went."""
    with session.outcome(interrupted=f"stopped; whether the order was taken is not known: {SEE}"):
        answer = session.daemon.stream("POST", f"/v1/jvm/{quoted(role)}/cds", {}, ORDER_TIMEOUT)
    _watch(
        session,
        answer,
        cut=f"whether the archive was made is not known: {SEE}",
        interrupted="stopped watching; the archive is made all the same",
    )


def wait_until(session: Session, role: str, awaited: str, timeout: float | None) -> None:
    """Wait until the instance is so, and end the command with whether it came to that."""
    target = f"/v1/wait?for={awaited}" + (f"&timeout={timeout:f}" if timeout is not None else "")
    with session.outcome():
        answer = session.daemon.stream("GET", f"{target}&role={quoted(role)}")
    _watch(session, answer, cut=f"whether it is {awaited} is not known: clojarsctl status", interrupted=None)


def _watch(session: Session, answer: Answer, *, cut: str, interrupted: str | None) -> None:
    """Tell what the stream says.

    Args:
        cut: what to say of a stream without an end.
        interrupted: what to say after Ctrl-C, or None for nothing.
    """
    try:
        with answer:
            for line in answer.lines():
                if session.as_json:
                    offer(json.dumps(line))
                _tell(line, aloud=not session.as_json)
    except Unreachable as error:
        session.fail(EXIT_UNREACHABLE, "unreachable", f"{error}; {cut}")
    except KeyboardInterrupt:
        if interrupted is not None:
            narrate(interrupted)
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
