"""What is measured: a port that leads to the backend, and the processes on the way, if there are any.

The backend is the same for all. Where the daemon takes part it is the daemon's primary; the daemon has a frontend for
each way of its own, so that one daemon, one pair and one backend serve the whole run. A new target is a context manager
here, given the backend's port and a directory of its own, and a name in `PROXIES`.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench import proxies
from bench.native_programs import compiled
from bench.pairs import BenchPair, own_processes
from clojarsd.system.sockets import free_ports

END_S = 10.0
"""How long a child may take to end after its standard input has ended, before it is killed."""
DIRECT = "direct"
DAEMON_MODES = ("steer", "relay")


@dataclass(frozen=True, slots=True)
class Target:
    """A way to the backend. pids: the processes that take part in it; empty when nothing is in between."""

    name: str
    port: int
    pids: tuple[int, ...] = ()


@contextlib.contextmanager
def session(backend_port: int, home: Path, loop: str = "uvloop") -> Iterator[Target]:
    """A process that does nothing but relay, without the daemon around it."""
    command = [sys.executable, "-m", "bench.relay_process", str(backend_port), "--loop", loop]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Target("session", int(process.stdout.readline()), (process.pid,))
        finally:
            process.stdin.close()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def session_asyncio(backend_port: int, home: Path) -> Iterator[Target]:
    """The same on asyncio's own loop."""
    with session(backend_port, home, "asyncio") as target:
        yield Target("session-asyncio", target.port, target.pids)


@contextlib.contextmanager
def haproxy(backend_port: int, home: Path) -> Iterator[Target]:
    """HAProxy with one thread and `splice-auto`."""
    with proxies.haproxy(home, [backend_port]) as proxy:
        yield Target("haproxy", proxy.port, (proxy.pid,))


@contextlib.contextmanager
def nginx(backend_port: int, home: Path) -> Iterator[Target]:
    """nginx's stream module, one worker; its master takes part."""
    with proxies.nginx(home, [backend_port]) as proxy:
        workers = [child.pid for child in psutil.Process(proxy.pid).children()]
        yield Target("nginx", proxy.port, (proxy.pid, *workers))


@contextlib.contextmanager
def relay_2(backend_port: int, home: Path) -> Iterator[Target]:
    """Another daemon, with two relay processes and instances of its own, which are the same backend."""
    with daemon(home / "relay-2", ("relay",), None, relay_workers=2) as pair:
        yield Target("relay-2", pair.front("relay"), tuple(own_processes(pair).values()))


PROXIES: dict[str, Callable[[int, Path], AbstractContextManager[Target]]] = {
    "haproxy": haproxy,
    "nginx": nginx,
    "relay-2": relay_2,
    "session": session,
    "session-asyncio": session_asyncio,
}
"""By the name given on the command line."""
NAMES = (DIRECT, *DAEMON_MODES, *PROXIES)


def other(words: str) -> Target:
    """A proxy that runs already, given as NAME=PORT:PID. Raises ValueError."""
    name, _, place = words.partition("=")
    port, _, pid = place.partition(":")
    if not name or name in NAMES:
        raise ValueError(f"{words!r} does not name another proxy")
    main = psutil.Process(int(pid))
    return Target(name, int(port), (main.pid, *(child.pid for child in main.children(recursive=True))))


@contextlib.contextmanager
def opened(names: Sequence[str], others: Sequence[Target], backend_port: int | None) -> Iterator[list[Target]]:
    """The targets of these names and the others, in this order, with their backend; in the end all is gone."""
    modes = [name for name in DAEMON_MODES if name in names]
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clojarsd-bench-")))
        if modes:
            pair = stack.enter_context(daemon(home, modes, backend_port))
            backend_port, pids = pair.primary[0], tuple(own_processes(pair).values())
        else:
            backend_port = backend_port or free_ports(1)[0]
            command = [str(compiled("backend")), str(backend_port)]
            stack.enter_context(proxies.running(command, home / "backend.output", backend_port))
        found = []
        for name in names:
            if name == DIRECT:
                found.append(Target(DIRECT, backend_port))
            elif name in modes:
                found.append(Target(name, pair.front(name), pids))
            else:
                found.append(stack.enter_context(PROXIES[name](backend_port, home)))
        yield [*found, *others]


@contextlib.contextmanager
def daemon(home: Path, modes: Sequence[str], backend_port: int | None, relay_workers: int = 1) -> Iterator[BenchPair]:
    """A daemon that serves in these modes, whose instances are the backend."""
    own = home / "daemon"
    own.mkdir(parents=True)
    ports = free_ports(6)
    ports[0] = backend_port or ports[0]
    command = [str(compiled("backend")), "{port.http}"]
    with BenchPair(
        own, command=command, modes=modes, ports=ports, check_path="/last", relay_workers=relay_workers
    ) as pair:
        pair.until_ready()
        yield pair
