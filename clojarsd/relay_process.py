"""The relay process: frontends and their connections, in a process that outlives the supervisor.

Run as `python -m clojarsd.relay_process SOCKET CODE`, with one end of a pair to its supervisor as descriptor 3; with
`--take-over 4` also with one to the relay process that it replaces. Made by runtime/relay_launch.py and by nobody else.
With `--account UID:GID`, started by root, it is that user before anybody is served; it has no capability in any case.

Each megabyte here is one more for the whole service, so it does without ssl, which asyncio would import (7.5 MB), and
without uvloop, which needs ssl: the relay's own poller does the work, and both loops carry as much.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys

for _name in ("ssl", "rich"):
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]  # how Python is told that a module is not to be had

import asyncio  # noqa: E402
import gc  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

import structlog  # noqa: E402

from clojarsd.core.errors import Failed  # noqa: E402
from clojarsd.runtime.budget import Budget  # noqa: E402
from clojarsd.runtime.relay_server import RelayServer  # noqa: E402
from clojarsd.system.confinement import Account, confine  # noqa: E402
from clojarsd.system.logs import flush_logs, set_up_logs  # noqa: E402
from clojarsd.system.memory_trouble import LoudEnd, be_spared  # noqa: E402
from clojarsd.system.relay import RelayResources  # noqa: E402
from clojarsd.system.relay_loop import RelayLoop  # noqa: E402
from clojarsd.system.relay_socket import RelaySocket, open_directory  # noqa: E402
from clojarsd.system.seccomp import filter_calls  # noqa: E402

log = structlog.get_logger()

SUPERVISOR = 3
"""The descriptor that leads to the supervisor."""
RESET_FLUSH = 5.0
"""Seconds without progress after which bytes for one side of a reset connection are given up."""
MOST_PIPES = 64
"""How many directions of connections may be spliced at the same time; the others are copied."""
MOST_PIPES_OF_A_USER = 32
"""The same if it is not root: half of what the kernel lets a user have (pipe-user-pages-soft). The rest is for others
of that user, as instances are, which would get pipes of 8 KiB without it."""
KEPT_DESCRIPTORS = 64
"""For listening sockets, supervisors and logs: what clients never get."""
LOOK_EVERY = 1.0
"""Seconds between two looks whether the socket's path is there: inotify would need ctypes, and that memory."""


def main() -> None:
    """Serve until the supervisor wants the end, or SIGTERM comes while there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket", type=Path)
    parser.add_argument("code")
    parser.add_argument("--take-over", type=int, default=None, metavar="DESCRIPTOR")
    parser.add_argument("--account", type=Account.read, default=None, metavar="UID:GID")
    arguments = parser.parse_args()
    faulthandler.enable()  # a supervisor that gets no answer sends SIGABRT: then this says where it stood
    end = LoudEnd()
    end.watch_threads()
    os.chdir("/")  # hold no directory that may be unmounted
    be_spared()
    supervisor, directory = os.geteuid(), open_directory(arguments.socket)
    confine(arguments.account)
    filter_calls()
    set_up_logs()
    try:
        door = partial(RelaySocket, arguments.socket, directory, {supervisor})
        with asyncio.Runner(loop_factory=RelayLoop) as runner:
            runner.run(_serve(door, end, arguments.code, arguments.take_over))
    except Failed as failed:
        log.error("relay_not_started", reason=str(failed))
        sys.exit(1)
    finally:
        flush_logs(1.0)


async def _serve(listen: Callable[[], RelaySocket], end: LoudEnd, code: str, predecessor: int | None) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, RelayLoop)
    end.watch_loop(loop)
    loop.failed = end.end
    descriptors = _raise_descriptor_limit()
    pipes = min(MOST_PIPES if os.geteuid() == 0 else MOST_PIPES_OF_A_USER, descriptors // 32)
    resources = RelayResources(reset_flush=RESET_FLUSH, move_flush=0.0, max_pipes=pipes, poller=loop.poller)
    ended = asyncio.Event()
    budget = Budget(descriptors - KEPT_DESCRIPTORS - 2 * pipes)
    try:
        async with asyncio.TaskGroup() as group:
            server = RelayServer(resources, budget, code, ended.set, group.create_task)
            if predecessor is not None:
                await server.take_over(socket.socket(fileno=predecessor))
            door = _Door(listen(), server)
            _set_signals(server, ended)
            server.connect(socket.socket(fileno=SUPERVISOR), os.getppid())
            gc.collect()
            gc.freeze()  # what lives as long as the process is not looked at by every collection
            await ended.wait()
            door.close(has_successor=server.has_successor)
            server.close()
    except* Failed as failed:
        raise failed.exceptions[0] from None
    finally:
        resources.close()
    log.info("relay_ended", pid=os.getpid())


class _Door:
    """Lets supervisors in, and keeps its own place at the path."""

    def __init__(self, listening: RelaySocket, server: RelayServer) -> None:
        self._listening = listening
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listening.socket.fileno(), self._accept)
        self._look_at = self._loop.call_later(LOOK_EVERY, self._look)

    def close(self, *, has_successor: bool) -> None:
        """Take the path away, unless it is a successor's."""
        self._look_at.cancel()
        self._loop.remove_reader(self._listening.socket.fileno())
        self._listening.close(leaves_path=has_successor)

    def _accept(self) -> None:
        try:
            while (caller := self._listening.accept()) is not None:
                self._server.connect(*caller)
        except OSError as error:  # out of descriptors, or of memory: the caller waits
            log.warning("accept_failed", reason=error.strerror)
            self._loop.remove_reader(self._listening.socket.fileno())
            self._loop.call_later(LOOK_EVERY, self._accept_again)

    def _accept_again(self) -> None:
        self._loop.add_reader(self._listening.socket.fileno(), self._accept)

    def _look(self) -> None:
        """Make the socket again if it was removed, as cleaners of temporary files do."""
        self._look_at = self._loop.call_later(LOOK_EVERY, self._look)
        if not self._listening.is_gone():
            return
        self._loop.remove_reader(self._listening.socket.fileno())
        try:
            self._listening.restore()
            log.warning("relay_socket_restored", path=str(self._listening.path))
        except OSError as error:
            log.warning("relay_socket_missing", path=str(self._listening.path), reason=error.strerror)
        self._loop.add_reader(self._listening.socket.fileno(), self._accept)


def _set_signals(server: RelayServer, ended: asyncio.Event) -> None:
    """While there is a supervisor, that one decides; signals for a whole session or group of processes are for it."""

    def signalled(number: signal.Signals) -> None:
        if number is signal.SIGTERM and not server.has_supervisor:
            ended.set()
        else:
            log.info("signal_ignored", signal=number.name)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, signalled, number)


def _raise_descriptor_limit() -> int:
    """How many descriptors this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


if __name__ == "__main__":
    main()
