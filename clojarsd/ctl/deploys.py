"""Watches a deploy or a rollback, asks at the terminal what it asks, and shows releases."""

from __future__ import annotations

import json
import os
import sys
import termios
import threading
from collections import deque
from typing import Any

from clojarsd.core.why_rollout import rollout_line
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
    _watch(session, answer, asks=bool(options.get("promote", True)))


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
    since = rollout["step_since"] or rollout["started_at"]
    lines = [clean(f"{rollout_line(rollout)}, since {since}")]
    if rollout["failure"] is not None:
        lines.append(f"  it goes back: {clean(rollout['failure'])}")
    if rollout["question"] is not None:
        lines += [f"  {line}" for line in question_lines(rollout["question"])]
    return [*lines, f"  whole output: {clean(rollout['log'])}"]


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


def _watch(session: Session, answer: Answer, *, asks: bool = True) -> None:
    """Tell what the stream says, and end with how it ends.

    Args:
        asks: whether this one waits for what the terminal says to a question.
    """
    telling = _Telling(session, asks)
    try:
        with answer:
            for line in answer.lines():
                if session.as_json:
                    offer(json.dumps(line))
                telling.tell(line)
    except Unreachable as error:
        session.fail(EXIT_UNREACHABLE, "unreachable", f"{error}; when clojarsd runs again it takes it up: {SEE}")
    except KeyboardInterrupt:
        narrate(f"stopped watching; it goes on: {SEE}")
        sys.exit(EXIT_INTERRUPTED)


class _Telling:
    """What is told of a rollout, and asked at the terminal."""

    def __init__(self, session: Session, asks: bool) -> None:
        self._session = session
        self._asks = asks
        self._shown: deque[str] = deque(maxlen=LAST_LINES)
        self._asked: _Asked | None = None

    def tell(self, line: dict[str, Any]) -> None:
        """Say what one line does; a failure ends the command."""
        if "step" in line:
            narrate(step_text(line["step"]))
        elif "output" in line:
            self._shown.append(line["output"])
            narrate(f"  | {clean(line['output'])}")
        elif "question" in line:
            self._ask(line["question"])
        elif line.get("result") == "failed":
            output = line["error"].get("output", [])
            if output and output != list(self._shown)[-len(output) :]:  # what was told last is not told twice
                for text in output:
                    narrate(f"  | {clean(text)}")
            narrate(clean(line["error"]["message"]))
            sys.exit(EXIT_FAILED)
        elif line.get("result") == "left":
            narrate(f"{clean(line['message'])}: {SEE}")
            sys.exit(EXIT_UNREACHABLE)
        elif "result" in line and not self._session.as_json:
            offer(clean(line["message"]))

    def _ask(self, question: dict[str, Any] | None) -> None:
        if self._asked is not None:
            self._asked.is_over = True
            self._asked = None
        if question is None:
            return
        for text in question_lines(question):
            narrate(text)
        if self._asks and _somebody_can_answer():
            self._asked = _Asked(self._session)


class _Asked:
    """A question at the terminal, until somebody answers it, here or elsewhere.

    Attributes:
        is_over: it is answered, or nobody asks any more: what is typed now is no answer.
    """

    def __init__(self, session: Session) -> None:
        self.is_over = False
        self._session = session
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)  # what was typed before nobody has asked for
        threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self) -> None:
        orders = {"y": "promote", "yes": "promote", "n": "abort", "no": "abort"}
        while True:
            narrate("promote it to the primary? yes or no:")
            said = _typed()
            if self.is_over or not said:
                return
            order = orders.get(said.strip().lower())
            if order is None:
                continue
            try:
                self._session.daemon.stream("POST", f"/v1/rollout/{order}", {}, BEGIN_TIMEOUT).close()
            except Rejected as error:
                narrate(clean(str(error)))
            except Unreachable as error:
                narrate(clean(str(error)))
                return
            else:
                return


def _somebody_can_answer() -> bool:
    """Whether there is a terminal, and this command is in its foreground: reading it would stop one in the back."""
    if sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:
        return False


def _typed() -> str:
    """The next line from the terminal; empty when there is none any more.

    Not by `sys.stdin`: the interpreter cannot end while a thread reads that.
    """
    try:
        return os.read(sys.stdin.fileno(), 4096).decode(errors="replace")
    except OSError:
        return ""
