"""How many clients there may be in all, so that descriptors are left for control, checks and launches."""

from __future__ import annotations

from collections.abc import Callable

import structlog

log = structlog.get_logger()

DESCRIPTORS_OF_A_CLIENT = 2
"""Its own socket, and the one to the instance."""


class Budget:
    """Counts the clients of all frontends. Who finds no room leaves its clients in the backlog.

    Args:
        descriptors: how many may be spent on clients.
    """

    def __init__(self, descriptors: int) -> None:
        self._descriptors = descriptors
        self._most = 0
        self._used = 0
        self._is_spent = False
        self._waiting: list[Callable[[], None]] = []
        self.keep_free(0)

    def keep_free(self, descriptors: int) -> None:
        """Leave so many of them to others; clients that are there already may stay."""
        before, self._most = self._most, max((self._descriptors - descriptors) // DESCRIPTORS_OF_A_CLIENT, 1)
        if before <= self._used < self._most:
            self._tell()

    def when_room(self, look: Callable[[], None]) -> None:
        """Have this called whenever there is room again after there was none."""
        self._waiting.append(look)

    def forget(self, look: Callable[[], None]) -> None:
        """Do not have this called any more, if it was."""
        if look in self._waiting:
            self._waiting.remove(look)

    def room(self) -> int:
        """How many more clients may be taken."""
        if self._used < self._most:
            return self._most - self._used
        if not self._is_spent:
            self._is_spent = True
            log.warning("clients_at_limit", clients=self._used, reason="the rest of the descriptors is kept free")
        return 0

    def take(self) -> None:
        """Count a client that was accepted."""
        self._used += 1

    def give_back(self) -> None:
        """A client's socket was closed."""
        self._used -= 1
        if self._is_spent and self._used <= self._most * 9 // 10:
            self._is_spent = False
            log.info("clients_below_limit", clients=self._used)
        if self._used == self._most - 1:
            self._tell()

    def _tell(self) -> None:
        """There is room again."""
        for look in list(self._waiting):
            look()
