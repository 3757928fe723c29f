"""A process that has connected to the relay process, and may be a supervisor."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Protocol

import structlog

from clojarsd.core.relay_messages import Refusal, ToRelay, from_supervisor, to_supervisor
from clojarsd.system.channel import Channel, Descriptors

log = structlog.get_logger()

HELLO_TIMEOUT = 5.0
"""Seconds until it must have said who it is."""


class Host(Protocol):
    """Who is called upon."""

    def greet(self, caller: Caller, said: dict[str, Any]) -> None:
        """Judge its first word."""

    def hear(self, caller: Caller, message: ToRelay, descriptors: Descriptors) -> None:
        """Take what it says after that."""

    def forget(self, caller: Caller) -> None:
        """It has gone, or is not wanted."""


class Caller:
    """A process that has connected."""

    def __init__(self, server: Host, end: socket.socket, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._is_known = False
        self.channel = Channel(end, self._hear, self._lost)
        self._timer = asyncio.get_running_loop().call_later(HELLO_TIMEOUT, self._lost, "it does not say who it is")

    def refuse(self, refusal: Refusal) -> None:
        """Say why it is not served."""
        self.channel.send(to_supervisor(refusal))
        self._server.forget(self)

    def close(self) -> None:
        """Let go of it."""
        self._timer.cancel()
        self.channel.close()

    def _hear(self, said: dict[str, Any], descriptors: Descriptors) -> None:
        if not self._is_known:
            self._timer.cancel()
            self._is_known = True
            self._server.greet(self, said)
            return
        try:
            message = from_supervisor(said)
        except ValueError as error:
            self._lost(f"it says what does not fit: {error}")
            return
        if message is None:
            log.warning("message_not_known", message=str(said.get("class")), caller=self.pid)
        else:
            self._server.hear(self, message, descriptors)

    def _lost(self, reason: str) -> None:
        log.info("caller_lost", pid=self.pid, reason=reason)
        self._server.forget(self)
