"""Shows what is: the verbs that change nothing."""

from __future__ import annotations

import json
import sys
import time

from clojarsd.ctl.client import Rejected, Unreachable
from clojarsd.ctl.render import Line, clean, event_line, now, plain, status_lines, substance
from clojarsd.ctl.session import EXIT_INTERRUPTED, Session, narrate, offer, quoted

CHECK_UNKNOWN = 3
LOOKED_EVERY = 1.0
"""Seconds between two looks of `status --watch`."""


def show_status(session: Session) -> None:
    """The picture of the pair, once."""
    with session.outcome():
        seen = session.daemon.get("/v1/status")
    if session.as_json:
        print(json.dumps(seen, indent=2))
    else:
        show(status_lines(seen, now()))


def watch_status(session: Session) -> None:
    """The picture of the pair, until interrupted; a daemon that cannot be reached is waited for."""
    with session.outcome():
        if sys.stdout.isatty() and not session.as_json:
            from clojarsd.ctl.screen import redraw

            redraw(lambda: _picture(session))
        else:
            _print_changes(session)


def check_pair(session: Session) -> None:
    """One line and an exit code, as monitoring wants them."""
    try:
        verdict = session.daemon.get("/v1/check")
    except (Unreachable, Rejected) as error:
        verdict = {"code": CHECK_UNKNOWN, "message": f"clojarsd UNKNOWN: {error}"}
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    is_told = offer(json.dumps(verdict) if session.as_json else clean(verdict["message"]))
    sys.exit(verdict["code"] if is_told else CHECK_UNKNOWN)


def show_logs(session: Session, role: str | None, count: int | None, *, follow: bool) -> None:
    """The lines of one log as they stand there, or of both, each with the role before it."""
    with session.outcome():
        for line in session.follow(_target(f"/v1/logs/{quoted(role or 'all')}", count, follow=follow)):
            if session.as_json:
                session.put(line)
            else:
                print(line["line"] if role else f"{line['role']:<7} | {line['line']}", flush=follow)


def show_events(session: Session, count: int | None, *, follow: bool) -> None:
    """The history, a line for each event."""
    with session.outcome():
        for event in session.follow(_target("/v1/events", count, follow=follow)):
            if session.as_json:
                session.put(event)
            else:
                show([event_line(event)])


def _target(path: str, count: int | None, *, follow: bool) -> str:
    query = [f"n={count}"] * (count is not None) + ["follow=1"] * follow
    return f"{path}?{'&'.join(query)}" if query else path


def show(lines: list[Line]) -> None:
    """Print the lines, with colours when people look at them."""
    if sys.stdout.isatty():
        from clojarsd.ctl.screen import show

        show(lines)
    else:
        print(plain(lines), flush=True)


def _picture(session: Session) -> list[Line]:
    """The pair as it is now, or why that cannot be seen."""
    try:
        return status_lines(session.daemon.get("/v1/status"), now())
    except Unreachable as error:
        return [[(str(error), "bad")]]


def _print_changes(session: Session) -> None:
    """Print the picture whenever it has changed, and why there is none whenever that has."""
    before: object = None
    while True:
        try:
            seen = session.daemon.get("/v1/status")
        except Unreachable as error:
            if str(error) != before:
                narrate(str(error))
            before = str(error)
        else:
            if substance(seen) != before:
                session.put(seen) if session.as_json else show([*status_lines(seen, now()), []])
            before = substance(seen)
        time.sleep(LOOKED_EVERY)
