"""Watches a deploy or a rollback, asks at the terminal what it asks, and shows releases."""

from __future__ import annotations

import json
import sys
import threading
from collections import deque
from typing import Any

from clojarsd.ctl.client import Answer, Rejected, Unreachable
from clojarsd.ctl.render import clean, step_text
from clojarsd.ctl.session import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_UNREACHABLE,
    Session,
    narrate,
    offer,
)

LAST_LINES = 20
"""Of the output of what has failed, as the daemon gives them."""
BEGIN_TIMEOUT = 120
"""Seconds until a rollout is begun: its repository is asked first, and the disk is looked at."""
SEE = "clojarsctl rollout -f shows it again; clojarsctl abort brings everything back"


def begin(session: Session, path: str, options: dict[str, Any]) -> None:
    """Order a rollout, and end the command with how it went."""
    with session.outcome(interrupted="stopped; whether the order was taken is not known: clojarsctl rollout"):
        answer = session.daemon.stream("POST", path, options, BEGIN_TIMEOUT)
    _watch(session, answer)


def follow(session: Session) -> None:
    """Watch what is under way."""
    with session.outcome():
        answer = session.daemon.stream("GET", "/v1/rollout?follow=1")
    _watch(session, answer)


def show_rollout(session: Session) -> None:
    """What is under way, or how the latest has ended."""
    with session.outcome():
        seen = session.daemon.get("/v1/rollout")
    if session.as_json:
        session.put(seen)
        return
    if seen["rollout"] is None:
        last = seen["last_rollout"]
        offer("no deploy or rollback is under way")
        if last is not None:
            offer(f"the latest: {clean(last['message'])}")
        return
    offer("\n".join(rollout_lines(seen["rollout"])))


def rollout_lines(rollout: dict[str, Any]) -> list[str]:
    """A rollout that is under way, a line for each fact."""
    what = f"{rollout['kind']} of {rollout['tag'] or rollout['release'] or 'an artifact'}"
    place = rollout["step_text"]
    if rollout["step_number"] is not None:
        place = f"step {rollout['step_number']} of {len(rollout['steps'])}, {place}"
    lines = [clean(f"{what} by {rollout['by']}, {rollout['state']}: {place}, since {rollout['step_since']}")]
    if rollout["failure"] is not None:
        lines.append(clean(f"  it goes back: {rollout['failure']}"))
    if rollout["question"] is not None:
        lines += [f"  {line}" for line in question_lines(rollout["question"])]
    return [*lines, clean(f"  whole output: {rollout['log']}")]


def question_lines(question: dict[str, Any]) -> list[str]:
    """Where to look, and how to answer."""
    lines = ["the backup runs it: look at it"]
    lines += [f"  {clean(one)}" for one in question["look"]]
    lines += [f"{'  ' if one.startswith(' ') else ''}{clean(one)}" for one in question["changes"]]
    return [*lines, f"clojarsctl promote, or clojarsctl abort, until {clean(question['until'])}; then it goes back"]


def show_releases(session: Session) -> None:
    """All releases, a line each."""
    with session.outcome():
        seen = session.daemon.get("/v1/releases")
    if session.as_json:
        session.put(seen)
        return
    for warning in seen["warnings"]:
        narrate(clean(warning))
    if not seen["releases"]:
        offer("no release: clojarsctl deploy TAG")
        return
    rows = [("", "release", "tag", "commit", "state", "runs on", "by", "at")]
    for one in seen["releases"]:
        mark = "current" if one["current"] else "previous" if one["previous"] else ""
        commit = (one["commit"] or "-")[:10]
        runs = ", ".join(one["runs_on"]) or "-"
        rows.append((mark, one["name"], one["tag"] or "-", commit, one["state"], runs, one["by"], one["at"]))
    widths = [max(len(clean(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        offer("  ".join(clean(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _watch(session: Session, answer: Answer) -> None:
    """Tell what the stream says, and end with how it ends."""
    shown: deque[str] = deque(maxlen=LAST_LINES)
    try:
        with answer:
            for line in answer.lines():
                if session.as_json:
                    offer(json.dumps(line))
                _tell(session, line, shown)
    except Unreachable as error:
        session.fail(EXIT_UNREACHABLE, "unreachable", f"{error}; the next clojarsd goes on with it: {SEE}")
    except KeyboardInterrupt:
        narrate(f"stopped watching; it goes on: {SEE}")
        sys.exit(EXIT_INTERRUPTED)


def _tell(session: Session, line: dict[str, Any], shown: deque[str]) -> None:
    """Say what one line does; a failure ends the command.

    Args:
        shown: the output that was told last: what has failed is not told twice.
    """
    if "step" in line:
        narrate(step_text(line["step"]))
    elif "output" in line:
        shown.append(line["output"])
        narrate(f"  | {clean(line['output'])}")
    elif "question" in line:
        for text in question_lines(line["question"]):
            narrate(text)
        if sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty():
            threading.Thread(target=_ask, args=(session,), daemon=True).start()
    elif line.get("result") == "failed":
        output = line["error"].get("output", [])
        if output and output != list(shown)[-len(output) :]:
            for text in output:
                narrate(f"  | {clean(text)}")
        narrate(clean(line["error"]["message"]))
        sys.exit(EXIT_FAILED)
    elif "result" in line and not session.as_json:
        offer(clean(line["message"]))


def _ask(session: Session) -> None:
    """Ask at the terminal until there is an answer; another terminal may be faster, and then this is not heard."""
    orders = {"y": "promote", "yes": "promote", "n": "abort", "no": "abort"}
    while True:
        narrate("promote it to the primary? yes or no:")
        said = sys.stdin.readline()
        if not said:
            return
        order = orders.get(said.strip().lower())
        if order is None:
            continue
        try:
            session.daemon.stream("POST", f"/v1/rollout/{order}", {}).close()
        except (Rejected, Unreachable) as error:
            narrate(clean(str(error)))
        return
