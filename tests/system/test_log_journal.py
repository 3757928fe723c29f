"""Instances that write to systemd's journal, and reading it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from clojarsd.core.errors import Failed
from clojarsd.system import launcher
from clojarsd.system.journal import journal_lines
from tests.support.real import unavailable
from tests.support.systemd_sandbox import Sandbox, boot, missing_for_sandbox

CHECKOUT = Path(__file__).parent.parent.parent
INSTANCE = """
import os, sys
from clojarsd.system import launcher
launcher.open_log({"log_to": "journal", "log_name": sys.argv[1], "log": "/nowhere"})
os.execvp("sh", ["sh", "-c", "echo out; echo err >&2; echo '<3>as it is'; seq -f 'line %g' 1 300"])
"""
READER = """
import asyncio, contextlib, json, os, sys
from pathlib import Path
from clojarsd.core.names import Role
from clojarsd.core.settings_types import LogTo
from clojarsd.runtime.log_keeper import InstanceLog, LogPlan

async def main():
    log = InstanceLog(Role.PRIMARY, LogPlan("clojars", Path("/nowhere"), LogTo.JOURNAL, 1, 1))
    assert log.missing() is None
    last = []
    async with contextlib.aclosing(log.last_lines(400)) as batches:
        async for some in batches:
            last += some
    followed, since = [], []
    async with log.since_now() as last_lines:
        assert await last_lines(400) == []
        done = await asyncio.create_subprocess_exec(sys.executable, "-c", sys.argv[1], "clojars")
        await done.wait()
        async with asyncio.timeout(60):
            while len(since) < 303:
                since = await last_lines(400)
    async with contextlib.aclosing(log.follow(2)) as batches, asyncio.timeout(60):
        while len(followed) < 2:
            followed += await anext(batches)
        more = await asyncio.create_subprocess_exec(sys.executable, "-c", sys.argv[1], "clojars")
        while len(followed) < 305:
            followed += await anext(batches)
    await more.wait()
    left = [pid for pid in os.listdir("/proc") if pid.isdigit() and named(pid) == "journalctl"]
    print(json.dumps({"last": last, "followed": followed, "since": since, "left": left}))

def named(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    if reason := missing_for_sandbox():
        unavailable(f"cannot boot a systemd: {reason}")
    python = Path(os.path.realpath(sys.executable))
    directory = tmp_path_factory.mktemp("journal")
    with boot(directory, {}, shared=[CHECKOUT, Path(sys.prefix), python.parent]) as machine:
        yield machine


@pytest.mark.real
@pytest.mark.slow
def test_output_goes_to_the_journal_and_is_read_from_there(machine: Sandbox) -> None:
    """Both streams in their order, by the instance's name alone; a follower gets what comes, and its program ends."""
    python = ["env", f"PYTHONPATH={CHECKOUT}", sys.executable, "-c"]
    for name in ("clojars", "clojars-backup"):
        machine.run(*python, INSTANCE, name)
    machine.run("journalctl", "--sync")
    seen = json.loads(machine.run(*python, READER, INSTANCE, timeout=120))
    once = ["out", "err", "<3>as it is", *(f"line {number}" for number in range(1, 301))]
    assert seen["last"] == seen["since"] == once
    assert seen["followed"] == [*once[-2:], *once]
    assert seen["left"] == []


def test_a_launch_without_a_journal_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "JOURNAL", str(tmp_path / "stdout"))
    with pytest.raises(OSError, match="no journal") as raised:
        launcher.open_log({"log_to": "journal", "log_name": "clojars", "log": "/nowhere"})
    assert (
        launcher.reason_of(raised.value) == f"no journal takes it at {tmp_path / 'stdout'}: no such file or directory"
    )


def test_inherited_output_is_left_alone(tmp_path: Path) -> None:
    code = "from clojarsd.system import launcher; launcher.open_log({'log_to': 'inherit'}); print('here')"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout == "here\n"


def test_a_removed_directory_is_made_again_for_a_launch(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "primary.log"
    code = "import sys; from clojarsd.system import launcher; launcher.open_log({'log': sys.argv[1]}); print('here')"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=CHECKOUT, check=True)
    assert path.read_text() == "here\n"


async def test_a_machine_without_journalctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    async with aclosing(journal_lines("clojars", 5, follow=False)) as lines:
        with pytest.raises(Failed) as failed:
            await anext(lines)
    assert str(failed.value) == "cannot read the journal: journalctl is not installed"
