"""Makes every long-lived part of the daemon, connects them, and takes up what an earlier daemon left running."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import structlog

from clojarsd.core.adoption import Adoption, Expectation, Found, adopt
from clojarsd.core.api import Access
from clojarsd.core.errors import Failed, reason_of
from clojarsd.core.history import EventName, stamp
from clojarsd.core.identity import InstanceMark, ProcessIdentity
from clojarsd.core.launch import World, log_path
from clojarsd.core.names import Incarnation, Role
from clojarsd.core.saved import InForce, SavedPair, in_this_boot
from clojarsd.core.settings import Settings
from clojarsd.core.view import DaemonView
from clojarsd.jvm_parts import make_class_data
from clojarsd.notify_parts import NotifyParts
from clojarsd.rollout_parts import RolloutParts
from clojarsd.runtime.companions import Companions
from clojarsd.runtime.configuration import Configuration
from clojarsd.runtime.control import ControlServer
from clojarsd.runtime.health_watch import HealthWatch
from clojarsd.runtime.history import History
from clojarsd.runtime.hooks_run import HookRun
from clojarsd.runtime.life import End, Life
from clojarsd.runtime.log_keeper import LogKeeper, LogPlan
from clojarsd.runtime.memory_watch import MemoryWatch
from clojarsd.runtime.orders import Orders
from clojarsd.runtime.plans import Plans
from clojarsd.runtime.relay_launch import Owner
from clojarsd.runtime.stalls import Stalls
from clojarsd.runtime.state_keeper import StateKeeper
from clojarsd.runtime.status import Board
from clojarsd.runtime.unit_parts import LaunchReports, Surroundings
from clojarsd.runtime.unit_runner import UnitRunner
from clojarsd.runtime.warmer import Warmer
from clojarsd.system.cgroup import Groups, find_delegated
from clojarsd.system.control_socket import ControlSocket
from clojarsd.system.event_store import EventStore
from clojarsd.system.family import end_hook, find_marked, still_taken
from clojarsd.system.identity import boot_id
from clojarsd.system.kinship import belongs
from clojarsd.system.notify import Notifier
from clojarsd.system.own_connections import OwnConnections
from clojarsd.system.probe import Prober
from clojarsd.system.process import Process, Processes
from clojarsd.system.settings_file import read_settings
from clojarsd.system.state_file import StateFile, alone_in
from clojarsd.system.succession import Inherited, rehearse
from clojarsd.system.world import foreign_sources, look_at_world
from clojarsd.traffic_parts import TrafficParts

log = structlog.get_logger()


class Parts:
    """Every long-lived part, and how they are connected. Made by daemon.py, which runs and leaves them."""

    def __init__(self, settings: Settings, config: Path, world: World, inherited: Inherited | None) -> None:
        self.settings = settings
        self.config = config
        self.world = world
        self.inherited = inherited
        self.loop = asyncio.get_running_loop()
        self.boot = boot_id()
        self.runners: dict[Role, UnitRunner] = {}
        self.watches: dict[Role, HealthWatch] = {}
        self.warmers: dict[Role, Warmer] = {}
        self.bug: asyncio.Future[None] = self.loop.create_future()

    async def open(self, stack: AsyncExitStack) -> None:
        """Open everything, take up what runs already, and start nothing yet.

        Raises:
            Failed: something cannot be had.
        """
        service, path = self.settings.service, self.settings.control.socket
        self.notifier = stack.enter_context(Notifier())
        if self.inherited is None:
            self.control_socket = stack.enter_context(ControlSocket.bind(path))
        else:
            self.control_socket = stack.enter_context(
                ControlSocket.inherit(path, self.inherited.control, self.inherited.lock)
            )
        stack.enter_context(alone_in(service.state_dir))
        self.history = await stack.enter_async_context(History(EventStore(service.state_dir / "events.sqlite")))
        self.state_file = StateFile(service.state_dir / "state.json")
        saved, problem = await self._load()
        self.keeper = await stack.enter_async_context(StateKeeper(self.state_file))
        self.own = OwnConnections()
        prober = await stack.enter_async_context(Prober(self.own))
        plans = Plans(
            self.settings,
            self.world,
            prober,
            held_back=lambda role: self.rollouts.deployer.held_back(role),
            checksum_of=lambda name: self.rollouts.releases.checksum_of(name),
        )
        self.configuration = Configuration(
            self.config, plans, self.history, read_settings, look_at_world, foreign_sources
        )
        stack.callback(self.configuration.close)
        self._open_processes(stack, saved)
        await self._open_traffic(stack, saved)
        self._make_parts(stack)
        users = () if self.world.uid is None else (self.world.uid,)
        running = await asyncio.to_thread(find_marked, service.state_dir, users)
        adoption = self._adoption(saved, problem, running)
        await self._end_hooks(adoption, users)
        self._take_up(adoption)
        self._save()  # what only its mark told of is known to the next daemon from here on

    async def _load(self) -> tuple[SavedPair | None, str | None]:
        """The state as it holds in this boot, and what is wrong with the file."""
        loaded = await asyncio.to_thread(self.state_file.load)
        if loaded.problem is not None:
            log.error("state_not_usable", reason=loaded.problem)
        return (in_this_boot(loaded.pair, self.boot) if loaded.pair is not None else None), loaded.problem

    def _open_processes(self, stack: AsyncExitStack, saved: SavedPair | None) -> None:
        groups, base = None, find_delegated()
        if base is not None:
            try:
                groups = Groups(base, self._on_memory)
            except OSError as error:
                log.warning("no_control_groups", reason=reason_of(error))
            else:
                stack.callback(groups.close)
                self.loop.add_reader(groups.fileno(), groups.read_events)
                stack.callback(self.loop.remove_reader, groups.fileno())
        self.groups = groups
        self.processes = Processes(groups)
        known = saved.instances.values() if saved is not None else ()
        self.claimed = {instance.process.pid for instance in known if instance.process is not None}
        for pid in self.claimed:
            self.processes.claim(pid)  # before anything is reaped
        stack.enter_context(self.processes.adopting_orphans())

    async def _open_traffic(self, stack: AsyncExitStack, saved: SavedPair | None) -> None:
        plans = self.configuration.plans
        in_force = {role: plans.unit(role).in_force for role in Role}
        if saved is not None:
            in_force |= {role: kept for role in Role if (kept := saved.instances[role].in_force) is not None}
        frontends = (await asyncio.to_thread(plans.frontends, in_force)).values()
        self.traffic = TrafficParts(self.settings.service, self.processes, self.groups, self._pid_of)
        await self.traffic.open(stack, frontends, self.history)
        self.relay, self.steering = self.traffic.relay, self.traffic.steering

    def _pid_of(self, role: Role) -> int | None:
        return self.runners[role].pid if role in self.runners else None

    def _make_parts(self, stack: AsyncExitStack) -> None:
        plans, service = self.configuration.plans, self.settings.service
        generation = self.inherited.generation if self.inherited is not None else 1
        seen = DaemonView(version("clojarsd"), os.getpid(), stamp(_now()), str(self.config), generation)
        limits = self.limits = {role: self.settings.instances[role].memory_max for role in Role}
        self.memory = MemoryWatch(limits, lambda role, reason: self.companions.restart(role, reason))
        stack.callback(self.memory.close)
        self.board = Board(
            service.name,
            seen,
            lambda: self.configuration.plans.current_release(),
            self.relay.views,
            relay_pid=lambda: self.relay.pid,
            relay_pids=lambda: self.relay.pids,
            usage=self.memory.latest,
            look=self.steering.look,
        )
        self.companions = Companions(
            self.runners,
            self.history,
            self.memory,
            belongs,
            still_taken,
            self.processes.strangers,
            str(service.state_dir),
            lambda role: self.configuration.plans.settings.instances[role].watchdog,
            lambda role: self.configuration.plans.settings.instances[role].restart_reset,
        )
        around = self._surroundings()
        for role in Role:
            self.runners[role] = UnitRunner(role, plans.unit(role, partial(self._in_force, role)), around)
            self.watches[role] = HealthWatch(role, (), self.runners[role])
            self.warmers[role] = Warmer(role, self.runners[role], self.board)
            stack.callback(self.runners[role].abandon)
        self._open_stalls(stack)
        self.relay.doubt = lambda role: self.watches[role].hurry()
        self.traffic.changed = self.board.wake
        self.orders = Orders(
            self.runners,
            self.board,
            lambda failures: self.configuration.plans.longest_failback(failures),
            self.configuration.refresh,
            self.keeper.flushed,
        )
        state = service.state_dir / "state.json"
        rehearsal = partial(rehearse, self.config, state, self.processes.claim, self.processes.release)
        self.life = Life(seen.version, self.orders, self.runners, rehearsal, self.keeper.flushed, self.history)
        self.notify = NotifyParts(self.runners, self.configuration, self.companions.watchdog_expired)
        self.notify.open(stack, self.settings, self.world.uid, self.inherited)
        self.companions.attach(self.notify.notified, self.notify.leashes, self.orders, (self.stalls,))
        self.configuration.attach(self.runners, self.watches, self.relay, self._apply)
        log_plans = {role: self._log_plan(role) for role in Role}
        self.logs = LogKeeper(log_plans, lambda role: self.runners[role].pid, self._group_of)
        self.class_data = make_class_data(self.board, lambda: self.configuration.plans, self.processes, self.groups)
        self._open_rollouts(stack)
        self.access = self._access()
        self.control = ControlServer(
            self.control_socket,
            self.orders,
            self.board,
            self.history,
            self.access,
            self.logs.logs,
            config=self.configuration,
            life=self.life,
            frontends=self.relay,
            rollouts=self.rollouts.rollouts,
            archives=self.class_data,
        )

    def _open_rollouts(self, stack: AsyncExitStack) -> None:
        self.rollouts = RolloutParts(
            lambda: self.configuration.plans.settings,
            lambda: self.configuration.plans.world,
            self.processes,
            self.groups,
            self.orders,
            self.board,
            self.history,
            self.logs.logs,
            self.class_data,
            self._pid_of,
            self.relay.set_share,
        )
        stack.callback(self.rollouts.close)
        self.rollouts.load()
        self.configuration.why_not = self.rollouts.rollouts.why_not_reload
        self.life.rollout_under_way = lambda: self.rollouts.rollouts.under_way
        self.rollouts.deployer.after_move = self._renew_lacks

    def _renew_lacks(self) -> None:
        for runner in self.runners.values():
            runner.renew_lack()

    def _open_stalls(self, stack: AsyncExitStack) -> None:
        def ports(role: Role) -> tuple[int, ...]:
            return self.configuration.plans.client_ports(role, self.runners[role].in_force)

        state_dir = str(self.settings.service.state_dir)
        owner = Owner(self.processes.claim, self.processes.release)
        self.stalls = stack.enter_context(
            Stalls.open(self.runners, self.board, self.history, self.relay, ports, state_dir, self.own, owner)
        )
        self.stalls.configure(self.settings.stall)
        for role, watch in self.stalls.watches.items():
            watch.shared_ports = partial(self.steering.ports_to, role)
            watch.on_listeners = partial(self.steering.listeners_changed, role)

    def _surroundings(self) -> Surroundings:
        def launched(role: Role) -> None:
            self.configuration.launched(role)
            self.companions.launched(role)
            self.logs.configure(role, self._log_plan(role))
            self.notify.launched(role)

        return Surroundings(
            self.processes.launch,
            self._adopt,
            partial(HookRun, self.processes.launch),
            self.relay,
            self.history,
            self.board,
            self._fail,
            changed=self._save,
            launched=launched,
            proved=self.companions.proved,
            gone=self.companions.gone,
            rested=self.companions.rested,
        )

    def _group_of(self, role: Role) -> Path | None:
        """The control group of the role's process, if it has one of its own."""
        if self.groups is None or not self.runners[role].unit.has_process:
            return None
        service, incarnation = self.settings.service, self.runners[role].unit.incarnation
        return self.groups.of(InstanceMark(str(service.state_dir), role, incarnation))

    def _in_force(self, role: Role) -> InForce:
        return self.runners[role].in_force

    def _adopt(
        self,
        identity: ProcessIdentity,
        make_events: Callable[[int], LaunchReports],
        role: Role,
        incarnation: Incarnation,
    ) -> Process | None:
        mark = InstanceMark(str(self.settings.service.state_dir), role, incarnation)
        try:
            return self.processes.adopt(identity, make_events, mark)
        except OSError as error:  # it runs, and cannot be watched: better no daemon than a second process
            reason = reason_of(error)
            raise Failed(f"cannot take up {role.value}, which runs as process {identity.pid}: {reason}") from error

    # What runs already.

    def _adoption(self, saved: SavedPair | None, problem: str | None, running: Found) -> Adoption:
        plans = self.configuration.plans
        expected = {}
        for role in Role:
            unit, instance = plans.unit(role), self.settings.instances[role]
            serves = role in self.relay.eligible
            expected[role] = Expectation(unit.in_force, len(unit.checks), instance.start_timeout, serves)
        found = adopt(saved, running, expected, self.loop.time(), stamp(_now()))
        for note in found.notes:
            log.warning("adopted_by_mark", reason=note, state=problem or "there is no state of it")
        return found

    async def _end_hooks(self, adoption: Adoption, users: Collection[int]) -> None:
        """End what an earlier daemon has begun of a hook that is run again: never two of them at a time."""
        for role, instance in adoption.instances.items():
            if (hook := instance.unit.hook) is not None:
                mark = InstanceMark(str(self.settings.service.state_dir), role, instance.unit.incarnation)
                if not await asyncio.to_thread(end_hook, mark, hook, users):
                    log.error("hook_not_ended", role=role.value, hook=hook.value)

    def _take_up(self, adoption: Adoption) -> None:
        for pid in self.claimed - {
            *self.relay.pids
        }:  # in a container a new process has easily the number of an old one
            self.processes.release(pid)
        for role in Role:  # in the same turn of the loop: who is adopted is claimed again
            self.runners[role].attach(self.watches[role], self.warmers[role], adoption.instances.get(role))
            if role in self.relay.draining:  # begun by an earlier daemon, and nobody waits for it any more
                self.relay.end_drain(role)
        self.leftovers = [
            InstanceMark(str(self.settings.service.state_dir), role, incarnation)
            for role, incarnation in adoption.leftovers
        ]

    # What the parts tell each other.

    def _save(self) -> None:
        """Have everything that the next daemon must know written soon."""
        self.keeper.save(
            SavedPair(
                service=self.settings.service.name,
                boot_id=self.boot,
                generation=self.board.daemon.generation,
                instances={role: runner.saved() for role, runner in self.runners.items()},
                saved_at=stamp(_now()),
                ending=self.life.end is End.STOP,
            )
        )

    def _apply(self, settings: Settings) -> None:
        """Tell a new configuration to those who only look at values."""
        self.settings = settings
        for role in Role:
            self.limits[role] = settings.instances[role].memory_max
            self.logs.configure(role, self._log_plan(role))
            if self.runners[role].unit.ready_at is not None:
                self.companions.proved(role)
        self.stalls.configure(settings.stall)
        self.control.access = self._access()

    def _log_plan(self, role: Role) -> LogPlan:
        instance = self.settings.instances[role]
        kept = self.runners[role].in_force.log
        path = Path(log_path(self.settings.service, role))
        return LogPlan(instance.name, path, kept, instance.log_max_size, instance.log_keep)

    def _access(self) -> Access:
        return Access(self.settings.control.operators, self.settings.control.viewers, os.geteuid())

    def _on_memory(self, mark: InstanceMark, event: str, times: int) -> None:
        if event == "oom_kill":
            text = f"the kernel killed a process of {mark.role.value}: its control group had no memory left"
            self.history.record(EventName.OOM, text, mark.role, incarnation=mark.incarnation, times=times)

    def _fail(self, error: Exception) -> None:
        if not self.bug.done():
            self.bug.set_exception(error)


def _now() -> datetime:
    return datetime.now(UTC)
