"""What people read: the picture of the pair, events and steps as lines of text, 80 columns wide.

A line is made of pieces, each with a style; without a terminal the styles are left out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from clojarsd.core.signal_names import signal_name
from clojarsd.core.why_rollout import rollout_line

WIDTH = 80
_INDENT = 10

Piece: TypeAlias = tuple[str, str]
"""A text and its style: `good`, `warning`, `bad`, `strong`, `faint`, or nothing."""
Line: TypeAlias = Sequence[Piece]
Json: TypeAlias = Mapping[str, Any]

STATE_STYLES = {"ready": "good", "failed": "bad", "backoff": "bad", "stopped": "bad"}
HEALTH_STYLES = {"up": "good", "down": "bad", "stalled": "bad"}


def plain(lines: Iterable[Line]) -> str:
    """The lines without styles."""
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines)


def status_lines(status: Json, now: datetime) -> list[Line]:
    """The picture of the pair, as `GET /v1/status` has it."""
    instances = status["instances"]
    lines: list[Line] = [headline(status), _daemon_line(status, now), *_rollout_lines(status, now), []]
    for role, seen in instances.items():
        lines += _instance_lines(role, seen, now)
    if status["frontends"]:
        lines += [[], *_frontend_lines(status["frontends"])]
    return lines


def event_line(event: Json) -> Line:
    """One event of the history."""
    by = event["by"]
    asked = [(f" (ordered by {clean(by)})", "faint")] if by and not event["message"].startswith(by) else []
    return [
        (f"{short_time(event['at'])}  ", "faint"),
        (f"{event['event']:<17} ", "strong"),
        (clean(event["message"]), ""),
        *asked,
    ]


def step_text(step: Json) -> str:
    """One step of an order."""
    return f"{step['at'][11:19]} {clean(step['message'])}"


def age(since: str, now: datetime) -> str:
    """How long ago it was, roughly: `7 s`, `12 min`, `3 h 5 min`, `2 d 4 h`; the text itself when it is no time."""
    try:
        seconds = max(0, int((now - datetime.fromisoformat(since)) / timedelta(seconds=1)))
    except ValueError:
        return since
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds} s"
    if minutes < 120:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def short_time(at: str) -> str:
    """`2026-11-23 12:00:09Z`, from the same with a T and milliseconds."""
    return f"{at[:10]} {at[11:19]}Z"


def clean(text: object) -> str:
    """The text as one line that does nothing to a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def substance(status: Json) -> dict[str, Any]:
    """The part of the picture whose change is worth a new one: no counters, no results of single checks."""
    volatile = {"checks", "jvm", "connections", "accepted_total", "memory_bytes", "cpu_seconds", "next", "draining"}
    seen = dict(status)
    for kind in ("instances", "frontends"):
        parts = status[kind].items()
        seen[kind] = {name: {key: part[key] for key in part.keys() - volatile} for name, part in parts}
    for instance in seen["instances"].values():
        if (warmup := instance.get("warmup")) is not None and warmup["outcome"] == "warming":
            instance |= {"warmup": "under way", "reason": None}  # which tell each round
    return seen


def headline(status: Json) -> Line:
    """Who can serve, and who serves what."""
    able = [role for role, seen in status["instances"].items() if seen["eligible"]]
    if len(able) == len(status["instances"]):
        verdict = ("primary and backup can serve", "good")
    elif able:
        verdict = (f"only {able[0]} can serve", "warning")
    else:
        verdict = ("NOTHING CAN SERVE", "bad")
    return [(f"{clean(status['service'])}: ", "strong"), verdict, *_who_serves(status["frontends"])]


def _who_serves(frontends: Json) -> list[Piece]:
    """`; primary serves http, nailgun; nobody serves ftp`."""
    names: dict[str, list[str]] = {}
    for name, seen in frontends.items():
        names.setdefault(seen["active"] or "nobody", []).append(name)
    return [
        (f"; {who} serves {', '.join(served)}", "bad" if who == "nobody" else "")
        for who, served in sorted(names.items(), reverse=True)
    ]


