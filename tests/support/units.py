"""Both instances of a pair as real runners, in a world made of fakes that the test moves by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.errors import LaunchFailed
from clojarsd.core.health import CheckRecord, Result
from clojarsd.core.history import EventName
from clojarsd.core.identity import ProcessIdentity
from clojarsd.core.launch import LaunchSpec
from clojarsd.core.names import ExitStatus, Health, HookName, Incarnation, LaunchStage, Role
from clojarsd.core.restart import RestartPolicy, RestartWhen
from clojarsd.core.saved import InForce, SavedInstance
from clojarsd.core.unit import UnitPolicy
from clojarsd.core.view import DaemonView, FrontendView, InstanceView
from clojarsd.runtime.status import Board
from clojarsd.runtime.unit_parts import HookPlan, LaunchReports, Plan, PlannedLaunch, PlannedWarmup, Surroundings
from clojarsd.runtime.unit_runner import UnitRunner

LONG = 3600.0
"""Seconds that no test lasts: a deadline that must not pass."""
POLICY = UnitPolicy(
    LONG, LONG, ((15, LONG),), frozenset({0, 143}), RestartPolicy(RestartWhen.ON_FAILURE, LONG, LONG, LONG, 9, LONG)
)
TERMED, CRASHED = ExitStatus(143, None), ExitStatus(3, None)
GOOD, BAD = Result(True, "200 in 1 ms", 0.001), Result(False, "127.0.0.1:1 refused", 0.001)


def a_spec(role: Role, command: tuple[str, ...] = ("/bin/true",), log: str = "/dev/null") -> LaunchSpec:
    """The least there is to launch."""
    environment = {"PATH": "/usr/bin:/bin", "ROLE": role.value}
    return LaunchSpec(command, "/", environment, None, log, {}, None, None, 0o022, 0, 0, {}, 1024)


class FakeProcess:
    """A process that does what the test says. What is done to it goes into `deeds`."""

    def __init__(self, pid: int, events: LaunchReports, deeds: list[str], role: Role) -> None:
        self.pid = pid
        self.events = events
        self.is_abandoned = False
        self.heed: Callable[[], object] = lambda: None
        self._deeds = deeds
        self._role = role

    @property
    def identity(self) -> ProcessIdentity:
        return ProcessIdentity(self.pid, 1, "boot", (1, 2))

    def signal(self, number: int) -> None:
        self._deeds.append(f"{self._role.value} signal {number}")
        self.heed()

    def signal_main(self, number: int) -> None:
        self._deeds.append(f"{self._role.value} signal {number} to the main process")

    def abandon(self) -> None:
        self.is_abandoned = True


class FakeChecker:
    """Remembers what is checked."""

    def __init__(self, role: Role, deeds: list[str]) -> None:
        self.target: Incarnation | None = None
        self.known: tuple[CheckRecord, ...] = ()
        self._role = role
        self._deeds = deeds

    def begin(self, incarnation: Incarnation, known: Sequence[CheckRecord] = ()) -> None:
        self.target = incarnation
        self.known = tuple(known)
        self._deeds.append(f"{self._role.value} checks {incarnation}")

    def end(self) -> None:
        self.target = None
        self._deeds.append(f"{self._role.value} checks nothing")


class FakeWarmer:
    """Remembers what is warmed up."""

    def __init__(self, role: Role, deeds: list[str]) -> None:
        self.planned: PlannedWarmup | None = None
        self._role = role
        self._deeds = deeds

    def begin(self, incarnation: Incarnation, planned: PlannedWarmup, bound: InForce) -> None:
        self.planned = planned
        self._deeds.append(f"{self._role.value} warms up {incarnation}")

    def end(self) -> None:
        self.planned = None
        self._deeds.append(f"{self._role.value} warms up nothing")


class FakeTraffic:
    """Connections that are gone when the test says so. `calls_back_at_once`: there are none to wait for."""

    def __init__(self, deeds: list[str]) -> None:
        self.deeds = deeds
        self.eligible = dict.fromkeys(Role, False)
        self.calls_back_at_once = False
        self.when_drained: dict[Role, Callable[[], None]] = {}
        self.within: dict[Role, float | None] = {}
        self.failing_back = False
        self.connections = 0
        self.is_ordered = False
        self.down: set[Role] = set()
        self.failures = 0
        self.tallies: dict[Role, DrainTally | None] = dict.fromkeys(Role, DrainTally())

    def set_eligible(self, role: Role, eligible: bool, *, is_ordered: bool = False, is_down: bool = False) -> None:
        self.down = self.down | {role} if is_down else self.down - {role}
        if eligible != self.eligible[role]:
            self.is_ordered = is_ordered
            self.eligible[role] = eligible
            self.deeds.append(f"{role.value} {'eligible' if eligible else 'not eligible'}")

    def begin_drain(self, role: Role, when_drained: Callable[[], None], within: float | None = None) -> None:
        self.deeds.append(f"{role.value} drain")
        self.within[role] = within
        self.when_drained[role] = when_drained
        if self.calls_back_at_once:
            when_drained()

    def tally(self, role: Role) -> DrainTally | None:
        return self.tallies[role]

    def end_drain(self, role: Role) -> None:
        self.deeds.append(f"{role.value} end drain")

    def cut(self, role: Role) -> None:
        self.deeds.append(f"{role.value} cut")

    def view(self) -> FrontendView:
        able = [role for role in Role if self.eligible[role]]
        active = able[-1 if self.failing_back else 0] if able else None
        return FrontendView((), "relay", None, active, {Role.PRIMARY: self.connections}, {}, failures=self.failures)


@dataclass
class FakeHistory:
    """What was recorded, oldest first."""

    events: list[tuple[EventName, str, Role | None, str | None, dict[str, Any]]] = field(default_factory=list)

    def record(
        self, event: EventName, message: str, role: Role | None = None, by: str | None = None, **detail: Any
    ) -> None:
        self.events.append((event, message, role, by, detail))

    @property
    def messages(self) -> list[str]:
        return [message for _, message, *_ in self.events]


class FakeHook:
    """The commands of a hook, which end when the test says so."""

    def __init__(self, name: str, deeds: list[str], on_end: Callable[[str | None], None], spec: LaunchSpec) -> None:
        self.name = name
        self.spec = spec
        self.on_end = on_end
        self._deeds = deeds

    def cancel(self) -> None:
        self._deeds.append(f"{self.name} cancelled")

    def abandon(self) -> None:
        self._deeds.append(f"{self.name} abandoned")


class Units:
    """Two runners and the world around them. `deeds`: everything that was done to that world, in its order.

    Attributes:
        is_lively: processes run at once, pass their check, and end when signalled; each in the loop's next turn.
        launch_fails: what the next launches end with instead of a process.
        running: processes of an earlier daemon that can be adopted, by number.
        archive: the class-data archive that the next launches could have.
        specs: what was launched, oldest first.
        lacking: what must be there before a launch can be; the next launches fail for want of it.
        hooks: the hooks that were run, oldest first.
        saves: how often something changed that the next daemon must know.
    """

    def __init__(
        self,
        policy: UnitPolicy = POLICY,
        *,
        hooks: Mapping[HookName, HookPlan] | None = None,
        notify: bool = False,
        before: Mapping[Role, SavedInstance] | None = None,
        running: Sequence[int] = (),
    ) -> None:
        self.deeds: list[str] = []
        self.bugs: list[Exception] = []
        self.is_lively = False
        self.launch_fails: LaunchFailed | None = None
        self.lacking: str | None = None
        self.archive: str | None = None
        self.specs: list[LaunchSpec] = []
        self.launched: dict[Role, list[FakeProcess]] = {role: [] for role in Role}
        self.traffic = FakeTraffic(self.deeds)
        self.history = FakeHistory()
        self.board = Board("demo", DaemonView("1", 1, "then", "x"), lambda: None, {"http": self.traffic})
        self.running = set(running)
        self.hooks: list[FakeHook] = []
        self.saves = 0
        self.environments: list[Mapping[str, str]] = []
        self.around = Surroundings(
            self._launch,
            self._adopt,
            self._run_hook,
            self.traffic,
            self.history,
            self.board,
            self.bugs.append,
            changed=self._count_save,
        )
        self._hook_plans = hooks or {}
        self._notify = notify
        self.checkers = {role: FakeChecker(role, self.deeds) for role in Role}
        self.warmers = {role: FakeWarmer(role, self.deeds) for role in Role}
        self.runners = {role: UnitRunner(role, self._plan(role, policy), self.around) for role in Role}
        for role in Role:
            self.runners[role].attach(self.checkers[role], self.warmers[role], (before or {}).get(role))

    def _plan(self, role: Role, policy: UnitPolicy) -> Plan:
        return self.plan(role, policy, ("http",))

    def plan(self, role: Role, policy: UnitPolicy, checks: tuple[str, ...], port: int = 1) -> Plan:
        """What a reload may give the runner instead of what it has."""
        in_force = InForce("127.0.0.1", {"http": port}, notify=self._notify)

        def launch(incarnation: Incarnation, environment: Mapping[str, str]) -> PlannedLaunch:
            if self.lacking is not None:
                raise LaunchFailed(LaunchStage.RELEASE, self.lacking)
            self.environments.append(environment)
            quick = a_spec(role, ("/bin/true", "-quick")) if self.archive is not None else None
            return PlannedLaunch(a_spec(role), "1.jar", in_force, quick, self.archive)

        kinds = tuple(check.partition(" ")[0] for check in checks)
        return Plan(role.value, in_force, policy, checks, kinds, launch, self._hook_plans, lambda: self.lacking)

    def _count_save(self) -> None:
        self.saves += 1

    def _adopt(
        self,
        identity: ProcessIdentity,
        make_events: Callable[[int], LaunchReports],
        role: Role,
        incarnation: Incarnation,
    ) -> FakeProcess | None:
        if identity.pid not in self.running:
            return None
        self.deeds.append(f"{role.value} adopted")
        process = FakeProcess(identity.pid, make_events(identity.pid), self.deeds, role)
        self.launched[role].append(process)
        return process

    def _run_hook(
        self,
        commands: Sequence[Sequence[str]],
        spec: LaunchSpec,
        timeout: float,
        on_end: Callable[[str | None], None],
    ) -> FakeHook:
        name = f"{spec.imposed['CLOJARSD_ROLE']} {spec.imposed['CLOJARSD_HOOK']}"
        self.deeds.append(name)
        self.hooks.append(FakeHook(name, self.deeds, on_end, spec))
        return self.hooks[-1]

    def _launch(self, spec: LaunchSpec, make_events: Callable[[int], LaunchReports]) -> FakeProcess:
        role = Role(spec.environment["ROLE"])
        self.deeds.append(f"{role.value} launch")
        self.specs.append(spec)
        if self.launch_fails is not None:
            raise self.launch_fails
        pid = 100 + sum(map(len, self.launched.values()))
        process = FakeProcess(pid, make_events(pid), self.deeds, role)
        self.launched[role].append(process)
        if self.is_lively:
            loop = asyncio.get_running_loop()
            loop.call_soon(self.serve, role)
            process.heed = lambda: loop.call_soon(self.exit, role, TERMED)
        return process

    def process(self, role: Role) -> FakeProcess:
        """The latest process of the role."""
        return self.launched[role][-1]

    def execute(self, role: Role) -> None:
        """The latest process runs its command."""
        self.process(role).events.executed()

    def exit(self, role: Role, how: ExitStatus | LaunchFailed) -> None:
        """The latest process is gone."""
        self.process(role).events.ended(how)

    def check(self, role: Role, result: Result = GOOD, incarnation: Incarnation | None = None) -> None:
        """A check of the role came out so, often enough to count."""
        health = Health.UP if result.passed else Health.DOWN
        runner = self.runners[role]
        runner.checked(incarnation or runner.unit.incarnation, (CheckRecord(health, 1, result),), 0)

    def serve(self, role: Role) -> None:
        """The latest process runs and passes its check."""
        self.execute(role)
        self.check(role)

    def seen(self, role: Role) -> InstanceView:
        """What operators see of the role."""
        return self.board.instance(role)
