"""What another configuration changes: at once, at the next start of an instance, or not without a new daemon.

What a running process was launched with stays in force until its end: `settings_in_force` says what that is, so that
checks and backends go on using the ports that it listens on.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from clojarsd.core.addresses import overlap
from clojarsd.core.names import Address, Backend, Role, UnixAddress
from clojarsd.core.placeholders import placeholders_in
from clojarsd.core.quantities import parse_duration
from clojarsd.core.saved import InForce
from clojarsd.core.settings import AppTable, CheckSettings, InstanceSettings, Settings
from clojarsd.core.settings_json import masked, settings_json
from clojarsd.core.settings_problems import Where, path_text, value_text
from clojarsd.core.settings_process import NEVER


class TakesEffect(enum.Enum):
    """When a changed key is acted on."""

    NOW = "now"
    NEXT_START = "at the next start of the instance"
    DAEMON_RESTART = "when the daemon is started again"


NOW: Final = TakesEffect.NOW
NEXT_START: Final = TakesEffect.NEXT_START
DAEMON_RESTART: Final = TakesEffect.DAEMON_RESTART

_AT_NEXT_START: Final = (
    *(
        "host",
        "ports",
        "sockets",
        "command",
        "directory",
        "environment",
        "environment_file",
        "umask",
        "nice",
        "oom_score_adjust",
    ),
    *("limits", "notify", "cpu_affinity", "chroot", "supplementary_groups", "cgroup", "log"),
)
_AT_ONCE: Final = (
    *("name", "pre_start", "post_start", "pre_stop", "post_stop", "start_timeout", "stop_timeout", "stop_signal"),
    *("reload_signal", "restart", "restart_delay", "restart_max_delay", "restart_reset", "restart_limit"),
    *("success_codes", "watchdog", "memory_max", "log_max_size", "log_keep", "resolve"),
)
TAKES_EFFECT: Final[Mapping[str, Mapping[str, TakesEffect]]] = {
    "service": {
        "name": DAEMON_RESTART,
        "user": NEXT_START,
        "group": NEXT_START,
        "runtime_dir": DAEMON_RESTART,
        "state_dir": DAEMON_RESTART,
        "log_dir": DAEMON_RESTART,
        "relay_workers": NOW,
    },
    "instances": {**dict.fromkeys(_AT_NEXT_START, NEXT_START), **dict.fromkeys(_AT_ONCE, NOW)},
    "checks": dict.fromkeys(("kind", "port", "path", "status", "command", "interval", "timeout", "rise", "fall"), NOW),
    "stall": dict.fromkeys(("enabled", "sample", "after"), NOW),
    "hang": dict.fromkeys(("restart_after", "thread_dump"), NOW),
    "warmup": dict.fromkeys(("requests", "rounds", "timeout", "required"), NOW),
    "frontends": dict.fromkeys(
        (
            *("listen", "port", "mode", "quickack", "connect_timeout", "hold", "hold_connections"),
            *("drain", "drain_idle", "failback", "failback_max", "max_connections", "max_per_instance"),
            *("on_down", "on_up", "slow_start"),
            *("proxy_protocol", "source", "idle_timeout", "half_closed_timeout", "access_log"),
        ),
        NOW,
    ),
    "deploy": dict.fromkeys(  # a deploy that is under way goes on with what it began with
        (
            *("repository", "work_dir", "releases", "current", "artifact"),
            *("test", "build", "smoke", "step_timeout", "keep", "cds", "approval_timeout", "share", "soak"),
            *("before_switch", "after_backup", "before_promote", "after_deploy"),
            *("environment", "memory_max", "min_free"),
        ),
        NOW,
    ),
    "control": {"socket": DAEMON_RESTART, "operators": NOW, "viewers": NOW},
    "admin": {"listen": NOW},
    "hooks": dict.fromkeys(("on", "exec", "timeout"), NOW),
}
"""When a key takes effect. A watchdog that gets shorter, or comes, waits for a start: the process was told another."""

_ARRAYS: Final = (("checks",), ("hooks",))
_OF_TABLES: Final = ("instances", "frontends", "checks", "hooks")
"""Keys that hold tables, by name or by number."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key, or one table, that is not what it was.

    Attributes:
        path: of the key; below `app` where it has changed for both instances alike.
        old, new: as the file has them, without what may be secret; None where there is nothing.
        roles: whose next start it takes effect at; empty for the other kinds.
    """

    path: str
    old: str | None
    new: str | None
    takes_effect: TakesEffect
    roles: tuple[Role, ...] = ()

    def __str__(self) -> str:
        if self.old is None:
            return f"{self.path}: {self.new}, which is new"
        if self.new is None:
            return f"{self.path}: no longer there"
        if self.old == self.new:
            return f"{self.path}: another value, which is not shown"
        return f"{self.path}: {self.new} instead of {self.old}"


@dataclass(frozen=True, slots=True)
class Changes:
    """All that two configurations differ in, in the order of the file."""

    every: tuple[Change, ...]

    @property
    def refusal(self) -> str | None:
        """Why these cannot be taken over by a running daemon; None if they can. Then nothing is to be changed."""
        paths = [change.path for change in self.every if change.takes_effect is DAEMON_RESTART]
        if not paths:
            return None
        verb = "needs" if len(paths) == 1 else "need"
        return f"cannot reload: {', '.join(paths)} {verb} a restart of the daemon; nothing was changed"

    def awaiting(self, role: Role) -> tuple[str, ...]:
        """The paths of what the next start of the role's instance brings."""
        return tuple(change.path for change in self.every if role in change.roles)

    def sentences(self, running: Collection[Role] = tuple(Role)) -> tuple[str, ...]:
        """What has changed at once, a line each, then what waits for the next start of which instances.

        Args:
            running: the roles that have a process.
        """
        if not self.every:
            return ("nothing has changed",)
        told = [str(change) for change in self.every if change.takes_effect is NOW]
        waiting: dict[str, list[str]] = {}
        for change in self.every:
            up = " and ".join(role.value for role in change.roles if role in running)
            down = " and ".join(role.value for role in change.roles if role not in running)
            if up:
                waiting.setdefault(f"restart {up} to use it", []).append(change.path)
            if down:
                waiting.setdefault(f"used at the next start of {down}", []).append(change.path)
        told += [f"{when}: {', '.join(paths)}" for when, paths in waiting.items()]
        return tuple(told)


