"""The small types that every signature uses: roles, addresses, goals, states, health, launch stages."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NewType, Self

Incarnation = NewType("Incarnation", int)
"""The number of one launch of a unit; the first is 1."""

NO_INCARNATION = Incarnation(0)
"""Nothing was launched yet."""


class Role(enum.Enum):
    """One of the two places of the pair. A role never moves; who serves does."""

    PRIMARY = "primary"
    BACKUP = "backup"

    __hash__ = object.__hash__  # that of Enum is written in Python, and each connection looks roles up many times

    @property
    def other(self) -> Role:
        """The other place of the pair."""
        return Role.BACKUP if self is Role.PRIMARY else Role.PRIMARY


class Goal(enum.Enum):
    """What the operator wants of a unit."""

    UP = "up"
    DOWN = "down"


class Rotation(enum.Enum):
    """Whether the operator wants a unit to get connections while it runs."""

    IN = "in"
    OUT = "out"


class UnitState(enum.Enum):
    """Where a unit is in its life. `READY` has been proved by a passed check of this incarnation."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


class Health(enum.Enum):
    """What the last checks say. One result never decides alone, and `UNKNOWN` is not up."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"
    STALLED = "stalled"


class HookName(enum.Enum):
    """When the commands of a hook run in the life of one incarnation; the value is the key in the settings."""

    PRE_START = "pre_start"
    POST_START = "post_start"
    PRE_STOP = "pre_stop"
    POST_STOP = "post_stop"


class LaunchStage(enum.Enum):
    """How far a launch came. Its value is the phrase for people: `cannot start backup: <stage>: <reason>`."""

    RELEASE = "resolving its release"
    LINK = "reading the link to its release"
    VERIFY = "reading its release"
    PRE_START = "running pre_start"
    CGROUP = "joining its control group"
    SPAWN = "making its process"
    LOG = "opening its log"
    ENVIRONMENT = "reading its environment file"
    PORTS = "finding its ports free"
    LIMITS = "setting its limits"
    PRIORITY = "setting its priority"
    AFFINITY = "choosing its CPUs"
    CHROOT = "changing its root directory"
    GROUPS = "joining its groups"
    USER = "becoming its user"
    DIRECTORY = "entering its directory"
    UMASK = "setting its umask"
    EXECUTE = "running its command"

    @property
    def waits_for_operator(self) -> bool:
        """Whether trying again is of no use until somebody has acted: there is no release, or it is not what it was."""
        return self is LaunchStage.RELEASE


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A TCP address. `host` is a numeric IPv4 or IPv6 address or a host name, without brackets."""

    host: str
    port: int

    @classmethod
    def of_socket(cls, name: tuple[Any, ...]) -> Self:
        """From the name that a TCP socket gives of an end. Where IPv6 stands for IPv4 (`::ffff:1.2.3.4`) it is IPv4."""
        host, port = name[:2]
        return cls(host.removeprefix("::ffff:") if "." in host else host, port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a Unix stream socket."""

    path: str

    def __str__(self) -> str:
        return self.path


Backend = Address | UnixAddress
"""Where an instance answers."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: `code` when it exited, else `signal`, the number that killed it; neither: nobody knows."""

    code: int | None
    signal: int | None

    def __str__(self) -> str:
        if self == UNKNOWN_END:
            return "ended (how is not known: it is no child of this daemon)"
        return f"exited with {self.code}" if self.signal is None else f"was killed by signal {self.signal}"


UNKNOWN_END = ExitStatus(None, None)
"""The end of a process that was somebody else's child, of which the kernel did not tell more."""
