"""What a unit runner is made of and what it works with: its plan, and its surroundings as protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.errors import LaunchFailed
from clojarsd.core.health import CheckRecord, Result
from clojarsd.core.history import EventName
from clojarsd.core.identity import ProcessIdentity
from clojarsd.core.launch import LaunchSpec
from clojarsd.core.names import ExitStatus, HookName, Incarnation, Role
from clojarsd.core.saved import InForce
from clojarsd.core.unit import UnitPolicy
from clojarsd.runtime.status import Board

BY_DAEMON = "clojarsd"
"""Who orders what the daemon does by itself."""


class Running(Protocol):
    """A process of an instance, launched or adopted."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def identity(self) -> ProcessIdentity | None:
        """What tells it from another process with the same number; None when it could not be seen any more."""

    def signal(self, number: int) -> None:
        """Send a signal to its whole group."""

    def signal_main(self, number: int) -> None:
        """Send a signal to the main process alone."""

    def abandon(self) -> None:
        """Watch it no more, and let it run."""


class LaunchReports(Protocol):
    """Who hears how a process fares; see `system.process.ProcessEvents`."""

    def executed(self) -> None:
        """The command runs."""

    def ended(self, how: ExitStatus | LaunchFailed) -> None:
        """The process is gone."""


@dataclass(frozen=True, slots=True)
class Reports:
    """Passes on how one incarnation's process fares."""

    executed: Callable[[], None]
    ended: Callable[[ExitStatus | LaunchFailed], None]


class Launcher(Protocol):
    """Makes processes."""

    def __call__(self, spec: LaunchSpec, make_events: Callable[[int], LaunchReports], /) -> Running:
        """A process that is becoming the spec's command; raises LaunchFailed when there is none."""


class Adopter(Protocol):
    """Finds processes again that another daemon has launched."""

    def __call__(
        self,
        identity: ProcessIdentity,
        make_events: Callable[[int], LaunchReports],
        role: Role,
        incarnation: Incarnation,
        /,
    ) -> Running | None:
        """That very process of that launch; None when it is gone, whoever has its number now."""


class RunningHook(Protocol):
    """The commands of a hook on their way."""

    def cancel(self) -> None:
        """Kill what runs; the end is not told."""

    def abandon(self) -> None:
        """Let what runs go on; the end is not told."""


class HookRunner(Protocol):
    """Runs the commands of hooks."""

    def __call__(
        self,
        commands: Sequence[Sequence[str]],
        spec: LaunchSpec,
        timeout: float,
        on_end: Callable[[str | None], None],
        /,
    ) -> RunningHook:
        """Run one after the other in the spec's world; `on_end` is told how one failed, or None."""


class Checker(Protocol):
    """Checks one incarnation at a time."""

    def begin(self, incarnation: Incarnation, known: Sequence[CheckRecord] = ()) -> None:
        """Check this incarnation from now on, and report each result to `UnitRunner.checked`.

        Args:
            known: what is known of it already; empty: nothing.
        """

    def end(self) -> None:
        """Check nothing."""


class WarmingRequests(Protocol):
    """Asks an instance that is to become warm."""

    async def get(self, path: str, within: float, /) -> Result:
        """What came of a GET of the path within so many seconds."""


@dataclass(frozen=True, slots=True)
class PlannedWarmup:
    """How an instance is warmed up.

    Attributes:
        paths: what is asked in each round, in this order; at least one.
        rounds: how many there are at most.
        timeout: seconds for all of it.
        requests: what asks a process that was launched so, for as long as its block.
    """

    paths: tuple[str, ...]
    rounds: int
    timeout: float
    requests: Callable[[InForce], AbstractAsyncContextManager[WarmingRequests]]


class Warmer(Protocol):
    """Warms up one incarnation at a time."""

    def begin(self, incarnation: Incarnation, planned: PlannedWarmup, bound: InForce) -> None:
        """Warm up this incarnation, which was launched so, and report to `UnitRunner.warming`."""

    def end(self) -> None:
        """Warm up nothing."""


class Traffic(Protocol):
    """The connections that clients have to the pair."""

    def set_eligible(self, role: Role, eligible: bool, *, is_ordered: bool = False, is_down: bool = False) -> None:
        """Whether the instance may get new connections, and whether an operator wants it so, or it is down."""

    def begin_drain(self, role: Role, when_drained: Callable[[], None], within: float | None = None) -> None:
        """Let open connections end, each within its frontend's time; call back when none is left.

        Args:
            within: seconds, where that is less; None: nothing but the frontends' times counts.
        """

    def end_drain(self, role: Role) -> None:
        """Leave open connections alone again."""

    def tally(self, role: Role) -> DrainTally | None:
        """What has become of the connections of a drain that is over; None: it is not, or there was none."""

    def cut(self, role: Role) -> None:
        """Close the open connections."""


class History(Protocol):
    """Keeps what happened."""

    def record(
        self, event: EventName, message: str, role: Role | None = None, by: str | None = None, **detail: Any
    ) -> None:
        """Add an event."""


@dataclass(frozen=True, slots=True)
class HookPlan:
    """One hook.

    Attributes:
        commands: the argument lists with the release as it is now; raises LaunchFailed.
        timeout: seconds that each command may take.
    """

    commands: Callable[[], tuple[tuple[str, ...], ...]]
    timeout: float


@dataclass(frozen=True, slots=True)
class PlannedLaunch:
    """One launch: what to make, of which release, and what of the settings it is bound to until it ends.

    Attributes:
        quicker: the same with the class-data archive `archive`, if there is one.
    """

    spec: LaunchSpec
    release: str | None
    in_force: InForce
    quicker: LaunchSpec | None = None
    archive: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What the settings make of a unit; another one takes its place when they change.

    Attributes:
        in_force: what the next launch will be bound to.
        checks: what tells each of them from the others, by which its record is found again; `kinds` are their kinds.
        launch: the launch with the release as it is now and, besides its own, the environment of one start; raises
            LaunchFailed.
        hooks: those that have commands.
        lacking: what must be there before a launch can be, in words, such as a release; None when nothing is missing.
        warmup: how the process is warmed up before clients come, or None.
    """

    name: str
    in_force: InForce
    policy: UnitPolicy
    checks: tuple[str, ...]
    kinds: tuple[str, ...]
    launch: Callable[[Incarnation, Mapping[str, str]], PlannedLaunch]
    hooks: Mapping[HookName, HookPlan] = field(default_factory=dict)
    lacking: Callable[[], str | None] = lambda: None
    warmup: PlannedWarmup | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every runner shares.

    Attributes:
        on_bug: called with an error that must end the daemon.
        changed: called when something is different that the next daemon must know.
        launched: called when a process was launched or adopted, whose ports may not be those of the one before.
        proved: called when it has become ready.
        gone: called when it has ended, before anything follows from that.
        rested: called when it has ended and no other is to come.
    """

    launch: Launcher
    adopt: Adopter
    run_hook: HookRunner
    traffic: Traffic
    history: History
    board: Board
    on_bug: Callable[[Exception], None]
    changed: Callable[[], None] = lambda: None
    launched: Callable[[Role], None] = lambda role: None
    proved: Callable[[Role], None] = lambda role: None
    gone: Callable[[Role], None] = lambda role: None
    rested: Callable[[Role], None] = lambda role: None
