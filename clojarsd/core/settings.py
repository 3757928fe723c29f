"""The configuration: every key, every default, and `parse_settings`, which finds every problem at once.

The classes whose names end in Table are tables as the file has them; those that end in Settings are what the daemon
lives by. Most are both. They differ where one key stands for another: `[app]` for both instances, `service.user` for
an operator, `stop_timeout` for the last wait of `stop_signal`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, Field

from clojarsd.core import settings_process as processes
from clojarsd.core import settings_types as kinds
from clojarsd.core.errors import BadSettings
from clojarsd.core.names import Address, Backend, Role, UnixAddress
from clojarsd.core.restart import RestartWhen
from clojarsd.core.settings_check import disagreements
from clojarsd.core.settings_deploy import DeploySettings
from clojarsd.core.settings_features import features_not_acted_on
from clojarsd.core.settings_health import CheckSettings, HangSettings, StallSettings, Table, WarmupSettings
from clojarsd.core.settings_problems import Where
from clojarsd.core.settings_reader import parse_toml, read_tables
from clojarsd.core.settings_types import CheckKind, LogTo, Mode, OnDown, OnUp, a_table
from clojarsd.core.stopping import SIGNALS, StopStep, WrittenStep

__all__ = [
    "AdminSettings",
    "CheckKind",
    "CheckSettings",
    "ControlSettings",
    "DeploySettings",
    "FrontendSettings",
    "HangSettings",
    "HookSettings",
    "InstanceSettings",
    "LogTo",
    "Mode",
    "OnDown",
    "OnUp",
    "RestartLimit",
    "RestartWhen",
    "ServiceSettings",
    "Settings",
    "StallSettings",
    "StopStep",
    "WarmupSettings",
    "features_not_acted_on",
    "parse_settings",
]

T = TypeVar("T", bound=BaseModel)

JOINED: Final = ("environment", "limits", "cgroup")
"""Keys of `[app]` that are tables, to which an instance adds name by name."""
NOTHING: Final[Mapping[str, Any]] = {}
OWN: Final = ("host", "resolve", "ports", "sockets")
"""Keys that only the table of an instance has, apart from its name."""


class ServiceSettings(Table):
    """What the service is called, whom it belongs to, and where it keeps its files."""

    name: kinds.Name = "clojars"
    user: kinds.Account = "clojars"
    group: kinds.Account = "clojars"
    runtime_dir: kinds.AbsolutePath = Path("/run/clojarsd")
    state_dir: kinds.AbsolutePath = Path("/var/lib/clojarsd")
    log_dir: kinds.AbsolutePath = Path("/var/log/clojarsd")
    relay_workers: processes.RelayWorkers = 1


class RestartLimit(Table):
    """So many launches within so many seconds, and no more: then the unit is `failed` until an operator acts."""

    count: kinds.Count = 10
    within: kinds.Duration = 120.0


class LaunchSettings(Table):
    """How an instance is started, kept and ended: what `[app]` and `[instances.ROLE]` have in common."""

    command: kinds.OptionalCommand = ()
    directory: kinds.AbsolutePath = Path("/")
    environment: kinds.Environment = NOTHING
    environment_file: kinds.AbsolutePath | None = None
    pre_start: kinds.Commands = ()
    post_start: kinds.Commands = ()
    pre_stop: kinds.Commands = ()
    post_stop: kinds.Commands = ()
    start_timeout: kinds.Duration = 120.0
    stop_timeout: kinds.Duration = 30.0
    reload_signal: kinds.Signal = SIGNALS["SIGHUP"]
    restart: kinds.RestartChoice = RestartWhen.ON_FAILURE
    restart_delay: kinds.DurationOrZero = 1.0
    restart_max_delay: kinds.DurationOrZero = 30.0
    restart_reset: kinds.DurationOrZero = 60.0
    restart_limit: Annotated[RestartLimit, BeforeValidator(a_table('{ count = 10, within = "120s" }'))] = RestartLimit()
    success_codes: kinds.ExitCodes = frozenset({0, 143})
    umask: kinds.Umask = 0o022
    nice: kinds.Nice = 0
    oom_score_adjust: kinds.OomScore = 0
    limits: kinds.Limits = NOTHING
    notify: kinds.Boolean = False
    watchdog: processes.Watchdog = None
    memory_max: processes.MemoryMax = None
    cpu_affinity: processes.CpuNumbers = ()
    chroot: processes.Chroot = None
    supplementary_groups: processes.Groups = ()
    cgroup: processes.CgroupFiles = NOTHING
    log: kinds.LogChoice = LogTo.FILE
    log_max_size: kinds.Size = 64 * 1024**2
    log_keep: kinds.Kept = 5


class AppTable(LaunchSettings):
    """`[app]` as the file has it."""

    stop_signal: kinds.StopSteps = (WrittenStep(SIGNALS["SIGTERM"], None),)


class InstanceTable(AppTable):
    """`[instances.ROLE]` as the file has it. name: None where the service's name gives it."""

    name: kinds.Name | None = None
    host: kinds.Host = "127.0.0.1"
    resolve: processes.DurationOrNever = 30.0
    sockets: kinds.Sockets = NOTHING
    ports: kinds.Ports = Field(description="the ports of this instance, such as { http = 8001, nailgun = 8101 }")


