"""`clojarsd cleanup`, and `clojarsctl daemon cleanup`, which is the same: as processes, over a real BPF file system."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

import pytest

from clojarsd.system.steering import KernelSteering
from tests.support.namespaces import BPF_FS, apart
from tests.support.pair import CHECKOUT, CLOJARSCTL
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow

PROGRAMS = ([sys.executable, "-m", "clojarsd", "cleanup"], [str(CLOJARSCTL), "daemon", "cleanup"])


def ended(*words: str) -> tuple[int, str, str]:
    done = subprocess.run(words, capture_output=True, text=True, cwd=CHECKOUT, timeout=PATIENCE, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("program", PROGRAMS, ids=["clojarsd", "clojarsctl"])
@apart
def test_what_a_dead_daemon_has_left_is_removed_and_what_a_living_one_has_stays(program: Sequence[str]) -> None:
    KernelSteering.open("dead").detach()
    living = KernelSteering.open("living")
    assert ended(*program) == (0, "removed what was left of dead\n", "")
    assert [path.name for path in sorted((BPF_FS / "clojarsd").iterdir())] == ["living"]
    assert ended(*program) == (0, "no dead clojarsd has left anything in the kernel\n", "")
    living.remove()


@apart
def test_programs_are_told_what_was_removed() -> None:
    KernelSteering.open("dead").detach()
    for program in PROGRAMS:
        code, out, err = ended(*program, "--json")
        assert (code, json.loads(out)["result"], err) == (0, "done", "")
        if program is PROGRAMS[0]:
            assert json.loads(out)["removed"] == ["dead"]
