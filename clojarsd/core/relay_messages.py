"""What the supervisor and the relay process say to each other.

::

    supervisor                                   relay process
    Hello ─────────────────────────────────────► judges the version
                                 Welcome or Refusal ◄── Welcome brings the listening sockets, frontend by frontend
    Configure (with listening sockets) ────────► Configured
    Begin, SetEligible, EndDrain, Cut ─────────►
    PauseFrontend, ResumeFrontend ─────────────►
    CapFrontend, ShareFrontend ────────────────►
    CountFrom, CountOn ────────────────────────►
    BeginDrain ────────────────────────────────► Drained
    Adopt (with clients) ──────────────────────►
    Ping ──────────────────────────────────────► Pong
    ListConnections ───────────────────────────► Connections, in parts
                                      Snapshot, Happened, Doubt ◄── whenever there is news
    StopAccepting, Close ──────────────────────►
    HandOver (with one end of a pair) ─────────► HandedOver or Kept

Versions: fields that one side does not know are ignored, fields that are missing have their defaults, and messages that
it does not know are dropped. `PROTOCOL` changes only with what this cannot bridge. `Hello`, `Refusal` and the fields
`protocol` and `code` of `Welcome` stay as they are for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clojarsd.core.codec import CLASS, decode, encode
from clojarsd.core.connections import ConnectionView
from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.history import EventName
from clojarsd.core.names import Role
from clojarsd.core.relay_orders import CapFrontend, CountFrom, CountOn, PauseFrontend, ResumeFrontend, ShareFrontend
from clojarsd.core.view import FrontendView

PROTOCOL = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """The first word of a supervisor. `code`: the digest of the relay's source as the supervisor has it."""

    protocol: int
    code: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A frontend as it shall be.

    Attributes:
        listeners: how many of the message's descriptors are its listening sockets, in the order of `plan.listen`; None:
            it keeps those it has.
        before: what another relay process, which is gone, has shown of it last.
    """

    plan: FrontendPlan
    listeners: int | None
    before: FrontendView | None = None


@dataclass(frozen=True, slots=True)
class Configure:
    """These frontends and no others. The numbers of these messages grow."""

    number: int
    frontends: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class Begin:
    """Accept clients from now on, in frontends that come later, too."""


@dataclass(frozen=True, slots=True)
class SetEligible:
    """Whether an instance may get new connections.

    Attributes:
        seconds: for how long that has been so, if it may.
        is_ordered: whether an operator wants it so, which is no failure.
        is_down: whether it may not because its checks say that it is down, or because it is stuck.
    """

    role: Role
    eligible: bool
    seconds: float = 0.0
    is_ordered: bool = False
    is_down: bool = False


@dataclass(frozen=True, slots=True)
class BeginDrain:
    """Let the open connections of an instance end, and say `Drained` with this number.

    Attributes:
        go_on: a drain that is under way already, or over, counts: it gets this number, and its deadline stays.
        within: seconds in which it shall be over, where that is sooner than by the settings and by earlier wishes.
    """

    number: int
    role: Role
    go_on: bool = False
    within: float | None = None


@dataclass(frozen=True, slots=True)
class EndDrain:
    """Leave open connections alone again."""

    role: Role


@dataclass(frozen=True, slots=True)
class Cut:
    """Reset the open connections of an instance."""

    role: Role


@dataclass(frozen=True, slots=True)
class Adopt:
    """Serve these clients, which come along as descriptors, elsewhere: they waited in the accept queue of an instance.

    Attributes:
        frontend: whose clients they are; those that this process has itself connected to the instance belong to the
            frontends from which they come.
        role: the instance.
    """

    frontend: str
    role: Role


@dataclass(frozen=True, slots=True)
class StopAccepting:
    """Refuse new clients from now on, for good."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there?"""

    number: int


@dataclass(frozen=True, slots=True)
class ListConnections:
    """Say which connections there are, with this number. `frontend`: only of this one."""

    number: int
    frontend: str | None = None


@dataclass(frozen=True, slots=True)
class HandOver:
    """Give everything to another relay process, at the other end of the descriptor that comes along."""


