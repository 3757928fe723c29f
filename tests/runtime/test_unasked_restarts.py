"""What the daemon restarts by itself: not against an operator's order, and told once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from clojarsd.core.errors import Refused
from clojarsd.core.history import EventName
from clojarsd.core.names import Goal, Role, UnitState
from clojarsd.core.unit import EndCause
from clojarsd.core.unit_events import Start, Stop
from clojarsd.runtime.companions import Companions
from clojarsd.runtime.orders import Orders
from clojarsd.runtime.unit_parts import BY_DAEMON
from tests.support.units import CRASHED, POLICY, TERMED, Units
from tests.support.waiting import PATIENCE, until

PRIMARY, BACKUP = Role.PRIMARY, Role.BACKUP
ALLOWED = 2.0


class NoMemory:
    """Looks at nothing."""

    def begin(self, role: Role, pid: int) -> None:
        """There is nothing to look at."""

    def end(self, role: Role) -> None:
        """There was nothing."""


class Leash:
    """Expires when the test says so. seconds: None while nothing is expected."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self.resumed: Callable[[Role], None] | None = None

    def begin(self, seconds: float, resumed: Callable[[Role], None] | None = None) -> None:
        self.seconds, self.resumed = seconds, resumed

    def end(self) -> None:
        self.seconds = None


@dataclass
class Scene:
    """A pair that serves, and was told a watchdog. wanted: its seconds by the settings, and steady: restart_reset."""

    units: Units
    companions: Companions
    leash: Leash
    wanted: float | None = ALLOWED
    steady: float = 0.0

    @property
    def hung(self) -> int:
        """How often the history says that one hangs."""
        return sum(event is EventName.INSTANCE_HUNG for event, *_ in self.units.history.events)

    def expire(self) -> None:
        """The primary has not said that it lives."""
        self.leash.end()
        self.companions.watchdog_expired(PRIMARY, ALLOWED)


async def _unchanged(by: str = "") -> None:
    """The configuration is what it was, and the disk is fast."""


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with _scene() as made:
        yield made


@asynccontextmanager
async def _scene() -> AsyncIterator[Scene]:
    units = Units(POLICY)
    companions = Companions(
        units.runners,
        units.history,
        NoMemory(),
        lambda *_: True,
        lambda ports: None,
        lambda: (),
        "/state",
        lambda role: made.wanted,
        lambda role: made.steady,
    )
    orders = Orders(units.runners, units.board, lambda failures: 0.0, _unchanged, _unchanged)
    leashes = {role: Leash() for role in Role}
    companions.attach({}, leashes, orders)
    made = Scene(units, companions, leashes[PRIMARY])
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        running = group.create_task(orders.run())
        await until(lambda: hasattr(orders, "_group"))
        for role in Role:
            units.runners[role].order(Start(), "test")
            units.serve(role)
            memory = units.runners[role]._memory
            assert memory.in_force is not None
            memory.in_force = replace(memory.in_force, watchdog=ALLOWED)
            companions.proved(role)
        yield made
        running.cancel()


async def test_an_instance_that_hangs_is_restarted(scene: Scene) -> None:
    scene.expire()
    unit = scene.units.runners[PRIMARY].unit
    assert (unit.state, unit.cause) == (UnitState.DRAINING, EndCause.RESTART)
    assert scene.hung == 1


@pytest.mark.parametrize("is_drained", [False, True])
async def test_one_that_is_being_stopped_by_order_is_not_started_again(scene: Scene, is_drained: bool) -> None:
    """A JVM that shuts down says no more that it lives, and its memory may be too much until its end."""
    runner = scene.units.runners[PRIMARY]
    runner.order(Stop(), "ann")
    if is_drained:
        scene.units.traffic.when_drained[PRIMARY]()
    scene.expire()
    with pytest.raises(Refused, match=r"^cannot restart primary: it is (draining|stopping); nothing was done$"):
        scene.companions.restart(PRIMARY, "its memory stayed above memory_max")
    assert (runner.unit.goal, runner.unit.cause) == (Goal.DOWN, EndCause.STOP)
    assert (runner.wanted, scene.hung) == (Goal.DOWN, 0)
    assert scene.leash.seconds == ALLOWED  # a stop can be called off


