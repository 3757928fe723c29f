"""What goes along with a process: who is told of its beginning, its proof and its end, and what is done about it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import structlog

from clojarsd.core.api import Verb
from clojarsd.core.errors import Refused
from clojarsd.core.history import EventName
from clojarsd.core.identity import InstanceMark
from clojarsd.core.names import Address, Goal, Incarnation, Role, UnitState
from clojarsd.core.saved import InForce
from clojarsd.core.unit import EndCause, Unit
from clojarsd.runtime.companions import Companions
from clojarsd.runtime.unit_parts import BY_DAEMON
from tests.support.units import FakeHistory
from tests.support.waiting import until

P, B = Role.PRIMARY, Role.BACKUP
READY = Unit(goal=Goal.UP, state=UnitState.READY, incarnation=Incarnation(3), ready_at=1.0)


@dataclass
class PaperUnit:
    """A unit as the test wants it."""

    unit: Unit = READY
    pid: int | None = 901
    in_force: InForce = field(default_factory=lambda: InForce("127.0.0.1", {"http": 8001}, notify=True, watchdog=10.0))
    left: list[str | None] = field(default_factory=list)
    trouble: str | None = None

    def leave_behind(self, what: str | None) -> None:
        self.left.append(what)

    def show_trouble(self, what: str | None) -> None:
        self.trouble = what


class PaperHeard:
    """Who is heard; `belongs` of the latest beginning."""

    def __init__(self) -> None:
        self.incarnation: Incarnation | None = None
        self.belongs: Callable[[int], bool] = lambda pid: False

    def begin(self, incarnation: Incarnation, belongs: Callable[[int], bool]) -> None:
        self.incarnation, self.belongs = incarnation, belongs

    def end(self) -> None:
        self.incarnation = None


class PaperLeash:
    """The seconds within which a keep-alive is expected; None for nothing."""

    def __init__(self) -> None:
        self.allowed: float | None = None
        self.begun = 0
        self.resumed: Callable[[Role], None] | None = None

    def begin(self, seconds: float, resumed: Callable[[Role], None] | None = None) -> None:
        self.allowed, self.resumed = seconds, resumed
        self.begun += 1

    def feed(self, role: Role) -> None:
        resumed, self.resumed = self.resumed, None
        if resumed is not None:
            resumed(role)

    def end(self) -> None:
        self.allowed = None


class PaperMemory:
    """Which processes are looked at."""

    def __init__(self) -> None:
        self.seen: dict[Role, int] = {}

    def begin(self, role: Role, pid: int) -> None:
        self.seen[role] = pid

    def end(self, role: Role) -> None:
        del self.seen[role]


class PaperOrders:
    """Takes orders, unless it is to refuse."""

    def __init__(self) -> None:
        self.given: list[tuple[Verb, tuple[Role, ...], str]] = []
        self.refusal: Refused | None = None

    def submit(self, verb: Verb, roles: tuple[Role, ...], by: str) -> object:
        if self.refusal is not None:
            raise self.refusal
        self.given.append((verb, roles, by))
        return object()


class Company:
    """Companions of two units on paper; `taken` is what a look at the ports finds, when it may end."""

    def __init__(self) -> None:
        self.units = {P: PaperUnit(), B: PaperUnit(pid=902)}
        self.history, self.memory, self.orders = FakeHistory(), PaperMemory(), PaperOrders()
        self.heard = {role: PaperHeard() for role in Role}
        self.leashes = {role: PaperLeash() for role in Role}
        self.watchdogs: dict[Role, float | None] = {P: 10.0, B: 10.0}
        self.asked: list[tuple[int, int, InstanceMark]] = []
        self.ports: list[Mapping[str, Address]] = []
        self.taken: str | Exception | None = None
        self.strays: tuple[str, ...] = ()
        self.may_end = threading.Event()
        self.may_end.set()
        self.companions = Companions(
            self.units,
            self.history,
            self.memory,
            self._belongs,
            self._still_taken,
            lambda: self.strays,
            "/var/lib/x",
            lambda role: self.watchdogs[role],
            lambda role: 3600.0,
        )
        self.companions.attach(self.heard, self.leashes, self.orders)

    def _belongs(self, pid: int, leader: int, mark: InstanceMark) -> bool:
        self.asked.append((pid, leader, mark))
        return pid == 905

    def _still_taken(self, ports: Mapping[str, Address]) -> str | None:
        self.may_end.wait()
        self.ports.append(ports)
        if isinstance(self.taken, Exception):
            raise self.taken
        return self.taken


@pytest.fixture
async def company() -> Company:
    return Company()


async def test_a_launched_process_is_heard_and_looked_at(company: Company) -> None:
    company.companions.launched(B)
    assert company.memory.seen == {B: 902}
    assert (company.heard[B].incarnation, company.heard[P].incarnation) == (3, None)
    assert company.leashes[B].allowed is None, "it need not say yet that it lives"


async def test_who_belongs_is_decided_by_the_process_and_mark_of_this_launch(company: Company) -> None:
    """Also after another one has come: who asks late is not taken for it."""
    company.companions.launched(B)
    belongs = company.heard[B].belongs
    company.units[B].pid = 999
    company.units[B].unit = replace(READY, incarnation=Incarnation(4))
    assert belongs(905)
    assert not belongs(906)
    mark = InstanceMark("/var/lib/x", B, Incarnation(3))
    assert company.asked == [(905, 902, mark), (906, 902, mark)]


async def test_a_process_that_does_not_notify_is_not_heard(company: Company) -> None:
    company.units[P].in_force = InForce("127.0.0.1", {"http": 8001})
    company.companions.launched(P)
    assert company.heard[P].incarnation is None
    assert company.memory.seen == {P: 901}


async def test_without_a_socket_nobody_is_heard(company: Company) -> None:
    company.companions.attach({}, company.leashes, company.orders)
    company.companions.launched(P)
    company.companions.gone(P)
    assert company.memory.seen == {}


@pytest.mark.parametrize(
    ("agreed", "wanted", "expected"),
    [(10.0, 10.0, 10.0), (10.0, 30.0, 30.0), (10.0, 2.0, 10.0), (10.0, None, None), (None, 10.0, None), (None,) * 3],
)
async def test_a_ready_process_must_say_that_it_lives_as_it_was_told(
    company: Company, agreed: float | None, wanted: float | None, expected: float | None
) -> None:
    """It was told once, at its launch; the settings as they are now can be more patient, or expect nothing at all."""
    company.units[P].in_force = replace(company.units[P].in_force, watchdog=agreed)
    company.watchdogs[P] = wanted
    company.companions.proved(P)
    assert company.leashes[P].allowed == expected


async def test_a_watchdog_that_is_no_longer_wanted_is_ended(company: Company) -> None:
    """When the settings change, `proved` is called again."""
    company.companions.proved(P)
    company.watchdogs[P] = None
    company.companions.proved(P)
    assert company.leashes[P].allowed is None


async def test_of_an_ended_process_nothing_is_expected(company: Company) -> None:
    company.companions.launched(P)
    company.companions.proved(P)
    company.companions.gone(P)
    assert company.memory.seen == {}
    assert company.heard[P].incarnation is None
    assert company.leashes[P].allowed is None


async def test_a_silent_instance_is_restarted_and_the_history_says_why(company: Company) -> None:
    company.companions.proved(P)
    company.companions.watchdog_expired(P, 10.0)
    assert company.orders.given == [(Verb.RESTART, (P,), BY_DAEMON)]
    reason = "it has not said within 10 s that it is alive (watchdog)"
    assert company.history.events == [
        (EventName.INSTANCE_HUNG, f"primary hangs: {reason}", P, None, {"incarnation": 3, "seconds": 10.0}),
        (
            EventName.ORDER,
            f"clojarsd restarts primary: {reason}",
            P,
            "clojarsd",
            {"verb": "restart", "reason": reason},
        ),
    ]


async def test_a_restart_that_is_refused_is_tried_again_and_told_once(company: Company) -> None:
    """The other one cannot take over: half an instance is better than none."""
    company.orders.refusal = Refused("cannot restart primary: backup could not take over")
    company.companions.proved(P)
    for number in range(2, 5):
        company.companions.watchdog_expired(P, 10.0)
        assert (company.leashes[P].allowed, company.leashes[P].begun) == (10.0, number)
    assert [event for event, *_ in company.history.events] == [EventName.INSTANCE_HUNG]
    company.orders.refusal = None
    company.companions.watchdog_expired(P, 10.0)
    assert company.orders.given == [(Verb.RESTART, (P,), BY_DAEMON)]
    assert [event for event, *_ in company.history.events] == [EventName.INSTANCE_HUNG, EventName.ORDER]


PUT_OFF = (
    "it has not said within 10 s that it is alive (watchdog); its restart is put off:"
    " cannot restart primary: backup could not take over"
)


@pytest.fixture
async def silent(company: Company) -> Company:
    """The primary is silent, and its restart was put off."""
    company.orders.refusal = Refused("cannot restart primary: backup could not take over")
    company.companions.proved(P)
    company.companions.watchdog_expired(P, 10.0)
    return company


async def test_one_whose_restart_is_put_off_is_shown_to_be_in_trouble_until_it_begins(silent: Company) -> None:
    assert (silent.units[P].trouble, silent.units[B].trouble) == (PUT_OFF, None)
    silent.orders.refusal = None
    silent.companions.watchdog_expired(P, 10.0)
    assert silent.units[P].trouble is None


async def test_one_that_says_again_that_it_is_alive_has_recovered(silent: Company) -> None:
    silent.leashes[P].feed(P)
    assert silent.units[P].trouble is None
    assert silent.history.events[1:] == [
        (
            EventName.INSTANCE_RECOVERED,
            "primary says again that it is alive (watchdog)",
            P,
            None,
            {"incarnation": 3},
        )
    ]
    silent.companions.watchdog_expired(P, 10.0)
    assert silent.units[P].trouble == PUT_OFF
    assert [event for event, *_ in silent.history.events[2:]] == [EventName.INSTANCE_HUNG], "it hangs for another time"


async def test_a_change_of_the_settings_does_not_hide_that_it_is_silent(silent: Company) -> None:
    silent.companions.proved(P)
    assert silent.units[P].trouble == PUT_OFF
    silent.leashes[P].feed(P)
    assert silent.units[P].trouble is None


async def test_one_that_need_not_say_anything_any_more_is_in_no_trouble(silent: Company) -> None:
    silent.watchdogs[P] = None
    silent.companions.proved(P)
    assert silent.units[P].trouble is None
    assert silent.history.messages[1:] == [], "that does not mean that it is alive"


async def test_one_that_was_never_silent_does_not_recover(company: Company) -> None:
    company.companions.proved(P)
    company.units[P].trouble = "x"
    company.leashes[P].feed(P)
    company.leashes[P].feed(P)
    assert (company.history.events, company.units[P].trouble) == ([], "x")


async def test_the_silence_of_one_that_is_being_stopped_is_no_trouble(company: Company) -> None:
    company.units[P].unit = replace(READY, state=UnitState.DRAINING, cause=EndCause.STOP, goal=Goal.DOWN)
    company.companions.watchdog_expired(P, 10.0)
    company.leashes[P].feed(P)
    assert (company.units[P].trouble, company.history.events) == (None, [])


async def test_the_next_incarnation_that_hangs_is_told_again(company: Company) -> None:
    company.companions.watchdog_expired(P, 10.0)
    company.units[P].unit = replace(READY, incarnation=Incarnation(4))
    company.companions.watchdog_expired(P, 10.0)
    hung = [
        detail["incarnation"] for event, _, _, _, detail in company.history.events if event is EventName.INSTANCE_HUNG
    ]
    assert hung == [3, 4]


@pytest.mark.parametrize(
    "unit",
    [
        replace(READY, state=UnitState.STOPPING, cause=EndCause.STOP, goal=Goal.DOWN),
        replace(READY, state=UnitState.DRAINING, cause=EndCause.RESTART),
        replace(READY, state=UnitState.STARTING, ready_at=None),
        Unit(),
    ],
    ids=["being stopped", "being restarted", "starting", "stopped"],
)
async def test_what_an_operator_has_ordered_is_not_overridden(company: Company, unit: Unit) -> None:
    company.units[P].unit = unit
    with pytest.raises(Refused) as caught:
        company.companions.restart(P, "its memory stayed above memory_max")
    assert str(caught.value) == f"cannot restart primary: it is {unit.state.value}; nothing was done"
    assert (company.orders.given, company.history.events) == ([], [])


async def test_a_restart_for_its_memory_is_told_like_an_order(company: Company) -> None:
    company.companions.restart(B, "its memory stayed above memory_max (2 GiB, at most 1 GiB)")
    assert company.orders.given == [(Verb.RESTART, (B,), "clojarsd")]
    assert company.history.messages == [
        "clojarsd restarts backup: its memory stayed above memory_max (2 GiB, at most 1 GiB)"
    ]


async def test_a_port_that_somebody_still_has_is_shown(company: Company) -> None:
    company.units[P].unit, company.units[P].pid = Unit(), None
    company.taken = "port 8001 (http) is still in use by process 4711 (sleep)"
    company.companions.rested(P)
    await until(lambda: company.units[P].left)
    assert company.units[P].left == [company.taken]
    assert company.ports == [{"http": Address("127.0.0.1", 8001)}]


async def test_what_somebody_has_let_go_of_is_shown(company: Company) -> None:
    company.units[P].unit, company.units[P].pid = Unit(), None
    company.strays = ("process 4711 (sleep)",)
    company.companions.rested(P)
    await until(lambda: company.units[P].left)
    assert company.units[P].left == [
        "process 4711 (sleep) has left its instance without a trace, whichever that was, and ends with clojarsd"
    ]


@pytest.mark.parametrize("taken", [None, OSError("gone")])
async def test_a_look_that_finds_nothing_shows_nothing(company: Company, taken: Exception | None) -> None:
    company.units[P].unit = Unit()
    company.taken = taken
    company.companions.rested(P)
    await until(lambda: company.ports)
    await asyncio.get_running_loop().run_in_executor(None, lambda: None)
    assert company.units[P].left == []


async def test_what_is_seen_when_another_process_has_come_is_not_shown(company: Company) -> None:
    """It is that one which has the ports."""
    company.units[P].unit = Unit()
    company.taken = "port 8001 (http) is still in use by process 4711 (sleep)"
    company.may_end.clear()
    company.companions.rested(P)
    company.units[P].unit = READY
    company.may_end.set()
    await until(lambda: company.ports)
    await asyncio.get_running_loop().run_in_executor(None, lambda: None)
    assert company.units[P].left == []


class NoThreads(ThreadPoolExecutor):
    """What a pool is when the kernel gives no threads."""

    def submit(self, *args: object, **options: object) -> Future[Any]:
        raise RuntimeError("can't start new thread")


async def test_a_look_that_cannot_be_made_is_told_and_no_matter(company: Company) -> None:
    company.units[P].unit, company.units[P].pid = Unit(), None
    asyncio.get_running_loop().set_default_executor(NoThreads())
    with structlog.testing.capture_logs() as logs:
        company.companions.rested(P)
    assert [(line["event"], line["reason"]) for line in logs] == [("ports_not_looked_at", "can't start new thread")]
    assert company.units[P].left == []
