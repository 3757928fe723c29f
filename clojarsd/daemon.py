"""Opens every long-lived thing, runs them in one task group, and owns the order in which they end."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import structlog

from clojarsd.core.api import Access
from clojarsd.core.errors import ClojarsdError
from clojarsd.core.history import EventName, stamp
from clojarsd.core.launch import LaunchSpec, World, log_path, make_spec
from clojarsd.core.names import Role, UnitState
from clojarsd.core.placeholders import placeholders_in
from clojarsd.core.restart import RestartPolicy
from clojarsd.core.settings import CheckSettings, FrontendSettings, InstanceSettings, Settings
from clojarsd.core.settings_features import features_not_acted_on
from clojarsd.core.settings_types import CheckKind, Mode
from clojarsd.core.unit import UnitPolicy
from clojarsd.core.unit_events import Start, Stop
from clojarsd.core.view import DaemonView
from clojarsd.runtime.budget import Budget
from clojarsd.runtime.control import ControlServer
from clojarsd.runtime.frontend import Frontend, FrontendPlan
from clojarsd.runtime.health_watch import HealthWatch, PlannedCheck
from clojarsd.runtime.history import History
from clojarsd.runtime.orders import Orders
from clojarsd.runtime.status import Board
from clojarsd.runtime.traffic import Traffic
from clojarsd.runtime.unit_runner import Plan, Surroundings, UnitRunner
from clojarsd.system.control_socket import ControlSocket
from clojarsd.system.event_store import EventStore
from clojarsd.system.notify import Notifier
from clojarsd.system.probe import Prober
from clojarsd.system.process import Processes
from clojarsd.system.relay import RelayResources
from clojarsd.system.sockets import resolve
from clojarsd.system.world import look_at_world, make_directories, resolve_release

log = structlog.get_logger()

RESET_FLUSH = 5.0
"""Seconds without progress after which bytes for one side of a reset connection are given up."""
MOST_PIPES = 64
"""How many directions of connections may be spliced at the same time; the others are copied."""
KEPT_DESCRIPTORS = 64
"""For the control socket, checks, launches, files: what clients never get."""
BY_DAEMON = "clojarsd"
"""Who orders what the daemon does by itself."""


async def serve(settings: Settings, config: Path, when_up: Callable[[], None] = lambda: None) -> None:
    """Run the pair until SIGTERM or SIGINT, then stop it and return.

    Args:
        config: where the settings came from, for `status`.
        when_up: called once, when orders and clients can come.

    Raises:
        Failed: it could not begin; nothing was started.
    """
    world = look_at_world(settings.service.user)
    make_directories((settings.service.runtime_dir, settings.service.state_dir, settings.service.log_dir))
    async with AsyncExitStack() as stack:
        notifier = stack.enter_context(Notifier())
        control_socket = stack.enter_context(ControlSocket.bind(settings.control.socket))
        frontends = _open_frontends(settings, stack)
        history = await stack.enter_async_context(History(EventStore(settings.service.state_dir / "events.sqlite")))
        prober = await stack.enter_async_context(Prober())
        for frontend in frontends.values():
            frontend.attach(history)
        daemon = DaemonView(version("clojarsd"), os.getpid(), stamp(datetime.now(UTC)), str(config))
        board = Board(settings.service.name, daemon, partial(_current_release, settings), frontends)
        traffic = Traffic(tuple(frontends.values()))
        processes = Processes()
        stack.enter_context(processes.adopting_orphans())
        bug: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        around = Surroundings(processes.launch, traffic, history, board, partial(_fail_once, bug))
        runners, watches = {}, {}
        for role in Role:
            runners[role] = UnitRunner(role, _plan(role, settings, world), around)
            watches[role] = HealthWatch(role, _checks(settings, role, prober), runners[role])
            runners[role].attach(watches[role])
            stack.callback(runners[role].abandon)
        for frontend in frontends.values():
            frontend.doubt = lambda role: watches[role].hurry()
            frontend.changed = board.wake
        longest_failback = max((frontend.failback for frontend in settings.frontends.values()), default=0.0)
        orders = Orders(runners, board, longest_failback)
        access = Access(settings.control.operators, settings.control.viewers, os.geteuid())
        logs = {role: Path(log_path(settings.service, role)) for role in Role}
        control = ControlServer(control_socket, orders, board, history, access, logs)
        async with asyncio.TaskGroup() as group:
            ended = _ended_by_signal(traffic)
            tasks = [
                group.create_task(long_lived)
                for long_lived in (
                    history.run(),
                    orders.run(),
                    control.serve(),
                    _raise_from(bug),
                    *(watch.run() for watch in watches.values()),
                )
            ]
            history.record(EventName.DAEMON_STARTED, f"clojarsd {daemon.version} started", pid=daemon.pid)
            for sentence in features_not_acted_on(settings):
                log.warning("setting_without_effect", setting=sentence)
            for role in Role:
                runners[role].order(Start(), BY_DAEMON)
            for frontend in frontends.values():
                frontend.begin()
            gc.collect()
            gc.freeze()  # what lives as long as the daemon is not looked at by every collection
            notifier.ready(f"serving {settings.service.name}")
            when_up()
            await ended.wait()
            notifier.stopping(within=_longest_stop(settings))
            orders.refuse("clojarsd is stopping")
            await _stop(runners, frontends, board)
            for task in tasks:
                task.cancel()
    log.info("daemon_stopped")


async def _stop(runners: Mapping[Role, UnitRunner], frontends: Mapping[str, Frontend], board: Board) -> None:
    """End the pair: the primary while the backup serves, if it can, then the listeners, then the backup."""
    log.info("daemon_stopping")
    for role in Role:
        if role is Role.BACKUP or not board.instance(role.other).is_eligible:
            for frontend in frontends.values():
                frontend.stop_accepting()
        runners[role].order(Stop(), BY_DAEMON)
        await board.until(lambda view, role=role: view.instances[role].unit.state is UnitState.STOPPED)  # type: ignore[misc]


def _longest_stop(settings: Settings) -> float:
    """Seconds that an ordinary stop of both instances can take, one after the other."""
    drain = max((frontend.drain for frontend in settings.frontends.values()), default=0.0)
    return sum(drain + sum(step.wait for step in one.stop_signal) for one in settings.instances.values())


def _fail_once(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


async def _raise_from(bug: asyncio.Future[None]) -> None:
    """Let a bug in a callback end the daemon, as one in a task does; instances run on."""
    await bug


def _ended_by_signal(traffic: Traffic) -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; a further one cuts the connections that are being waited for."""
    ended = asyncio.Event()

    def signalled() -> None:
        if ended.is_set():
            for role in Role:
                traffic.cut(role)
        ended.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    loop.add_signal_handler(signal.SIGHUP, lambda: log.warning("reload_ignored", reason="not in this version"))
    return ended


