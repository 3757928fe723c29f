"""Makes and adopts the processes of instances, and is the parent of what they leave behind."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from clojarsd.core.errors import LaunchFailed, reason_of
from clojarsd.core.identity import InstanceMark, ProcessIdentity
from clojarsd.core.launch import LaunchSpec
from clojarsd.core.names import LaunchStage
from clojarsd.system.cgroup import Groups, end_group, no_groups
from clojarsd.system.family import CHILDREN, Family, children_of, end_family, end_strangers, strangers
from clojarsd.system.identity import identify, is_same, mark_of, stat_of
from clojarsd.system.running import END_WITHIN, Process, ProcessEvents, Shared
from clojarsd.system.spawning import Spawned

__all__ = ["Process", "ProcessEvents", "Processes"]

_PR_SET_CHILD_SUBREAPER = 36
REAP_PAUSE = 1.0
"""Seconds until the next look for strangers when there is no descriptor to look with."""


class Processes:
    """Makes and adopts processes, and is the parent of what they leave behind. One per daemon.

    As a child subreaper (prctl(2)) the daemon gets descendants whose parent has ended, and reaps them: neither zombies
    nor a lazy PID 1 of a container stay in the way of a process group's end.
    """

    def __init__(self, groups: Groups | None = None) -> None:
        """Begin with nothing.

        Args:
            groups: where each instance gets a control group; None: there are none.
        """
        self._shared = Shared(groups)
        self._reaping = False

    @contextmanager
    def adopting_orphans(self) -> Iterator[None]:
        """Within the block be the subreaper, where the kernel can list children, reap strangers, keep a launcher ready.

        The handler is Python's own: uvloop keeps that of SIGCHLD to itself, and uses it only for processes it makes.
        What was launched or is to be adopted is claimed before, or adopted in the same turn of the loop.
        """
        loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGCHLD)
        if CHILDREN.exists():
            libc = ctypes.CDLL(None, use_errno=True)
            libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            self._shared.is_subreaper = True
            signal.signal(signal.SIGCHLD, lambda *_: self._reap_soon(loop))
            self._reap_soon(loop)  # what ended before there was a handler
        else:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would take our children's statuses
        self._shared.keeps_spare = True
        try:
            yield
        finally:
            self._shared.keeps_spare = False
            self._shared.spare.close()
            if self._shared.is_subreaper:
                signal.signal(signal.SIGCHLD, before)
                libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
                self._shared.is_subreaper = False

    def claim(self, pid: int) -> None:
        """Leave a child alone that somebody else watches and reaps; to be called before the loop turns."""
        self._shared.ours.add(pid)

    def release(self, pid: int) -> None:
        """Forget a claimed child, when it is reaped."""
        self._shared.ours.discard(pid)

    def launch(self, spec: LaunchSpec, make_events: Callable[[int], ProcessEvents]) -> Process:
        """A process that is becoming the command of the spec; how far it comes is told to the events.

        Args:
            make_events: called with the pid before anything can be told.

        Raises:
            LaunchFailed: there is no process; the stage is CGROUP or SPAWN.
        """
        shared, group = self._shared, None
        if shared.groups is not None and spec.mark is not None:
            group = shared.groups.make(spec.mark, spec.cgroup)
            spec = replace(spec, cgroup_directory=str(group))
        elif spec.cgroup:
            raise no_groups(spec.cgroup)
        try:
            spawned, identity = self._spawn(spec)
        except OSError as error:
            shared.forget_group(spec.mark)
            raise LaunchFailed(LaunchStage.SPAWN, reason_of(error)) from error
        return Process(
            identity,
            spawned.pidfd,
            make_events(spawned.pid),
            shared,
            spec.mark,
            failure=spawned.failure,
            got_orphans=shared.is_subreaper,
        )

    def adopt(
        self,
        identity: ProcessIdentity,
        make_events: Callable[[int], ProcessEvents],
        mark: InstanceMark | None = None,
    ) -> Process | None:
        """That very process, whoever launched it; None when it is gone, whoever has its number now.

        One that has ended and is not reaped is adopted too, and its end told soon.

        Args:
            mark: of its launch, if that is known; else it is read from the process, which one that has ended hides.

        Raises:
            OSError: nobody can tell now: there is no descriptor left to look with.
        """
        try:
            pidfd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            return None
        try:  # looked at while the pidfd is held: the number cannot change hands
            stat = stat_of(identity.pid) if is_same(identity) else None
        except OSError:
            os.close(pidfd)
            raise
        if stat is None:
            os.close(pidfd)
            return None
        shared = self._shared
        shared.ours.add(identity.pid)
        process = Process(
            identity,
            pidfd,
            make_events(identity.pid),
            shared,
            mark or mark_of(identity.pid),
            is_child=stat.parent == os.getpid(),
        )
        if process.mark is not None and shared.groups is not None and shared.group_of(process.mark) is not None:
            shared.groups.take_over(process.mark)
        if identity.executable is None:
            asyncio.get_running_loop().call_soon(process.look_for_command)
        return process

    async def end_remains(self, mark: InstanceMark) -> tuple[str, ...]:
        """End what is left of a launch whose process is gone, and of earlier ones; what could not be ended."""
        group, ours = self._shared.group_of(mark), self._shared.ours
        loop, threads = asyncio.get_running_loop(), self._shared.threads
        if group is not None:
            await loop.run_in_executor(threads, end_group, group, END_WITHIN)
            self._shared.forget_group(mark)
        return await loop.run_in_executor(threads, end_family, Family(0, False, mark, lambda: set(ours)), END_WITHIN)

    def strangers(self) -> tuple[str, ...]:
        """What instances have let go of, and of which nobody can tell whose it was."""
        return tuple(f"process {stat.pid} ({stat.name})" for stat in strangers(set(self._shared.ours)))

    async def end_strangers(self) -> tuple[str, ...]:
        """End those, when no instance is left; what could not be ended."""
        ours, threads = self._shared.ours, self._shared.threads
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(threads, end_strangers, lambda: set(ours), END_WITHIN)

    def _spawn(self, spec: LaunchSpec) -> tuple[Spawned, ProcessIdentity]:
        """A launcher that has got its launch, and which process it is. Raises OSError; then there is none."""
        spawned = self._shared.spare.launch(spec)
        try:
            identity = identify(spawned.pid, with_executable=False)
        except OSError:
            self._shared.spare.end(spawned)
            raise
        assert identity is not None, "our child is not reaped"
        return spawned, identity

    def _reap_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Reap in the next turn of the loop, however many signals come until then."""
        if not self._reaping:
            self._reaping = True
            loop.call_soon_threadsafe(self._reap_strangers)

    def _reap_strangers(self) -> None:
        """Reap the children that have ended and are not launched by us; ours are reaped by who watches them."""
        self._reaping = False
        try:
            children = children_of(os.getpid())
        except OSError:  # no descriptor is left to look with, and no other signal may come
            self._reaping = True
            asyncio.get_running_loop().call_later(REAP_PAUSE, self._reap_strangers)
            return
        for pid in children - self._shared.ours:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
