"""Commands of a rollout in tests: as a plain user where the tests are root, in a directory that this user may use."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from clojarsd.core.identity import RolloutMark
from clojarsd.core.launch import World
from clojarsd.system.build_command import Builder, CommandOutcome
from clojarsd.system.cgroup import Groups
from clojarsd.system.process import Processes
from tests.support.waiting import PATIENCE

IS_ROOT = os.geteuid() == 0
USER = 65534 if IS_ROOT else os.geteuid()
"""`nobody`, which every machine has."""
GROUP = 65534 if IS_ROOT else os.getegid()


@contextmanager
def directory_of_user() -> Iterator[Path]:
    """A directory that belongs to the user, reached by everybody; gone afterwards."""
    made = Path(tempfile.mkdtemp(prefix="clojarsd-build-"))
    try:
        os.chown(made, USER, GROUP)
        made.chmod(0o755)
        yield made
    finally:
        for inside, _, _ in os.walk(made):
            os.chmod(inside, 0o700)
        shutil.rmtree(made)


class Room:
    """What a rollout's commands run in.

    Attributes:
        home: a directory of the user.
        state_dir: an absolute path that nothing else has as its state directory.
        heard: the lines of output that were told.
    """

    def __init__(self, home: Path, logs: Path, groups: Groups | None = None) -> None:
        self.home = home
        self.state_dir = str(home / "state")
        self.log = logs / "rollouts" / "20261128-212345.log"
        self.heard: list[str] = []
        self.processes = Processes(groups)
        self.groups = groups

    def builder(self, rollout: str = "20261128-212345", **changes: object) -> Builder:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8"}
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        values = {
            "launch": self.processes.launch,
            "mark": RolloutMark(self.state_dir, rollout),
            "log": self.log,
            "world": World(environment, becomes_user=IS_ROOT, soft_nofile=soft, uid=USER),
            "user": str(USER),
            "group": str(GROUP) if IS_ROOT else None,
            "environment": {},
            "groups": self.groups,
        }
        return Builder(**{**values, **changes})  # type: ignore[arg-type]

    async def run(self, *command: str, timeout: float = PATIENCE, by: Builder | None = None) -> CommandOutcome:
        builder = by or self.builder()
        return await builder.run("test", command, self.home, timeout=timeout, on_output=self.heard.extend)

    async def shell(self, script: str, *arguments: str, timeout: float = PATIENCE) -> CommandOutcome:
        return await self.run("sh", "-c", script, *arguments, timeout=timeout)

    def fifo(self, name: str = "ready") -> Path:
        path = self.home / name
        os.mkfifo(path)
        os.chown(path, USER, GROUP)
        return path


@asynccontextmanager
async def room_for_builds(logs: Path, groups: Groups | None = None) -> AsyncIterator[Room]:
    """Such a room; afterwards no descriptor is left open."""
    await asyncio.to_thread(bool)  # the loop's threads keep descriptors of their own
    descriptors = len(os.listdir("/proc/self/fd"))
    with directory_of_user() as home:
        room = Room(home, logs, groups)
        with room.processes.adopting_orphans():
            yield room
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def is_gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")
