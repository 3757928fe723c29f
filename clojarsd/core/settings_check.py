"""Whether the keys of a configuration fit together: ports, names, placeholders, times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from clojarsd.core.addresses import is_number, overlap
from clojarsd.core.names import Address, Role
from clojarsd.core.placeholders import placeholders_in, unknown_placeholder
from clojarsd.core.quantities import duration_text
from clojarsd.core.settings_problems import Problem, Where, masked_value, path_text, value_text
from clojarsd.core.settings_types import LONGEST_SOCKET_PATH, CheckKind, Mode
from clojarsd.core.steering_choice import RELAY_ONLY

if TYPE_CHECKING:
    from pydantic import BaseModel

    from clojarsd.core.settings import CheckSettings, InstanceSettings, Settings

_EVERYWHERE: Final = ("state_dir", "log_dir")
_OF_RELEASES: Final = ("release", "current")
_GATES: Final = ("before_switch", "after_backup", "before_promote", "after_deploy")
_COMMAND_LISTS: Final = ("pre_start", "post_start", "pre_stop", "post_stop")


def disagreements(
    settings: Settings, tables: Mapping[Where, BaseModel], document: Mapping[str, object]
) -> Iterator[Problem]:
    """Every problem that two keys have with each other.

    Args:
        settings: as far as they could be read; what is absent is not judged.
        tables: those that could be read, by place, as the file has them.
        document: the file.
    """
    judge = _Judge(settings, tables, document)
    told = chain(
        judge.commands(),
        judge.names(),
        judge.restarts(),
        judge.watchdogs(),
        judge.checks(),
        judge.others(),
        judge.own_ports(),
        judge.port_names(),
        judge.sources(),
        judge.taken_ports(),
        judge.deploys(),
        judge.placeholders(),
    )
    yield from dict.fromkeys(told)  # what [app] says wrong is found with both instances


def cautions(settings: Settings) -> tuple[str, ...]:
    """One sentence for each key that is right only if something holds which the file cannot say."""
    told: list[str] = []
    runtime_dir = settings.service.runtime_dir
    for role, instance in settings.instances.items():
        if instance.notify and instance.chroot is not None:
            inside = f"{instance.chroot}{runtime_dir}"
            told.append(
                f"instances.{role.value}.notify: NOTIFY_SOCKET is in {runtime_dir}, which the instance can reach only"
                f" if that is mounted at {inside} too; without it READY=1 cannot come, and no start succeeds"
            )
    return tuple(told)


@dataclass(frozen=True, slots=True)
class _Judge:
    settings: Settings
    tables: Mapping[Where, BaseModel]
    document: Mapping[str, object]

    def commands(self) -> Iterator[Problem]:
        """An instance without a command, or nobody who has one, though the instances could not be read."""
        instances = self.document.get("instances")
        tables = (self.document.get("app"), *(instances.values() if isinstance(instances, dict) else ()))
        somewhere = any(isinstance(table, dict) and table.get("command") for table in tables)
        if not somewhere or any(not instance.command for instance in self.settings.instances.values()):
            yield Problem(("app", "command"), 'missing (the argument list that starts an instance, such as ["java"])')

    def names(self) -> Iterator[Problem]:
        """Both instances are called by role or name, so that a word must mean one of them."""
        for role, instance in self.settings.instances.items():
            where: Where = ("instances", role.value, "name")
            if instance.name == role.other.value:
                yield self._problem(where, instance.name, "is the word for the other instance (any other name)")
            if instance.name == "all":
                yield self._problem(where, instance.name, "is the word for both instances (any other name)")
        if len({instance.name for instance in self.settings.instances.values()}) < len(self.settings.instances):
            where = ("instances", Role.BACKUP.value, "name")
            text = "is also the name of primary (two different names)"
            yield self._problem(
                where, self.settings.instances[Role.BACKUP].name, text, ("instances", "primary", "name")
            )

    def restarts(self) -> Iterator[Problem]:
        for role, instance in self.settings.instances.items():
            longest = instance.restart_max_delay
            if longest < instance.restart_delay:
                first = self._origin(role, "restart_delay")
                text = f"is shorter than {path_text(first)}, {duration_text(instance.restart_delay)}"
                yield self._problem(self._origin(role, "restart_max_delay"), duration_text(longest), text, first)

    def watchdogs(self) -> Iterator[Problem]:
        """Whoever is to send WATCHDOG=1 must be told where to."""
        for role, instance in self.settings.instances.items():
            if instance.watchdog is not None and not instance.notify:
                notify = self._origin(role, "notify")
                text = "needs notify = true, by which the instance is told where to send WATCHDOG=1"
                shown = duration_text(instance.watchdog)
                yield self._problem(self._origin(role, "watchdog"), shown, text, notify)

    def checks(self) -> Iterator[Problem]:
        for where, check in self._under("checks"):
            yield from self._keys_of_kind(where, check)
            yield from self._time_to_pass(where, check)

    def _keys_of_kind(self, where: Where, check: CheckSettings) -> Iterator[Problem]:
        kind = check.kind.value
        needed = "command" if check.kind is CheckKind.EXEC else "port"
        if needed not in check.model_fields_set:
            yield Problem((*where, needed), f"missing (kind {kind} needs it)")
        elif not getattr(check, needed):
            yield self._problem((*where, needed), [], "is empty (kind exec needs an argument list)")
        fitting = {"port": set(CheckKind) - {CheckKind.EXEC}, "command": {CheckKind.EXEC}}
        fitting |= {"path": {CheckKind.HTTP}, "status": {CheckKind.HTTP}}
        for key, kinds in fitting.items():
            if key in check.model_fields_set and check.kind not in kinds:
                names = ", ".join(one.value for one in CheckKind if one in kinds)
                yield self._problem((*where, key), None, f"means nothing to a check of kind {kind} (kinds: {names})")

    def _time_to_pass(self, where: Where, check: CheckSettings) -> Iterator[Problem]:
        """A start ends with `rise` passes; checks that take longer than the start may never let one succeed."""
        for role, instance in self.settings.instances.items():
            limit = self._origin(role, "start_timeout")
            allowed = f"{path_text(limit)}, {duration_text(instance.start_timeout)}"
            if check.timeout > instance.start_timeout:
                key, text = "timeout", f"is longer than {allowed}"
            elif check.interval * (check.rise - 1) >= instance.start_timeout:
                key, text = "rise", f"passes take at least as long as {allowed}, so that no start could succeed"
            else:
                continue
            rests_on = [(*where, one) for one in ("timeout", "interval", "rise")]
            shown = duration_text(check.timeout) if key == "timeout" else check.rise
            yield self._problem((*where, key), shown, text, limit, *rests_on)
            return

    def others(self) -> Iterator[Problem]:
        stall = self.settings.stall
        if stall.after < stall.sample:
            text = f"is shorter than stall.sample, {duration_text(stall.sample)}"
            yield self._problem(("stall", "after"), duration_text(stall.after), text, ("stall", "sample"))
        for name, frontend in self.settings.frontends.items():
            for key in RELAY_ONLY:
                if frontend.mode is Mode.STEER and getattr(frontend, key):
                    where: Where = ("frontends", name, key)
                    text = 'needs the relay, and mode is "steer" (mode "auto" or "relay")'
                    yield self._problem(where, None, text, ("frontends", name, "mode"))
        socket = str(self.settings.control.socket)
        if len(socket.encode()) > LONGEST_SOCKET_PATH:
            text = f"is too long for a Unix socket (at most {LONGEST_SOCKET_PATH} bytes)"
            yield self._problem(("control", "socket"), socket, text, ("service", "runtime_dir"))

    def own_ports(self) -> Iterator[Problem]:
        """An instance has a port or a socket, and each name means one of them."""
        for role, instance in self.settings.instances.items():
            own: Where = ("instances", role.value)
            if not instance.port_names:
                text = "is empty (at least one port, such as { http = 8001 })"
                yield self._problem((*own, "ports"), {}, text, (*own, "sockets"))
            for name in instance.sockets:
                if name in instance.ports:
                    text = "is also the name of a port (each name once)"
                    yield self._problem((*own, "sockets", name), None, text, (*own, "ports"))

    def sources(self) -> Iterator[Problem]:
        """The address that connects come from is of the kind that they go to."""
        for name, frontend in self.settings.frontends.items():
            where: Where = ("frontends", name, "source")
            rests_on = ("frontends", name, "port")
            sockets = [frontend.port in instance.sockets for instance in self.settings.instances.values()]
            if frontend.source is None:
                continue
            if len(sockets) == len(Role) and all(sockets):
                text = f"means nothing to a Unix socket, which {frontend.port} is of both instances (leave it out)"
                yield self._problem(where, frontend.source, text, rests_on, *self._own("sockets"))
            for role, instance in self.settings.instances.items():
                differs = (":" in frontend.source) != (":" in instance.host)
                if frontend.port in instance.ports and is_number(instance.host) and differs:
                    text = f"cannot connect to {instance.host}, the host of {role.value} (an address of the same kind)"
                    yield self._problem(where, frontend.source, text, rests_on, *self._own("host"))
                    break

    def _own(self, key: str) -> Iterator[Where]:
        return (("instances", role.value, key) for role in Role)

    def port_names(self) -> Iterator[Problem]:
        """Every port that is named exists on both instances."""
        ports = {role: instance.port_names for role, instance in self.settings.instances.items()}
        if len(ports) < len(Role):
            return
        uses: list[tuple[Where, str]] = [
            ((*where, "port"), port)
            for where, table in self.tables.items()
            if where[0] in ("checks", "frontends") and (port := getattr(table, "port", None)) is not None
        ]
        for where, port in uses:
            owners = [role.value for role in Role if port in ports[role]]
            if not owners:
                names = ", ".join(dict.fromkeys(name for role in Role for name in ports[role]))
                yield self._problem(where, port, f"no instance has a port of that name (ports: {names})")
            elif len(owners) < len(Role):
                yield self._problem(where, port, f"only {owners[0]} has a port of that name (both must have it)")
        if self.settings.warmup.requests and not all("http" in ports[role] for role in Role):
            text = "are sent to port http, which both instances must have"
            yield self._problem(("warmup", "requests"), None, text)

    def taken_ports(self) -> Iterator[Problem]:
        """No two sockets of ours want the same address."""
        seen: list[tuple[Where, Address]] = []
        for where, address in self._addresses():
            for earlier, taken in seen:
                if overlap(address, taken):
                    text = f"{address} is taken by {path_text(earlier)}, {taken} (a port or host of its own)"
                    yield self._problem(where, str(address), text, earlier)
                    break
            seen.append((where, address))
        paths: dict[str, Where] = {str(self.settings.control.socket): ("control", "socket")}
        for role, instance in self.settings.instances.items():
            for name, path in instance.sockets.items():
                place: Where = ("instances", role.value, "sockets", name)
                taker = paths.setdefault(path, place)
                if taker != place:
                    text = f"is taken by {path_text(taker)} (a path of its own)"
                    yield self._problem(place, path, text, taker)

    def _addresses(self) -> Iterator[tuple[Where, Address]]:
        for role, instance in self.settings.instances.items():
            for name in instance.ports:
                yield ("instances", role.value, "ports", name), instance.address(name)
        for name, frontend in self.settings.frontends.items():
            for address in frontend.listen:
                yield ("frontends", name, "listen"), address
        if self.settings.admin is not None:
            yield ("admin", "listen"), self.settings.admin.listen

    def deploys(self) -> Iterator[Problem]:
        """What is cloned is cloned to somewhere."""
        deploy = self.settings.deploy
        if deploy is not None and deploy.repository and deploy.work_dir is None:
            text = "missing (the directory in which releases are built; without `repository` there is none)"
            yield Problem(("deploy", "work_dir"), text, (("deploy", "repository"),))

    def placeholders(self) -> Iterator[Problem]:
        told: set[tuple[Where, str]] = set()
        for where, text, known in self._texts():
            for name in placeholders_in(text):
                if name in known or (where, name) in told:
                    continue
                told.add((where, name))  # once, though the known ports may differ between the instances
                if name in _OF_RELEASES and "deploy" not in self.document:
                    reason = f"{{{name}}} needs a table [deploy], which says where releases are"
                else:
                    reason = unknown_placeholder(name, known)
                yield self._problem(
                    where, text, reason, *self._ports_of_all() if name.startswith(("port.", "socket.")) else ()
                )

    def _ports_of_all(self) -> Iterator[Where]:
        for role in Role:
            yield ("instances", role.value, "ports")
            yield ("instances", role.value, "sockets")

    def _texts(self) -> Iterator[tuple[Where, str, tuple[str, ...]]]:
        """Every text that may hold placeholders: its place, the text, and the placeholders that are known there."""
        releases = _OF_RELEASES if "deploy" in self.document else ()
        for role, instance in self.settings.instances.items():
            known = (*_of_instance(instance), *releases)
            for where, text in self._texts_of(role, instance):
                yield where, text, known
            for where, check in self._under("checks"):
                yield from (((*where, "command"), text, known) for text in check.command)
            deploy = self.settings.deploy
            if deploy is not None and role is Role.BACKUP:
                yield from ((("deploy", "smoke"), text, known) for text in deploy.smoke)
                for key in _GATES:
                    for number, command in enumerate(getattr(deploy, key)):
                        yield from ((("deploy", key, number), text, known) for text in command)
        if self.settings.deploy is not None:
            for key in ("test", "build"):
                for text in getattr(self.settings.deploy, key):
                    yield ("deploy", key), text, (*_EVERYWHERE, "current")
            for name, text in self.settings.deploy.environment.items():
                yield ("deploy", "environment", name), text, _EVERYWHERE
        for where, hook in self._under("hooks"):
            yield from (((*where, "exec"), text, _EVERYWHERE) for text in hook.exec)

    def _texts_of(self, role: Role, instance: InstanceSettings) -> Iterator[tuple[Where, str]]:
        for text in instance.command:
            yield self._origin(role, "command"), text
        for key in _COMMAND_LISTS:
            for number, command in enumerate(getattr(instance, key)):
                for text in command:
                    yield (*self._origin(role, key), number), text
        own: Any = self.tables["instances", role.value]
        for name, text in instance.environment.items():
            table = ("instances", role.value) if name in own.environment else ("app",)
            yield (*table, "environment", name), text

    def _under(self, key: str) -> Iterator[tuple[Where, Any]]:
        """The tables of an array, or of a table of tables, with their places."""
        return ((where, table) for where, table in self.tables.items() if where[0] == key)

    def _origin(self, role: Role, key: str) -> Where:
        """Where the file says, or could say, what `key` of an instance is."""
        own: Where = ("instances", role.value)
        return (*own, key) if key in self.tables[own].model_fields_set else ("app", key)

    def _problem(self, where: Where, shown: object, text: str, *rests_on: Where) -> Problem:
        """A problem with the value that the file has at `where`; `shown`: the one that counts if it has none."""
        value: Any = self.document
        for part in where:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                value = shown
                break
        return Problem(where, f"{value_text(masked_value(where, value))}: {text}", rests_on)


def _of_instance(instance: InstanceSettings) -> tuple[str, ...]:
    """The placeholders of an instance, without those of releases."""
    sockets = (f"socket.{name}" for name in instance.sockets)
    return ("role", "name", *_EVERYWHERE, *(f"port.{name}" for name in instance.ports), *sockets)
