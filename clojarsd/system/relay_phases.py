"""How far a relayed connection, and each way of it, has come."""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """What a session does now."""

    RELAYING = "bytes are carried"
    LOOKING = "as before, and the client's next request begins a move"
    MOVING = "the instance was told the end, and what it still says is passed on"
    LOST = "one side was reset, and the other is being told"
    ENDED = "both sockets are closed or given away"


class Stage(enum.Enum):
    """How far one way of a connection has come."""

    OPEN = "bytes are carried"
    HELD = "the source is not read: the connection is being moved"
    DROPPING = "the sink is lost: what the source sends is read and dropped"
    DONE = "the source has ended and all it sent is delivered"


# By name: Python 3.11 takes ten times as long to find a member by way of its class, and these are needed all the time.
RELAYING, LOOKING, MOVING, LOST, ENDED = Phase
OPEN, HELD, DROPPING, DONE = Stage
