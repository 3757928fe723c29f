"""What the settings make of the parts of the daemon: plans of units, checks and frontends."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from clojarsd.core.addresses import is_number
from clojarsd.core.errors import ClojarsdError, LaunchFailed
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.health import Result
from clojarsd.core.launch import World, make_spec
from clojarsd.core.names import Address, Backend, HookName, Incarnation, LaunchStage, Role, UnixAddress
from clojarsd.core.placeholders import placeholders_in
from clojarsd.core.reload import checks_in_force, settings_in_force
from clojarsd.core.restart import RestartPolicy
from clojarsd.core.rollout_facts import HeldBack
from clojarsd.core.routing import Failback
from clojarsd.core.saved import InForce
from clojarsd.core.settings import CheckSettings, DeploySettings, FrontendSettings, InstanceSettings, Settings
from clojarsd.core.settings_types import CheckKind, OnDown, OnUp
from clojarsd.core.steering_choice import RELAY_ONLY
from clojarsd.core.unit import UnitPolicy
from clojarsd.runtime.health_watch import PlannedCheck
from clojarsd.runtime.unit_parts import HookPlan, Plan, PlannedLaunch, PlannedWarmup
from clojarsd.system.class_data import quicker
from clojarsd.system.host_names import HostNames
from clojarsd.system.probe import Prober
from clojarsd.system.warm_requests import WarmRequests
from clojarsd.system.world import resolve_release

WARMED_PORT = "http"
"""The port of an instance that its warm-up asks."""
HOOK_SLACK = 5.0
"""Seconds that a hook's commands have beyond their own times before the unit goes on without them."""


