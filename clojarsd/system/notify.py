"""Tells the service manager how the daemon is: ready, still alive, stopping, or a line of text.

Source: the protocol of sd_notify(3), and the watchdog of sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, MutableMapping
from typing import Self

import structlog

log = structlog.get_logger(__name__)

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""What a service manager puts into the environment of the process that it wants to hear from."""


class Notifier:
    """The line to the service manager; every method does nothing where there is none.

    Made by daemon.py, which closes it; nothing runs inside. Sending never blocks and never raises: what could not be
    sent goes out with the next message, so a `READY=1` that met a full queue is told by the next keep-alive.

    Attributes:
        watchdog_interval: seconds between two calls of `watchdog` that keep the service manager content, half of what
            it allows; None when it asks for none.
        environment: the variables that were taken out of the environment, for a successor of this very process.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Take the service manager's variables out of `environment`, so that no child speaks in the daemon's name."""
        self.environment = {name: environment.pop(name) for name in VARIABLES if name in environment}
        self.watchdog_interval = _watchdog_interval(self.environment, os.getpid())
        self._address = _socket_address(self.environment.get("NOTIFY_SOCKET", ""))
        self._unsent: dict[str, str] = {}
        self._reached = True
        self._socket: socket.socket | None = None
        if self._address is not None:
            # kept open: a daemon that is out of descriptors must still be able to say that it lives
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the socket; later messages are dropped."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ready(self, status: str) -> None:
        """Say that starting, or reloading, is over; `systemctl start` returns."""
        self._send([("READY", "1"), ("STATUS", status)])

    def status(self, text: str) -> None:
        """Say in a sentence what is going on; `systemctl status` shows it."""
        self._send([("STATUS", text)])

    def stopping(self, within: float | None = None) -> None:
        """Say that the shutdown has begun.

        Args:
            within: seconds that it may take, should the service manager's own limit be shorter; None keeps that limit.
        """
        fields = [("STOPPING", "1"), ("STATUS", "stopping")]
        if within is not None:
            fields.append(("EXTEND_TIMEOUT_USEC", str(round(within * 1_000_000))))
        self._send(fields)

    def watchdog(self) -> None:
        """Say that the daemon is alive; due every `watchdog_interval` seconds."""
        self._send([("WATCHDOG", "1")])

    def _send(self, fields: Iterable[tuple[str, str]]) -> None:
        if self._socket is None or self._address is None:
            return
        for name, value in fields:
            self._unsent[name] = " ".join(value.splitlines())
        message = "\n".join(f"{name}={value}" for name, value in self._unsent.items())
        try:
            self._socket.sendto(message.encode(errors="replace"), self._address)
        except OSError as error:
            if self._reached:
                log.warning("service_manager_unreachable", unsent=sorted(self._unsent), error=str(error))
            self._reached = False
        else:
            if not self._reached:
                log.info("service_manager_reached_again", sent=sorted(self._unsent))
            self._reached = True
            self._unsent.clear()


def _socket_address(text: str) -> str | None:
    """The address as the socket module wants it; None for an empty one or one that is no Unix socket."""
    if text.startswith("@"):
        return "\0" + text[1:]
    if text and not text.startswith("/"):
        log.warning("notify_socket_not_understood", address=text)
    return text if text.startswith("/") else None


def _watchdog_interval(environment: MutableMapping[str, str], pid: int) -> float | None:
    """Half of WATCHDOG_USEC in seconds, or None when the watchdog is off or meant for another process than `pid`."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(microseconds) / 2_000_000
