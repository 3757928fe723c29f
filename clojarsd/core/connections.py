"""Single connections as operators and programs see them: what a drain waits for, and their JSON of version 1."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from clojarsd.core.names import Address, Role

MOST_LISTED = 1000
"""Connections that are listed at most; of others only the number is told."""


class ConnectionPhase(enum.Enum):
    """Where a connection is in its life; the value is what JSON says."""

    HELD = "held"
    CONNECTING = "connecting"
    QUEUED = "queued"
    OPEN = "open"
    MOVING = "moving"
    ENDING = "ending"


@dataclass(frozen=True, slots=True)
class ConnectionView:
    """One connection of a client.

    Attributes:
        frontend: the name.
        mode: "relay", or "steer" when the instance has the client's own connection.
        role: the instance that has it, or is being connected to; None: it is held.
        client: its address; None: it cannot be told, since the client has gone, or has none.
        phase: `HELD` while nobody is eligible, `CONNECTING` to the instance, `QUEUED` in the instance's accept queue,
            `OPEN`, `MOVING` to the other instance, `ENDING`: one side has ended or was reset, and what it said is
            being delivered.
        open_seconds: since it began; None: not known, as of a steered one.
        silent_seconds: since bytes have come or gone at the client's side; None: not known.
        bytes_up, bytes_down: from the client to the instance, and back.
        owed: whether the client waits for an answer, as far as can be seen from outside: the last bytes were its own.
    """

    frontend: str
    mode: str
    role: Role | None
    client: Address | None
    phase: ConnectionPhase
    open_seconds: float | None
    silent_seconds: float | None
    bytes_up: int
    bytes_down: int
    owed: bool

    def as_json(self) -> dict[str, Any]:
        """The connection as `GET /v1/connections` gives it; seconds in thousandths."""
        return {
            "frontend": self.frontend,
            "mode": self.mode,
            "role": self.role.value if self.role is not None else None,
            "client": str(self.client) if self.client is not None else None,
            "phase": self.phase.value,
            "open_seconds": _rounded(self.open_seconds),
            "silent_seconds": _rounded(self.silent_seconds),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "owed": self.owed,
        }


@dataclass(frozen=True, slots=True)
class ConnectionList:
    """Connections at one moment. `left_out`: how many more there are."""

    connections: tuple[ConnectionView, ...]
    left_out: int = 0

    def as_json(self) -> dict[str, Any]:
        """The body of `GET /v1/connections`."""
        return {
            "version": 1,
            "connections": [connection.as_json() for connection in self.connections],
            "left_out": self.left_out,
        }


def joined(lists: Iterable[ConnectionList]) -> ConnectionList:
    """All of these in one, at most `MOST_LISTED`.

    Those come first that keep a drain: an answer is owed, and they have been silent for a short time.
    """
    parts = list(lists)
    ordered = sorted(
        (connection for part in parts for connection in part.connections),
        key=lambda one: (not one.owed, one.silent_seconds if one.silent_seconds is not None else 0.0),
    )
    left_out = sum(part.left_out for part in parts) + max(len(ordered) - MOST_LISTED, 0)
    return ConnectionList(tuple(ordered[:MOST_LISTED]), left_out)


def _rounded(seconds: float | None) -> float | None:
    return round(seconds, 3) if seconds is not None else None
