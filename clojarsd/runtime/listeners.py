"""The listening sockets of all frontends, as the supervisor keeps them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from clojarsd.core.addresses import is_number, overlap
from clojarsd.core.errors import Failed
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Address
from clojarsd.system.sockets import listen

Key = tuple[Address, bool]
"""An address, and for an IPv6 one whether it leaves the port's IPv4 side alone."""
Beside = Callable[[str, Key], socket.socket | None]
"""Gives a socket that another relay process has for the frontend of that name there; None: nobody shares the place."""


def none_beside(name: str, key: Key) -> socket.socket | None:
    """What finds other processes' sockets where there is one process."""
    return None


class Listeners:
    """Opens listening sockets for plans, keeps those that a new plan wants again, and closes the others.

    Args:
        beside: finds a socket that one of these is to share its place with. Without one the place must be free.
    """

    def __init__(self, beside: Beside = none_beside) -> None:
        self._beside = beside
        self._open: dict[str, list[tuple[Key, socket.socket]]] = {}

    def of(self, name: str) -> list[socket.socket]:
        """Those of a frontend, in the order of its addresses."""
        return [listener for _, listener in self._open.get(name, [])]

    @property
    def every(self) -> list[socket.socket]:
        """All of them."""
        return [listener for pairs in self._open.values() for _, listener in pairs]

    def find(self, name: str, key: Key) -> socket.socket | None:
        """The one that a frontend has at that place, or else whichever frontend has it; None: none has."""
        named = [listener for other, listener in self._open.get(name, ()) if other == key]
        others = [one for pairs in self._open.values() for other, one in pairs if other == key and key[0].port]
        return next(iter((*named, *others)), None)

    def addresses(self, name: str) -> list[Address]:
        """Where a frontend listens, with the ports that the kernel has chosen for port 0."""
        return [Address(*listener.getsockname()[:2]) for listener in self.of(name)]

    def take_over(self, plan: FrontendPlan, listeners: Sequence[socket.socket]) -> None:
        """Own what another process has opened for the plan. When that is less than the plan says, it is none."""
        if len(listeners) == len(plan.listen):
            self._open[plan.name] = list(zip(_keys(plan), listeners, strict=True))
        else:
            for listener in listeners:
                listener.close()

    def change(self, plans: Mapping[str, FrontendPlan], relay: int | None = None) -> set[str]:
        """Listen for these plans and no others. The names of the frontends that have other sockets than before.

        Args:
            relay: the process that has the sockets besides this one, for the message.

        Raises:
            Failed: an address cannot be listened on; says why. All is as before.
        """
        spare = {name: list(pairs) for name, pairs in self._open.items()}
        found = {
            plan.name: [(key, _pick(spare.get(plan.name, []), key)) for key in _keys(plan)] for plan in plans.values()
        }
        others = [pair for pairs in spare.values() for pair in pairs]
        after: dict[str, list[tuple[Key, socket.socket]]] = {}
        with ExitStack() as undo:
            for name, pairs in found.items():
                after[name] = []
                for key, own in pairs:
                    listener = own or _pick(others, key)
                    if listener is None:
                        listener = undo.enter_context(self._listen(key, name, relay))
                    after[name].append((key, listener))
            undo.pop_all()
        for _, unwanted in others:
            unwanted.close()
        before, self._open = self._open, after
        return {name for name, pairs in after.items() if before.get(name) != pairs}

    def _listen(self, key: Key, name: str, relay: int | None) -> socket.socket:
        address, ipv6_only = key
        try:
            return listen(address, ipv6_only=ipv6_only, what=f"frontend {name}", beside=self._beside(name, key))
        except Failed as failed:
            for whose, pairs in self._open.items():
                for other, _ in pairs:
                    own = other[0]
                    if is_number(address.host) and overlap(address, own) and _families(key) & _families(other):
                        by = f"our own relay process{f' {relay}' if relay is not None else ''}, for frontend {whose}"
                        raise Failed(
                            f"cannot listen on {address} for frontend {name}: address already in use by {by},"
                            f" which listens on {own}; reload once with nothing on port {address.port},"
                            " and then with what is wanted"
                        ) from failed
            raise

    def close(self) -> None:
        """Close all."""
        for pairs in self._open.values():
            for _, listener in pairs:
                listener.close()
        self._open.clear()


def _keys(plan: FrontendPlan) -> list[Key]:
    """An IPv6 address of its own has no IPv4 side: it is the same socket, whatever else its frontend listens on."""
    return [(address, address.host == "::" and plan.is_beside_ipv4(address)) for address in plan.listen]


def _families(key: Key) -> set[int]:
    """Of which families a socket takes connections: 4, 6."""
    address, ipv6_only = key
    if ":" not in address.host:
        return {4}
    return {4, 6} if address.host == "::" and not ipv6_only else {6}


def _pick(pairs: list[tuple[Key, socket.socket]], key: Key) -> socket.socket | None:
    """Take a socket of that key out of the list, if there is one."""
    for number, (other, listener) in enumerate(pairs):
        if other == key:
            del pairs[number]
            return listener
    return None