def _daemon_line(status: Json, now: datetime) -> Line:
    daemon, release = status["daemon"], status["release"]["current"]
    text = f"clojarsd {daemon['version']}, process {daemon['pid']}, for {age(daemon['started_at'], now)}"
    pids = daemon.get("relay_pids") or [pid for pid in (daemon.get("relay_pid"),) if pid is not None]
    if pids:
        text += f", relay process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids))}"
    return [(text + (f", release {clean(release)}" if release else ""), "faint")]


def _rollout_lines(status: Json, now: datetime) -> list[Line]:
    """The deploy or rollback that is under way, and what it waits for; or that the latest is stuck."""
    rollout, last = status.get("rollout"), status.get("last_rollout")
    if rollout is None:
        if last is None or last["outcome"] != "stuck":
            return []
        return wrapped(f"{clean(last['text'])} is stuck: {clean(last['message'])}", "bad", 0)
    since = rollout["step_since"] or rollout["started_at"]
    lines = wrapped(f"{clean(rollout_line(rollout))}, for {age(since, now)}", "warning", 0)
    if rollout["failure"] is not None:
        lines += wrapped(f"it goes back: {clean(rollout['failure'])}", "bad")
    if rollout["question"] is not None:
        until = short_time(rollout["question"]["until"])
        lines += wrapped(f"`clojarsctl promote`, or `clojarsctl abort`, until {until}; then it goes back", "strong")
    return lines


def _instance_lines(role: str, seen: Json, now: datetime) -> list[Line]:
    state, health = seen["state"], seen["health"]
    process = f"process {seen['pid']}" if seen["pid"] is not None else "no process"
    lines: list[Line] = [
        [
            (f"{role:<{_INDENT}}", "strong"),
            (f"{state:<9}", STATE_STYLES.get(state, "warning")),
            (f"for {age(seen['since'], now):<12}  ", ""),
            ("health ", ""),
            (f"{health:<8}", HEALTH_STYLES.get(health, "warning")),
            (f" goal {seen['goal']:<6}{process}", ""),
        ]
    ]
    if seen["reason"]:
        lines += wrapped(clean(seen["reason"]), "warning")
    for warning in ("trouble", "other_release"):
        if seen.get(warning):
            lines += wrapped(clean(seen[warning]), "warning")
    if seen["pid"] is not None and (warmup := seen.get("warmup")) is not None and warmup["outcome"] != "warming":
        lines += wrapped(_warmth(warmup), "warning" if warmup["failure"] is not None else "")
    if (coming := seen.get("next")) is not None and state != "backoff":  # whose reason says it
        lines += wrapped(f"at {short_time(coming['at'])}: {clean(coming['what'])}", "")
    if seen.get("status_text"):
        lines += wrapped(f"says: {clean(seen['status_text'])}", "")
    lines += wrapped(_past(seen, now), "")
    for check in seen["checks"]:
        when = f" ({age(check['at'], now)} ago)" if check["at"] else ""
        text = f"{check['kind']}: {clean(check['last'] or 'no result yet')}{when}"
        lines += wrapped(text, "" if check["up"] else "warning")
    return lines


def _warmth(warmup: Json) -> str:
    """`warm-up: 40.2 ms -> 3.1 ms in 12 rounds, settled`."""
    if warmup["failure"] is not None:
        return f"warm-up failed: {clean(warmup['failure'])}"
    rounds = f"{warmup['rounds']} round{'' if warmup['rounds'] == 1 else 's'}"
    if warmup["first_ms"] is None:
        return f"warm-up: {rounds}, {warmup['outcome']}"
    return f"warm-up: {warmup['first_ms']:g} ms -> {warmup['latency_ms']:g} ms in {rounds}, {warmup['outcome']}"