def compare(old: Settings, new: Settings) -> Changes:
    """What `new` has that `old` has not, and when each of that takes effect."""
    before, after = settings_json(old, hide=False), settings_json(new, hide=False)
    return Changes(tuple(_change(*one) for one in _folded(list(_differing((), before, after)))))


def settings_in_force(now: InstanceSettings, launched: InForce) -> InstanceSettings:
    """What an instance whose process runs lives by: `now`, but for what its process keeps until its end.

    A port keeps its number. A name that has come since the launch is known if it is a new one for a port of the
    process; `address` raises KeyError for the others until the next start.

    Args:
        launched: what the process was launched with. A watchdog that is shorter than it was told stays as it was.
    """
    numbers = launched.ports.values() if launched.host == now.host else ()
    renamed = {name: number for name, number in now.ports.items() if number in numbers}
    kept = {name: path for name, path in now.sockets.items() if path in launched.sockets.values()}
    told = launched.watchdog
    return now.model_copy(
        update={
            "host": launched.host,
            "ports": {**{name: one for name, one in renamed.items() if name not in launched.sockets}, **launched.ports},
            "sockets": {**{name: one for name, one in kept.items() if name not in launched.ports}, **launched.sockets},
            "notify": launched.notify,
            "log": launched.log,
            "watchdog": None if told is None or now.watchdog is None else max(told, now.watchdog),
        }
    )


def checks_in_force(checks: tuple[CheckSettings, ...], instance: InstanceSettings) -> tuple[CheckSettings, ...]:
    """Those of `checks` that a running instance can be asked: it has the port, and every port that a command names.

    If there is none, one of kind tcp for each port that it has, so that nothing counts as up unseen.

    Args:
        instance: from `settings_in_force`.
    """
    known = {f"port.{name}" for name in instance.ports} | {f"socket.{name}" for name in instance.sockets}
    fitting = tuple(
        check
        for check in checks
        if (check.port is None or check.port in instance.port_names)
        and all(
            name in known
            for word in check.command
            for name in placeholders_in(word)
            if name.startswith(("port.", "socket."))
        )
    )
    every = instance.port_names
    return fitting or tuple(CheckSettings.model_validate({"kind": "tcp", "port": name}) for name in every)


