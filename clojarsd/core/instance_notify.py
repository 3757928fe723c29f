"""What an instance says of itself on its NOTIFY_SOCKET: one datagram in, its meaning out.

Source: the assignments of sd_notify(3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LARGEST_DATAGRAM = 4096
"""Bytes; the service manager's own limit."""
LONGEST_STATUS = 200
"""Characters of a status that are kept."""
LONGEST_EXTENSION = 86400.0
"""Seconds by which one message can move a deadline."""
MOST_ASSIGNMENTS = 64

IGNORED = {
    "MAINPID": "the process that was launched stays the main one",
    "MAINPIDFDID": "the process that was launched stays the main one",
    "WATCHDOG_USEC": "the interval is that of the settings",
    "RELOADING": "a reload is not waited for",
    "STOPPING": "it is stopped by order or seen to exit",
    "FDSTORE": "descriptors are not kept",
    "FDSTOREREMOVE": "descriptors are not kept",
}
"""Known assignments that change nothing, and why."""
UNDERSTOOD = frozenset({"READY", "STATUS", "EXTEND_TIMEOUT_USEC", "WATCHDOG", "BARRIER"})


@dataclass(frozen=True, slots=True)
class Notification:
    """The meaning of one datagram.

    Attributes:
        ready: it says that it can serve.
        status: its state in words, empty to take the last one back; None when it says nothing of it.
        extend: seconds from now on in which it needs not to have got any further; None when it asks for none.
        keepalive: its watchdog is content for now.
        trigger: it wants its watchdog to act at once.
        ignored: what changes nothing: a sentence for each, `MAINPID ignored: …`.
    """

    ready: bool = False
    status: str | None = None
    extend: float | None = None
    keepalive: bool = False
    trigger: bool = False
    ignored: tuple[str, ...] = ()


def parse_notification(datagram: bytes) -> Notification:
    """What the datagram says; whatever is not understood is ignored, with a reason, and breaks nothing.

    The value that comes last counts. Variables that begin with `X_` are somebody's own and are passed over.
    """
    lines = [line for line in datagram.decode(errors="replace").split("\n") if line]
    ignored = {}
    if len(lines) > MOST_ASSIGNMENTS:
        ignored["further assignments"] = f"there are more than {MOST_ASSIGNMENTS}"
    values: dict[str, str] = {}
    for line in lines[:MOST_ASSIGNMENTS]:
        name, equals, value = line.partition("=")
        if name in IGNORED:
            ignored[name] = IGNORED[name]
        elif name in UNDERSTOOD and equals:
            values[name] = value
        elif not name.startswith("X_"):
            ignored[_printable(name, 40)] = "it is not known"
    for name, allowed in (("READY", ("1",)), ("WATCHDOG", ("1", "trigger"))):
        if values.get(name, "1") not in allowed:
            ignored[name] = f"{_printable(values.pop(name), 40)} is not {' or '.join(allowed)}"
    extend = _seconds(values["EXTEND_TIMEOUT_USEC"]) if "EXTEND_TIMEOUT_USEC" in values else None
    if "EXTEND_TIMEOUT_USEC" in values and extend is None:
        ignored["EXTEND_TIMEOUT_USEC"] = "it is not a number of microseconds"
    return Notification(
        ready="READY" in values,
        status=_printable(values["STATUS"], LONGEST_STATUS) if "STATUS" in values else None,
        extend=extend,
        keepalive=values.get("WATCHDOG") == "1",
        trigger=values.get("WATCHDOG") == "trigger",
        ignored=tuple(f"{name} ignored: {why}" for name, why in ignored.items()),
    )


def notify_environment(path: str, watchdog: float | None) -> Mapping[str, str]:
    """The variables by which an instance learns where to notify and how often its watchdog wants to hear from it.

    Args:
        path: of its notify socket.
        watchdog: seconds, None for no watchdog.
    """
    environment = {"NOTIFY_SOCKET": path}
    if watchdog is not None:
        environment["WATCHDOG_USEC"] = str(round(watchdog * 1_000_000))  # no WATCHDOG_PID: any of its processes may
    return environment


def _seconds(text: str) -> float | None:
    """Microseconds as seconds, at most `LONGEST_EXTENSION`; None when that is no positive number."""
    if not (text.isascii() and text.isdecimal()) or not (digits := text.lstrip("0")):
        return None
    return LONGEST_EXTENSION if len(digits) > 18 else min(int(digits) / 1_000_000, LONGEST_EXTENSION)


def _printable(text: str, most: int) -> str:
    """The text in one line that no terminal takes for commands, cut to so many characters."""
    cut = text[: most + 1]
    shown = "".join(character if character.isprintable() else "?" for character in cut).strip()
    return shown if len(cut) <= most else shown[: most - 1] + "…"
