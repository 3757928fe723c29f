"""Why a connection ended."""

from __future__ import annotations

import enum


class EndReason(enum.Enum):
    """Why a connection ended, or left its instance. Its value is the phrase for the connection's log line."""

    FINISHED = "finished"
    CLIENT_RESET = "reset by the client"
    INSTANCE_RESET = "reset by the instance"
    CUT = "cut by clojarsd"
    MOVED = "moved to the other instance"
    DRAINED = "closed when it was silent, as its instance was drained"
    DRAIN_DEADLINE = "cut at the end of the drain"
    IDLE = "silent for idle_timeout"
    HALF_CLOSED = "silent for half_closed_timeout after one side had ended"
    TURNED_AWAY = "turned away: nobody could serve it in time"
    DOWN = "cut, as its instance was down"
    HOME = "closed when it was silent, as new connections go to the primary again"
    LEFT = "left by the client while it waited"
