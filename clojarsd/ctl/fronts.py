"""What the verbs about frontends do: orders, a table of frontends, a table of connections."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

from clojarsd.core.api_frontends import MOST_PERCENT, TARGETS, no_such_frontend
from clojarsd.core.spreading import MOST
from clojarsd.ctl.look import show
from clojarsd.ctl.render import Line, clean, limits_text, memory_text, short_time
from clojarsd.ctl.session import EXIT_USAGE, Session, narrate, offer, quoted

ORDER_TIMEOUT = 15
"""Seconds until an order about a frontend is answered."""
SEE = "clojarsctl frontends"
Json = Mapping[str, Any]


def order_frontend(session: Session, verb: str, frontend: str, options: dict[str, Any] | None = None) -> None:
    """Give the order and say how it went."""
    with session.outcome(interrupted=f"stopped; whether the order was taken is not known: {SEE}"):
        answer = session.daemon.post(f"/v1/frontends/{quoted(frontend)}/{verb}", ORDER_TIMEOUT, options)
    offer(json.dumps(answer) if session.as_json else clean(answer["message"]))


def cap_frontend(session: Session, frontend: str, words: Sequence[str]) -> None:
    """Set a limit; `words`: a number, or what it is for and a number."""
    target, number = ("total", words[0]) if len(words) == 1 else (words[0], words[1])
    if len(words) > 2 or target not in TARGETS:
        raise click.UsageError(f"{' '.join(words)} is not a limit ([{'|'.join(TARGETS)}] N)")
    if not (number.isascii() and number.isdecimal() and len(number) <= 9):
        raise click.UsageError(f"{number} is not a number of connections")
    order_frontend(session, "cap", frontend, {target: int(number)})


def share_connections(session: Session, words: str) -> None:
    """Let a part of new connections go to the backup; `words`: a number, with or without `%`."""
    number = words.removesuffix("%").rstrip()
    if not re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,4})?", number) or float(number) > 100 * MOST:
        raise click.UsageError(f"{words} is not a share of the connections in percent ({MOST_PERCENT})")
    with session.outcome(interrupted=f"stopped; whether the order was taken is not known: {SEE}"):
        answer = session.daemon.post("/v1/share", ORDER_TIMEOUT, {"percent": float(number)})
    offer(json.dumps(answer) if session.as_json else clean(answer["message"]))


def show_frontends(session: Session, name: str | None) -> None:
    """A line for each frontend, or for one."""
    with session.outcome():
        seen = session.daemon.get("/v1/status")["frontends"]
    if name is not None:
        if name not in seen:
            session.fail(EXIT_USAGE, "usage", no_such_frontend(name, seen))
        seen = {name: seen[name]}
    if session.as_json:
        print(json.dumps(seen, indent=2))
    else:
        show(frontend_lines(seen))


def show_connections(session: Session, frontend: str | None) -> None:
    """A line for each connection."""
    target = "/v1/connections"
    with session.outcome():
        if frontend is not None:
            target += f"?frontend={quoted(frontend)}"
        seen = session.daemon.get(target)
    if session.as_json:
        print(json.dumps(seen, indent=2))
        return
    show(connection_lines(seen["connections"]))
    if seen["left_out"]:
        narrate(f"{seen['left_out']} more are not listed")


def frontend_lines(frontends: Json) -> list[Line]:
    """The table of frontends."""
    rows = [("frontend", "listens on", "mode", "serves", "limits", "open p/b/held", "total p/b/held", "")]
    for name, seen in frontends.items():
        pause = seen.get("paused")
        rows.append(
            (
                clean(name),
                ", ".join(seen["listen"]),
                seen["mode"],
                _serves(seen),
                limits_text(seen.get("caps", {})) or "none",
                _by_role(seen["connections"]),
                _by_role(seen["accepted_total"]),
                f"paused until {short_time(pause['until'])} by {clean(pause['by'])}" if pause is not None else "",
            )
        )
    return _table(rows, lambda row: "bad" if row[3] == "nobody" else "warning" if row[7] else "")


def _serves(seen: Json) -> str:
    """`primary`, `primary, 5 % backup`, `nobody`."""
    share = seen.get("share_percent")
    return (
        f"{seen['active']}, {share:g} % backup" if share and seen["active"] == "primary" else seen["active"] or "nobody"
    )


def connection_lines(connections: Sequence[Json]) -> list[Line]:
    """The table of connections."""
    rows = [("client", "frontend", "instance", "state", "age", "silent", "up", "down", "owes")]
    rows.extend(
        (
            one["client"] or "?",
            clean(one["frontend"]),
            one["role"] or "nobody",
            one["phase"],
            _seconds(one["open_seconds"]),
            _seconds(one["silent_seconds"]),
            _bytes(one["bytes_up"]),
            _bytes(one["bytes_down"]),
            "an answer" if one["owed"] else "",
        )
        for one in connections
    )
    return _table(rows, lambda row: "warning" if row[3] in ("held", "queued") else "")


def _table(rows: Sequence[Sequence[str]], style: Any) -> list[Line]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        [
            (
                "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip(),
                "faint" if number == 0 else style(row),
            )
        ]
        for number, row in enumerate(rows)
    ]


def _by_role(counts: Json) -> str:
    return f"{counts['primary']}/{counts['backup']}/{counts['held']}"


def _seconds(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


def _bytes(size: int) -> str:
    return f"{size} B" if size < 10_000 else f"{size / 1024:.0f} KiB" if size < 10 * 1024**2 else memory_text(size)
