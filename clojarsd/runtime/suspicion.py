"""Which instances do not answer connects, so that clients do not find that out one after the other."""

from __future__ import annotations

import asyncio
import errno

from clojarsd.core.names import Role

LASTS = 2.0
"""Seconds for which an instance is passed over if the other one can serve; the checks have their verdict by then."""
_SILENT = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN})
"""What costs a client time. A refusal costs none, and is asked for anew each time."""


class Suspicion:
    """What the connects of one frontend have found out; nothing of it outlives the instance becoming eligible anew.

    Attributes:
        until: loop time until which an instance is passed over; empty unless one has been silent.
        last: why the latest connect that came to nothing did, in words; None: none has.
    """

    __slots__ = ("_loop", "last", "until")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.until: dict[Role, float] = {}
        self.last: str | None = None

    def failed(self, role: Role, error: OSError) -> bool:
        """A connect has come to nothing. Whether that makes the instance suspect."""
        reason = error.strerror or str(error)
        self.last = f"{role.value}: {reason[:1].lower()}{reason[1:]}"
        if error.errno not in _SILENT:
            return False
        self.until[role] = self._loop.time() + LASTS
        return True

    def answered(self, role: Role) -> None:
        """A connect has succeeded, or the instance is another one by now."""
        self.until.pop(role, None)

    def is_suspect(self, role: Role) -> bool:
        """Whether clients should rather get the other one."""
        until = self.until.get(role)
        return until is not None and self._loop.time() < until

    def passes_over(self, role: Role, trial: float) -> bool:
        """The same for a client that will be connected to the instance if not; then it tries it out for the others.

        Args:
            trial: seconds for which they go on passing it over meanwhile.
        """
        if self.is_suspect(role):
            return True
        if role in self.until:
            self.until[role] = self._loop.time() + trial
        return False
