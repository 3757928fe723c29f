"""A program that the daemon runs beside itself, reads from and ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Self

BLOCK = 65536
PLAIN_ENVIRONMENT: Mapping[str, str] = {"PATH": os.defpath, "LANG": "C.UTF-8"}
DEATH_TIMEOUT = 1.0
"""Seconds that a killed program may take to die."""


class Program:
    """A running program whose output is read by one task. Use it as an async context: it has ended when that is left.

    It may be reaped by somebody else who reaps the daemon's orphans, so its exit status is not asked for.
    """

    def __init__(
        self,
        command: Sequence[str],
        stdin: int | None = None,
        stdout: int | None = None,
        *,
        environment: Mapping[str, str] = PLAIN_ENVIRONMENT,
        with_errors: bool = False,
    ) -> None:
        """Start it, with nothing of the daemon's environment unless that is given.

        Args:
            command: looked up on the default path unless it has a slash.
            stdin: /dev/null if None.
            stdout: where the output goes; if None it is what `read` gives, and stderr is dropped, else stderr is.
            with_errors: `read` gives stdout and stderr as they come.

        Raises:
            OSError: it cannot be started.
        """
        self._loop = asyncio.get_running_loop()
        self._output, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(self._output, False)
            null = (os.POSIX_SPAWN_OPEN, 1 if stdout is None else 0, os.devnull, os.O_RDWR, 0)
            actions: list[tuple[object, ...]] = [null]
            if stdin is None:
                actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
            else:
                actions.append((os.POSIX_SPAWN_DUP2, stdin, 0))
            actions.append((os.POSIX_SPAWN_DUP2, theirs if stdout is None else stdout, 1))
            if stdout is None and not with_errors:
                actions.append((os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0))
            else:
                actions.append((os.POSIX_SPAWN_DUP2, theirs, 2))
            self.pid = os.posix_spawnp(
                command[0],
                list(command),
                dict(environment),
                file_actions=actions,
                setsid=True,
                setsigmask=[],
                setsigdef=list(frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}),
            )
        except BaseException:
            os.close(self._output)
            raise
        finally:
            os.close(theirs)
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._pidfd = -1  # it has ended, and was reaped

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Kill it if it still runs, and reap it; one that hangs in the kernel is left to whoever reaps orphans."""
        os.close(self._output)
        if self._pidfd < 0:
            return
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            async with asyncio.timeout(DEATH_TIMEOUT):
                await self._readable(self._pidfd)
        except TimeoutError:
            pass
        finally:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222  # it does not wait
            os.close(self._pidfd)

    async def read(self) -> bytes:
        """What it says next, at most `BLOCK` bytes; nothing when it has closed its output."""
        while True:
            try:
                return os.read(self._output, BLOCK)
            except BlockingIOError:
                await self._readable(self._output)

    async def _readable(self, descriptor: int) -> None:
        readable = self._loop.create_future()
        self._loop.add_reader(descriptor, _set, readable)
        try:
            await readable
        finally:
            self._loop.remove_reader(descriptor)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
