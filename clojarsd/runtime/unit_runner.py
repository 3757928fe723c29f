"""Drives one instance: takes orders and reports, steps the machine, carries its effects out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from clojarsd.core import unit_events as events
from clojarsd.core.adoption import resumed
from clojarsd.core.errors import LaunchFailed, Refused
from clojarsd.core.health import CheckRecord
from clojarsd.core.history import EventName, stamp
from clojarsd.core.launch import LaunchSpec
from clojarsd.core.names import UNKNOWN_END, ExitStatus, Goal, HookName, Incarnation, Role, UnitState
from clojarsd.core.saved import SavedInstance
from clojarsd.core.unit import step
from clojarsd.core.view import LastExit
from clojarsd.core.warmup import Warmup
from clojarsd.runtime.unit_hooks import UnitHooks
from clojarsd.runtime.unit_memory import announcement, merge_records, remembered, saved
from clojarsd.runtime.unit_news import UnitNews, now
from clojarsd.runtime.unit_parts import Checker, Plan, Reports, Running, Surroundings, Warmer

log = structlog.get_logger()

_AT_REST = frozenset({UnitState.STOPPED, UnitState.FAILED})
_WITHOUT_PROCESS = _AT_REST | {UnitState.BACKOFF}


class UnitRunner(UnitNews):
    """One instance, as long as the daemon lives.

    Everything happens in the loop's thread and at once: an order has taken its effect, on eligibility too, when `order`
    returns, so that no two orders can both rely on the same other instance. Checker and warmer are given with `attach`.
    """

    def __init__(self, role: Role, plan: Plan, around: Surroundings) -> None:
        super().__init__(role, plan, around)
        self._checker: Checker
        self._warmer: Warmer
        self._process: Running | None = None
        self._spec: LaunchSpec | None = None
        self._hooks = UnitHooks(role, around.run_hook)
        self._environment: Mapping[str, str] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._queue: deque[events.Event] = deque()
        self._stepping = False
        self._abandoned = False

    def attach(self, checker: Checker, warmer: Warmer, before: SavedInstance | None = None) -> None:
        """Take those who will report to this runner, and show the unit for the first time.

        Args:
            before: what an earlier daemon knew of the instance; what it was doing is taken up where it stood.
        """
        self._checker, self._warmer = checker, warmer
        if before is not None:
            self._restore(before)
        self._publish()
        if self._unit.state is UnitState.DRAINING:
            self._perform(events.BeginDrain(self._unit.incarnation))

    @property
    def pid(self) -> int | None:
        """The number of its process, or None without one."""
        return self._process.pid if self._process is not None else None

    @property
    def wanted(self) -> Goal:
        """What an operator wants of it; up where nobody has said anything."""
        return self._memory.wanted

    @property
    def lacking(self) -> str | None:
        """What must be there before it can be launched, in words, as it is now; None when nothing is missing."""
        return self._plan.lacking()

    # Orders and news.

    def order(
        self, order: events.Order, by: str, *, environment: Mapping[str, str] | None = None, remember: bool = True
    ) -> None:
        """Carry an order out.

        Args:
            environment: what the next process gets besides its own, this once.
            remember: whether a start or stop is what the operator wants from here on, over restarts of the daemon and
                of the machine; False for what the daemon does by itself.

        Raises:
            Refused: the order does not fit the unit's state; nothing was done.
        """
        assert not self._stepping, "an order comes from outside, never out of an effect"
        before, self._memory.by = self._memory.by, by
        kept, self._environment = self._environment, environment or self._environment
        try:
            self._run(order)
        except Refused as refused:
            self._memory.by, self._environment = before, kept
            verb = type(order).__name__.lower()
            raise Refused(f"cannot {verb} {self.role.value}: {refused}") from None
        if remember and isinstance(order, events.Start | events.Stop | events.Restart):
            self._remember(Goal.DOWN if isinstance(order, events.Stop) else Goal.UP, by)

    def report(self, event: events.Event) -> None:
        """Take news from the outside; may be called out of an effect."""
        if self._stepping:
            self._queue.append(event)
        elif not self._abandoned:
            self._run(event)

    def replan(self, plan: Plan) -> None:
        """Live by other settings from now on; what needs a new process waits for one."""
        old, self._plan = self._plan, plan
        if self._unit.has_process and old.checks != plan.checks:
            is_ready = self._unit.state is not UnitState.STARTING
            self._memory.records = merge_records(old.checks, self._memory.records, plan.checks, is_ready)
            self._memory.checked_at = [None] * len(plan.checks)
        if self._checks_now():
            self._checker.begin(self._unit.incarnation, self._memory.records)
        self._publish()

    def renew_lack(self) -> None:
        """Say anew what it rests for: that may have changed since it was launched in vain."""
        end, lacking = self._unit.last_end, self.lacking
        if self._unit.lacks not in (None, lacking) and lacking is not None and isinstance(end, events.NotLaunched):
            self._unit = replace(self._unit, last_end=replace(end, reason=lacking))
            self._publish()
            self._around.changed()

    # From one daemon to the next.

    def saved(self) -> SavedInstance:
        """What the next daemon must know."""
        process = self._process.identity if self._process is not None else None
        return saved(self._unit, self._memory, self._plan, process)

    def _restore(self, before: SavedInstance) -> None:
        self._memory = remembered(before, self._plan)
        self._unit = resumed(before.unit, self._loop.time(), self._plan.policy)
        if before.unit.has_process:
            self._adopt(before)
        elif before.unit.hook is not None:
            self._run_hook(before.unit.hook)
        self._set_timer()

    def _adopt(self, before: SavedInstance) -> None:
        incarnation = before.unit.incarnation
        if before.process is not None:
            reports = self._reports(incarnation)
            self._process = self._around.adopt(before.process, lambda _: reports, self.role, incarnation)
        if self._process is None:
            self._loop.call_soon(self._ended, incarnation, UNKNOWN_END)
            return
        self._memory.adopted = True
        is_seen = before.process is not None and before.process.executable is not None  # not everywhere it can be
        self._memory.executed = is_seen or before.unit.ready_at is not None
        self._around.launched(self.role)
        if before.unit.ready_at is not None:
            self._around.proved(self.role)
        if before.unit.hook is not None:
            self._run_hook(before.unit.hook)
        if before.unit.warming_since is not None:
            self._begin_warmup(incarnation)
        if self._checks_now():
            self._checker.begin(incarnation, self._memory.records)
        self._log.info("unit_adopted", pid=self.pid, incarnation=incarnation, state=before.unit.state.value)
        text = f"{self.role.value} was found running as process {self.pid}, and is supervised again"
        self._around.history.record(EventName.DAEMON_ADOPTED, text, self.role, pid=self.pid, incarnation=incarnation)

    def abandon(self) -> None:
        """Let the process run on, unwatched; a hook's commands run on too."""
        self._abandoned = True
        if self._timer is not None:
            self._timer.cancel()
        self._hooks.abandon()
        if self._process is not None:
            self._process.abandon()
            self._process = None

    # Steps and effects.

    def _run(self, event: events.Event) -> None:
        """Step through the event and through those that its effects bring."""
        self._queue.append(event)
        self._stepping = True
        try:
            while self._queue:
                self._step(self._queue.popleft())
        except Exception as bug:
            if not isinstance(bug, Refused):
                self._around.on_bug(bug)  # most callers are callbacks of the loop, which would only log it
            raise
        finally:
            self._stepping = False

    def _step(self, event: events.Event) -> None:
        before = self._unit
        self._unit, effects = step(before, event, self._loop.time(), self._plan.policy)
        if isinstance(event, events.HookEnded) and event.failure is not None and before.hook is event.hook:
            self._log.warning("hook_failed", hook=event.hook.value, reason=event.failure)
        if self._unit is before and not effects:
            return
        moved = self._unit.state is not before.state or self._unit.incarnation != before.incarnation
        if moved:
            self._memory.since = now()
        if self._unit.state in _WITHOUT_PROCESS:
            self._memory.in_force = None
        self._memory.count(before, self._unit, event, self._plan)
        self._set_timer()
        self._publish()  # before the effects: what must not get connections any more gets none from here on
        for effect in effects:
            self._perform(effect)
        self._publish()
        self._around.changed()
        if before.ready_at is None and self._unit.ready_at is not None:
            self._around.proved(self.role)
        if moved and self._unit.state in _AT_REST:
            self._around.rested(self.role)
        if moved:
            self._log.info(f"unit_{self._unit.state.value}", incarnation=self._unit.incarnation, pid=self.pid)

    def _perform(self, effect: events.Effect) -> None:
        traffic = self._around.traffic
        match effect:
            case events.Launch(incarnation):
                self._launch(incarnation)
            case events.RunHook(_, hook):
                self._run_hook(hook)
            case events.EndHook():
                self._hooks.cancel()
            case events.BeginWarmup(incarnation):
                self._begin_warmup(incarnation)
            case events.EndWarmup():
                self._warmer.end()
                self._memory.warmup = None
            case events.Signal(_, number):
                if self._process is not None:
                    self._process.signal(number)
            case events.SignalMain(_, number):
                if self._process is not None:
                    self._process.signal_main(number)
            case events.BeginDrain(incarnation, within):
                self._memory.drained = None
                drained, left = events.Drained(incarnation), self._unit.time_left(self._loop.time())
                traffic.begin_drain(self.role, lambda: self.report(drained), left if within is None else within)
            case events.EndDrain():
                traffic.end_drain(self.role)
            case events.CutConnections():
                traffic.cut(self.role)
            case events.EndChecks():
                self._checker.end()
            case events.Announce(event):
                self._announce(event)

    def _launch(self, incarnation: Incarnation) -> None:
        self._memory.records = tuple(CheckRecord() for _ in self._plan.checks)
        self._memory.checked_at = [None] * len(self._plan.checks)
        self._memory.forget_process()
        self._memory.left = self._memory.in_force = self._memory.warmup = None
        self._around.traffic.end_drain(self.role)
        environment, self._environment = self._environment, {}
        try:
            planned = self._plan.launch(incarnation, environment)
            self._spec, self._memory.release, self._memory.in_force = planned.spec, planned.release, planned.in_force
            is_plain = self._unit.failures.in_a_row > 0  # what has failed is tried again with nothing added
            self._memory.begin_launch(self._loop.time(), None if is_plain else planned.archive)
            spec = planned.spec if is_plain or planned.quicker is None else planned.quicker
            self._process = self._around.launch(spec, lambda pid: self._reports(incarnation))
        except LaunchFailed as failed:
            self._memory.in_force = None
            self.report(events.NotLaunched(incarnation, failed.stage, failed.reason))
            return
        self._memory.started_at = stamp(now())
        self._around.launched(self.role)

    def _reports(self, incarnation: Incarnation) -> Reports:
        return Reports(partial(self._executed, incarnation), partial(self._ended, incarnation))

    def _executed(self, incarnation: Incarnation) -> None:
        """The command runs, so nobody else had its ports: only from here on do answers on them speak for it."""
        if self._memory.executed:
            return  # it was adopted, and is known to have become ready
        self._memory.executed = True
        if self._checks_now():
            self._checker.begin(incarnation)
        text = f"{self.role.value} was launched as process {self.pid}"
        self._around.history.record(
            EventName.INSTANCE_STARTED, text, self.role, self._memory.by, pid=self.pid, incarnation=incarnation
        )
        self._around.changed()

    def _checks_now(self) -> bool:
        """Whether there is something to check, and somebody who wants to know."""
        return self._process is not None and self._memory.executed and self._unit.state is not UnitState.STOPPING

    def _ended(self, incarnation: Incarnation, how: ExitStatus | LaunchFailed) -> None:
        self._process = None
        self._memory.end_stall(self._loop.time())
        self._memory.forget_process()
        self._around.gone(self.role)
        if isinstance(how, LaunchFailed):
            self.report(events.NotLaunched(incarnation, how.stage, how.reason))
        else:
            self._memory.last_exit = LastExit(how, stamp(now()))
            self.report(events.Exited(incarnation, how))

    # What comes between checks and clients, and hooks.

    def _begin_warmup(self, incarnation: Incarnation) -> None:
        planned = self._plan.warmup
        if planned is None:  # an earlier daemon had begun one by other settings
            self._loop.call_soon(self.report, events.Warmed(incarnation, None))
            return
        self._memory.warmup = Warmup(planned.rounds)
        self._warmer.begin(incarnation, planned, self.in_force)

    def _run_hook(self, hook: HookName) -> None:
        end = self._unit.last_end
        how = end.status if isinstance(end, events.Exited) else None
        spec = partial(self._hook_spec, hook)
        self._hooks.begin(hook, self._plan.hooks.get(hook), spec, how, partial(self._hook_ended, hook))

    def _hook_ended(self, hook: HookName, failure: str | LaunchFailed | None) -> None:
        incarnation = self._unit.incarnation
        if isinstance(failure, LaunchFailed) and failure.stage.waits_for_operator:
            self.report(events.HookEnded(incarnation, hook, failure.reason, failure.stage))
        else:
            self.report(events.HookEnded(incarnation, hook, None if failure is None else str(failure)))

    def _hook_spec(self, hook: HookName) -> LaunchSpec:
        if self._spec is not None and hook is not HookName.PRE_START:
            return self._spec
        return self._plan.launch(self._unit.incarnation, self._environment).spec

    # What others see.

    def _announce(self, event: EventName) -> None:
        unit, detail = self._unit, dict[str, Any](incarnation=self._unit.incarnation)
        end = unit.last_end
        if event is EventName.INSTANCE_EXITED and end is not None:
            detail["incarnation"] = end.incarnation
            if isinstance(end, events.NotLaunched):
                self._log.warning("launch_failed", stage=end.stage.value, reason=end.reason)
            else:
                self._log.info("unit_exited", how=str(end.status), incarnation=end.incarnation)
                detail |= {"code": end.status.code, "signal": end.status.signal}
        if event is EventName.INSTANCE_READY and self._memory.start_seconds is not None:
            detail |= {"start_seconds": round(self._memory.start_seconds, 3), "cds": self._memory.cds}
        if event is EventName.DRAIN_FINISHED and unit.state is not UnitState.READY:
            self._memory.drained = self._around.traffic.tally(self.role)
            detail |= self._memory.drained.detail() if self._memory.drained is not None else {}
        text = announcement(self.role, event, unit, self._view().reason, self._plan.policy, self._memory)
        self._around.history.record(event, text, self.role, self._memory.by, **detail)

    def _remember(self, goal: Goal, by: str) -> None:
        memory = self._memory
        if (memory.wanted, memory.goal_by is None) == (goal, False):
            return  # wanted already: who wanted it first, and since when, is what people ask for
        memory.wanted, memory.goal_by, memory.goal_at = goal, by, stamp(now())
        self._publish()
        self._around.changed()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self._unit.deadline
        self._timer = None if due is None else self._loop.call_at(due, self.report, events.DeadlinePassed())
