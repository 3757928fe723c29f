"""Commands that are run inside another process's namespaces."""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod


class Inside(ABC):
    """What a process with namespaces of its own is the way in to; whoever has made that process ends it."""

    def __init__(self, pid: int) -> None:
        # every command goes in by this number: make sure that it leads away from the machine itself
        for name in ("mnt", "net", "pid"):
            assert os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
        self.pid = pid

    @abstractmethod
    def command(self, *arguments: str) -> list[str]:
        """The command line that runs `arguments` inside, as root."""

    def call(self, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run the command inside; its output is captured, whatever its exit code."""
        command = self.command(*arguments)
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )

    def run(self, *arguments: str, timeout: float = 60.0) -> str:
        """What the command printed on stdout. Raises AssertionError, with all it printed, when it fails."""
        done = self.call(*arguments, timeout=timeout)
        said = f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, said
        return done.stdout