@dataclass(frozen=True, slots=True)
class Plans:
    """Plans by one version of the settings.

    Attributes:
        prober: makes checks.
        names: the addresses of instances whose hosts have names.
        held_back: what an instance is to be launched with where the link is ahead of it.
        checksum_of: gives what a release was when it was installed, by its name; None where that is not known.
    """

    settings: Settings
    world: World
    prober: Prober
    names: HostNames = field(default_factory=HostNames)
    held_back: Callable[[Role], HeldBack | None] = lambda role: None
    checksum_of: Callable[[str], str | None] = lambda name: None

    def unit(self, role: Role, running: Callable[[], InForce] | None = None) -> Plan:
        """What the settings make of the unit.

        Args:
            running: gives what its process is bound to, so that hooks get the ports that it has; None: those of the
                next one.
        """
        instance = self.settings.instances[role]
        checks = self._checked(role)
        return Plan(
            name=instance.name,
            in_force=self.in_force(role),
            policy=self._policy(instance),
            checks=tuple(_identity(check) for check in checks),
            kinds=tuple(check.kind.value for check in checks),
            launch=partial(self._launch, role),
            hooks={
                hook: HookPlan(partial(self._commands, role, hook, running), seconds)
                for hook, seconds in _hooks(instance).items()
            },
            lacking=partial(self._lacking, role),
            warmup=self._warmup(role),
        )

    def in_force(self, role: Role) -> InForce:
        """What its next process will be bound to."""
        return _bound(self.settings.instances[role])

    def checks(self, role: Role, in_force: InForce) -> tuple[PlannedCheck, ...]:
        """The checks of a process that was launched so: as many as the plan of the unit has, in the same order.

        One that this process cannot be asked, since it was launched without the port, waits for the next and passes;
        where that is so of all, a connection to each of its ports stands in, so that nothing counts as up unseen.
        """
        instance = settings_in_force(self.settings.instances[role], in_force)
        wanted = self._checked(role)
        fitting = checks_in_force(wanted, instance)
        stand_ins = () if any(check in fitting for check in wanted) else fitting
        planned = []
        for check in wanted:
            asked = (check,) if check in fitting else stand_ins
            asking = partial(self._ask, tuple((one, instance.backend(one.port or "")) for one in asked))
            planned.append(PlannedCheck(check.kind.value, asking, check.interval, check.rise, check.fall))
        return tuple(planned)

    def frontends(self, in_force: Mapping[Role, InForce]) -> dict[str, FrontendPlan]:
        """The frontends, before instances that were launched so."""
        return {name: self._frontend(name, frontend, in_force) for name, frontend in self.settings.frontends.items()}

    def client_ports(self, role: Role, in_force: InForce) -> tuple[int, ...]:
        """The TCP ports of a process that was launched so which clients use, each once."""
        names = (frontend.port for frontend in self.settings.frontends.values())
        backends = (self._backend(name, role, in_force) for name in names)
        return tuple(dict.fromkeys(backend.port for backend in backends if isinstance(backend, Address)))

    @property
    def longest_drain(self) -> float:
        """Seconds that open connections may last when an instance is taken away."""
        return max((frontend.drain for frontend in self.settings.frontends.values()), default=0.0)

    def longest_failback(self, failures: int) -> float:
        """Seconds until a primary that has failed so often in a row serves again in every frontend."""
        waits = (Failback(one.failback, one.failback_max).after(failures) for one in self.settings.frontends.values())
        return max(waits, default=0.0)

    @property
    def longest_stop(self) -> float:
        """Seconds that an ordinary stop of both instances can take, one after the other."""
        total = 0.0
        for instance in self.settings.instances.values():
            around = (_hook_time(instance, hook) for hook in (HookName.PRE_STOP, HookName.POST_STOP))
            total += self.longest_drain + sum(step.wait for step in instance.stop_signal) + sum(around)
        return total

    def current_release(self) -> str | None:
        """The file name of what the link names now; None where no release is deployed, or the link leads nowhere."""
        if self.settings.deploy is None:
            return None
        try:
            return resolve_release(self.settings.deploy.link).name
        except ClojarsdError:
            return None

    def notify_socket(self, role: Role) -> Path:
        """Where the instance says how it is."""
        return self.settings.service.runtime_dir / f"notify-{role.value}.sock"

    async def _ask(self, checks: Sequence[tuple[CheckSettings, Backend]]) -> Result:
        """What the last of the checks has seen, or the first that has not passed; they are asked one by one."""
        result = Result(True, "asked from the next start on", 0.0)
        for check, where in checks:
            result = await self._ask_one(check, where)
            if not result.passed:
                break
        return result

    async def _ask_one(self, check: CheckSettings, where: Backend) -> Result:
        """What a check sees at the first address that passes, where names led last: no name service is in the way.

        A name that was never found is asked for by the check itself.
        """
        announced = self._is_announced(check.port)
        known = self.names.known(where) if isinstance(where, Address) else ()
        result: Result | None = None
        for address in known or (where,):
            if check.kind is CheckKind.HTTP:
                host = None if address == where else str(where)
                result = await self.prober.http(check, address, announced=announced, host=host)
            else:
                result = await self.prober.tcp(check, address, announced=announced)
            if result.passed:
                break
        assert result is not None
        return result

    def _checked(self, role: Role) -> tuple[CheckSettings, ...]:
        """The checks that this version carries out; when there is none, a connection to each port that clients use."""
        able = tuple(check for check in self.settings.checks if check.kind in (CheckKind.TCP, CheckKind.HTTP))
        if not able:
            ports = dict.fromkeys(frontend.port for frontend in self.settings.frontends.values())
            able = tuple(CheckSettings.model_validate({"kind": "tcp", "port": port}) for port in ports)
        return checks_in_force(able, self.settings.instances[role])

    def _policy(self, instance: InstanceSettings) -> UnitPolicy:
        return UnitPolicy(
            start_timeout=instance.start_timeout,
            drain_timeout=self.longest_drain,
            stop_steps=tuple((step.signal, step.wait) for step in instance.stop_signal),
            success_codes=instance.success_codes,
            restart=RestartPolicy(
                when=instance.restart,
                first_delay=instance.restart_delay,
                max_delay=instance.restart_max_delay,
                reset_after=instance.restart_reset,
                limit_count=instance.restart_limit.count,
                limit_within=instance.restart_limit.within,
            ),
            reload_signal=instance.reload_signal,
            hooks={hook: _hook_time(instance, hook) for hook in _hooks(instance)},
            warmup=self.settings.warmup.timeout if self.settings.warmup.requests else None,
            must_be_warm=self.settings.warmup.required,
        )

    def _warmup(self, role: Role) -> PlannedWarmup | None:
        warmup = self.settings.warmup
        if not warmup.requests:
            return None
        return PlannedWarmup(warmup.requests, warmup.rounds, warmup.timeout, partial(self._warm_requests, role))

    def _warm_requests(self, role: Role, in_force: InForce) -> WarmRequests:
        """What asks the process that was launched so, at the address that was found last where its host is a name."""
        where = self._backend(WARMED_PORT, role, in_force)
        address, *_ = (*(self.names.known(where) if isinstance(where, Address) else ()), where)
        host = None if address == where else str(where)
        return WarmRequests(address, self.prober.own, announced=self._is_announced(WARMED_PORT), host=host)

    def _is_announced(self, port: str | None) -> bool:
        """Whether instances are told on that port who their clients are."""
        return any(one.proxy_protocol and one.port == port for one in self.settings.frontends.values())

    def _launch(self, role: Role, incarnation: Incarnation, environment: Mapping[str, str]) -> PlannedLaunch:
        instance = self.settings.instances[role]
        extra = dict(environment)
        if instance.watchdog is not None:
            extra["WATCHDOG_USEC"] = str(round(instance.watchdog * 1_000_000))
        releases = self._releases(role, _words(instance), instance.command)
        spec = make_spec(
            role,
            instance,
            self.settings.service,
            self.world,
            releases,
            incarnation=incarnation,
            notify_socket=str(self.notify_socket(role)) if instance.notify else None,
            extra=extra,
            verify=self._to_verify(releases.get("release")),
        )
        release, quick = Path(releases["release"]).name if "release" in releases else self.current_release(), None
        deploy = self.settings.deploy
        if deploy is not None and deploy.cds and release is not None:
            path = releases["release"] if "release" in releases else str(resolve_release(deploy.link))
            quick = quicker(spec, deploy.releases, path)
        return PlannedLaunch(spec, release, _bound(instance), *(quick or (None, None)))

    def _to_verify(self, release: str | None) -> tuple[tuple[str, str], ...]:
        """The path of the release with the checksum that it must have, if it was installed by us."""
        if release is None or self.settings.deploy is None:
            return ()
        path, directory = Path(release), Path(os.path.realpath(self.settings.deploy.releases))
        checksum = self.checksum_of(path.name) if path.parent == directory else None
        return ((release, checksum),) if checksum is not None else ()

    def _lacking(self, role: Role) -> str | None:
        """What must be there before the instance can be launched, in words; None when nothing is missing."""
        try:
            instance = self.settings.instances[role]
            self._releases(role, _words(instance), instance.command)
        except LaunchFailed as failed:
            return failed.reason if failed.stage.waits_for_operator else None
        return None

    def _commands(
        self, role: Role, hook: HookName, running: Callable[[], InForce] | None
    ) -> tuple[tuple[str, ...], ...]:
        """The commands of a hook with every placeholder replaced; raises LaunchFailed."""
        instance = self.settings.instances[role]
        if running is not None and hook is not HookName.PRE_START:
            bound = running()
            ports, sockets = {**instance.ports, **bound.ports}, {**instance.sockets, **bound.sockets}
            instance = instance.model_copy(update={"ports": ports, "sockets": sockets})
        commands = []
        for command in getattr(instance, hook.value):
            hooked = instance.model_copy(update={"command": command, "environment": {}})
            spec = make_spec(role, hooked, self.settings.service, self.world, self._releases(role, command))
            commands.append(spec.command)
        return tuple(commands)

    def _releases(self, role: Role, words: Sequence[str], command: Sequence[str] = ()) -> dict[str, str]:
        """The placeholders about releases that the words need, as they are now.

        Args:
            command: of an instance, which runs a release also when it gets the path of the link.

        Raises:
            LaunchFailed: there is no release for it.
        """
        deploy = self.settings.deploy
        if deploy is None:
            return {}
        needs_one = _has("release", words) or _has("current", command)
        named = self._named(role, deploy) if needs_one else deploy.link
        return {"current": str(named), **({"release": str(resolve_release(named))} if needs_one else {})}

    def _named(self, role: Role, deploy: DeploySettings) -> Path:
        """The link, or the release itself that the instance gets instead; raises LaunchFailed."""
        held = self.held_back(role)
        if held is None or held.only_from not in (None, resolve_release(deploy.link).name):
            return deploy.link
        if held.release is None:
            raise LaunchFailed(LaunchStage.RELEASE, f"no release that is approved: {held.why}")
        return deploy.releases / held.release

    def _frontend(self, name: str, frontend: FrontendSettings, in_force: Mapping[Role, InForce]) -> FrontendPlan:
        backends = {role: self._backend(frontend.port, role, in_force[role]) for role in Role}
        checks = self.settings.checks
        found = {
            role: (where,) if isinstance(where, UnixAddress) else self.names.addresses(where)
            for role, where in backends.items()
        }
        return FrontendPlan(
            name=name,
            listen=frontend.listen,
            backends={role: first for role, (first, *_) in found.items()},
            movable=any(check.kind is CheckKind.HTTP and check.port == frontend.port for check in checks),
            mode_reason=None,
            quickack=frontend.quickack,
            connect_timeout=frontend.connect_timeout,
            hold=frontend.hold,
            hold_connections=frontend.hold_connections,
            drain=frontend.drain,
            drain_idle=frontend.drain_idle,
            failback=frontend.failback,
            failback_max=frontend.failback_max,
            max_connections=frontend.max_connections,
            max_per_instance=frontend.max_per_instance,
            mode=frontend.mode.value,
            needs_relay=tuple(key for key in RELAY_ONLY if getattr(frontend, key)),
            others={role: more for role, (_, *others) in found.items() if (more := _tcp(others))},
            proxy_protocol=frontend.proxy_protocol,
            source=frontend.source,
            idle_timeout=frontend.idle_timeout,
            half_closed_timeout=frontend.half_closed_timeout,
            access_log=frontend.access_log,
            cuts_on_down=frontend.on_down is OnDown.CUT,
            moves_on_up=frontend.on_up is OnUp.MOVE,
            slow_start=frontend.slow_start,
        )

    def named_hosts(self, in_force: Mapping[Role, InForce]) -> tuple[frozenset[str], float | None]:
        """The hosts of processes launched so that are names, and after how many seconds to look them up again."""
        named = {role: kept.host for role, kept in in_force.items() if not is_number(kept.host) and kept.ports}
        pauses = [pause for role in named if (pause := self.settings.instances[role].resolve) is not None]
        return frozenset(named.values()), min(pauses, default=None)

    def _backend(self, port: str, role: Role, in_force: InForce) -> Backend:
        """Where a process that was launched so answers, or where the next one will if this one has no such port."""
        instance = self.settings.instances[role]
        running = settings_in_force(instance, in_force)
        return running.backend(port) if port in running.port_names else instance.backend(port)


