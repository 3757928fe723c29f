"""The header of the PROXY protocol, version 2, by which a relay tells a server who its client is.

::

    12 bytes   1 byte    1 byte     2 bytes            source, destination, source port, destination port
    signature  version,  family,    length of what     IPv4: 4 + 4 + 2 + 2 bytes, IPv6: 16 + 16 + 2 + 2,
               command   transport  follows            unknown family: nothing

Source: "The PROXY protocol, versions 1 & 2", section 2.2 (proxy-protocol.txt of HAProxy).
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from clojarsd.core.names import Address

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
"""Version 2, and whether the connection is the relay's own or made for a client."""
_UNKNOWN: Final = 0x00
_TCP4: Final = 0x11
_TCP6: Final = 0x21

LOCAL: Final = SIGNATURE + struct.pack("!BBH", _LOCAL, _UNKNOWN, 0)
"""The header of a connection that no client asked for, such as a check: the server goes by the connection itself."""
OF_UNKNOWN_CLIENT: Final = SIGNATURE + struct.pack("!BBH", _PROXY, _UNKNOWN, 0)
"""The header for a client that has no IP address, such as one of a Unix socket."""


def header(source: Address, destination: Address) -> bytes:
    """The header for a client of `source` that has connected to `destination`; both have numeric hosts.

    An IPv6 address that only stands for an IPv4 one is written as that, unless the other address is a true IPv6 one. A
    scope (`%eth0`) is left out: it means nothing elsewhere.

    Raises:
        ValueError: a host is not a number.
    """
    addresses = [ipaddress.ip_address(end.host.partition("%")[0]) for end in (source, destination)]
    plain = [_as_ipv4(address) for address in addresses]
    if all(isinstance(address, ipaddress.IPv4Address) for address in plain):
        family, packed = _TCP4, b"".join(address.packed for address in plain)
    else:
        family, packed = _TCP6, b"".join(_as_ipv6(address).packed for address in addresses)
    body = packed + struct.pack("!HH", source.port, destination.port)
    return SIGNATURE + struct.pack("!BBH", _PROXY, family, len(body)) + body


_Any = ipaddress.IPv4Address | ipaddress.IPv6Address


def _as_ipv4(address: _Any) -> _Any:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _as_ipv6(address: _Any) -> ipaddress.IPv6Address:
    return address if isinstance(address, ipaddress.IPv6Address) else ipaddress.IPv6Address(f"::ffff:{address}")
