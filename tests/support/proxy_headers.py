"""A reader of PROXY protocol headers that shares nothing with what writes them."""

from __future__ import annotations

import socket
from dataclasses import dataclass

_FAMILIES = {0x00: "UNSPEC", 0x11: "TCP4", 0x21: "TCP6", 0x31: "UNIX"}
_COMMANDS = {0: "LOCAL", 1: "PROXY"}


@dataclass(frozen=True)
class Header:
    """What a header says. source, destination: host and port, or None where it names none."""

    command: str
    family: str
    source: tuple[str, int] | None
    destination: tuple[str, int] | None


def parse_header(said: bytes) -> tuple[Header, bytes]:
    """The header at the beginning, and what comes after it."""
    assert said[:12] == bytes([13, 10, 13, 10, 0, 13, 10, 81, 85, 73, 84, 10]), said[:16]
    assert said[12] >> 4 == 2, "version"
    command, family = _COMMANDS[said[12] & 15], _FAMILIES[said[13]]
    length = int.from_bytes(said[14:16], "big")
    body, rest = said[16 : 16 + length], said[16 + length :]
    assert len(body) == length, "cut short"
    if family not in ("TCP4", "TCP6"):
        assert not body
        return Header(command, family, None, None), rest
    size, number = (4, socket.AF_INET) if family == "TCP4" else (16, socket.AF_INET6)
    assert length == 2 * size + 4
    hosts = [socket.inet_ntop(number, body[:size]), socket.inet_ntop(number, body[size : 2 * size])]
    ports = [int.from_bytes(body[2 * size :][:2], "big"), int.from_bytes(body[2 * size + 2 :], "big")]
    return Header(command, family, (hosts[0], ports[0]), (hosts[1], ports[1])), rest


def receive_header(end: socket.socket) -> Header:
    """The header that comes first on a connection, and not a byte more is read."""
    head = _exactly(end, 16)
    header, rest = parse_header(head + _exactly(end, int.from_bytes(head[14:16], "big")))
    assert not rest
    return header


def _exactly(end: socket.socket, count: int) -> bytes:
    said = b""
    while len(said) < count:
        part = end.recv(count - len(said))
        assert part, f"ended after {said!r}"
        said += part
    return said
