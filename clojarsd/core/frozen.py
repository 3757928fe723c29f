"""Relayed connections as values on their way from one process to another: all that is known of them but descriptors.

Instants are of the monotonic clock, which all processes of a boot read alike. What is there by the thousand is written
and read here by hand, as traffic stands still meanwhile; the rest is left to `core/codec.py`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clojarsd.core.frontend_plan import CountedFrom, FrontendPlan, Pause
from clojarsd.core.names import Role
from clojarsd.core.routing import Caps, Route

VERSION = 1
"""Of these values. Another version is refused, and the connections stay where they are."""

Document = list[Any]
"""What JSON can hold."""
RECORD = "record"
"""The name of what comes last in the document of a connection, if it is there."""


@dataclass(frozen=True, slots=True)
class FrozenFlow:
    """One way of a connection.

    Attributes:
        stage: the name of its stage.
        delivered: bytes that the sink's socket has taken.
        looks: whether the start of a request is looked for before anything is read.
        pending: bytes that were read and that the sink has not taken.
        piped: bytes that are in a pipe.
    """

    stage: str
    delivered: int
    looks: bool
    pending: bytes
    piped: int


@dataclass(frozen=True, slots=True)
class FrozenSession:
    """One relayed connection. With it go the client's socket, the instance's, and both ends of each full pipe.

    Attributes:
        phase: the name of its phase.
        owed: whether the last bytes came from the client.
        quickack: whether what is read is acknowledged at once.
        lost: "up" or "down": the way whose source was reset or takes no more; None: neither.
        said: bytes that the instance had said when its move began.
        seen: how far what is waited for had come at the last look, or None.
        timer_at: when it is looked at next, or None: nothing is waited for.
        give_up_at: when the delivery before a reset is given up.
        began_at: when it began; None: told by a process that did not know.
    """

    phase: str
    owed: bool
    quickack: bool
    up: FrozenFlow
    down: FrozenFlow
    lost: str | None
    said: int
    seen: int | None
    timer_at: float | None
    give_up_at: float
    began_at: float | None = None


@dataclass(frozen=True, slots=True)
class FrozenClient:
    """A client without an instance. With it goes its socket, in which all it has said waits.

    Attributes:
        is_new: whether it never had an instance.
        tried: the roles that could not be connected to.
        give_up_at: until when it may wait, or None: it never had to.
        is_announced: whether what it says begins with who the client is already.
    """

    is_new: bool
    tried: tuple[Role, ...]
    give_up_at: float | None
    is_announced: bool = False


@dataclass(frozen=True, slots=True)
class FrozenRecord:
    """What the log will say of a connection at its end; see `runtime/connection_log.py`."""

    client: str | None
    came_at: float | None
    tries: int
    moves: int
    up: int
    down: int
    connect: float | None
    held_at: float | None
    held: float | None


@dataclass(frozen=True, slots=True)
class FrozenConnection:
    """One client of a frontend.

    Attributes:
        role: the instance it is connected to, or was being connected to; None: it is held.
        quiet_since: since when a drain has seen it silent, or None.
        record: None: nobody wants to know.
    """

    role: Role | None
    state: FrozenSession | FrozenClient
    quiet_since: float | None = None
    record: FrozenRecord | None = None

    @property
    def descriptors(self) -> int:
        """How many go with it."""
        if isinstance(self.state, FrozenClient):
            return 1
        return 2 + 2 * bool(self.state.up.piped) + 2 * bool(self.state.down.piped)

    @property
    def size(self) -> int:
        """About how many bytes it is long as a document."""
        if isinstance(self.state, FrozenClient):
            return 100
        return 200 + 4 * (len(self.state.up.pending) + len(self.state.down.pending)) // 3


@dataclass(frozen=True, slots=True)
class FrozenFrontend:
    """A frontend without its connections. With it go its listening sockets.

    Attributes:
        listeners: how many listening sockets it has; none when it has stopped accepting.
        accepts: whether it had begun to accept.
        route, last_active, eligible_since: where new connections go, and went last, and who may get them since when.
        accepted: how many each role has got, and under None how many had to wait.
        held_since: since when somebody has waited without a break, or None.
        drains: the roles that are drained; until when, or None: none of their connections is left.
        pause, caps, counted_from: what operators have ordered; caps None: what the plan says.
        home_until: until when silent connections of the backup are ended, as the primary is back, or None.
        patient_until: before that instant nobody is given up who waits.
    """

    plan: FrontendPlan
    listeners: int
    accepts: bool
    route: Route
    last_active: Role | None
    eligible_since: Mapping[Role, float | None]
    accepted: Mapping[Role | None, int]
    held_since: float | None
    drains: Mapping[Role, float | None]
    pause: Pause | None = None
    caps: Caps | None = None
    counted_from: CountedFrom | None = None
    patient_until: float = 0.0
    home_until: float | None = None


def to_document(connection: FrozenConnection) -> Document:
    """As JSON can hold it."""
    document = _without_record(connection)
    if connection.record is not None:
        document.append({RECORD: [getattr(connection.record, name) for name in FrozenRecord.__slots__]})
    return document


def _without_record(connection: FrozenConnection) -> Document:
    state, role = connection.state, connection.role
    head = [role.value if role is not None else None, connection.quiet_since]
    if isinstance(state, FrozenClient):
        said = [True] if state.is_announced else []  # which an earlier version does not know
        return [*head, [state.is_new, [tried.value for tried in state.tried], state.give_up_at, *said]]
    return [
        *head,
        state.phase, state.owed, state.quickack, state.lost, state.said, state.seen, state.timer_at, state.give_up_at,
        state.began_at, _from_flow(state.up), _from_flow(state.down),
    ]  # fmt: skip


def from_document(document: Document) -> FrozenConnection:
    """From what JSON holds.

    Raises:
        ValueError: it is none of ours.
    """
    try:
        name, quiet_since, *rest = document
        role = Role(name) if name is not None else None
        record = FrozenRecord(*rest.pop()[RECORD]) if isinstance(rest[-1], dict) else None
        if len(rest) == 1:
            is_new, tried, give_up_at, *said = rest[0]
            client = FrozenClient(is_new, tuple(map(Role, tried)), give_up_at, said == [True])
            return FrozenConnection(role, client, None, record)
        *plain, up, down = rest
        phase, owed, quickack, lost, said, seen, timer_at, give_up_at = plain[:8]
        began_at = plain[8] if len(plain) > 8 else None  # an earlier version did not say it
        ways = _to_flow(up), _to_flow(down)
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
    session = FrozenSession(phase, owed, quickack, *ways, lost, said, seen, timer_at, give_up_at, began_at)
    return FrozenConnection(role, session, quiet_since, record)


def _from_flow(flow: FrozenFlow) -> Document:
    pending = base64.b64encode(flow.pending).decode("ascii") if flow.pending else ""
    return [flow.stage, flow.delivered, flow.looks, pending, flow.piped]


def _to_flow(document: Document) -> FrozenFlow:
    stage, delivered, looks, pending, piped = document
    return FrozenFlow(stage, delivered, looks, base64.b64decode(pending, validate=True), piped)
