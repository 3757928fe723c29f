"""Holds all that runs in a control group still for a moment, which ends whatever becomes of us."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from clojarsd.system.program import PLAIN_ENVIRONMENT

GUARD = Path(__file__).with_name("freeze_guard.py")
TO_FREEZE = 0.1
"""Seconds that it may take until all stand still; what waits for a disk takes that long."""
FROZEN = 0.25
"""Seconds after which the guard thaws a group that we have not thawed yet."""
GUARD_TIMEOUT = 5.0
"""Seconds for the guard's own start and end, on a busy machine."""


class Freezer:
    """Use it as a context, in a thread: all stands still from `freeze` on until the context is left.

    A program of its own freezes the group, and thaws it when we die, or take too long.

    Attributes:
        seconds: how long they stood still, as far as it was us who ended it; None: they did not.
        whole: whether they stood still to the end; known when the context was left.
    """

    def __init__(self, group: Path | None) -> None:
        """Without a group nothing stands still."""
        self._group = group
        self._guard: subprocess.Popen[bytes] | None = None
        self._since = 0.0
        self.seconds: float | None = None
        self.whole = False

    def __enter__(self) -> Self:
        """Start the guard; where that cannot be, nothing will stand still."""
        if self._group is None or not (self._group / "cgroup.freeze").exists():
            return self
        command = [sys.executable, "-I", "-S", str(GUARD), str(self._group), str(TO_FREEZE), str(FROZEN)]
        with contextlib.suppress(OSError):
            self._guard = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=PLAIN_ENVIRONMENT,
                start_new_session=True,
            )
            self._hear()
        return self

    def freeze(self) -> bool:
        """Whether all stands still now."""
        if self._guard is None or self._guard.stdin is None:
            return False
        try:
            self._since = time.monotonic()
            self._guard.stdin.write(b"f")
        except OSError:  # the guard has ended
            return False
        if self._hear() != "frozen":
            return False
        self.seconds = 0.0
        return True

    def __exit__(self, *exc_info: object) -> None:
        if self._guard is None:
            return
        assert self._group is not None
        if self.seconds is not None:
            thaw(self._group)
            self.seconds = time.monotonic() - self._since
        assert self._guard.stdin is not None
        assert self._guard.stdout is not None
        self._guard.stdin.close()
        self.whole = self._hear() == "held" and self.seconds is not None
        try:
            self._guard.wait(GUARD_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        self._guard.stdout.close()
        thaw(self._group)  # the guard may have been killed between its own two acts

    def _hear(self) -> str:
        """The guard's next word; empty when it has ended, or says nothing for too long."""
        assert self._guard is not None
        assert self._guard.stdout is not None
        said = b""
        while not said.endswith(b"\n"):
            readable, _, _ = select.select([self._guard.stdout], [], [], GUARD_TIMEOUT)
            byte = os.read(self._guard.stdout.fileno(), 1) if readable else b""
            if not byte:
                return ""
            said += byte
        return said.decode().strip()


def thaw(group: Path) -> bool:
    """Let what stands still in the group run on; whether anything did. A group that is gone is as well."""
    try:
        if (group / "cgroup.freeze").read_text().strip() != "1":
            return False
        with (group / "cgroup.freeze").open("wb", buffering=0) as switch:
            switch.write(b"0")
    except OSError:
        return False
    return True
