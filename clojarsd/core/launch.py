"""What a launch needs to know: one instance's command and its world, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from clojarsd.core.identity import MAIN, MARK, InstanceMark
from clojarsd.core.names import Address, Incarnation, Role
from clojarsd.core.placeholders import expand
from clojarsd.core.settings import InstanceSettings, ServiceSettings


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One instance's command and the world it begins in.

    Attributes:
        command: the program, looked up on the PATH of `environment` unless it has a slash, and its arguments.
        directory: working directory.
        environment: all of it: nothing is inherited.
        environment_file: absolute path of a file with KEY=VALUE lines that override `environment`, or None.
        log: absolute path of the file that gets stdout and stderr; appended to.
        ports: what must be free before the launch, by name.
        user: name or number to run as, or None to stay who the daemon is.
        group: name or number of the main group, or None for the user's own.
        limits: setrlimit values by lower-case name without `RLIMIT_`; -1 is unlimited.
        soft_nofile: the soft limit of descriptors where `limits` has none: the daemon's own is raised.
        log_to: `file`, `journal` or `inherit`: where the output goes.
        log_name: under which name the journal gets it.
        imposed: variables that win over all others: the mark, NOTIFY_SOCKET, those of this one start.
        cpu_affinity: numbers of the CPUs it may run on; empty for those that the daemon has.
        chroot: absolute path of its root directory, or None; `directory` and `command` are inside it, the log is not.
        supplementary_groups: names or numbers of groups besides the user's own.
        cgroup: what to write into the files of its own control group, by file.
        cgroup_directory: absolute path of the group to join, or None; known when it is made, just before the launch.
        verify: paths of files and directories outside `chroot`, and the checksum that each must have to be run.
        mark: which launch this is, by which what it started is found; None for what is no instance.
    """

    command: tuple[str, ...]
    directory: str
    environment: Mapping[str, str]
    environment_file: str | None
    log: str
    ports: Mapping[str, Address]
    user: str | None
    group: str | None
    umask: int
    nice: int
    oom_score_adjust: int
    limits: Mapping[str, int]
    soft_nofile: int
    log_to: str = "file"
    log_name: str = ""
    imposed: Mapping[str, str] = field(default_factory=dict)
    cpu_affinity: tuple[int, ...] = ()
    chroot: str | None = None
    supplementary_groups: tuple[str, ...] = ()
    cgroup: Mapping[str, str] = field(default_factory=dict)
    cgroup_directory: str | None = None
    mark: InstanceMark | None = None
    verify: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The spec as the launcher reads it."""
        imposed = {**self.imposed, **({MARK: str(self.mark)} if self.mark is not None else {})}
        return {
            **{field.name: getattr(self, field.name) for field in fields(self) if field.name not in _DAEMONS_OWN},
            "environment": dict(self.environment),
            "imposed": imposed,
            "main_variable": MAIN if self.mark is not None else None,
            "ports": {name: [address.host, address.port] for name, address in self.ports.items()},
        }


_DAEMONS_OWN = {"cgroup", "mark"}


@dataclass(frozen=True, slots=True)
class World:
    """What the machine and the daemon's own user make of a launch.

    Attributes:
        environment: what every instance gets beneath its own variables: PATH, HOME and the like.
        becomes_user: whether the daemon is able to be somebody else, and so must.
        uid: the number of the user that instances run as, or None where it is the daemon's own.
        soft_nofile: see `LaunchSpec`.
    """

    environment: Mapping[str, str]
    becomes_user: bool
    soft_nofile: int
    uid: int | None = None


def log_path(service: ServiceSettings, role: Role) -> str:
    """The file that gets the output of the role's instance."""
    return str(service.log_dir / f"{role.value}.log")


def placeholder_values(
    role: Role, instance: InstanceSettings, service: ServiceSettings, releases: Mapping[str, str]
) -> dict[str, str]:
    """What each placeholder stands for in the commands of an instance, by name."""
    return {
        "role": role.value,
        "name": instance.name,
        "state_dir": str(service.state_dir),
        "log_dir": str(service.log_dir),
        **{f"port.{name}": str(port) for name, port in instance.ports.items()},
        **{f"socket.{name}": path for name, path in instance.sockets.items()},
        **releases,
    }


def make_spec(
    role: Role,
    instance: InstanceSettings,
    service: ServiceSettings,
    world: World,
    releases: Mapping[str, str],
    *,
    incarnation: Incarnation | None = None,
    notify_socket: str | None = None,
    extra: Mapping[str, str] | None = None,
    verify: tuple[tuple[str, str], ...] = (),
) -> LaunchSpec:
    """The launch of an instance, with every placeholder replaced.

    Args:
        releases: the values of `release` and `current`; empty where no release is deployed.
        incarnation: which launch this is; None for what is started beside the instance, such as a hook.
        notify_socket: what NOTIFY_SOCKET is to be; None: the instance gets none.
        extra: the environment of this one start; wins over the settings and the environment file.
        verify: see `LaunchSpec`.
    """
    values = placeholder_values(role, instance, service, releases)
    own = {key: expand(value, values) for key, value in instance.environment.items()}
    notify = {"NOTIFY_SOCKET": notify_socket} if notify_socket is not None else {}
    return LaunchSpec(
        command=tuple(expand(word, values) for word in instance.command),
        directory=str(instance.directory),
        environment={**world.environment, **own},
        environment_file=str(instance.environment_file) if instance.environment_file is not None else None,
        log=log_path(service, role),
        ports={name: instance.address(name) for name in instance.ports},
        user=service.user if world.becomes_user else None,
        group=service.group if world.becomes_user else None,
        umask=instance.umask,
        nice=instance.nice,
        oom_score_adjust=instance.oom_score_adjust,
        limits=dict(instance.limits),
        soft_nofile=world.soft_nofile,
        log_to=instance.log.value,
        log_name=instance.name,
        imposed={**(extra or {}), **notify},
        cpu_affinity=instance.cpu_affinity,
        chroot=str(instance.chroot) if instance.chroot is not None else None,
        supplementary_groups=instance.supplementary_groups,
        cgroup=dict(instance.cgroup),
        mark=InstanceMark(str(service.state_dir), role, incarnation) if incarnation is not None else None,
        verify=verify,
    )
