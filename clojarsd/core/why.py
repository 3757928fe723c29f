"""Why things are as they are: the picture of the pair and its latest events in, sentences for people out.

Both come as the API gives them, because `clojarsctl why` explains at the caller's side and must start fast: nothing is
imported here that takes long. Facts that are missing, such as events that are forgotten, cost sentences and no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from clojarsd.core.signal_names import signal_name
from clojarsd.core.why_rollout import rollout_next, rollout_sentences, rollout_todo

Json: TypeAlias = Mapping[str, Any]

EVENTS_WANTED = 200
"""How many of the latest events explain as much as can be explained."""
MOST_LATELY = 12
"""The most events that are told as what led here."""
EPISODE_GAP = timedelta(minutes=10)
"""A silence this long ends what led here."""
LOOKED_BACK = timedelta(seconds=60)
"""How long before a switch its cause may lie."""
AT_ONCE = timedelta(seconds=1)
"""How long before an early failback its cause may lie: other failbacks come by themselves."""
RECORDED_LATE = timedelta(seconds=1)
"""How long after a switch its cause may be recorded: traffic is moved first."""

_ROLES = frozenset({"primary", "backup"})
_ENDS = frozenset({"instance-exited", "instance-failed", "instance-stalled", "instance-hung", "oom", "deadlock"})
_EVIDENCE = frozenset({"instance-stalled", "instance-hung", "oom", "deadlock"})
_RETURNS = frozenset({"instance-ready", "instance-recovered", "drain-finished"})
_SWITCHES = frozenset({"failover", "failback"})
_TAKES_AWAY = frozenset({"stop", "restart", "drain"})
_TOLD = frozenset(
    {
        *_ENDS,
        *_RETURNS,
        *_SWITCHES,
        *("instance-started", "warmup-failed", "hold-started", "hold-ended", "drain-started"),
        *("order", "config-reloaded"),
        *("deploy-started", "deploy-finished", "deploy-failed", "deploy-aborted", "rollback-finished"),
        *("daemon-started", "daemon-upgraded", "daemon-adopted"),
    }
)


def explain(status: Json, events: Sequence[Json], role: str | None = None, *, today: str = "") -> dict[str, Any]:
    """What is, because of what, what comes next by itself, and what an operator must do.

    Args:
        status: as `GET /v1/status` has it.
        events: the latest ones, the oldest of them first.
        role: only that instance; its frontends are those that it serves or may serve, so all of them.
        today: instants of that date (`2026-11-23`) are told without it.

    Returns:
        `verdict`: a sentence; `rollout`: sentences; `frontends` and `instances`: sentences by name; `lately`: events as
        `at` and `message`, the oldest first; `next`: `at`, `of` and `what`, the soonest first; `todo`: sentences.
    """
    roles = [role] if role is not None else list(status["instances"])
    past = _Past(events, today)
    return {
        "verdict": _verdict(status),
        "rollout": rollout_sentences(status, past.when),
        "frontends": {name: _explain_frontend(name, seen, status, past) for name, seen in status["frontends"].items()},
        "instances": {name: _explain_instance(name, status["instances"][name], past) for name in roles},
        "lately": past.lately(roles),
        "next": _what_comes(status, roles),
        "todo": [
            *rollout_todo(status),
            *(sentence for name in roles for sentence in _todo(name, status["instances"][name], past)),
        ],
    }


class _Past:
    """What happened, as far as it is known, and how to tell when."""

    def __init__(self, events: Sequence[Json], today: str) -> None:
        self.events = sorted(events, key=lambda event: int(event["id"]))
        self.beginning = _beginning(self.events)
        self._today = today

    def when(self, at: str) -> str:
        """`12:00:09Z`, with the date before it when it is another one."""
        return f"{at[11:19]}Z" if at[:10] == self._today else f"{at[:10]} {at[11:19]}Z"

    def latest(self, role: str, names: Iterable[str], before: Json | None = None) -> Json | None:
        """The latest of these events about the instance, or the latest before another event."""
        wanted = frozenset(names)
        for event in reversed(self.events):
            if before is not None and event["id"] >= before["id"]:
                continue
            if event["event"] in wanted and event["role"] == role:
                return event
        return None

    def latest_order(self, role: str, before: Json | None = None) -> Json | None:
        """The latest order to the instance that has changed something, or the latest before another event."""
        for event in reversed(self.events):
            is_earlier = before is None or event["id"] < before["id"]
            is_about_it = event["event"] == "order" and role in _ordered(event)
            if is_earlier and is_about_it and event["detail"].get("verb") != "reload":
                return event
        return None

    @property
    def of_late(self) -> Sequence[Json]:
        """The events since nothing ran: what was before that is no cause of what is now."""
        if self.beginning is None:
            return self.events
        return [event for event in self.events if event["id"] >= self.beginning["id"]]

    def switch(self, frontend: str) -> Json | None:
        """The latest time at which the new connections of the frontend moved."""
        for event in reversed(self.of_late):
            if event["event"] in _SWITCHES and event["detail"].get("frontend") == frontend:
                return event
        return None

    def hold(self, frontend: str) -> Json | None:
        """Since when connections of the frontend wait, or None when none does."""
        for event in reversed(self.of_late):
            if event["event"] in ("hold-started", "hold-ended") and event["detail"].get("frontend") == frontend:
                return event if event["event"] == "hold-started" else None
        return None

    def cause(self, switch: Json, looked_back: timedelta = LOOKED_BACK) -> Json | None:
        """The event because of which new connections left an instance: the nearest that takes one away."""
        left = switch["detail"].get("before")
        at = _instant(switch["at"])
        near = [
            event
            for event in self.of_late
            if event["id"] != switch["id"]
            and -RECORDED_LATE <= at - _instant(event["at"]) <= looked_back
            and _takes_away(event, left)
        ]
        if not near:
            return None
        nearest = min(near, key=lambda event: (abs(at - _instant(event["at"])), abs(event["id"] - switch["id"])))
        if nearest["event"] in _ENDS:
            return nearest
        return next((event for event in reversed(near) if event["event"] == "order"), nearest)

    def evidence(self, role: str, at: str) -> list[str]:
        """What was found out about the instance shortly before that time."""
        until = _instant(at)
        return [
            event["message"]
            for event in self.events
            if event["event"] in _EVIDENCE
            and event["role"] == role
            and -RECORDED_LATE <= until - _instant(event["at"]) <= LOOKED_BACK
        ]

    def lately(self, roles: Sequence[str]) -> list[dict[str, str]]:
        """What led here: the latest events about the instances, without those before a long silence."""
        told: list[Json] = []
        for event in reversed(self.events):
            if event["event"] not in _TOLD or not _concerns(event, roles):
                continue
            if told and _instant(told[-1]["at"]) - _instant(event["at"]) > EPISODE_GAP:
                break
            told.append(event)
            if len(told) == MOST_LATELY:
                break
        return [{"at": event["at"], "message": event["message"]} for event in reversed(told)]


def _verdict(status: Json) -> str:
    able = [role for role, seen in status["instances"].items() if seen["eligible"]]
    if not able:
        return "nothing can serve"
    return f"only {able[0]} can serve" if len(able) < len(status["instances"]) else f"{' and '.join(able)} can serve"


def _explain_frontend(name: str, seen: Json, status: Json, past: _Past) -> list[str]:
    """Who gets its new connections, since when and because of what."""
    active, held = seen["active"], seen["connections"]["held"]
    switch = past.switch(name)
    sentences = []
    if active is None:
        since = past.hold(name)
        began = f" since {past.when(since['at'])}" if since is not None else ""
        states = " and ".join(f"{role} is {one['state']}" for role, one in status["instances"].items())
        sentences.append(f"nobody serves {name}: {states}")
        sentences.append(f"its connections wait{began}; {_count(held, 'waits', 'wait')} now")
    elif switch is not None and switch["role"] == active:
        why = _why_switched(switch, status, past)
        sentences.append(f"{active} serves {name} since {past.when(switch['at'])}" + (f": {why}" if why else ""))
    else:
        sentences.append(f"{active} serves {name}{_since_when_not(past)}")
    if active is not None and held:
        since = past.hold(name)
        why = since["detail"].get("connect_failed") if since is not None else None
        waits = f"{_count(held, 'connection of it waits', 'connections of it wait')} to be connected"
        sentences.append(f"{waits}: {why}" if why else waits)
    if active == "backup" and status["instances"]["primary"]["eligible"] and not seen.get("next"):
        sentences.append(
            "primary can serve again, and gets the new connections when it has been able to for long enough"
        )
    if seen["mode_reason"]:
        sentences.append(f"its connections go by {seen['mode']}: {seen['mode_reason']}")
    return sentences


def _since_when_not(past: _Past) -> str:
    """Since when new connections have not moved, as the end of a sentence."""
    if past.beginning is not None:
        what = "everything was stopped" if past.beginning["event"] == "order" else "clojarsd was started"
        return f": no switch since {what} ({past.when(past.beginning['at'])})"
    return f": no switch since {past.when(past.events[0]['at'])}, as far as events go back" if past.events else ""


def _why_switched(switch: Json, status: Json, past: _Past) -> str | None:
    """Because of what new connections moved."""
    if switch["event"] == "failback" and past.cause(switch, AT_ONCE) is None:
        back = past.latest(switch["role"], _RETURNS, before=switch)
        return f"{back['message']} ({past.when(back['at'])})" if back is not None else None
    left = switch["detail"].get("before")
    cause = past.cause(switch)
    if cause is not None:
        found = [text for text in past.evidence(left, switch["at"]) if text != cause["message"]]
        return "; ".join([cause["message"], *found])
    now = status["instances"].get(left)
    return f"{left} is {now['state']}: {now['reason']}" if now is not None and now["reason"] else None


def _explain_instance(role: str, seen: Json, past: _Past) -> list[str]:
    """Its state with the cause, and what shows it."""
    reason = seen["reason"] or ""
    since = past.when(seen["since"])
    if seen["eligible"]:
        sentences = [f"{role} can serve: {seen['state']} since {since}, and its checks pass"]
        sentences += [f"but {seen['trouble']}"] if seen.get("trouble") else []
    else:
        sentences = [f"{role} cannot serve: {seen['state']} since {since}" + (f": {reason}" if reason else "")]
    sentences += [seen["other_release"]] if seen.get("other_release") else []
    sentences += _how_warm(seen.get("warmup"))
    sentences += _whose_goal(role, seen, past)
    if seen["pid"] is not None:
        sentences += [
            f"its {check['kind']} check: {check['last']}"
            + (f" ({past.when(check['at'])})" if check["at"] is not None else "")
            for check in seen["checks"]
            if not check["up"] and check["last"] is not None and f"{check['kind']}: {check['last']}" not in reason
        ]
    sentences += _how_the_last_ended(role, seen, past)
    if seen["restarts"]:
        sentences.append(f"it was started again {_count(seen['restarts'], 'time', 'times')} without an order")
    if seen.get("status_text"):
        sentences.append(f"it says of itself: {seen['status_text']}")
    if seen.get("adopted"):
        sentences.append(f"its process {seen['pid']} was started by an earlier clojarsd, and adopted")
    return sentences


def _how_warm(warmup: Json | None) -> list[str]:
    """What came of its warm-up, where there was one."""
    if warmup is None or warmup["outcome"] == "warming":
        return []
    if warmup["failure"] is not None:
        return [f"its warm-up failed: {warmup['failure']}"]
    gain = f"{warmup['first_ms']:g} ms -> {warmup['latency_ms']:g} ms, " if warmup["first_ms"] is not None else ""
    how = "cut short because nobody else could serve" if warmup["outcome"] == "cut short" else warmup["outcome"]
    return [f"its warm-up: {gain}{how} after {_count(warmup['rounds'], 'round', 'rounds')}"]


def _whose_goal(role: str, seen: Json, past: _Past) -> list[str]:
    """Who wants it so, where that is not how an instance usually is."""
    by, at = seen.get("goal_by"), seen.get("goal_at")
    if seen["eligible"]:
        return []
    if by is None or at is None:
        order = past.latest_order(role)
        return [f"the last order: {order['message']} ({past.when(order['at'])})"] if order is not None else []
    if f"by {by} at {at}" in (seen["reason"] or ""):
        return []
    return [f"it is to be {seen['goal']}: ordered by {by} at {past.when(at)}"]


def _how_the_last_ended(role: str, seen: Json, past: _Past) -> list[str]:
    """How the process before ended, or why there was none, and what was found out about it."""
    ended = past.latest(role, ["instance-exited"])
    last = seen["last_exit"]
    if ended is not None and ended["message"].startswith("cannot"):  # it did not get as far as a process
        is_told = seen["eligible"] or seen.get("lacks") or ended["message"] in (seen["reason"] or "")
        return [] if is_told else [f"the launch before: {ended['message']} ({past.when(ended['at'])})"]
    if last is None:
        return []
    how = f"exited with {last['code']}" if last["signal"] is None else f"was killed by {signal_name(last['signal'])}"
    if last["code"] is None and last["signal"] is None:
        how = "ended, and nobody saw how"
    if ended is not None and abs(_instant(ended["at"]) - _instant(last["at"])) <= RECORDED_LATE:
        how = ended["message"].removeprefix(f"{role} ")
    found = dict.fromkeys(text for text in past.evidence(role, last["at"]))
    return ["; ".join([f"its process before {how}, at {past.when(last['at'])}", *found])]


def _what_comes(status: Json, roles: Sequence[str]) -> list[dict[str, str]]:
    """What happens by itself, the soonest first."""
    coming = [
        {"at": seen["next"]["at"], "of": name, "what": seen["next"]["what"]}
        for name, seen in [*status["frontends"].items(), *((role, status["instances"][role]) for role in roles)]
        if seen.get("next")
    ]
    return sorted([*coming, *rollout_next(status)], key=lambda one: one["at"])


def _todo(role: str, seen: Json, past: _Past) -> list[str]:
    """What does not get better by itself."""
    logs = f"`clojarsctl logs {role}` shows its last words"
    match seen["state"]:
        case "failed":
            return [f"{logs}; `clojarsctl start {role}` tries again"]
        case "stopped" if seen.get("lacks"):
            return [seen["lacks"]]
        case "stopped":
            return [f"`clojarsctl start {role}` starts it"]
        case "backoff":
            return [f"{logs}; it is tried again without an order"]
        case "draining":
            order = past.latest_order(role)
            is_wish = seen["goal"] == "up" and order is not None and order["detail"].get("verb") == "drain"
            return [f"`clojarsctl undrain {role}` brings it back into rotation"] if is_wish else []
        case "ready":
            is_well = (seen["eligible"] and not seen.get("trouble")) or seen.get("next")
            return [] if is_well else [f"{logs}; `clojarsctl restart {role}` gives it a new process"]
        case _:
            return []


def _beginning(events: Sequence[Json]) -> Json | None:
    """The latest event before which, or by which, everything was stopped; None when there is none.

    That is the start of a daemon that has not found the instances running, and an order after which both are to be
    stopped.
    """
    beginning: Json | None = None
    found, stopped = False, set[str]()
    for event in events:
        match event["event"]:
            case "daemon-adopted":
                found = True
            case "daemon-upgraded":
                found = False
            case "daemon-started":
                beginning = beginning if found else event
                found = False
                stopped.clear()
            case "order" if event["detail"].get("verb") == "stop":
                stopped.update(_ordered(event))
                beginning = event if stopped >= _ROLES else beginning
            case "order" if event["detail"].get("verb") in ("start", "restart"):
                stopped.difference_update(_ordered(event))
    return beginning


def _takes_away(event: Json, role: str | None) -> bool:
    if event["event"] == "order":
        return event["detail"].get("verb") in _TAKES_AWAY and role in _ordered(event)
    return event["role"] == role and (event["event"] in _ENDS or event["event"] == "drain-started")


def _ordered(event: Json) -> Sequence[str]:
    """The instances that an order was for; none when it was refused."""
    if "refused" in event["detail"]:
        return ()
    return event["detail"].get("roles") or [event["role"]]  # what the daemon orders by itself is for one


def _concerns(event: Json, roles: Sequence[str]) -> bool:
    """Whether it is about one of the instances, or about the whole pair."""
    about = _ROLES.intersection((event["role"], event["detail"].get("before"), *event["detail"].get("roles", ())))
    return not about or bool(about.intersection(roles))


def _instant(at: str) -> datetime:
    return datetime.fromisoformat(at)


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
