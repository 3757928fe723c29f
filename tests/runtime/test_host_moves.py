"""Instances whose hosts have names are found where the names lead, also later."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.launch import World
from clojarsd.core.names import Role
from clojarsd.core.settings import parse_settings
from clojarsd.runtime.configuration import Configuration
from clojarsd.runtime.health_watch import PlannedCheck
from clojarsd.runtime.plans import Plans
from clojarsd.system.host_names import HostNames
from clojarsd.system.probe import Prober
from clojarsd.system.settings_file import read_settings
from clojarsd.system.world import look_at_world
from tests.support.fronts import LOOPBACK, Past
from tests.support.named_host import TEXT, Unit
from tests.support.real import unavailable
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_name_is_followed_and_open_connections_stay(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        unavailable("/etc/hosts of our own needs root and unshare(1)")
    hosts = tmp_path / "hosts"
    hosts.write_text("")
    steps = 'mount --bind "$1" /etc/hosts && exec "$2" -m tests.support.named_host "$3" /etc/hosts'
    command = ["unshare", "--mount", "sh", "-ec", steps, "sh", str(hosts), sys.executable, str(tmp_path / "run")]
    (tmp_path / "run").mkdir()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if " " not in line] == ["remembered", "moved", "moved", "kept"]


class Hanging(HostNames):
    """A name service that answers once, and then not until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.let_go = threading.Event()
        self._found = {"app.test": (LOOPBACK,)}

    def refresh(self, hosts: Iterable[str]) -> bool:
        self.asked.set()
        self.let_go.wait()
        return False


class Frontends:
    """Are told plans, and only count."""

    def __init__(self) -> None:
        self.told = 0

    async def configure(self, plans: Iterable[FrontendPlan], workers: int | None = None) -> None:
        self.told += 1


class Watch:
    def replan(self, checks: Sequence[PlannedCheck]) -> None:
        """Nothing is checked here."""


async def test_a_name_service_that_hangs_holds_up_no_reload_and_no_end(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    text = TEXT.format(port=8001, other=8002)
    file.write_text(text)
    names, frontends = Hanging(), Frontends()
    world = World({}, becomes_user=False, soft_nofile=1024)
    async with Prober() as prober:
        plans = Plans(parse_settings(text, "x"), world, prober, names)
        configuration = Configuration(file, plans, Past(), read_settings, look_at_world)
        units = {role: Unit(plans.in_force(role)) for role in Role}
        configuration.attach(units, {role: Watch() for role in Role}, frontends, lambda settings: None)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(configuration.run())
            await until(names.asked.is_set, "the name service is asked")
            file.write_text(text.replace('resolve = "100ms"', 'resolve = "90s"'))
            told = await configuration.reload("root")
            assert tuple(told) == ('instances.primary.resolve: "1m30s" instead of "100ms"',)
            assert frontends.told == 1
            running.cancel()
        configuration.close()
    names.let_go.set()
