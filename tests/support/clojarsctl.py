"""clojarsctl as its users have it: a process of its own, with words and an exit code."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.control import DEADLINE_S

COMMAND = "from clojarsd.ctl.main import main; main()"
BECOME = """
import os, sys
uid = int(sys.argv[1])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
del sys.argv[1]
"""


class Run:
    """One clojarsctl."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self, *, error: bool = False) -> str:
        """The next line that it says on stdout, or on stderr."""
        stream = self.process.stderr if error else self.process.stdout
        assert stream is not None
        async with asyncio.timeout(DEADLINE_S):
            return (await stream.readline()).decode().rstrip("\n")

    async def end(self) -> tuple[int, str, str]:
        """Its exit code, and what else it has said on stdout and stderr."""
        async with asyncio.timeout(DEADLINE_S):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def running(socket: Path, *words: str, uid: int | None = None) -> AsyncIterator[Run]:
    """A clojarsctl that is interrupted if the test leaves it running."""
    script = COMMAND if uid is None else f"{BECOME}{COMMAND}"
    become = [] if uid is None else [str(uid)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        *become,
        *words,
        env={**os.environ, "CLOJARSD_SOCKET": str(socket), "COLUMNS": "100"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    run = Run(process)
    try:
        yield run
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def ctl(socket: Path, *words: str, uid: int | None = None) -> tuple[int, str, str]:
    async with running(socket, *words, uid=uid) as run:
        return await run.end()
