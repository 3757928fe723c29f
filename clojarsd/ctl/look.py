"""Shows what is: the verbs that change nothing."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

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
    """The picture of the pair, until interrupted; a daemon that was reached once is waited for."""
    with session.outcome():
        watched = Watched(session)
        if sys.stdout.isatty() and not session.as_json:
            from clojarsd.ctl.screen import redraw

            redraw(lambda: _picture(watched))
        else:
            _print_changes(session, watched)


class Watched:
    """The pair as somebody sees it who looks again and again.

    Attributes:
        trouble: why it could not be seen at the last look; None when it could.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._was_reached = False
        self.trouble: str | None = None

    def look(self) -> dict[str, Any] | None:
        """The picture of the pair; None while a daemon that was reached before cannot be.

        Raises:
            Unreachable: it never was.
        """
        try:
            seen: dict[str, Any] = self._session.daemon.get("/v1/status")
        except Unreachable as error:
            if not self._was_reached:
                raise
            self.trouble = str(error)
            return None
        self._was_reached, self.trouble = True, None
        return seen


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


def _picture(watched: Watched) -> list[Line]:
    """The pair as it is now, or why that cannot be seen."""
    seen = watched.look()
    return [[(watched.trouble or "", "bad")]] if seen is None else status_lines(seen, now())


def _print_changes(session: Session, watched: Watched) -> None:
    """Print the picture whenever it has changed, and why there is none whenever that has."""
    before: object = None
    while True:
        seen = watched.look()
        now_seen = watched.trouble if seen is None else substance(seen)
        if now_seen != before:
            if seen is None:
                narrate(watched.trouble or "")
            else:
                session.put(seen) if session.as_json else show([*status_lines(seen, now()), []])
        before = now_seen
        time.sleep(LOOKED_EVERY)
