"""What a runner keeps in mind of its instance besides the machine's unit, and how it shows that to others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.health import CheckRecord, verdict
from clojarsd.core.history import EventName, stamp
from clojarsd.core.identity import ProcessIdentity
from clojarsd.core.names import Goal, Health, Incarnation, Role, UnitState
from clojarsd.core.reasons import describe_end, how_it_ended, why_not_eligible, why_unready
from clojarsd.core.saved import InForce, SavedInstance
from clojarsd.core.unit import EndCause, Unit, UnitPolicy
from clojarsd.core.unit_events import DeadlinePassed, Event
from clojarsd.core.view import CheckView, InstanceView, LastExit, Next
from clojarsd.core.warmup import Warmup
from clojarsd.runtime.unit_parts import Plan


@dataclass(slots=True)
class UnitMemory:
    """Facts about one instance that are kept for people and for the next daemon.

    Attributes:
        wanted: what an operator wants of it, or nobody (`goal_by` is None): then it is to be up.
        by: whose order is being carried out, or None for what happens unasked.
        noticed: the incarnation that has said READY=1.
        left: what the latest process has left behind, in words; None when nothing.
        trouble: what is wrong with the process though it may serve, in words; None when nothing is.
        ended_after: how many stop signals the latest process that has ended was sent.
        unready: what the latest start that was given up still lacked, in words; None where that is not known.
        drained: what has become of its connections in the latest drain that is over; None: it is not, or not known.
        adopted: whether another daemon launched the process.
        executed: whether its command runs: before that others may be on its ports.
        stalled: that the process accepts no connections, in words; None when it is not known not to.
        stalled_since: monotonic instant at which that was found.
        stalls: how often it was found, over all processes.
        stall_seconds: how long it lasted in all, the present stall excepted.
        warmup: that of the latest process, or None without one.
        launched_at: monotonic instant at which the process was launched, or None.
        archive: the class-data archive that it was given, or None.
        start_seconds: from the launch until its checks passed for the first time, or None.
        cds: whether it has mapped such an archive; None until its checks have passed.
    """

    since: datetime
    records: tuple[CheckRecord, ...] = ()
    checked_at: list[str | None] = field(default_factory=list)
    started_at: str | None = None
    last_exit: LastExit | None = None
    release: str | None = None
    restarts: int = 0
    wanted: Goal = Goal.UP
    goal_by: str | None = None
    goal_at: str | None = None
    by: str | None = None
    in_force: InForce | None = None
    noticed: Incarnation | None = None
    status_text: str | None = None
    left: str | None = None
    trouble: str | None = None
    ended_after: int = 0
    unready: str | None = None
    drained: DrainTally | None = None
    adopted: bool = False
    executed: bool = False
    stalled: str | None = None
    stalled_since: float = 0.0
    stalls: int = 0
    stall_seconds: float = 0.0
    warmup: Warmup | None = None
    launched_at: float | None = None
    archive: str | None = None
    start_seconds: float | None = None
    cds: bool | None = None

    def begin_launch(self, now: float, archive: str | None) -> None:
        """A process is made, with that class-data archive or none."""
        self.launched_at, self.archive = now, archive

    def end_start(self, now: float, has_archive: bool) -> None:
        """The checks of the process have passed for the first time; how long that took is known if its launch is."""
        if self.launched_at is not None and self.start_seconds is None:
            self.start_seconds, self.cds = now - self.launched_at, has_archive

    def begin_stall(self, reason: str, now: float) -> None:
        """It has been found to accept no connections."""
        self.stalled, self.stalled_since = reason, now
        self.stalls += 1

    def end_stall(self, now: float) -> None:
        """It accepts them again, or is gone."""
        if self.stalled is not None:
            self.stall_seconds += now - self.stalled_since
            self.stalled = None

    def forget_process(self) -> None:
        """Nothing of what belonged to one process holds any more, but for what it was bound to: a hook may follow."""
        self.started_at = self.status_text = self.noticed = self.trouble = None
        self.launched_at = self.archive = self.start_seconds = self.cds = None
        self.adopted = self.executed = False

    def count(self, before: Unit, unit: Unit, event: Event, plan: Plan) -> None:
        """Keep in mind what the machine does not: relaunches, and that what happens unasked is nobody's order.

        Nor does the machine know what a start lacks that it gives up, and it forgets how a process was ended when it
        launches the next one in the same step.
        """
        if unit.cause is EndCause.START_TIMEOUT and before.cause is not unit.cause:
            self.unready = why_unready(self.checks(before, plan), is_silent=self.is_silent(before, plan))
        if before.state is UnitState.BACKOFF and isinstance(event, DeadlinePassed):
            self.restarts += 1
        if unit.last_end is before.last_end:
            return
        self.ended_after = before.stop_step
        if not (unit.ended_by is not None and unit.ended_by.is_asked):
            self.by = None

    def health(self, unit: Unit) -> Health:
        """What is known of the process that there is now; that it accepts nothing weighs more than checks that pass."""
        said = verdict(self.records) if unit.has_process and self.records else Health.UNKNOWN
        return Health.STALLED if self.stalled is not None and said is not Health.DOWN else said

    def is_silent(self, unit: Unit, plan: Plan) -> bool:
        """Whether the process has to say READY=1 and has not."""
        return (self.in_force or plan.in_force).notify and self.noticed != unit.incarnation

    def checks(self, unit: Unit, plan: Plan) -> tuple[CheckView, ...]:
        """Each check as people see it."""
        if not unit.has_process or len(self.records) != len(plan.kinds):
            return tuple(CheckView(kind, Health.UNKNOWN, None, None) for kind in plan.kinds)
        return tuple(
            CheckView(kind, record.health, record.last.text if record.last else None, at)
            for kind, record, at in zip(plan.kinds, self.records, self.checked_at, strict=True)
        )


def view(role: Role, unit: Unit, memory: UnitMemory, plan: Plan, pid: int | None, now: float) -> InstanceView:
    """The instance as everybody may see it.

    Args:
        now: the monotonic instant, for deadlines.
    """
    health, checks = memory.health(unit), memory.checks(unit, plan)
    deadline = None
    if unit.deadline is not None:
        deadline = stamp(datetime.now(UTC) + timedelta(seconds=unit.deadline - now))
    is_ordered = memory.wanted is Goal.DOWN
    reason = why_not_eligible(
        role,
        unit,
        health,
        checks,
        plan.policy,
        deadline,
        ended_after=memory.ended_after,
        unready=memory.unready,
        is_silent=memory.is_silent(unit, plan),
        stopped_by=memory.goal_by if is_ordered else None,
        stopped_at=memory.goal_at if is_ordered else None,
        stalled=memory.stalled,
        warmup=memory.warmup,
    )
    if reason is not None and memory.left is not None:
        reason = f"{reason}; {memory.left}"
    return InstanceView(
        role=role,
        name=plan.name,
        unit=unit,
        health=health,
        pid=pid,
        since=stamp(memory.since),
        restarts=memory.restarts,
        last_exit=memory.last_exit,
        reason=reason,
        release=memory.release,
        ports=(memory.in_force or plan.in_force).ports,
        checks=checks,
        goal_by=memory.goal_by,
        goal_at=memory.goal_at,
        started_at=memory.started_at,
        adopted=memory.adopted,
        status_text=memory.status_text,
        next=next_step(unit, deadline),
        reload_signal=plan.policy.reload_signal,
        trouble=memory.trouble,
        drained=memory.drained,
        start_seconds=memory.start_seconds,
        cds=memory.cds,
        stalls=memory.stalls,
        stall_seconds=memory.stall_seconds + (now - memory.stalled_since if memory.stalled is not None else 0.0),
        warmup=memory.warmup,
        ended=how_it_ended(role, unit, plan.policy, memory.ended_after, memory.unready),
    )


def next_step(unit: Unit, deadline: str | None) -> Next | None:
    """What happens by itself when the state has lasted too long, and when that is."""
    if deadline is None:
        return None
    if unit.hook is not None:
        return Next(f"{unit.hook.value} is given up if it has not ended", deadline)
    if unit.warming_since is not None:
        return Next("its warm-up ends, if it has not by then", deadline)
    match unit.state:
        case UnitState.BACKOFF:
            return Next("it is launched again", deadline)
        case UnitState.STARTING:
            return Next("it is given up and ended if it is not ready", deadline)
        case UnitState.DRAINING:
            return Next("its open connections are cut and it is ended", deadline)
        case _:
            return Next("it gets the next stop signal, at last SIGKILL", deadline)


def saved(unit: Unit, memory: UnitMemory, plan: Plan, process: ProcessIdentity | None) -> SavedInstance:
    """What the next daemon must know."""
    return SavedInstance(
        unit=unit,
        since=stamp(memory.since),
        process=process,
        release=memory.release,
        restarts=memory.restarts,
        started_at=memory.started_at,
        last_exit=memory.last_exit,
        wanted=memory.wanted,
        goal_by=memory.goal_by,
        goal_at=memory.goal_at,
        records=memory.records,
        checked_at=tuple(memory.checked_at),
        in_force=memory.in_force,
        checks=plan.checks,
        noticed=memory.noticed == unit.incarnation,
        status_text=memory.status_text,
        unready=memory.unready,
        stalled=memory.stalled,
        stalled_since=memory.stalled_since,
        stalls=memory.stalls,
        stall_seconds=memory.stall_seconds,
        warmup=memory.warmup if memory.warmup is not None and memory.warmup.is_over else None,
        launched_at=memory.launched_at,
        start_seconds=memory.start_seconds,
        cds=memory.cds,
    )


def remembered(before: SavedInstance, plan: Plan) -> UnitMemory:
    """What an earlier daemon knew, under a plan that may have other checks."""
    known, at = before.records, list(before.checked_at)
    if before.checks != plan.checks or len(known) != len(plan.checks):
        known = merge_records(before.checks, known, plan.checks, before.unit.ready_at is not None)
    if len(at) != len(known) or before.checks != plan.checks:
        at = [None] * len(known)
    return UnitMemory(
        since=datetime.fromisoformat(before.since),
        records=known,
        checked_at=at,
        started_at=before.started_at,
        last_exit=before.last_exit,
        release=before.release,
        restarts=before.restarts,
        wanted=before.wanted,
        goal_by=before.goal_by,
        goal_at=before.goal_at,
        in_force=before.in_force,
        noticed=before.unit.incarnation if before.noticed else None,
        status_text=before.status_text,
        ended_after=0 if before.unit.has_process else before.unit.stop_step,
        unready=before.unready,
        stalled=before.stalled,
        stalled_since=before.stalled_since,
        stalls=before.stalls,
        stall_seconds=before.stall_seconds,
        warmup=before.warmup,
        launched_at=before.launched_at,
        start_seconds=before.start_seconds,
        cds=before.cds,
    )


def announcement(
    role: Role, event: EventName, unit: Unit, reason: str | None, policy: UnitPolicy, memory: UnitMemory
) -> str:
    """The sentence for the history about an event of the machine."""
    match event:
        case EventName.INSTANCE_READY:
            message = "is ready"
        case EventName.INSTANCE_EXITED:
            assert unit.last_end is not None
            message = describe_end(
                role,
                unit.last_end,
                unit.ended_by,
                unit.hook_failure,
                warmup_failure=unit.warmup_failure,
                unready=memory.unready,
                policy=policy,
                sent=memory.ended_after,
            )
        case EventName.INSTANCE_FAILED:
            message = f"is not started again: {reason}"
        case EventName.DRAIN_STARTED:
            message = "gets no new connections; open ones may end"
        case _ if unit.state is UnitState.READY:
            message = "gets connections again"
        case _ if memory.drained is None:
            message = "waits for its connections no longer: those that are still open are cut"
        case _:
            message = memory.drained.told()
    return message if message.startswith("cannot") else f"{role.value} {message}"


def merge_records(
    old: Sequence[str], records: Sequence[CheckRecord], new: Sequence[str], is_ready: bool
) -> tuple[CheckRecord, ...]:
    """The records after the checks were changed under a running process.

    A check that was there keeps its record. One that is new to a ready instance counts as passed until it has failed as
    often as it may: a change of the configuration takes nobody out of rotation by itself.
    """
    known = dict(zip(old, records, strict=False))
    fresh = CheckRecord(Health.UP) if is_ready else CheckRecord()
    return tuple(known.get(check, fresh) for check in new)
