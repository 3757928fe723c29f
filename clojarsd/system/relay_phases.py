"""How far a relayed connection has come."""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """What a session does now."""

    RELAYING = "bytes are carried"
    LOOKING = "as before, and the client's next request begins a move"
    MOVING = "the instance was told the end, and what it still says is passed on"
    LOST = "one side was reset, and the other is being told"
    ENDED = "both sockets are closed or given away"