def taken_until_a_start(new: Settings, launched: Mapping[Role, InForce]) -> str | None:
    """Why `new` cannot be taken over yet: it listens where a running process does that is to move away. None: it can.

    That an instance moves to where the other one has been is a question of which is restarted first, unless both do.

    Args:
        launched: what each running process was launched with.
    """
    moves = [tuple(_moves_onto_the_other(role, new, launched)) for role in Role]
    taken = (*_listens_of(new, launched), *(moves[1] if all(moves) else ()))
    if not taken:
        return None
    path, address, role = taken[0]
    reason = f"{address} is in use by {role.value} until its next start"
    return f"cannot reload: {path}: {reason}; nothing was changed"


def _listens_of(new: Settings, launched: Mapping[Role, InForce]) -> Iterator[tuple[str, Address, Role]]:
    """Each address for clients on which a process of that role listens."""
    wanted = [(f"frontends.{name}.listen", one) for name, front in new.frontends.items() for one in front.listen]
    if new.admin is not None:
        wanted.append(("admin.listen", new.admin.listen))
    for path, address in wanted:
        yield from ((path, address, role) for role, kept in launched.items() if _listens_on(kept, address))


def _moves_onto_the_other(
    role: Role, new: Settings, launched: Mapping[Role, InForce]
) -> Iterator[tuple[str, Backend, Role]]:
    """Each new port or socket of the role's instance on which the process of the other one listens."""
    for name in new.instances[role].ports:
        address = new.instances[role].address(name)
        if role.other in launched and _listens_on(launched[role.other], address):
            yield path_text(("instances", role.value, "ports", name)), address, role.other
    for name, path in new.instances[role].sockets.items():
        if role.other in launched and path in launched[role.other].sockets.values():
            yield path_text(("instances", role.value, "sockets", name)), UnixAddress(path), role.other


def _listens_on(kept: InForce, address: Address) -> bool:
    return any(overlap(address, Address(kept.host, number)) for number in kept.ports.values())


@dataclass(frozen=True, slots=True)
class _Difference:
    where: Where
    old: Any
    new: Any


def _differing(where: Where, old: Any, new: Any) -> Iterator[_Difference]:
    """The smallest places in which two documents differ: keys, names within them, or tables that only one has."""
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict) and where[2:] != ("restart_limit",):
        for key in dict.fromkeys((*old, *new)):
            yield from _differing((*where, key), old.get(key), new.get(key))
    elif where in _ARRAYS and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differing((*where, number), one, other)
    else:
        yield _Difference(where, old, new)


def _folded(differences: list[_Difference]) -> Iterator[tuple[_Difference, tuple[Role, ...]]]:
    """Each with the roles it is about, and at its place below `app` where it is the same for both instances."""
    for one in differences:
        if one.where[0] != "instances":
            yield one, tuple(Role)
            continue
        role, key = Role(one.where[1]), one.where[2:]
        twin = replace(one, where=("instances", role.other.value, *key))
        if key[0] not in AppTable.model_fields or twin not in differences:
            yield one, (role,)
        elif role is Role.PRIMARY:
            yield replace(one, where=("app", *key)), tuple(Role)


def _change(one: _Difference, roles: tuple[Role, ...]) -> Change:
    takes_effect = _takes_effect(one)
    return Change(
        path_text(one.where),
        _text(one.where, one.old),
        _text(one.where, one.new),
        takes_effect,
        roles if takes_effect is NEXT_START else (),
    )


def _takes_effect(one: _Difference) -> TakesEffect:
    """A table that comes or goes takes effect at once: those whose keys do not are always there."""
    table = "instances" if one.where[0] == "app" else str(one.where[0])
    key = one.where[2:3] if one.where[0] in _OF_TABLES else one.where[1:2]
    if not key:
        return NOW
    if table == "instances" and key[0] == "watchdog":
        return NOW if _is_longer(one.new, one.old) else NEXT_START
    return TAKES_EFFECT[table][str(key[0])]


def _is_longer(watchdog: str, than: str) -> bool:
    """Whether a process that was told the one interval can live with the other."""
    if than == NEVER or watchdog == NEVER:
        return watchdog == NEVER
    return parse_duration(watchdog) > parse_duration(than)


def _text(where: Where, value: Any) -> str | None:
    """`value` for people; None where it is absent."""
    if value is None:
        return None
    if where in _ARRAYS:
        return f"{len(value)} table{'' if len(value) == 1 else 's'}"
    return value_text(masked(where, value))
