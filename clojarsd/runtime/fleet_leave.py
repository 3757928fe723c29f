"""How far a relay process is that is to end when its connections have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from clojarsd.core.names import Role


class Leave:
    """Made by the fleet, for as long as the process lives on.

    Attributes:
        left: the roles of which it may have connections.
        news: set whenever there is news of it.
        task: what sees it out; None: not begun.
        is_deaf: whether it has no listening sockets any more.
    """

    def __init__(self) -> None:
        self.left = set(Role)
        self.news = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.is_deaf = False

    def drained(self, role: Role) -> None:
        """No connection of the role is left."""
        self.left.discard(role)
        self.news.set()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Return when it is so; looked at again whenever there is news."""
        while not is_so():
            await self.news.wait()
            self.news.clear()

    def cancel(self) -> None:
        """It stays."""
        if self.task is not None:
            self.task.cancel()
