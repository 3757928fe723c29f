"""Runs the parts in one task group, and owns the order in which they end."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from clojarsd.core.errors import Failed, Refused
from clojarsd.core.history import EventName
from clojarsd.core.names import Goal, Role, UnitState
from clojarsd.core.settings import Settings
from clojarsd.core.settings_check import cautions
from clojarsd.core.settings_features import features_not_acted_on
from clojarsd.core.unit import EndCause
from clojarsd.core.unit_events import Start, Stop
from clojarsd.core.view import FrontendView
from clojarsd.parts import Parts
from clojarsd.runtime.life import End
from clojarsd.runtime.unit_parts import BY_DAEMON
from clojarsd.runtime.watchdog import keeping_alive
from clojarsd.system.loop_guard import LoopGuard
from clojarsd.system.steering_directory import ROOT, sweep
from clojarsd.system.succession import Inherited, let_signals_in
from clojarsd.system.world import foreign_sources, look_at_world, make_directories

log = structlog.get_logger()

UNMOUNT_TIMEOUT = 2.0
"""Seconds in which a file system that somebody looks into at the end of the daemon shall be free."""

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
    when_up: Callable[[Mapping[str, FrontendView]], None] = lambda frontends: None,
    inherited: Inherited | None = None,
    directory: str | None = None,
) -> Successor | None:
    """Run the pair until it is told to end, stop it, and return; or return and leave everything running to other code.

    Args:
        config: where the settings came from.
        when_up: called once, with the frontends, when orders and clients can come.
        inherited: what this code was handed when it took another's place.
        directory: a temporary directory that goes with the daemon's end, for who comes after.

    Raises:
        Failed: it could not begin; nothing was started, and what runs already was left alone.
    """
    world = look_at_world(settings.service.user)
    make_directories((settings.service.runtime_dir, settings.service.state_dir, settings.service.log_dir))
    async with AsyncExitStack() as stack:
        parts = Parts(settings, config, world, inherited)
        await parts.open(stack)
        daemon = Daemon(parts)
        if await daemon.live(when_up) is End.STOP:
            for listener in parts.notify.listeners.values():
                listener.close()  # nobody is left who would say anything there
            log.info("daemon_stopped")
            return None
        successor = daemon.hand_over(directory)
    log.info("daemon_replaced", generation=successor.inherited.generation)
    return successor


class Daemon:
    """Runs the parts from their beginning to the end. Made by `serve`."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.late_signals: list[signal.Signals] = []

    def _start_wanted(self) -> None:
        """Start what is to be up and is not on its way there, nor was given up or ended by itself in this boot."""
        for runner in self.parts.runners.values():
            unit = runner.unit
            never = unit.state is UnitState.STOPPED and unit.goal is Goal.DOWN
            if runner.wanted is Goal.UP and (never or unit.cause is EndCause.STOP):
                runner.order(Start(), BY_DAEMON, remember=False)

    async def live(self, when_up: Callable[[Mapping[str, FrontendView]], None]) -> End:
        """Be the daemon until it is to end."""
        async with LoopGuard(), asyncio.TaskGroup() as group:
            with keeping_alive(self.parts.notifier):
                self._set_signals(group)
                tasks = [group.create_task(long_lived) for long_lived in self._long_lived()]
                deploying = group.create_task(self.parts.rollouts.deployer.run())
                self._say_begun()
                self._start_wanted()
                self.parts.relay.begin()
                gc.collect()
                gc.freeze()  # what lives as long as the daemon is not looked at by every collection
                gc.enable()
                self.parts.notifier.ready(f"serving {self.parts.settings.service.name}")
                when_up({name: shown.view() for name, shown in self.parts.relay.views.items()})
                end = await self.parts.life.ended()
                await self._leave_rollout(deploying, end)
                if end is End.STOP:
                    self.parts.notifier.stopping(within=self.parts.configuration.plans.longest_stop)
                    await self._stop()
                    self.parts.life.stopped()
                    await self.parts.relay.close()
                self.parts.control.why_ending = (
                    "clojarsd is ending" if end is End.STOP else "clojarsd is being upgraded"
                )
                await self.parts.control.finish()
                for task in tasks:
                    task.cancel()
        return end

    def _long_lived(self) -> list[Coroutine[Any, Any, object]]:
        return [
            self.parts.history.run(),
            self.parts.keeper.run(),
            self.parts.orders.run(),
            self.parts.life.run(),
            self.parts.configuration.run(),
            self.parts.relay.run(),
            self.parts.steering.run(),
            self.parts.memory.run(),
            self.parts.logs.run(),
            self.parts.stalls.run(),
            self.parts.control.serve(),
            self._raise_bug(),
            self._renew_relay(),
            self._end_leftovers(),
            *(watch.run() for watch in self.parts.watches.values()),
            *(warmer.run() for warmer in self.parts.warmers.values()),
            *(notified.run() for notified in self.parts.notify.notified.values()),
        ]

    def _say_begun(self) -> None:
        seen = self.parts.board.daemon
        if self.parts.inherited is None:
            self.parts.history.record(EventName.DAEMON_STARTED, f"clojarsd {seen.version} started", pid=seen.pid)
        else:
            text = f"clojarsd {seen.version} took over from {self.parts.inherited.version}"
            self.parts.history.record(
                EventName.DAEMON_UPGRADED,
                text,
                None,
                self.parts.inherited.by,
                pid=seen.pid,
                before=self.parts.inherited.version,
                generation=seen.generation,
            )
        for sentence in features_not_acted_on(self.parts.settings):
            log.warning("setting_without_effect", setting=sentence)
        for sentence in (*cautions(self.parts.settings), *foreign_sources(self.parts.settings)):
            log.warning("setting_needs_care", setting=sentence)

    async def _leave_rollout(self, deploying: asyncio.Task[Any], end: End) -> None:
        """Begin no rollout, and leave the one that is under way to the next daemon, before the pair is touched."""
        self.parts.rollouts.rollouts.refuse("clojarsd is stopping" if end is End.STOP else "clojarsd is being upgraded")
        deploying.cancel()
        await asyncio.wait((deploying,))

    async def _renew_relay(self) -> None:
        """Let a relay process of other code hand its connections over to one of ours."""
        if self.parts.relay.is_outdated:
            try:
                await self.parts.relay.replace()
            except Failed as failed:
                log.error("relay_not_renewed", reason=str(failed))

    async def _end_leftovers(self) -> None:
        for mark in self.parts.leftovers:
            log.warning("leftover_ended", role=mark.role.value, incarnation=mark.incarnation)
            if left := await self.parts.processes.end_remains(mark):
                log.error("leftover_not_ended", role=mark.role.value, left=", ".join(left))

    async def _raise_bug(self) -> None:
        """Let a bug in a callback end the daemon, as one in a task does; instances run on."""
        await self.parts.bug

    # Ending.

    def hand_over(self, directory: str | None) -> Successor:
        """What the code that comes is handed; the descriptors in it are no longer ours to close."""
        parts = self.parts
        control, lock = parts.control_socket.hand_over()
        notify = {role.value: listener.socket.detach() for role, listener in parts.notify.listeners.items()}
        seen = parts.board.daemon
        handed = Inherited(control, lock, notify, seen.generation + 1, seen.version, parts.life.by, directory)
        return Successor(handed, parts.notifier.environment, tuple(self.late_signals))

    def _set_signals(self, group: asyncio.TaskGroup) -> None:
        """SIGTERM and SIGINT end the pair, the next one cuts what is waited for; SIGHUP reloads, SIGUSR2 upgrades."""

        def end(number: signal.Signals) -> None:
            if self.parts.life.end is End.UPGRADE:
                self.late_signals.append(number)  # for the one that comes
                return
            if self.parts.life.end is End.STOP:
                for role in Role:
                    self.parts.relay.cut(role)
            self.parts.life.stop(BY_SIGNAL)

        def upgrade() -> None:
            try:
                self.parts.life.upgrade(BY_SIGNAL)
            except Refused as refused:
                log.warning("signal_refused", reason=str(refused))
                self.parts.history.record(EventName.ORDER, str(refused), None, BY_SIGNAL, refused=str(refused))

        for number in (signal.SIGTERM, signal.SIGINT):
            self.parts.loop.add_signal_handler(number, end, number)
        self.parts.loop.add_signal_handler(signal.SIGHUP, lambda: group.create_task(self._reload()))
        self.parts.loop.add_signal_handler(signal.SIGUSR2, upgrade)
        let_signals_in()

    async def _reload(self) -> None:
        try:
            await self.parts.configuration.reload(BY_SIGNAL)
        except Refused as refused:
            log.error("configuration_not_reloaded", reason=str(refused))
            self.parts.history.record(EventName.ORDER, str(refused), None, BY_SIGNAL, refused=str(refused))

    async def _stop(self) -> None:
        """End the pair: the primary while the backup serves, if it can, then the listeners, then the backup."""
        log.info("daemon_stopping")
        for role in Role:
            if role is Role.BACKUP or not self.parts.board.instance(role.other).is_eligible:
                self.parts.relay.stop_accepting()
            self.parts.runners[role].order(Stop(), BY_DAEMON, remember=False)
            await self.parts.board.until(lambda view, role=role: view.instances[role].unit.state is UnitState.STOPPED)  # type: ignore[misc]
        if left := await self.parts.processes.end_strangers():
            log.error("descendants_left", left=", ".join(left))
        if reason := await asyncio.to_thread(sweep, ROOT, UNMOUNT_TIMEOUT):
            log.warning("bpf_file_system_left", path=str(ROOT), reason=reason, waited_s=UNMOUNT_TIMEOUT)
