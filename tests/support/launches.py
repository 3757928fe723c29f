"""Launched processes in tests: what is told about them, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from clojarsd.core.errors import LaunchFailed
from clojarsd.core.identity import InstanceMark, ProcessIdentity
from clojarsd.core.launch import LaunchSpec
from clojarsd.core.names import ExitStatus, Incarnation, LaunchStage, Role
from clojarsd.system.cgroup import Groups
from clojarsd.system.process import Process, Processes
from tests.support.waiting import PATIENCE


class Heard:
    """Collects what is told about a process."""

    def __init__(self) -> None:
        self.runs = asyncio.Event()
        self.end: asyncio.Future[ExitStatus | LaunchFailed] = asyncio.get_running_loop().create_future()

    def executed(self) -> None:
        assert not self.end.done()
        self.runs.set()

    def ended(self, how: ExitStatus | LaunchFailed) -> None:
        self.end.set_result(how)

    async def how_it_ended(self) -> ExitStatus | LaunchFailed:
        async with asyncio.timeout(PATIENCE):
            return await self.end


class Launches:
    """Launches, and makes sure that nothing is left."""

    def __init__(self, directory: Path, groups: Groups | None = None) -> None:
        self.directory = directory
        self.spec = LaunchSpec(
            command=("/bin/true",),
            directory=str(directory),
            environment={"PATH": os.environ["PATH"]},
            environment_file=None,
            log=str(directory / "primary.log"),
            ports={},
            user=None,
            group=None,
            umask=0o022,
            nice=os.getpriority(os.PRIO_PROCESS, 0),
            oom_score_adjust=int(Path("/proc/self/oom_score_adj").read_text()),
            limits={},
            soft_nofile=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        )
        self.processes = Processes(groups)
        self.made: list[tuple[Process, Heard]] = []

    def __call__(self, spec: LaunchSpec) -> tuple[Process, Heard]:
        heard = Heard()
        process = self.processes.launch(spec, lambda pid: heard)
        self.made.append((process, heard))
        return process, heard

    def python(self, program: str, *arguments: str, mark: InstanceMark | None = None) -> tuple[Process, Heard]:
        command = (sys.executable, "-I", "-S", "-c", program, *arguments)
        return self(replace(self.spec, command=command, mark=mark))

    def mark(self, role: Role = Role.PRIMARY, incarnation: int = 1) -> InstanceMark:
        return InstanceMark(str(self.directory), role, Incarnation(incarnation))

    def adopt(
        self, identity: ProcessIdentity, by: Processes | None = None, mark: InstanceMark | None = None
    ) -> tuple[Process, Heard] | None:
        heard = Heard()
        process = (by or self.processes).adopt(identity, lambda pid: heard, mark)
        if process is None:
            heard.end.cancel()
            return None
        self.made.append((process, heard))
        return process, heard

    def forget(self, process: Process) -> None:
        """Leave it to somebody else, who has adopted it."""
        process.abandon()
        self.processes.claim(process.pid)
        self.made = [made for made in self.made if made[0] is not process]

    def fifo(self, name: str = "ready") -> Path:
        path = self.directory / name
        os.mkfifo(path)
        return path

    def output(self) -> str:
        return Path(self.spec.log).read_text()

    async def end(self) -> None:
        for process, heard in self.made:
            process.signal(signal.SIGKILL)
            await heard.how_it_ended()


@asynccontextmanager
async def launching(directory: Path, groups: Groups | None = None) -> AsyncIterator[Launches]:
    """Launches; afterwards all are ended, and no descriptor is left open."""
    descriptors = len(os.listdir("/proc/self/fd"))
    made = Launches(directory, groups)
    with made.processes.adopting_orphans():
        yield made
        await made.end()
    assert len(os.listdir("/proc/self/fd")) <= descriptors


async def reads(fifo: Path) -> str:
    """What a process writes into the fifo: a fact to wait for."""
    async with asyncio.timeout(PATIENCE):
        return await asyncio.to_thread(fifo.read_text)


def failure(how: ExitStatus | LaunchFailed) -> tuple[LaunchStage, str]:
    assert isinstance(how, LaunchFailed), how
    return how.stage, how.reason
