"""What the control socket carries, version 1: orders with their options, steps and results, errors, and who may ask.

Every stream is one JSON object a line and ends with one that has `result`: a stream without it was cut short.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clojarsd.core.errors import Denied, Failed, Refused
from clojarsd.core.names import Role, UnitState

if TYPE_CHECKING:  # clojarsctl imports this module and must start fast
    from clojarsd.core.view import InstanceView, PairView

MOST_LINES = 10_000
"""The most lines of a log that are given at once."""
MOST_EVENTS = 1_000
"""The most events of the past that are given at once."""
LONGEST_TIMEOUT = 24 * 3600.0
"""Seconds that a caller may watch its order."""
WATCH_HINT = "`clojarsctl status` and `clojarsctl events -f` show how it goes"


class Verb(enum.Enum):
    """What an operator may order."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    RELOAD = "reload"


class ErrorKind(enum.Enum):
    """Why a request did not succeed; the word is part of the API."""

    USAGE = "usage"
    DENIED = "denied"
    REFUSED = "refused"
    FAILED = "failed"

    @property
    def status(self) -> int:
        """The HTTP status that goes with it."""
        return _STATUS[self]


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN_VARIABLES = frozenset({"CLOJARSD_INSTANCE", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"})
_SECONDS = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?")
_STATUS = {ErrorKind.USAGE: 400, ErrorKind.DENIED: 403, ErrorKind.REFUSED: 409, ErrorKind.FAILED: 500}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was done for an order.

    Attributes:
        at: UTC, as `2026-11-23T12:00:00.000Z`.
        role: of which instance, or None.
        message: a sentence for people.
    """

    at: str
    role: Role | None
    message: str


@dataclass(frozen=True, slots=True)
class OrderOptions:
    """How an order is to be carried out and watched.

    Attributes:
        force: do it although nobody can serve meanwhile.
        timeout: seconds after which the caller is told that it goes on; None watches to the end.
        wait: whether the caller watches at all.
        within: seconds that open connections may last until the instance is out of rotation or ended, where that is
            sooner than by the settings; also shortens a drain that is under way. None: as the settings say.
        environment: variables of the process that this order starts, and of no later one. Their values may be secrets:
            what is logged or kept are the names.
    """

    force: bool = False
    timeout: float | None = None
    wait: bool = True
    within: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def parse_verb(text: str) -> Verb:
    """The verb of an order.

    Raises:
        ValueError: no such verb; the message is for people.
    """
    try:
        return Verb(text)
    except ValueError:
        allowed = ", ".join(verb.value for verb in Verb)
        raise ValueError(f"{text} is not an order ({allowed})") from None


def object_in(body: bytes, example: str) -> dict[str, Any]:
    """The JSON object that a body is; an empty body is an empty one.

    Raises:
        ValueError: it is none; the message, with the example, is for people.
    """
    if not body.strip():
        return {}
    try:
        options = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None
    if not isinstance(options, dict):
        raise ValueError(f"the body is not a JSON object such as {example}")
    return options


def parse_options(body: bytes, verb: Verb = Verb.START) -> OrderOptions:
    """The options in the body of such an order; an empty body asks for the usual ones.

    Raises:
        ValueError: it is no such body; the message is for people.
    """
    options = object_in(body, '{"force": true}')
    for key, value in options.items():
        if key not in ("force", "timeout", "wait", "within", "environment"):
            raise ValueError(f"{key} is not an option of an order (force, timeout, wait, within, environment)")
        if key == "timeout":
            _check_timeout(value)
        elif key == "within":
            _check_within(value, verb)
        elif key == "environment":
            _check_environment(value, verb)
        elif not isinstance(value, bool):
            raise ValueError(f"{key} is {json.dumps(value)}, not true or false")
    return OrderOptions(**options)


def _check_timeout(value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LONGEST_TIMEOUT:
        raise ValueError(f"timeout is {json.dumps(value)}, not a number of seconds (more than 0, at most 86400)")


def _check_within(value: object, verb: Verb) -> None:
    if verb not in (Verb.STOP, Verb.RESTART, Verb.DRAIN):
        raise ValueError(f"within is for what drains an instance (stop, restart, drain), not for {verb.value}")
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_TIMEOUT:
        raise ValueError(f"within is {json.dumps(value)}, not a number of seconds (0 to 86400)")


def _check_environment(value: object, verb: Verb) -> None:
    """No text here shows a value, which may be a secret."""
    if verb not in (Verb.START, Verb.RESTART):
        raise ValueError(f"environment is for a process that is started (start, restart), not for {verb.value}")
    if not isinstance(value, dict):
        raise ValueError('environment is not an object such as {"LANG": "C.UTF-8"}')
    for name, text in value.items():
        if why := why_no_variable(name):
            raise ValueError(why)
        if not isinstance(text, str):
            raise ValueError(f"the value of {name} is not text")
        if "\0" in text or not _is_encodable(text):
            raise ValueError(f"the value of {name} cannot be given to a process (no NUL, and UTF-8)")


def why_no_variable(name: str) -> str | None:
    """Why an order cannot set an environment variable of that name; None when it can."""
    if _VARIABLE.fullmatch(name) is None:
        return f"{json.dumps(name)} is not a name of a variable (letters, digits and _)"
    if name in _OWN_VARIABLES:
        return f"{name} is set by clojarsd alone"
    return None


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Awaited(enum.Enum):
    """What `wait` waits for."""

    READY = "ready"
    ELIGIBLE = "eligible"
    STOPPED = "stopped"
    DOWN = "down"

    def holds(self, seen: InstanceView) -> bool:
        """Whether the instance is so."""
        match self:
            case Awaited.READY:
                return seen.unit.state is UnitState.READY
            case Awaited.ELIGIBLE:
                return seen.is_eligible
            case Awaited.STOPPED:
                return seen.unit.state is UnitState.STOPPED
            case Awaited.DOWN:
                return not seen.unit.has_process


def parse_awaited(text: str | None) -> Awaited:
    """The query parameter `for`.

    Raises:
        ValueError: no such thing can be waited for; the message is for people.
    """
    try:
        return Awaited(text)
    except ValueError:
        allowed = ", ".join(one.value for one in Awaited)
        raise ValueError(f"for is {text or 'missing'}, not one of {allowed}") from None


def parse_patience(text: str | None) -> float | None:
    """The query parameter `timeout`: seconds; None for no end.

    Raises:
        ValueError: it is no such number; the message is for people.
    """
    if text is None:
        return None
    if _SECONDS.fullmatch(text) is None or not 0 < float(text) <= LONGEST_TIMEOUT:
        raise ValueError(f"timeout is {text}, not a number of seconds (more than 0, at most 86400)")
    return float(text)


def parse_count(text: str | None, default: int, most: int) -> int:
    """The query parameter `n`.

    Raises:
        ValueError: not a number from 0 to `most`; the message is for people.
    """
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) <= most):
        raise ValueError(f"n is {text}, not a number from 0 to {most}")
    return int(text)


def parse_flag(name: str, text: str | None) -> bool:
    """A query parameter that is 1 or 0.

    Raises:
        ValueError: it is something else; the message is for people.
    """
    if text not in (None, "0", "1"):
        raise ValueError(f"{name} is {text}, not 0 or 1")
    return text == "1"


def roles_named(text: str, names: Mapping[Role, str], *, all_allowed: bool) -> tuple[Role, ...]:
    """The roles that a caller means, in the order in which they are taken in turn: the backup goes first.

    Args:
        text: a role, the name of an instance, or `all`.
        names: of the instances.

    Raises:
        ValueError: no such instance; the message is for people.
    """
    if text == "all" and all_allowed:
        return (Role.BACKUP, Role.PRIMARY)
    for role in Role:
        if text == role.value:
            return (role,)
    for role in Role:
        if text == names[role]:
            return (role,)
    allowed = [role.value for role in Role] + ["all"] * all_allowed + [names[role] for role in Role]
    raise ValueError(f"there is no instance {text} ({', '.join(dict.fromkeys(allowed))})")


def describe_order(verb: Verb, roles: Sequence[Role]) -> str:
    """`restart backup`, or for several `restart backup and primary`."""
    return f"{verb.value} {' and '.join(role.value for role in roles)}"


def step_line(step: Step) -> dict[str, Any]:
    """A step as a line of the stream."""
    role = step.role.value if step.role is not None else None
    return {"step": {"at": step.at, "role": role, "message": step.message}}


def done_line(message: str | None = None) -> dict[str, Any]:
    """The last line: it has come to its end."""
    return {"result": "done"} if message is None else {"result": "done", "message": message}


def accepted_line(message: str) -> dict[str, Any]:
    """The last line for a caller that does not want to watch."""
    return {"result": "accepted", "message": message}


def failed_line(message: str) -> dict[str, Any]:
    """The last line: it has not come to its end, or is watched no more."""
    return {"result": "failed", **error_body(ErrorKind.FAILED, message)}


def error_body(kind: ErrorKind, message: str) -> dict[str, Any]:
    """The body of an answer that is an error."""
    return {"error": {"kind": kind.value, "message": message}}


def kind_of(error: Refused | Failed) -> ErrorKind:
    """The word for an error that clojarsd raises on purpose."""
    if isinstance(error, Denied):
        return ErrorKind.DENIED
    return ErrorKind.REFUSED if isinstance(error, Refused) else ErrorKind.FAILED


class Rights(enum.IntEnum):
    """What a caller may do; each includes the one before."""

    NONE = 0
    LOOK = 1
    OPERATE = 2


@dataclass(frozen=True, slots=True)
class Access:
    """Who may do what. Each entry is a user's name, or `@` and the name of a group.

    Attributes:
        daemon_uid: the user that the daemon runs as, who may do everything, as root may.
    """

    operators: tuple[str, ...]
    viewers: tuple[str, ...]
    daemon_uid: int

    def rights(self, uid: int, user: str, groups: AbstractSet[str]) -> Rights:
        """What the user with that number, name and groups may do."""
        titles = {user} | {f"@{group}" for group in groups}
        if uid in (0, self.daemon_uid) or titles.intersection(self.operators):
            return Rights.OPERATE
        return Rights.LOOK if titles.intersection(self.viewers) else Rights.NONE

    def why_denied(self, user: str, needed: Rights, wish: str = "give orders") -> str:
        """Why that user may not, and who may; `wish` says what they wanted to operate."""
        operators = f"operators: {', '.join(self.operators) or 'root'}"
        if needed is Rights.OPERATE:
            return f"{user} may not {wish} ({operators})"
        return f"{user} may not look ({operators}; viewers: {', '.join(self.viewers) or 'none'})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the pair is, for monitoring. `code` is that of a Nagios plugin: 0 good, 1 no redundancy, 2 nothing serves."""

    code: int
    message: str


def judge(view: PairView) -> Verdict:
    """Whether both instances can serve, or one, or none; with the rollout that may be why."""
    missing = {role: seen for role, seen in view.instances.items() if not seen.is_eligible}
    why = "; ".join(f"{role.value} is {seen.unit.state.value}: {seen.reason}" for role, seen in missing.items())
    rollout = "" if view.rollout is None or view.rollout.in_short is None else f"; {view.rollout.in_short}"
    if not missing:
        return Verdict(0, f"{view.service} OK: primary and backup can serve{rollout}")
    if len(missing) == len(view.instances):
        return Verdict(2, f"{view.service} CRITICAL: nothing can serve; {why}{rollout}")
    (left,) = view.instances.keys() - missing.keys()
    return Verdict(1, f"{view.service} WARNING: only {left.value} can serve; {why}{rollout}")
