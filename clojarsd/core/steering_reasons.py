"""Why connections cannot be steered here: facts in, one sentence out, which `status` shows."""

from __future__ import annotations

import enum
import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

CAP_NET_ADMIN: Final = 12
CAP_SYS_ADMIN: Final = 21
CAP_BPF: Final = 39
"""Bits of `CapEff` in /proc/PID/status, see capabilities(7)."""

OLDEST_KERNEL: Final = (5, 9)
"""The first Linux with sk_lookup programs, and with links to them."""
UNLIMITED_KERNEL: Final = (5, 11)
"""From this Linux on, maps do not count against RLIMIT_MEMLOCK."""


class Act(enum.Enum):
    """What the kernel was asked for when it said no."""

    MAKE_MAPS = "making the maps"
    LOAD = "loading the program"
    ATTACH = "attaching the program"
    PIN = "pinning"
    CHANGE = "changing the maps"


@dataclass(frozen=True, slots=True)
class Powers:
    """What this process may do.

    Attributes:
        release: of the kernel.
        user: the effective one.
        capabilities: the effective ones, as bits.
        memlock: RLIMIT_MEMLOCK in bytes, -1 without a limit.
    """

    release: str
    user: int
    capabilities: int
    memlock: int

    @property
    def kernel(self) -> tuple[int, int]:
        """Major and minor version; 0, 0 where the release does not begin with them."""
        found = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @property
    def may_mount(self) -> bool:
        """Whether file systems can be mounted."""
        return bool(self.capabilities >> CAP_SYS_ADMIN & 1)

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of the capabilities that steering needs and this process lacks."""
        may_bpf = self.capabilities >> CAP_BPF & 1 or self.may_mount  # CAP_SYS_ADMIN includes it
        may_net = self.capabilities >> CAP_NET_ADMIN & 1
        return tuple(name for name, has in (("CAP_BPF", may_bpf), ("CAP_NET_ADMIN", may_net)) if not has)


def why_impossible(powers: Powers) -> str | None:
    """Why it need not be tried; None: it may work."""
    if powers.kernel < OLDEST_KERNEL:
        return f"the kernel is {powers.release}, and steering needs Linux {_version(OLDEST_KERNEL)} or later"
    missing = powers.missing
    if not missing:
        return None
    if powers.user != 0 and len(missing) == 2:
        return (
            f"user {powers.user} may not steer: it takes root, or the capabilities CAP_BPF and CAP_NET_ADMIN "
            "(systemd: AmbientCapabilities=)"
        )
    return f"steering takes {' and '.join(missing)}, which this process does not have (systemd: CapabilityBoundingSet=)"


def why_refused(act: Act, number: int, text: str, powers: Powers) -> str:
    """Why an act failed that nothing forbids. Args: number, text: of the OSError."""
    if number in (errno.EPERM, errno.ENOMEM) and powers.kernel < UNLIMITED_KERNEL and act is Act.MAKE_MAPS:
        return (
            f"{act.value} failed: RLIMIT_MEMLOCK is {powers.memlock} bytes, which is too little on Linux "
            f"before {_version(UNLIMITED_KERNEL)} (systemd: LimitMEMLOCK=)"
        )
    if number == errno.ENOMEM:
        return f"{act.value} failed: the kernel has no memory for it, or this control group has not"
    if number == errno.EPERM:
        return (
            f"{act.value} failed: the kernel does not permit it, although this process has the capabilities "
            "(a user namespace, systemd's SystemCallFilter= or a security module)"
        )
    if number == errno.ENOSYS or (number == errno.EINVAL and act is Act.MAKE_MAPS):
        return (
            f"{act.value} failed: the kernel, {powers.release}, was built without it "
            "(CONFIG_BPF_SYSCALL, CONFIG_INET, CONFIG_BPF_STREAM_PARSER)"
        )
    if number == errno.E2BIG and act is Act.ATTACH:
        return f"{act.value} failed: this network namespace has 64 sk_lookup programs already, the most that Linux runs"
    return f"{act.value} failed: {text}"


def why_no_file_system(root: str, reason: str | None) -> str:
    """Why there is nowhere to pin. Args: reason: why mounting failed; None: it was not tried, only root may."""
    if reason is not None:
        return f"no BPF file system is mounted at {root}, and mounting one failed: {reason}"
    return f"no BPF file system is mounted at {root}, and only root may mount one (mount -t bpf bpf {root})"


def why_not_made(path: str, number: int, reason: str, user: int) -> str:
    """Why a directory cannot be made or entered."""
    if number == errno.EROFS:
        return f"{path} cannot be made: it is on a file system that is read-only (systemd: ProtectKernelTunables=)"
    if number in (errno.EACCES, errno.EPERM):
        return (
            f"{path} cannot be made or entered by user {user}: {reason} (systemd: ExecStartPre=+ of clojarsd.service)"
        )
    return f"{path} cannot be made or entered: {reason}"


def why_not_ours(path: str, owner: int, user: int) -> str:
    """Why the directory of somebody else is not used."""
    return f"{path} belongs to user {owner}, and this daemon is user {user} (remove it with: clojarsctl daemon cleanup)"


def why_taken(name: str, path: str, pid: int | None) -> str:
    """Why a second daemon of a name does not steer."""
    holder = "another daemon" if pid is None else f"process {pid}"
    return f"{holder} steers as {name} already: it holds {path}"


def why_not_usable(frontend: str, role: str, reason: str) -> str:
    """Why the listening socket of an instance cannot be given connections."""
    return f"the listening socket of {role} cannot be used for frontend {frontend}: {reason}"


def why_no_room(names: Sequence[str], most: int) -> str:
    """Why so many frontends at once cannot be."""
    return f"{len(names)} frontends, those that they replace included, are more than {most}"


def _version(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
