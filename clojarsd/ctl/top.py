"""Shows what both instances do and use, look after look."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from clojarsd.ctl.look import LOOKED_EVERY, Watched, show
from clojarsd.ctl.render import HEALTH_STYLES, STATE_STYLES, Line, clean, headline, memory_text, now
from clojarsd.ctl.session import Session, narrate

_COLUMNS = (("state", 8), ("health", 7), ("CPU %", 5), ("memory", 7), ("heap", 7), ("threads", 7), ("restarts", 8))
_LEFT = frozenset({"state", "health"})


class Look:
    """One look at the pair: its picture and the time at which it was taken."""

    def __init__(self, status: dict[str, Any], at: datetime) -> None:
        self.status = status
        self.at = at

    def cpu_percent(self, role: str, before: Look | None) -> float | None:
        """Of one processor, since the look before when that saw the same process, else since the process began."""
        seen = self.status["instances"][role]
        spent, since = seen["cpu_seconds"], seen["started_at"]
        if spent is None or since is None:
            return None
        began, used = datetime.fromisoformat(since), 0.0
        if before is not None:
            then = before.status["instances"][role]
            if then["started_at"] == since and then["pid"] == seen["pid"] and then["cpu_seconds"] is not None:
                began, used = before.at, then["cpu_seconds"]
        lasted = (self.at - began) / timedelta(seconds=1)
        return max(0.0, 100 * (spent - used) / lasted) if lasted > 0 else None


def show_top(session: Session) -> None:
    """One look."""
    with session.outcome():
        _print(session, _look(session), None)


def watch_top(session: Session) -> None:
    """Look after look, until interrupted; a daemon that was reached once is waited for.

    Without a terminal there is one look only, unless a program reads them.
    """
    with session.outcome():
        if session.as_json:
            _put_all(session)
        elif sys.stdout.isatty():
            from clojarsd.ctl.screen import redraw

            redraw(_Picture(session).next)
        else:
            _print(session, _look(session), None)


class _Picture:
    """Draws look after look."""

    def __init__(self, session: Session) -> None:
        self._watched = Watched(session)
        self._before: Look | None = None

    def next(self) -> list[Line]:
        """The pair as it is now, or why that cannot be seen."""
        seen = self._watched.look()
        if seen is None:
            return [[(self._watched.trouble or "", "bad")]]
        look = Look(seen, now())
        lines = top_lines(look, self._before)
        self._before = look
        return lines


def _look(session: Session) -> Look:
    return Look(session.daemon.get("/v1/status"), now())


def _print(session: Session, look: Look, before: Look | None) -> None:
    session.put(top_json(look, before)) if session.as_json else show(top_lines(look, before))


def _put_all(session: Session) -> None:
    """Give a program look after look; people hear when there is none, and why."""
    watched = Watched(session)
    before: Look | None = None
    told: str | None = None
    while True:
        if (seen := watched.look()) is not None:
            look = Look(seen, now())
            session.put(top_json(look, before))
            before = look
        elif watched.trouble != told:
            narrate(watched.trouble or "")
        told = watched.trouble
        time.sleep(LOOKED_EVERY)


def top_json(look: Look, before: Look | None) -> dict[str, Any]:
    """One look for programs."""
    frontends = look.status["frontends"]
    instances = {
        role: {
            "state": seen["state"],
            "health": seen["health"],
            "cpu_percent": look.cpu_percent(role, before),
            "memory_bytes": seen["memory_bytes"],
            "restarts": seen["restarts"],
            "connections": {name: one["connections"][role] for name, one in frontends.items()},
        }
        for role, seen in look.status["instances"].items()
    }
    held = {name: one["connections"]["held"] for name, one in frontends.items()}
    return {"at": look.at.isoformat(timespec="milliseconds"), "instances": instances, "held": held}


def top_lines(look: Look, before: Look | None) -> list[Line]:
    """One look for people: a row for each instance, a column for each frontend's open connections."""
    frontends = look.status["frontends"]
    widths = {name: max(5, len(clean(name))) for name in frontends}
    titles = [f"{title:<{width}}" if title in _LEFT else f"{title:>{width}}" for title, width in _COLUMNS]
    titles += [f"{clean(name):>{width}}" for name, width in widths.items()]
    lines: list[Line] = [headline(look.status), [], [(f"{'':<8}  {'  '.join(titles)}", "faint")]]
    for role, seen in look.status["instances"].items():
        cells = _cells(seen, look.cpu_percent(role, before))
        opened = [f"{frontends[name]['connections'][role]:>{width}}" for name, width in widths.items()]
        lines.append(
            [
                (f"{role:<8}  ", "strong"),
                (f"{seen['state']:<8}  ", STATE_STYLES.get(seen["state"], "warning")),
                (f"{seen['health']:<7}  ", HEALTH_STYLES.get(seen["health"], "warning")),
                ("  ".join([*cells, *opened]), ""),
            ]
        )
    held = [f"{one['connections']['held']:>{widths[name]}}" for name, one in frontends.items()]
    before_them = sum(width + 2 for _, width in _COLUMNS)
    if held:
        lines.append([(f"{'held':<8}  {'':<{before_them}}{'  '.join(held)}", "")])
    return lines


def _cells(seen: Mapping[str, Any], cpu: float | None) -> list[str]:
    """What it uses, each as wide as its column."""
    jvm = seen["jvm"] or {}
    texts = [
        "-" if cpu is None else f"{cpu:.1f}",
        "-" if seen["memory_bytes"] is None else memory_text(seen["memory_bytes"]),
        "-" if jvm.get("heap_used_bytes") is None else memory_text(jvm["heap_used_bytes"]),
        "-" if jvm.get("threads") is None else str(jvm["threads"]),
        str(seen["restarts"]),
    ]
    return [f"{text:>{width}}" for text, (_, width) in zip(texts, _COLUMNS[2:], strict=True)]
