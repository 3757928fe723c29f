"""Opens every long-lived thing, runs them in one task group, and owns the order in which they end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from clojarsd.core.adoption import Adoption, Expectation, adopt
from clojarsd.core.api import Access
from clojarsd.core.errors import Failed, Refused
from clojarsd.core.history import EventName, stamp
from clojarsd.core.identity import InstanceMark
from clojarsd.core.launch import World, log_path
from clojarsd.core.names import Goal, Role, UnitState
from clojarsd.core.saved import SavedPair, in_this_boot
from clojarsd.core.settings import Settings
from clojarsd.core.settings_features import features_not_acted_on
from clojarsd.core.unit import EndCause
from clojarsd.core.unit_events import Start, Stop
from clojarsd.core.view import DaemonView
from clojarsd.runtime.companions import BY_DAEMON, Companions
from clojarsd.runtime.configuration import Configuration
from clojarsd.runtime.control import ControlServer
from clojarsd.runtime.health_watch import HealthWatch
from clojarsd.runtime.history import History
from clojarsd.runtime.hooks_run import HookRun
from clojarsd.runtime.instance_notify import InstanceNotify
from clojarsd.runtime.life import End, Life
from clojarsd.runtime.log_keeper import LogKeeper, LogPlan
from clojarsd.runtime.memory_watch import MemoryWatch
from clojarsd.runtime.orders import Orders
from clojarsd.runtime.plans import Plans
from clojarsd.runtime.relay_launch import Owner
from clojarsd.runtime.relay_link import RelayLink
from clojarsd.runtime.state_keeper import StateKeeper
from clojarsd.runtime.status import Board
from clojarsd.runtime.unit_parts import Surroundings
from clojarsd.runtime.unit_runner import UnitRunner
from clojarsd.runtime.watchdog import WatchdogTimer, keeping_alive
from clojarsd.system.cgroup import Groups, find_delegated
from clojarsd.system.control_socket import ControlSocket
from clojarsd.system.event_store import EventStore
from clojarsd.system.family import find_marked, still_taken
from clojarsd.system.identity import boot_id, mark_of
from clojarsd.system.loop_guard import LoopGuard
from clojarsd.system.notify import Notifier
from clojarsd.system.notify_socket import NotifySocket
from clojarsd.system.probe import Prober
from clojarsd.system.process import Processes
from clojarsd.system.settings_file import read_settings
from clojarsd.system.state_file import StateFile
from clojarsd.system.succession import Inherited, let_signals_in, rehearse
from clojarsd.system.world import look_at_world, make_directories

log = structlog.get_logger()

BY_SIGNAL = "a signal"


@dataclass(frozen=True, slots=True)
class Successor:
    """What the code that takes this one's place is handed.

    Attributes:
        environment: the variables of the service manager.
        signals: what came after the decision.
    """

    inherited: Inherited
    environment: Mapping[str, str]
    signals: tuple[signal.Signals, ...]


async def serve(
    settings: Settings,
    config: Path,
    when_up: Callable[[], None] = lambda: None,
    inherited: Inherited | None = None,
    directory: str | None = None,
) -> Successor | None:
    """Run the pair until it is told to end, stop it, and return; or return and leave everything running to other code.

    Args:
        config: where the settings came from.
        when_up: called once, when orders and clients can come.
        inherited: what this code was handed when it took another's place.
        directory: a temporary directory that goes with the daemon's end, for who comes after.

    Raises:
        Failed: it could not begin; nothing was started, and what runs already was left alone.
    """
    world = look_at_world(settings.service.user)
    make_directories((settings.service.runtime_dir, settings.service.state_dir, settings.service.log_dir))
    async with AsyncExitStack() as stack:
        daemon = Daemon(settings, config, world, inherited)
        await daemon.open(stack)
        end = await daemon.live(when_up)
        if end is End.STOP:
            log.info("daemon_stopped")
            return None
        control, lock = daemon.control_socket.hand_over()
        seen = daemon.board.daemon
        handed = Inherited(control, lock, seen.generation + 1, seen.version, daemon.life.by, directory)
    log.info("daemon_replaced", generation=handed.generation)
    return Successor(handed, daemon.notifier.environment, tuple(daemon.late_signals))


class Daemon:
    """Every long-lived part, and how they are connected. Made and left by `serve`."""

    def __init__(self, settings: Settings, config: Path, world: World, inherited: Inherited | None) -> None:
        self.settings = settings
        self.config = config
        self.world = world
        self.inherited = inherited
        self.loop = asyncio.get_running_loop()
        self.boot = boot_id()
        self.runners: dict[Role, UnitRunner] = {}
        self.watches: dict[Role, HealthWatch] = {}
        self.late_signals: list[signal.Signals] = []
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
        self.history = await stack.enter_async_context(History(EventStore(service.state_dir / "events.sqlite")))
        self.state_file = StateFile(service.state_dir / "state.json")
        saved, problem = await self._load()
        self.keeper = await stack.enter_async_context(StateKeeper(self.state_file))
        prober = await stack.enter_async_context(Prober())
        self.configuration = Configuration(
            self.config, Plans(self.settings, self.world, prober), self.history, read_settings, look_at_world
        )
        self._open_processes(stack, saved)
        await self._open_relay(stack, saved)
        self._make_parts(stack)
        running = await asyncio.to_thread(find_marked, service.state_dir)
        self._take_up(self._adoption(saved, problem, running))

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
                log.warning("no_control_groups", reason=(error.strerror or str(error)).lower())
            else:
                stack.callback(groups.close)
                self.loop.add_reader(groups.fileno(), groups.read_events)
                stack.callback(self.loop.remove_reader, groups.fileno())
        self.groups = groups
        self.processes = Processes(groups)
        for instance in saved.instances.values() if saved is not None else ():
            if instance.process is not None:
                self.processes.claim(instance.process.pid)  # before anything is reaped
        stack.enter_context(self.processes.adopting_orphans())

    async def _open_relay(self, stack: AsyncExitStack, saved: SavedPair | None) -> None:
        plans = self.configuration.plans
        in_force = {role: plans.unit(role).in_force for role in Role}
        if saved is not None:
            in_force |= {role: kept for role in Role if (kept := saved.instances[role].in_force) is not None}
        owner = Owner(self.processes.claim, self.processes.release)
        frontends = plans.frontends(in_force).values()
        self.relay = await stack.enter_async_context(
            RelayLink.open(frontends, self.settings.service.runtime_dir, owner)
        )
        self.relay.attach(self.history)
        if self.groups is not None and self.relay.pid is not None:
            try:
                self.groups.join(self.groups.leaf("relay"), self.relay.pid)
            except OSError as error:
                log.warning("relay_not_grouped", reason=(error.strerror or str(error)).lower())

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
            usage=self.memory.latest,
        )
        self.companions = Companions(
            self.runners,
            self.history,
            self.memory,
            mark_of,
            still_taken,
            str(service.state_dir),
            lambda role: self.configuration.plans.settings.instances[role].watchdog,
        )
        around = self._surroundings()
        for role in Role:
            self.runners[role] = UnitRunner(role, plans.unit(role), around)
            self.watches[role] = HealthWatch(role, (), self.runners[role])
            stack.callback(self.runners[role].abandon)
        self.relay.doubt = lambda role: self.watches[role].hurry()
        self.relay.changed = self.board.wake
        self.orders = Orders(
            self.runners,
            self.board,
            lambda: self.configuration.plans.longest_failback,
            self.configuration.refresh,
            self.keeper.flushed,
        )
        state = service.state_dir / "state.json"
        rehearsal = partial(rehearse, self.config, state, self.processes.claim, self.processes.release)
        self.life = Life(seen.version, self.orders, self.runners, rehearsal, self.keeper.flushed)
        self.notified = self._open_notify(stack)
        self.companions.attach(self.notified, self.leashes, self.orders)
        self.configuration.attach(self.runners, self.watches, self.relay, self._apply)
        self.logs = LogKeeper({role: self._log_plan(role) for role in Role}, lambda role: self.runners[role].pid)
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
        )

    def _surroundings(self) -> Surroundings:
        def launched(role: Role) -> None:
            self.configuration.launched(role)
            self.companions.launched(role)
            self.logs.configure(role, self._log_plan(role))

        return Surroundings(
            self.processes.launch,
            self.processes.adopt,
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

    def _open_notify(self, stack: AsyncExitStack) -> dict[Role, InstanceNotify]:
        """The sockets on which instances say how they are."""
        self.leashes = {role: WatchdogTimer(role, self.companions.watchdog_expired) for role in Role}
        notified = {}
        for role in Role:
            try:
                listener = NotifySocket(self.configuration.plans.notify_socket(role), self.world.uid)
            except Failed as failed:
                if self.settings.instances[role].notify:
                    raise
                log.debug("no_notify_socket", role=role.value, reason=str(failed))
                continue
            stack.callback(self._leave_notify, listener)
            notified[role] = InstanceNotify(role, listener, self.runners[role], self.leashes[role])
        return notified

    def _leave_notify(self, listener: NotifySocket) -> None:
        """An instance that runs on finds the next daemon at the same path."""
        if self.life.end is End.STOP:
            listener.close()
        else:
            listener.detach()

    # Beginning.

    def _adoption(self, saved: SavedPair | None, problem: str | None, running: object) -> Adoption:
        plans = self.configuration.plans
        expected = {}
        for role in Role:
            unit, instance = plans.unit(role), self.settings.instances[role]
            serves = role in self.relay.eligible
            expected[role] = Expectation(unit.in_force, len(unit.checks), instance.start_timeout, serves)
        found = adopt(saved, running, expected, self.loop.time(), stamp(_now()))  # type: ignore[arg-type]
        for note in found.notes:
            log.warning("adopted_by_mark", reason=note, state=problem or "there is no state of it")
        return found

    def _take_up(self, adoption: Adoption) -> None:
        for role in Role:
            self.runners[role].attach(self.watches[role], adoption.instances.get(role))
        for role, instance in adoption.instances.items():
            if instance.process is not None and self.runners[role].pid is None:
                self.processes.release(instance.process.pid)
        self.leftovers = [
            InstanceMark(str(self.settings.service.state_dir), role, incarnation)
            for role, incarnation in adoption.leftovers
        ]

    def _start_wanted(self) -> None:
        """Start what is to be up and is not on its way there, nor was given up or ended by itself in this boot."""
        for runner in self.runners.values():
            unit = runner.unit
            never = unit.state is UnitState.STOPPED and unit.goal is Goal.DOWN
            if runner.wanted is Goal.UP and (never or unit.cause is EndCause.STOP):
                runner.order(Start(), BY_DAEMON, remember=False)

    async def live(self, when_up: Callable[[], None]) -> End:
        """Be the daemon until it is to end."""
        async with LoopGuard(), asyncio.TaskGroup() as group:
            with keeping_alive(self.notifier):
                self._set_signals(group)
                tasks = [group.create_task(long_lived) for long_lived in self._long_lived()]
                self._say_begun()
                self._start_wanted()
                self.relay.begin()
                gc.collect()
                gc.freeze()  # what lives as long as the daemon is not looked at by every collection
                self.notifier.ready(f"serving {self.settings.service.name}")
                when_up()
                end = await self.life.ended()
                if end is End.STOP:
                    self.notifier.stopping(within=self.configuration.plans.longest_stop)
                    await self._stop()
                    self.life.stopped()
                    await self.relay.close()
                self.control.why_ending = "clojarsd is ending" if end is End.STOP else "clojarsd is being upgraded"
                for task in tasks:
                    task.cancel()
        return end

    def _long_lived(self) -> list[Coroutine[Any, Any, object]]:
        return [
            self.history.run(),
            self.keeper.run(),
            self.orders.run(),
            self.life.run(),
            self.configuration.run(),
            self.relay.run(),
            self.memory.run(),
            self.logs.run(),
            self.control.serve(),
            self._raise_bug(),
            self._renew_relay(),
            self._end_leftovers(),
            *(watch.run() for watch in self.watches.values()),
            *(notified.run() for notified in self.notified.values()),
        ]

    def _say_begun(self) -> None:
        seen = self.board.daemon
        if self.inherited is None:
            self.history.record(EventName.DAEMON_STARTED, f"clojarsd {seen.version} started", pid=seen.pid)
        else:
            text = f"clojarsd {seen.version} took over from {self.inherited.version}"
            self.history.record(
                EventName.DAEMON_UPGRADED,
                text,
                None,
                self.inherited.by,
                pid=seen.pid,
                before=self.inherited.version,
                generation=seen.generation,
            )
        for sentence in features_not_acted_on(self.settings):
            log.warning("setting_without_effect", setting=sentence)

    async def _renew_relay(self) -> None:
        """Let a relay process of other code hand its connections over to one of ours."""
        if self.relay.is_outdated and hasattr(self.relay, "replace"):
            try:
                await self.relay.replace()
            except Failed as failed:
                log.error("relay_not_renewed", reason=str(failed))

    async def _end_leftovers(self) -> None:
        for mark in self.leftovers:
            log.warning("leftover_ended", role=mark.role.value, incarnation=mark.incarnation)
            if left := await self.processes.end_remains(mark):
                log.error("leftover_not_ended", role=mark.role.value, left=", ".join(left))

    # Living.

    def _save(self) -> None:
        """Have everything that the next daemon must know written soon."""
        self.keeper.save(
            SavedPair(
                service=self.settings.service.name,
                boot_id=self.boot,
                generation=self.board.daemon.generation,
                instances={role: runner.saved() for role, runner in self.runners.items()},
                saved_at=stamp(_now()),
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

    async def _raise_bug(self) -> None:
        """Let a bug in a callback end the daemon, as one in a task does; instances run on."""
        await self.bug

    # Ending.

    def _set_signals(self, group: asyncio.TaskGroup) -> None:
        """SIGTERM and SIGINT end the pair, the next one cuts what is waited for; SIGHUP reloads, SIGUSR2 upgrades."""

        def end(number: signal.Signals) -> None:
            if self.life.end is End.UPGRADE:
                self.late_signals.append(number)  # for the one that comes
                return
            if self.life.end is End.STOP:
                for role in Role:
                    self.relay.cut(role)
            self.life.stop(BY_SIGNAL)

        def upgrade() -> None:
            try:
                self.life.upgrade(BY_SIGNAL)
            except Refused as refused:
                log.warning("signal_refused", reason=str(refused))

        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, end, number)
        self.loop.add_signal_handler(signal.SIGHUP, lambda: group.create_task(self._reload()))
        self.loop.add_signal_handler(signal.SIGUSR2, upgrade)
        let_signals_in()

    async def _reload(self) -> None:
        try:
            await self.configuration.reload(BY_SIGNAL)
        except Refused as refused:
            log.error("configuration_not_reloaded", reason=str(refused))

    async def _stop(self) -> None:
        """End the pair: the primary while the backup serves, if it can, then the listeners, then the backup."""
        log.info("daemon_stopping")
        for role in Role:
            if role is Role.BACKUP or not self.board.instance(role.other).is_eligible:
                self.relay.stop_accepting()
            self.runners[role].order(Stop(), BY_DAEMON, remember=False)
            await self.board.until(lambda view, role=role: view.instances[role].unit.state is UnitState.STOPPED)  # type: ignore[misc]


def _now() -> datetime:
    return datetime.now(UTC)