def _tcp(addresses: Sequence[Backend]) -> tuple[Address, ...]:
    return tuple(address for address in addresses if isinstance(address, Address))


def _bound(instance: InstanceSettings) -> InForce:
    """What a process launched by these settings keeps until its end."""
    return InForce(
        host=instance.host,
        ports=dict(instance.ports),
        notify=instance.notify,
        watchdog=instance.watchdog,
        log=instance.log,
        cgroup=bool(instance.cgroup),
        sockets=dict(instance.sockets),
    )


def _words(instance: InstanceSettings) -> list[str]:
    """Everything with placeholders that a start needs: the instance's own, and the hooks without which it fails."""
    hooks = [*instance.pre_start, *instance.post_start]
    return [*instance.command, *instance.environment.values(), *(word for command in hooks for word in command)]


def _has(placeholder: str, words: Sequence[str]) -> bool:
    return any(placeholder in placeholders_in(word) for word in words)


def _hooks(instance: InstanceSettings) -> dict[HookName, float]:
    """The hooks that have commands, and the seconds that each command may take."""
    times = {
        HookName.PRE_START: instance.start_timeout,
        HookName.POST_START: instance.start_timeout,
        HookName.PRE_STOP: instance.stop_timeout,
        HookName.POST_STOP: instance.stop_timeout,
    }
    return {hook: seconds for hook, seconds in times.items() if getattr(instance, hook.value)}


def _hook_time(instance: InstanceSettings, hook: HookName) -> float:
    """Seconds that all commands of a hook may take together; 0 when there are none."""
    seconds = _hooks(instance).get(hook)
    return 0.0 if seconds is None else len(getattr(instance, hook.value)) * seconds + HOOK_SLACK


def _identity(check: CheckSettings) -> str:
    """What makes a check the same one after a reload: what is asked, not how often."""
    return repr((check.kind, check.port, check.path, check.status, check.command))
