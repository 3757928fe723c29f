"""The daemon's own watchdog with a real systemd: fed while the loop moves, and not fed while it stands still."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.real import unavailable
from tests.support.systemd_sandbox import Sandbox, boot, missing_for_sandbox
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.real]

CHECKOUT = Path(__file__).parents[2]
WATCHDOG_S = 2

PROGRAM = """
import asyncio, os, sys, time
import uvloop
from clojarsd.runtime.watchdog import keeping_alive
from clojarsd.system.logs import set_up_logs
from clojarsd.system.loop_guard import LoopGuard
from clojarsd.system.notify import Notifier

async def main():
    with Notifier() as notifier:
        async with LoopGuard(0.4):
            with keeping_alive(notifier):
                notifier.ready("up")
                while not os.path.exists("/run/block"):
                    await asyncio.sleep(0.05)
                time.sleep(600)

set_up_logs({})
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Sandbox]:
    if reason := missing_for_sandbox():
        unavailable(f"cannot boot a systemd: {reason}")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    unit = (
        f"[Service]\nType=notify\nWatchdogSec={WATCHDOG_S}\nEnvironment=PYTHONPATH={CHECKOUT}\n"
        f"ExecStart={sys.executable} {program}\n"
    )
    directory = tmp_path / "sandbox"
    directory.mkdir()
    with boot(directory, {"w.service": unit}, shared=[CHECKOUT, Path(sys.prefix), tmp_path]) as machine:
        yield machine


def test_a_loop_that_moves_lives_and_one_that_stands_still_is_ended_with_its_stack_told(machine: Sandbox) -> None:
    machine.run("systemctl", "start", "w")
    began = time.monotonic()
    while time.monotonic() < began + 2 * WATCHDOG_S:  # each look is a process of its own, which is pause enough
        assert machine.run("systemctl", "is-active", "w") == "active\n"
    machine.run("touch", "/run/block")
    while machine.call("systemctl", "is-active", "w").stdout != "failed\n":
        assert time.monotonic() < began + PATIENCE + 2 * WATCHDOG_S
    assert machine.run("systemctl", "show", "--property=Result", "--value", "w") == "watchdog\n"
    journal = machine.run("journalctl", "--no-pager", "--output=cat", "--unit=w")
    (told,) = [line for line in journal.splitlines() if "event=loop_stands_still" in line]
    number = 1 + PROGRAM.splitlines().index("                time.sleep(600)")
    assert f"program.py:{number} main" in told
