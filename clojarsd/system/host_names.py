"""The addresses of hosts that have names, as they were found last."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import structlog

from clojarsd.core.addresses import is_number
from clojarsd.core.errors import Failed
from clojarsd.core.names import Address

log = structlog.get_logger()


class HostNames:
    """Remembers what names stand for. Looking up blocks, and a name service may hang: not for the loop."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, ...]] = {}
        self._failing: set[str] = set()

    def addresses(self, address: Address) -> tuple[Address, ...]:
        """The address with a number for its host, one for each that the host has, IPv4 first.

        What is known already is not looked up again.

        Raises:
            Failed: there is no such host.
        """
        if is_number(address.host):
            return (address,)
        if address.host not in self._found:
            try:
                self._found[address.host] = _look_up(address.host)
            except (OSError, UnicodeError) as error:
                raise Failed(f"cannot find the host of {address}: {str(error).lower()}") from error
        return tuple(Address(host, address.port) for host in self._found[address.host])

    def known(self, address: Address) -> tuple[Address, ...]:
        """The same without looking up; none for a name that was never found."""
        if is_number(address.host):
            return (address,)
        return tuple(Address(host, address.port) for host in self._found.get(address.host, ()))

    def refresh(self, hosts: Iterable[str]) -> bool:
        """Look names up again. Whether one has other addresses than before; where looking up fails, the old ones stay.

        That a name service tells the same addresses in another order is no change.
        """
        has_changed = False
        for host in hosts:
            try:
                found = _look_up(host)
            except (OSError, UnicodeError) as error:
                if host not in self._failing:
                    self._failing.add(host)
                    kept = list(self._found.get(host, ()))
                    log.warning("host_not_found", host=host, reason=str(error).lower(), kept=kept)
                continue
            self._failing.discard(host)
            before = self._found.get(host, ())
            if set(found) != set(before):
                log.info("host_moved", host=host, before=list(before), now=list(found))
                self._found[host] = found
                has_changed = True
        return has_changed


def _look_up(host: str) -> tuple[str, ...]:
    """All addresses of the host, each once. Raises OSError or UnicodeError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    by_kind = sorted(found, key=lambda one: one[0] == socket.AF_INET6)
    return tuple(dict.fromkeys(str(one[4][0]) for one in by_kind))
