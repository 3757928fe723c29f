"""Which process is meant: a process known for ever, and the mark that a launch leaves on everything it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from clojarsd.core.names import Incarnation, Role

MARK: Final = "CLOJARSD_INSTANCE"
"""The environment variable of every instance; what it starts inherits it."""

MAIN: Final = "CLOJARSD_MAIN_PID"
"""The environment variable that tells an instance's main process from what it has started: its number."""

HOOK: Final = "CLOJARSD_HOOK"
"""The environment variable that tells a hook's commands which hook it is, and others that they are of one."""

ROLLOUT: Final = "CLOJARSD_ROLLOUT_MARK"
"""The environment variable of every command of a rollout, and of what that starts."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """Which process it is, for ever: a number alone is given to others later.

    Attributes:
        started_ticks: when it started, in clock ticks since the boot.
        boot_id: of which boot.
        executable: device and inode of what it runs; None where that could not be seen, or while it is being launched.
    """

    pid: int
    started_ticks: int
    boot_id: str
    executable: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class InstanceMark:
    """Which launch a process comes from: the value of `CLOJARSD_INSTANCE`."""

    state_dir: str
    role: Role
    incarnation: Incarnation

    def __str__(self) -> str:
        return f"{self.state_dir}:{self.role.value}:{self.incarnation}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The mark with that text; None when it is none."""
        state_dir, _, rest = text.rpartition(":")
        state_dir, _, role = state_dir.rpartition(":")
        if not state_dir or not rest.isascii() or not rest.isdecimal():
            return None
        try:
            return cls(state_dir, Role(role), Incarnation(int(rest)))
        except ValueError:
            return None

    def covers(self, other: InstanceMark) -> bool:
        """Whether what has the other mark comes from this launch, or from an earlier one of the same instance."""
        same = (self.state_dir, self.role) == (other.state_dir, other.role)
        return same and other.incarnation <= self.incarnation


@dataclass(frozen=True, slots=True)
class RolloutMark:
    """Which rollout a command belongs to: the value of `CLOJARSD_ROLLOUT_MARK`.

    Attributes:
        rollout: its id, such as `20261128-212345`.
    """

    state_dir: str
    rollout: str

    def __str__(self) -> str:
        return f"{self.state_dir}:{self.rollout}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The mark with that text; None when it is none."""
        state_dir, _, rollout = text.rpartition(":")
        return cls(state_dir, rollout) if state_dir and rollout else None