@dataclass(frozen=True, slots=True)
class Close:
    """Reset what is open, and end."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A frontend as it is. `listeners`: how many of the message's descriptors are its listening sockets."""

    plan: FrontendPlan
    listeners: int
    view: FrontendView


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to a `Hello`: what the process does now.

    Attributes:
        code: the digest of the source that the process runs.
        accepting: whether clients are accepted.
        eligible: what it was told last.
        draining: the instances whose drain has been begun and not ended.
        paused: by name the frontends whose new connections wait by order, the seconds left, and by whose order.
    """

    protocol: int
    code: str
    accepting: bool
    frontends: tuple[Standing, ...]
    eligible: Mapping[Role, bool]
    draining: tuple[Role, ...] = ()
    paused: Mapping[str, tuple[float, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a `Hello` that cannot be served; the connection ends after it.

    Attributes:
        supervisor: the number of the process that is being served, if that is why.
    """

    protocol: int
    reason: str
    supervisor: int | None = None


@dataclass(frozen=True, slots=True)
class Configured:
    """The frontends are as the `Configure` of this number wants them."""

    number: int


@dataclass(frozen=True, slots=True)
class Drained:
    """No connection is left at the instance. The number tells late news of earlier drains from that of the present."""

    number: int
    role: Role
    tally: DrainTally | None = None
    """What has become of them; earlier versions do not say."""


@dataclass(frozen=True, slots=True)
class Pong:
    """I am here."""

    number: int


@dataclass(frozen=True, slots=True)
class Connections:
    """Some of the connections that were asked for by this number.

    Attributes:
        left_out: how many more there are than will be told.
        is_last: whether these are the last ones.
    """

    number: int
    connections: tuple[ConnectionView, ...]
    left_out: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All frontends at one moment."""

    frontends: Mapping[str, FrontendView]


@dataclass(frozen=True, slots=True)
class Happened:
    """Something for the history.

    Attributes:
        at: when, if nobody could be told then; None: now.
    """

    event: EventName
    message: str
    role: Role | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    at: str | None = None


@dataclass(frozen=True, slots=True)
class Doubt:
    """An instance could not be connected to."""

    role: Role


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The other process has all; this one ends."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Handing over has failed, and this process stays in charge; why, in words."""

    reason: str


ToRelay = (
    Hello
    | Configure
    | Begin
    | SetEligible
    | BeginDrain
    | EndDrain
    | Cut
    | Adopt
    | PauseFrontend
    | ResumeFrontend
    | CapFrontend
    | ShareFrontend
    | CountFrom
    | CountOn
    | StopAccepting
    | Ping
    | ListConnections
    | HandOver
    | Close
)  # fmt: skip
ToSupervisor = (
    Welcome
    | Refusal
    | Configured
    | Drained
    | Pong
    | Connections
    | Snapshot
    | Happened
    | Doubt
    | HandedOver
    | Kept
)  # fmt: skip
_TO_RELAY = {kind.__name__ for kind in ToRelay.__args__}
_TO_SUPERVISOR = {kind.__name__ for kind in ToSupervisor.__args__}


def to_relay(message: ToRelay) -> dict[str, Any]:
    """What JSON can hold of a supervisor's message."""
    document: dict[str, Any] = encode(message, ToRelay)
    return document


def to_supervisor(message: ToSupervisor) -> dict[str, Any]:
    """What JSON can hold of a relay process's message."""
    document: dict[str, Any] = encode(message, ToSupervisor)
    return document


def from_supervisor(document: Mapping[str, Any]) -> ToRelay | None:
    """The message that the document stands for; None when it is one of another version.

    Raises:
        ValueError: the message is known and its fields do not fit; says how.
    """
    if document.get(CLASS) not in _TO_RELAY:
        return None
    message: ToRelay = decode(ToRelay, document)  # type: ignore[arg-type]
    return message


def from_relay(document: Mapping[str, Any]) -> ToSupervisor | None:
    """The message that the document stands for; None when it is one of another version.

    Raises:
        ValueError: the message is known and its fields do not fit; says how.
    """
    if document.get(CLASS) not in _TO_SUPERVISOR:
        return None
    if document.get(CLASS) == Happened.__name__ and document.get("event") not in EventName.__members__:
        return None
    message: ToSupervisor = decode(ToSupervisor, document)  # type: ignore[arg-type]
    return message


def protocol_of(document: Mapping[str, Any]) -> int | None:
    """The version that a `Hello`, `Welcome` or `Refusal` of any version speaks; None when it says none."""
    protocol = document.get("protocol")
    return protocol if type(protocol) is int else None
