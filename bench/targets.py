"""What is measured: a port that leads to the backend, and the process on the way, if there is one.

A new target is a context manager here, given the backend's port, and a name in `TARGETS`. The daemon itself is in
`daemon`.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

END_S = 10.0
"""How long a child may take to end after its standard input has ended, before it is killed."""


@dataclass(frozen=True, slots=True)
class Target:
    """A way to the backend. pid: the process that carries the bytes, None when nothing is in between."""

    name: str
    port: int
    pid: int | None


@contextlib.contextmanager
def child(module: str, *arguments: str) -> Iterator[tuple[int, int]]:
    """A module of ours as a process that prints its port and ends with its standard input. Gives port and pid."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.stdin.close()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def backend() -> AbstractContextManager[tuple[int, int]]:
    """The server that all targets lead to: its port and pid."""
    return child("bench.backend")


@contextlib.contextmanager
def direct(backend_port: int) -> Iterator[Target]:
    """No proxy: what the others are compared with."""
    yield Target("direct", backend_port, None)


@contextlib.contextmanager
def relay(backend_port: int) -> Iterator[Target]:
    """A process that does nothing but relay, on uvloop."""
    with child("bench.relay_process", str(backend_port)) as (port, pid):
        yield Target("relay", port, pid)


@contextlib.contextmanager
def relay_asyncio(backend_port: int) -> Iterator[Target]:
    """The same on asyncio's own loop."""
    with child("bench.relay_process", str(backend_port), "--loop", "asyncio") as (port, pid):
        yield Target("relay-asyncio", port, pid)


TARGETS: dict[str, Callable[[int], AbstractContextManager[Target]]] = {
    "direct": direct,
    "relay": relay,
    "relay-asyncio": relay_asyncio,
}
"""By the name given on the command line."""