async def test_one_that_is_not_up_yet_is_left_to_its_start(scene: Scene) -> None:
    """By an order its earlier failures would be forgiven, and it would be restarted for ever."""
    scene.units.exit(PRIMARY, CRASHED)
    scene.units.runners[PRIMARY].order(Start(), "test")
    with pytest.raises(Refused, match="it is starting"):
        scene.companions.restart(PRIMARY, "its memory stayed above memory_max")
    assert scene.units.runners[PRIMARY].unit.cause is None


async def test_that_it_hangs_is_told_once_however_often_its_restart_is_put_off(scene: Scene) -> None:
    scene.units.runners[BACKUP].order(Stop(), "ann")
    scene.expire()
    assert scene.leash.seconds == ALLOWED
    scene.expire()
    assert (scene.hung, scene.units.runners[PRIMARY].unit.state) == (1, UnitState.READY)
    assert not [by for *_, by, _ in scene.units.history.events if by == BY_DAEMON]


async def test_a_restart_that_is_put_off_is_shown_for_as_long_as_it_is_due(scene: Scene) -> None:
    scene.units.runners[BACKUP].order(Stop(), "ann")
    scene.expire()
    seen = scene.units.seen(PRIMARY)
    assert seen.trouble is not None
    assert seen.trouble.startswith(
        "it has not said within 2 s that it is alive (watchdog); its restart is put off: cannot restart primary:"
        " backup could not take over, it is draining"
    )
    assert (seen.is_eligible, seen.reason) == (True, None)
    assert scene.leash.resumed is not None
    scene.leash.resumed(PRIMARY)
    assert scene.units.seen(PRIMARY).trouble is None
    scene.expire()
    assert scene.units.seen(PRIMARY).trouble is not None
    scene.units.exit(PRIMARY, CRASHED)
    assert scene.units.seen(PRIMARY).trouble is None, "it was that of this process"


async def test_a_watchdog_that_the_settings_have_no_more_expects_nothing(scene: Scene) -> None:
    assert scene.leash.seconds == ALLOWED
    scene.wanted = None
    scene.companions.proved(PRIMARY)
    assert scene.leash.seconds is None


async def restarted(scene: Scene, reason: str) -> None:
    """The primary restarts for that reason and serves again."""
    scene.companions.restart(PRIMARY, reason)
    scene.units.traffic.when_drained[PRIMARY]()
    scene.units.exit(PRIMARY, TERMED)
    scene.units.serve(PRIMARY)


async def test_a_limit_that_no_restart_helps_against_does_not_restart_for_ever(scene: Scene) -> None:
    """Each would move the traffic twice; the first may have helped, the second one cannot."""
    scene.steady = 3600.0
    await restarted(scene, "its memory stayed above memory_max")
    with pytest.raises(Refused) as refused:
        scene.companions.restart(PRIMARY, "its memory stayed above memory_max")
    assert str(refused.value) == (
        "cannot restart primary: it was restarted for such a reason already, and has been up again for 0 s only"
        " (restart_reset 3600 s); it runs on"
    )
    scene.steady = 0.0
    scene.companions.restart(PRIMARY, "its memory stayed above memory_max")


async def test_a_restart_that_nobody_ordered_is_nobodys_wish(scene: Scene) -> None:
    before = scene.units.runners[PRIMARY].saved()
    await restarted(scene, "its memory stayed above memory_max")
    after = scene.units.runners[PRIMARY].saved()
    assert (after.goal_by, after.goal_at) == (before.goal_by, before.goal_at)
