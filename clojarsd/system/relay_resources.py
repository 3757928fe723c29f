"""What the sessions of a process share."""

from __future__ import annotations

from clojarsd.system.flow import BUFFER_SIZE
from clojarsd.system.pipes import PipePool
from clojarsd.system.poller import Poller


class RelayResources:
    """What all sessions of a daemon share: the receive buffer, the pipes, the poller. Whoever makes it closes it.

    Attributes:
        reset_flush: seconds without progress after which one side's bytes that were sent before its reset are given up.
        move_flush: seconds of silence after which an instance that does not close a moving connection is left.
        poller: that of the loop if it has one; else one is made, to be nested in whatever loop it is attached to.
    """

    def __init__(self, *, reset_flush: float, move_flush: float, max_pipes: int, poller: Poller | None = None) -> None:
        self.reset_flush = reset_flush
        self.move_flush = move_flush
        self.buffer = memoryview(bytearray(BUFFER_SIZE))
        self.pipes = PipePool(max_pipes)
        self.poller = Poller() if poller is None else poller

    def close(self) -> None:
        """Give everything back to the system. All sessions must have ended before."""
        self.poller.close()
        self.pipes.close()