def _open_frontends(settings: Settings, stack: AsyncExitStack) -> dict[str, Frontend]:
    """Every frontend, listening; closed with the stack."""
    longest_idle = max((frontend.drain_idle for frontend in settings.frontends.values()), default=0.0)
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    pipes = min(MOST_PIPES, descriptors // 32)
    resources = RelayResources(reset_flush=RESET_FLUSH, move_flush=longest_idle, max_pipes=pipes)
    stack.callback(resources.close)
    budget = Budget(descriptors - KEPT_DESCRIPTORS - 2 * pipes)
    frontends = {}
    for name, frontend in settings.frontends.items():
        frontends[name] = Frontend(_frontend_plan(name, frontend, settings), resources, budget)
        stack.callback(frontends[name].close)
        frontends[name].open()
    return frontends


def _frontend_plan(name: str, frontend: FrontendSettings, settings: Settings) -> FrontendPlan:
    reason = None if frontend.mode is Mode.RELAY else "steering in the kernel is not in this version"
    return FrontendPlan(
        name=name,
        listen=frontend.listen,
        backends={role: resolve(settings.instances[role].address(frontend.port)) for role in Role},
        movable=any(check.kind is CheckKind.HTTP and check.port == frontend.port for check in settings.checks),
        mode_reason=reason,
        quickack=frontend.quickack,
        connect_timeout=frontend.connect_timeout,
        hold=frontend.hold,
        hold_connections=frontend.hold_connections,
        drain=frontend.drain,
        drain_idle=frontend.drain_idle,
        failback=frontend.failback,
    )


def _plan(role: Role, settings: Settings, world: World) -> Plan:
    instance = settings.instances[role]
    return Plan(
        name=instance.name,
        ports=dict(instance.ports),
        policy=_policy(instance, settings),
        checks=tuple(check.kind.value for check in _acted_on(settings)),
        spec=partial(_spec, role, settings, world),
    )


def _policy(instance: InstanceSettings, settings: Settings) -> UnitPolicy:
    return UnitPolicy(
        start_timeout=instance.start_timeout,
        drain_timeout=max((frontend.drain for frontend in settings.frontends.values()), default=0.0),
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
    )


def _spec(role: Role, settings: Settings, world: World) -> tuple[LaunchSpec, str | None]:
    """The launch of the role's instance with the release as it is now, and the release's name."""
    instance, releases, name = settings.instances[role], {}, None
    words = [*instance.command, *instance.environment.values()]
    wanted = {placeholder for word in words for placeholder in placeholders_in(word)}
    if settings.deploy is not None:
        current = settings.deploy.releases / settings.deploy.current
        releases["current"] = str(current)
        if "release" in wanted:
            release = resolve_release(current)
            releases["release"], name = str(release), release.name
    return make_spec(role, instance, settings.service, world, releases), name


def _current_release(settings: Settings) -> str | None:
    if settings.deploy is None:
        return None
    try:
        return resolve_release(settings.deploy.releases / settings.deploy.current).name
    except ClojarsdError:
        return None


def _acted_on(settings: Settings) -> list[CheckSettings]:
    """The checks that this version carries out; when there is none, a connection to each port that clients use."""
    able = [check for check in settings.checks if check.kind in (CheckKind.TCP, CheckKind.HTTP)]
    if able:
        return able
    ports = dict.fromkeys(frontend.port for frontend in settings.frontends.values())
    return [CheckSettings.model_validate({"kind": "tcp", "port": port}) for port in ports]


def _checks(settings: Settings, role: Role, prober: Prober) -> list[PlannedCheck]:
    planned = []
    for check in _acted_on(settings):
        assert check.port is not None
        address = settings.instances[role].address(check.port)
        ask = prober.http if check.kind is CheckKind.HTTP else prober.tcp
        planned.append(
            PlannedCheck(check.kind.value, partial(ask, check, address), check.interval, check.rise, check.fall)
        )
    return planned
