"""What a launch needs to know: one instance's command and its world, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from clojarsd.core.names import Address, Role
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

    def as_json(self) -> dict[str, Any]:
        """The spec as the launcher reads it."""
        return {
            **asdict(self),
            "ports": {name: [address.host, address.port] for name, address in self.ports.items()},
        }


@dataclass(frozen=True, slots=True)
class World:
    """What the machine and the daemon's own user make of a launch.

    Attributes:
        environment: what every instance gets beneath its own variables: PATH, HOME and the like.
        becomes_user: whether the daemon is able to be somebody else, and so must.
        soft_nofile: see `LaunchSpec`.
    """

    environment: Mapping[str, str]
    becomes_user: bool
    soft_nofile: int


def log_path(service: ServiceSettings, role: Role) -> str:
    """The file that gets the output of the role's instance."""
    return str(service.log_dir / f"{role.value}.log")


def make_spec(
    role: Role, instance: InstanceSettings, service: ServiceSettings, world: World, releases: Mapping[str, str]
) -> LaunchSpec:
    """The launch of an instance, with every placeholder replaced.

    Args:
        releases: the values of `release` and `current`; empty where no release is deployed.
    """
    values = {
        "role": role.value,
        "name": instance.name,
        "state_dir": str(service.state_dir),
        "log_dir": str(service.log_dir),
        **{f"port.{name}": str(port) for name, port in instance.ports.items()},
        **releases,
    }
    own = {key: expand(value, values) for key, value in instance.environment.items()}
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
    )
