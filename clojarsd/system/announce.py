"""Tells an instance who its client is, before the client's first byte."""

from __future__ import annotations

import socket

from clojarsd.core.names import Address
from clojarsd.core.proxy_protocol import OF_UNKNOWN_CLIENT, header
from clojarsd.system.relay import Session


def announce(session: Session) -> None:
    """Send the PROXY header of the session's client. Called after the session was made and before it is started."""
    session.say_first(header_of(session.client))


def header_of(client: socket.SocketType) -> bytes:
    """The header for a connected client: where it comes from, and which address of ours it has connected to."""
    if client.family not in (socket.AF_INET, socket.AF_INET6):
        return OF_UNKNOWN_CLIENT
    try:
        source, destination = client.getpeername(), client.getsockname()
    except OSError:  # it has been reset, and nobody will answer it
        return OF_UNKNOWN_CLIENT
    return header(Address(*source[:2]), Address(*destination[:2]))
