"""TCP addresses as people write them, and whether two of them can both be listened on."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from clojarsd.core.names import Address
from clojarsd.core.settings_problems import value_text, word_text

_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?"
_HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
_HINT: Final = '"HOST:PORT", such as "127.0.0.1:8080", "0.0.0.0:80" or "[::]:8700"'
_EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})


def parse_host(value: object) -> str:
    """The host that `value` names; a numeric address comes back in its shortest form.

    Raises:
        ValueError: it is none; the message is for people.
    """
    wrong = ValueError(f"{value_text(value)} is not a host (an IPv4 or IPv6 address without brackets, or a host name)")
    if not isinstance(value, str):
        raise wrong
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        if _HOST_NAME.fullmatch(value) is None or re.fullmatch(r"[0-9.]+", value) is not None:
            raise wrong from None
    return value


def parse_source(value: object) -> str | None:
    """The address of this host that `value` is, in its shortest form; None for an empty text: whichever fits.

    Raises:
        ValueError: it is neither; the message is for people.
    """
    if value == "":
        return None
    wrong = ValueError('is not an address of this host (an IPv4 or IPv6 address without brackets, or "" for any)')
    if not isinstance(value, str):
        raise wrong
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise wrong from None


def parse_address(value: object) -> Address:
    """The address that `HOST:PORT` or `[IPV6]:PORT` names. Port 0 means any free port.

    Raises:
        ValueError: it is neither; the message is for people.
    """
    if not isinstance(value, str):
        raise ValueError(f"is not an address ({_HINT})")
    host, colon, port = value.rpartition(":")
    if not colon or not host:
        raise ValueError(f"is not an address ({_HINT})")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed != (":" in host):
        raise ValueError(f"an IPv6 address stands in brackets, and nothing else does ({_HINT})")
    if re.fullmatch(r"[0-9]+", port) is None or len(port) > 5 or int(port) > 65535:
        raise ValueError(f"{word_text(port)} is not a port (1 to 65535)")
    return Address(parse_host(host[1:-1] if bracketed else host), int(port))


def parse_addresses(value: object) -> tuple[Address, ...]:
    """One address, or the addresses of a list that is not empty.

    Raises:
        ValueError: it is neither; the message is for people and names the wrong one of a list.
    """
    if not isinstance(value, list):
        return (parse_address(value),)
    if not value:
        raise ValueError(f"is empty (at least one address, {_HINT})")
    addresses: list[Address] = []
    for one in value:
        try:
            addresses.append(parse_address(one))
        except ValueError as error:
            raise ValueError(f"{value_text(one)}: {error}") from None
    return tuple(addresses)


def is_number(host: str) -> bool:
    """Whether the host is an address, and no name that would have to be looked up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def overlap(one: Address, other: Address) -> bool:
    """Whether both cannot be listened on: the same port, and hosts that share an address.

    `0.0.0.0` and `::` share with every host, and localhost is both 127.0.0.1 and ::1. Port 0 is never taken. Other host
    names are compared as text: nothing is looked up.
    """
    if one.port != other.port or one.port == 0:
        return False
    if one.host in _EVERYWHERE or other.host in _EVERYWHERE:
        return True
    return bool(_addresses_of(one.host) & _addresses_of(other.host))


def _addresses_of(host: str) -> frozenset[str]:
    host = host.lower()
    if host == "localhost":
        return _LOOPBACK
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return frozenset({host})
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return frozenset({str(mapped or address)})