def _past(seen: Json, now: datetime) -> str:
    """Its name, its launches, the last exit, what it uses, and the release it runs."""
    launches = f"launch {seen['incarnation']}" if seen["incarnation"] else "never launched"
    parts = [clean(seen["name"]), launches, f"restarts {seen['restarts']}"]
    if (last := seen["last_exit"]) is not None:
        how = signal_name(last["signal"]) if last["signal"] is not None else f"code {last['code']}"
        if last["code"] is None and last["signal"] is None:
            how = "nobody saw how"
        parts.append(f"last exit: {how}, {age(last['at'], now)} ago")
    if seen.get("adopted"):
        parts.append("adopted")
    if seen.get("memory_bytes") is not None:
        parts.append(f"memory {memory_text(seen['memory_bytes'])}")
    if seen.get("cpu_seconds") is not None:
        parts.append(f"CPU {seen['cpu_seconds']:.1f} s")
    if seen["release"]:
        parts.append(f"release {clean(seen['release'])}")
    return ", ".join(parts)


def wrapped(text: str, style: str, indent: int = _INDENT) -> list[Line]:
    """The text as lines that begin so far to the right."""
    lines = textwrap.wrap(text, WIDTH - indent, break_long_words=False, break_on_hyphens=False)
    return [[(" " * indent, ""), (line, style)] for line in lines]


def memory_text(size: int) -> str:
    """Bytes for people: `512 MiB`, `1.5 GiB`."""
    mebibytes = size / 1024**2
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.1f} GiB"


def _frontend_lines(frontends: Json) -> list[Line]:
    """The table of frontends; connections are counted for primary, backup and held."""
    rows = [("frontend", "listens on", "mode", "serves", "open p/b/held", "total p/b")]
    for name, seen in frontends.items():
        opened, total = seen["connections"], seen["accepted_total"]
        rows.append(
            (
                clean(name),
                ", ".join(seen["listen"]),
                seen["mode"],
                seen["active"] or "nobody",
                f"{opened['primary']}/{opened['backup']}/{opened['held']}",
                f"{total['primary']}/{total['backup']}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines: list[Line] = []
    for number, row in enumerate(rows):
        text = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        style = "faint" if number == 0 else "bad" if row[3] == "nobody" else ""
        lines.append([(text.rstrip(), style)])
    for name, seen in frontends.items():
        if seen["mode_reason"]:
            lines += wrapped(f"{clean(name)}: {clean(seen['mode_reason'])}", "faint")
        lines += [line for text in _of_frontend(seen) for line in wrapped(f"{clean(name)}: {text}", "")]
    return lines


def _of_frontend(seen: Json) -> Iterator[str]:
    """What there is to say of a frontend beside its numbers."""
    if (pause := seen.get("paused")) is not None:
        yield f"paused by {clean(pause['by'])} until {short_time(pause['until'])}: new connections wait"
    for role, drain in seen.get("draining", {}).items():
        left = f"{drain['left']} open connection{'' if drain['left'] == 1 else 's'} of {role}"
        yield f"{left} may end until {short_time(drain['until'])}"
    if share := seen.get("share_percent"):
        yield f"{share:g} % of new connections go to backup by order, while both can serve"
    if limits := limits_text(seen.get("caps", {})):
        yield f"at most {limits}"
    if (since := seen.get("counters_since")) is not None:
        yield f"counted since {short_time(since['at'])} (by {clean(since['by'])})"
    if (coming := seen.get("next")) is not None:
        late = f" ({clean(coming['reason'])})" if coming.get("reason") else ""
        yield f"at {short_time(coming['at'])}: {clean(coming['what'])}{late}"


def limits_text(caps: Json) -> str:
    """`100 connections, 60 to primary`; empty without limits."""
    return ", ".join(
        f"{most} connections" if target == "total" else f"{most} to {target}" for target, most in caps.items() if most
    )


def now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)
