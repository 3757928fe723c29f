"""Watches how an instance that has come up answers the clients that had waited for it."""

from __future__ import annotations

import asyncio

from clojarsd.core.pacing import PATIENCE, Pace
from clojarsd.runtime.dial import Client
from clojarsd.system.relay import Session


class Pacer:
    """Those of one frontend who were let go and are not answered yet. Nothing runs inside, nothing to close.

    Looked at only while clients wait, so that a connection which never had to costs nothing.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pace = Pace()
        self._unanswered: dict[Client | Session, float] = {}

    def begin(self) -> None:
        """Be careful again: who answers from here on is another one, or may have become slow."""
        self._pace = Pace()
        self._unanswered.clear()

    def allowed(self) -> int | None:
        """How many more may be let go now; None: all."""
        now = self._loop.time()
        over = [
            one
            for one, until in self._unanswered.items()
            if until <= now or (isinstance(one, Session) and one.bytes_down)
        ]
        for one in over:
            del self._unanswered[one]
        self._pace = self._pace.answered(len(over))
        return self._pace.allows(len(self._unanswered))

    def let_go(self, client: Client) -> None:
        """The client is on its way."""
        self._unanswered[client] = self._loop.time() + PATIENCE

    def connected(self, client: Client, session: Session) -> None:
        """It has got its instance."""
        if client in self._unanswered:
            self._unanswered[session] = self._unanswered.pop(client)

    def waits_again(self, client: Client) -> None:
        """It could not be connected."""
        self._unanswered.pop(client, None)