class InstanceSettings(LaunchSettings):
    """One instance: `[app]`, overridden by its own table.

    Attributes:
        resolve: seconds after which the name of a host is looked up again, None for never.
        ports: TCP port by name; sockets: path of a Unix socket by name. At least one of both; no name is in both.
        command: argument list with placeholders in it, never empty; the environment's values hold placeholders too.
        stop_signal: at least one step; when the last has been waited for, the group is killed.
        limits: -1 means unlimited.
        watchdog: seconds, None for never.
        memory_max: bytes, None for no limit.
        cpu_affinity: numbers of CPUs; empty for all that the daemon has.
        chroot: None for none; `directory` is inside it, `environment_file` and the log are outside.
        cgroup: what to write, by the name of the file in the instance's own control group.
        log_max_size: bytes.
    """

    name: str
    host: str
    resolve: float | None
    ports: Mapping[str, int]
    sockets: Mapping[str, str]
    stop_signal: tuple[StopStep, ...]

    @property
    def port_names(self) -> tuple[str, ...]:
        """What checks and frontends may call a port: the names of both kinds."""
        return (*self.ports, *self.sockets)

    def address(self, port: str) -> Address:
        """Where the TCP port of that name listens. Raises KeyError if there is none."""
        return Address(self.host, self.ports[port])

    def backend(self, port: str) -> Backend:
        """Where the port or socket of that name listens. Raises KeyError if there is none."""
        return UnixAddress(self.sockets[port]) if port in self.sockets else self.address(port)


class FrontendSettings(Table):
    """A port that clients use. hold 0.0: nobody waits; max_connections, max_per_instance 0: no limit; None: never."""

    listen: kinds.Listens = Field(description='where clients connect, such as "127.0.0.1:8080"')
    port: kinds.Key = Field(description="the name of a port of the instances, such as http")
    mode: kinds.ModeChoice = Mode.AUTO
    quickack: kinds.Boolean = False
    connect_timeout: kinds.Duration = 1.0
    hold: kinds.DurationOrZero = 30.0
    hold_connections: kinds.CountOrZero = 512
    drain: kinds.DurationOrZero = 30.0
    drain_idle: kinds.DurationOrZero = 2.0
    failback: kinds.DurationOrZero = 5.0
    failback_max: kinds.DurationOrZero = 300.0
    slow_start: kinds.DurationOrZero = 0.0
    on_down: kinds.OnDownChoice = OnDown.KEEP
    on_up: kinds.OnUpChoice = OnUp.KEEP
    max_connections: kinds.CountOrZero = 0
    max_per_instance: kinds.CountOrZero = 0
    proxy_protocol: kinds.Boolean = False
    source: kinds.Source = None
    idle_timeout: processes.DurationOrNever = None
    half_closed_timeout: processes.DurationOrNever = 3600.0
    access_log: kinds.Boolean = False


class ControlTable(Table):
    """`[control]` as the file has it. None where `[service]` gives the value."""

    socket: kinds.AbsolutePath | None = None
    operators: kinds.Callers | None = None
    viewers: kinds.Callers = ("@adm",)


class ControlSettings(Table):
    """Where orders come in, and from whom. A caller is a user, or `@` and a group."""

    socket: Path
    operators: tuple[str, ...]
    viewers: tuple[str, ...]


class AdminSettings(Table):
    """The read-only HTTP server."""

    listen: kinds.Listen = Address("127.0.0.1", 9180)


class HookSettings(Table):
    """A command that is run when an event happens whose name matches one of the patterns in `on`."""

    on: kinds.EventPatterns = Field(description='the events to be told of, such as ["failover", "deploy-*"]')
    exec: kinds.Command = Field(description="the argument list that is run, with the event as JSON on its stdin")
    timeout: kinds.Duration = 10.0


class Settings(Table):
    """The whole configuration, valid and complete: made by `parse_settings` alone.

    `model_fields_set` of this and of each table in it are the keys that the file gives.
    """

    service: ServiceSettings
    instances: Mapping[Role, InstanceSettings]
    checks: tuple[CheckSettings, ...]
    stall: StallSettings
    hang: HangSettings
    warmup: WarmupSettings
    frontends: Mapping[str, FrontendSettings]
    deploy: DeploySettings | None
    control: ControlSettings
    admin: AdminSettings | None
    hooks: tuple[HookSettings, ...]


