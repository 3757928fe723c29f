"""Pairs of instances that say who they are, behind clojarsd or behind another proxy: what failover is measured of.

The instances are the same for all: `role_app.py`, or a JVM. What launches them for the other proxies is the smallest
supervisor there can be: it launches again at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, Self

from bench import proxies
from bench.native_programs import java_command
from bench.pairs import BenchPair
from bench.proxies import Proxy
from clojarsd.system.sockets import free_ports

APP = Path(__file__).with_name("role_app.py")
ROLES = ("primary", "backup")
STARTS_S = 1.4
"""Until an instance listens: what a small application takes on a JVM."""


class Subject(Protocol):
    """A pair and what stands in front of it."""

    port: int
    """Where clients connect."""
    counts: Path
    """The primary's file, see `role_app.counts`; not there for a JVM."""
    drains: bool
    """Whether it can be told to send nobody to the primary."""

    def pid(self) -> int:
        """The primary's process."""

    def drain(self) -> None:
        """Send no new connection to the primary; return when that holds."""

    def undrain(self) -> None:
        """Take that back."""

    def restart(self) -> None:
        """Restart the primary the way that an operator would; return when it is done."""


def command(home: Path, role: str, port: str, *, delay: float, jvm: bool) -> list[str]:
    """What launches an instance of that role."""
    if jvm:
        return java_command("--http", port, "--role", role, "--delay", str(round(delay * 1000)))
    options = [
        "--start",
        str(STARTS_S),
        "--port",
        port,
        "--role",
        role,
        "--delay",
        str(delay),
        "--count",
        f"{home}/{role}.count",
    ]
    return [sys.executable, "-S", "-E", str(APP), *options]


class Daemon:
    """clojarsd in one mode."""

    drains = True

    def __init__(self, pair: BenchPair, mode: str) -> None:
        self.pair = pair
        self.port = pair.front(mode)
        self.counts = pair.home / "primary.count"

    def pid(self) -> int:
        return self.pair.pid("primary")

    def drain(self) -> None:
        self.pair.done("drain", "primary")

    def undrain(self) -> None:
        self.pair.done("undrain", "primary")

    def restart(self) -> None:
        self.pair.done("restart", "primary")


@contextlib.contextmanager
def clojarsd(home: Path, mode: str, *, delay: float, jvm: bool) -> Iterator[Daemon]:
    """A daemon whose checks are the default ones, and which gives the primary its connections back after a second."""
    words = command(home, "{role}", "{port.http}", delay=delay, jvm=jvm)
    pair = BenchPair(
        home,
        command=words,
        modes=(mode,),
        check_path="/health",
        interval="1s",
        check_timeout="1s",
        drain="5s",
        failback="1s",
    )
    with pair:
        pair.until_ready()
        yield Daemon(pair, mode)


class Loop:
    """Launches the instance of a role, and again whenever it has ended. Its block ends with no process left."""

    def __init__(self, words: Sequence[str], output: Path) -> None:
        self._words = words
        self._output = output
        self._ends = False
        self._lock = threading.Lock()
        self._process = self._launch()
        self._thread = threading.Thread(target=self._run)

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._ends = True
            self._process.kill()
        self._thread.join()

    def _launch(self) -> subprocess.Popen[bytes]:
        with self._output.open("ab") as output:
            words, nothing = self._words, subprocess.DEVNULL
            return subprocess.Popen(words, stdin=nothing, stdout=output, stderr=output, start_new_session=True)

    def _run(self) -> None:
        while True:
            self._process.wait()
            with self._lock:
                if self._ends:
                    return
                self._process = self._launch()


class Proxied:
    """Another proxy in front of a pair that loops keep up."""

    def __init__(self, proxy: Proxy, primary: Loop, counts: Path) -> None:
        self.port = proxy.port
        self.counts = counts
        self.drains = proxy.control is not None
        self._proxy = proxy
        self._primary = primary

    def pid(self) -> int:
        return self._primary.pid

    def drain(self) -> None:
        self._proxy.order("set server bench/primary state drain")

    def undrain(self) -> None:
        self._proxy.order("set server bench/primary state ready")

    def restart(self) -> None:
        os.kill(self._primary.pid, signal.SIGTERM)


@contextlib.contextmanager
def _proxied(
    home: Path, proxy: Callable[[list[int]], AbstractContextManager[Proxy]], *, delay: float, jvm: bool
) -> Iterator[Proxied]:
    ports = free_ports(2)
    with contextlib.ExitStack() as stack:
        loops = []
        for role, port in zip(ROLES, ports, strict=True):
            words = command(home, role, str(port), delay=delay, jvm=jvm)
            loops.append(stack.enter_context(Loop(words, home / f"{role}.output")))
        for port in ports:
            proxies.await_listening(port)
        yield Proxied(stack.enter_context(proxy(ports)), loops[0], home / "primary.count")


def haproxy(home: Path, *, delay: float, jvm: bool) -> AbstractContextManager[Proxied]:
    """HAProxy that asks for /health each second."""
    return _proxied(home, lambda ports: proxies.haproxy(home, ports, check="/health"), delay=delay, jvm=jvm)


def nginx(home: Path, *, delay: float, jvm: bool) -> AbstractContextManager[Proxied]:
    """nginx as it is without further options: a failed connect takes the primary out for ten seconds."""
    return _proxied(home, lambda ports: proxies.nginx(home, ports), delay=delay, jvm=jvm)


def steer(home: Path, *, delay: float, jvm: bool) -> AbstractContextManager[Daemon]:
    """clojarsd that steers."""
    return clojarsd(home, "steer", delay=delay, jvm=jvm)


def relay(home: Path, *, delay: float, jvm: bool) -> AbstractContextManager[Daemon]:
    """clojarsd that relays."""
    return clojarsd(home, "relay", delay=delay, jvm=jvm)