TABLES: Final[Mapping[str, type[Table]]] = {
    "service": ServiceSettings,
    "app": AppTable,
    "instances": InstanceTable,
    "checks": CheckSettings,
    "stall": StallSettings,
    "hang": HangSettings,
    "warmup": WarmupSettings,
    "frontends": FrontendSettings,
    "deploy": DeploySettings,
    "control": ControlTable,
    "admin": AdminSettings,
    "hooks": HookSettings,
}
"""Every top-level key of the file, and the table that it is, or that it holds one or more of."""


def parse_settings(text: str, origin: str) -> Settings:
    """The settings that `text` gives, with a default for every key that it leaves out.

    Args:
        text: TOML; a byte order mark before it is not minded.
        origin: how problems call the text, usually the path of its file.

    Raises:
        BadSettings: with every problem. A key that is wrong itself counts as absent when keys are compared with each
            other, so that one mistake is told once.
    """
    document = parse_toml(text.removeprefix("\ufeff"), origin)
    problems, tables = read_tables(document, TABLES)
    settings = _settled(tables)
    wrong = [problem.where for problem in problems]
    problems += [
        problem
        for problem in disagreements(settings, tables, document)
        if not any(problem.depends_on(where) for where in wrong)
    ]
    if problems:
        raise BadSettings([f"{origin}: {problem}" for problem in problems])
    return settings


def _settled(tables: Mapping[Where, BaseModel]) -> Settings:
    """One value of the tables that could be read, with the defaults that depend on other tables."""
    service = tables.get(("service",)) or ServiceSettings()
    assert isinstance(service, ServiceSettings)
    control = tables.get(("control",)) or ControlTable()
    assert isinstance(control, ControlTable)
    instances = {
        role: _instance(role, service, tables.get(("app",)), table)
        for role in Role
        if (table := tables.get(("instances", role.value))) is not None
    }
    frontends = {str(where[1]): table for where, table in _under("frontends", FrontendSettings, tables)}
    given: dict[str, object] = {
        "service": service,
        "instances": instances,
        "checks": tuple(table for _, table in _under("checks", CheckSettings, tables))
        or _implied(frontends, instances),
        "stall": tables.get(("stall",)) or StallSettings(),
        "hang": tables.get(("hang",)) or HangSettings(),
        "warmup": tables.get(("warmup",)) or WarmupSettings(),
        "frontends": frontends,
        "deploy": tables.get(("deploy",)),
        "control": ControlSettings.model_construct(
            control.model_fields_set,
            socket=control.socket or service.runtime_dir / "control.sock",
            operators=tuple(dict.fromkeys(("root", service.user))) if control.operators is None else control.operators,
            viewers=control.viewers,
        ),
        "admin": tables.get(("admin",)),
        "hooks": tuple(table for _, table in _under("hooks", HookSettings, tables)),
    }
    return Settings.model_construct({str(where[0]) for where in tables}, **given)


def _under(key: str, model: type[T], tables: Mapping[Where, BaseModel]) -> list[tuple[Where, T]]:
    return [(where, table) for where, table in tables.items() if where[0] == key and isinstance(table, model)]


def _instance(role: Role, service: ServiceSettings, app: BaseModel | None, own: BaseModel) -> InstanceSettings:
    """`[app]` overridden key by key; the keys of `JOINED` are joined, so that an instance can add to them."""
    assert isinstance(own, InstanceTable)
    shared = app or AppTable()
    assert isinstance(shared, AppTable)
    given = {key: getattr(shared, key) for key in shared.model_fields_set}
    given |= {key: getattr(own, key) for key in own.model_fields_set}
    whole = {key: getattr(shared, key) for key in AppTable.model_fields} | given
    for key in JOINED:
        whole[key] = {**getattr(shared, key), **getattr(own, key)}
    whole["name"] = own.name or (service.name if role is Role.PRIMARY else f"{service.name}-backup")
    whole |= {key: getattr(own, key) for key in OWN}
    whole["stop_signal"] = tuple(
        StopStep(step.signal, whole["stop_timeout"] if step.wait is None else step.wait)
        for step in whole["stop_signal"]
    )
    return InstanceSettings.model_construct(set(given), **whole)


def _implied(
    frontends: Mapping[str, FrontendSettings], instances: Mapping[Role, InstanceSettings]
) -> tuple[CheckSettings, ...]:
    """The checks of a file without any: kind tcp on each port that a frontend uses, or on all without frontends."""
    used = [frontend.port for frontend in frontends.values()]
    every = [port for instance in instances.values() for port in instance.port_names]
    return tuple(
        CheckSettings.model_validate({"kind": CheckKind.TCP.value, "port": port})
        for port in dict.fromkeys(used or every)
    )
