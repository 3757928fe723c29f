"""A watch over real processes: those that stop, those that are merely slow, and those that open their port again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.history import EventName
from clojarsd.core.names import Address, Health, Incarnation, Role, UnitState
from clojarsd.core.stall import Stage, StallPolicy
from clojarsd.core.unit import Unit
from clojarsd.runtime import stall_watch as module
from clojarsd.runtime.instance_listeners import Target
from clojarsd.runtime.relay_launch import Owner
from clojarsd.runtime.rescue import Rescue
from clojarsd.runtime.stall_watch import StallWatch
from clojarsd.system.instance_sockets import Listening, duplicate, find_listening
from clojarsd.system.own_connections import OwnConnections
from clojarsd.system.probe import Prober
from clojarsd.system.sock_diag import SockDiag
from clojarsd.system.steering import KernelSteering
from tests.support.acceptors import Acceptor
from tests.support.fronts import LOOPBACK, descriptors_left, make_plan
from tests.support.namespaces import apart
from tests.support.sockets import open_descriptors, receive_exactly, receive_to_the_end
from tests.support.steered import HTTP
from tests.support.units import FakeHistory
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.slow
P, B = Role.PRIMARY, Role.BACKUP
NOW = Incarnation(4)


@dataclass
class FakeUnit:
    """A unit that only remembers. `said`: what it was told, in its order."""

    unit: Unit = field(default_factory=lambda: Unit(state=UnitState.READY, incarnation=NOW))
    is_stalled: bool = False
    said: list[str | None] = field(default_factory=list)

    def stalled(self, incarnation: Incarnation, reason: str | None) -> None:
        assert incarnation == NOW
        self.is_stalled = reason is not None
        self.said.append(reason)


class FakeAdopter:
    """Answers each client with what it has said, in capitals, and closes it."""

    def __init__(self) -> None:
        self.adopted: list[tuple[str, bytes]] = []

    def adopt(self, frontend: str, role: Role, clients: Sequence[socket.socket]) -> None:
        assert role is P
        for client in clients:
            with client:
                try:
                    said = client.recv(1000)
                except BlockingIOError:
                    said = b""
                self.adopted.append((frontend, said))
                client.send(said.upper())


class Watched:
    """A watch, and what it tells to whom.

    Attributes:
        found: the listeners that were found, each time.
        helpers: the numbers of helpers that have not been reaped.
    """

    def __init__(self, diag: SockDiag, plans: Sequence[FrontendPlan]) -> None:
        self.unit = FakeUnit()
        self.history = FakeHistory()
        self.adopter = FakeAdopter()
        self.own = OwnConnections()
        self.helpers: set[int] = set()
        self.found: list[list[Listening]] = []
        self.plans = {plan.name: plan for plan in plans}
        owner = Owner(self.helpers.add, self.helpers.discard)
        self.rescue = Rescue(owner, self.own, lambda: self.plans, self.adopter)
        self.watch = StallWatch(P, self.unit, self.history, diag, self.own, self.rescue)
        tell = self.watch._listeners._on_found

        def remember(target: Target, found: list[Listening]) -> None:
            tell(target, found)
            self.found.append(found)

        self.watch._listeners._on_found = remember
        self.watch.configure(StallPolicy(0.05, 0.3))

    def begin(self, *acceptors: Acceptor) -> None:
        ports = tuple(acceptor.port for acceptor in acceptors)
        self.watch.begin(Target(NOW, acceptors[0].pid, None, ports))

    async def listening(self) -> None:
        await until(lambda: self.found and self.found[-1], "the listener")

    async def stalled(self) -> str:
        await until(lambda: self.unit.is_stalled, "the verdict")
        assert self.unit.said[-1] is not None
        return self.unit.said[-1]

    async def recovered(self) -> None:
        await until(lambda: not self.unit.is_stalled, "the recovery")

    @property
    def stages(self) -> list[Stage]:
        return [one.thought.stage for one in self.watch._watched]

    def events(self) -> list[EventName]:
        return [event for event, *_ in self.history.events]

    def detail(self, which: int = -1) -> dict[str, Any]:
        return self.history.events[which][4]


@asynccontextmanager
async def watching(*plans: FrontendPlan) -> AsyncIterator[Watched]:
    """One that runs; afterwards nothing of it is left."""
    with SockDiag() as diag:
        async with asyncio.TaskGroup() as group:
            made = Watched(diag, plans)
            running = group.create_task(made.watch.run())
            yield made
            running.cancel()
        made.rescue.close()
        assert not made.helpers


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() <= before


def plan_for(acceptor: Acceptor, **changes: Any) -> FrontendPlan:
    return make_plan({P: acceptor.address, B: Address(LOOPBACK, 1)}, **changes)


async def test_a_stopped_process_is_stalled_and_recovers_when_it_goes_on() -> None:
    with Acceptor.running() as acceptor:
        async with watching() as watched:
            watched.begin(acceptor)
            await watched.listening()
            acceptor.do("serve")
            assert receive_exactly(acceptor.client(), 6) == b"served"
            acceptor.stop()
            clients = [acceptor.client() for _ in range(3)]
            reason = await watched.stalled()
            assert reason.startswith("it has not accepted 3 waiting connections for 0.")
            assert watched.events() == [EventName.INSTANCE_STALLED]
            assert watched.history.messages == [f"primary is stalled: {reason}"]
            assert {"incarnation", "port", "waiting", "seconds", "rescued"} == set(watched.detail())
            acceptor.go_on()
            await watched.recovered()
            assert watched.unit.said == [reason, None]
            assert watched.events()[1:] == [EventName.INSTANCE_RECOVERED]
            assert watched.history.messages[1].startswith("primary accepts connections again, after ")
            for client in clients:
                assert receive_exactly(client, 6) == b"served"


async def test_one_connection_is_enough() -> None:
    with Acceptor.running() as acceptor:
        async with watching() as watched:
            watched.begin(acceptor)
            await watched.listening()
            acceptor.client()
            assert (await watched.stalled()).startswith("it has not accepted 1 waiting connection for 0.")


async def test_a_full_queue_is_a_stall_too_and_its_recovery_is_seen() -> None:
    with Acceptor.running(backlog=2) as acceptor:
        async with watching() as watched:
            watched.begin(acceptor)
            await watched.listening()
            for _ in range(3):
                acceptor.client()
            for _ in range(3):
                acceptor.dialling()
            assert (await watched.stalled()).startswith("it has not accepted 3 waiting connections for 0.")
            acceptor.do("serve")
            await watched.recovered()


async def test_a_stalled_listener_never_has_more_than_one_probe_in_its_queue() -> None:
    with Acceptor.running() as acceptor:
        async with watching() as watched:
            watched.begin(acceptor)
            await watched.listening()
            acceptor.client()
            await watched.stalled()
            (one,) = watched.watch._watched
            looks = one.thought.looks
            await until(lambda: one.thought.looks > looks + 15, "many looks")
            assert one.thought.waiting == 2


@pytest.mark.parametrize(("backlog", "pause", "clients"), [(8, 0.02, 30), (50, 0.05, 20), (2, 0.1, 10)])
async def test_a_slow_accept_loop_with_a_queue_that_is_always_full_is_no_stall(
    backlog: int, pause: float, clients: int
) -> None:
    """Clients come back as soon as they are served, so that the queue is hardly ever seen shorter."""
    with Acceptor.running(backlog=backlog, pause=pause) as acceptor:
        acceptor.do("serve")
        async with watching() as watched:
            await is_no_stall(watched, acceptor, acceptor.port, clients)


@apart
async def test_a_slow_one_whose_clients_the_kernel_steers_to_it_is_no_stall() -> None:
    with Acceptor.running(backlog=50, pause=0.05) as acceptor, closing_steering() as steering:
        steering.configure([HTTP])
        (found,) = find_listening([acceptor.pid], acceptor.port)
        with duplicate(found) as listener:
            steering.put("http", P, [listener])
        steering.set_order("http", [P])
        acceptor.do("serve")
        async with watching() as watched:
            watched.watch.shared_ports = lambda port: [HTTP.listen[0].port]
            watched.watch.others_wait = lambda: False
            await is_no_stall(watched, acceptor, HTTP.listen[0].port, 20)


@contextmanager
def closing_steering() -> Iterator[KernelSteering]:
    steering = KernelSteering.open("test")
    try:
        yield steering
    finally:
        steering.remove()


async def is_no_stall(watched: Watched, acceptor: Acceptor, port: int, clients: int) -> None:
    async with asyncio.TaskGroup() as group:
        served, loop = 0, asyncio.get_running_loop()

        async def ask() -> None:
            nonlocal served
            while True:
                with socket.socket() as client, suppress(ConnectionError):
                    client.setblocking(False)
                    await loop.sock_connect(client, (LOOPBACK, port))
                    got = await loop.sock_recv(client, 6)
                    served += got == b"served"

        tasks = [group.create_task(ask()) for _ in range(clients)]
        watched.begin(acceptor)
        await watched.listening()
        confirmed = 0
        stages: list[Stage] = []
        before = served
        deadline = loop.time() + 4.0
        while loop.time() < deadline or served < before + 20:
            assert loop.time() < deadline + PATIENCE
            now = watched.stages
            confirmed += Stage.CONFIRMING in now and Stage.CONFIRMING not in stages
            stages = now
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        assert watched.unit.said == []
        assert Stage.QUIET not in stages, "it is always suspicious"
        print(f"{served} served, {confirmed} confirmations")


async def test_a_listener_that_was_opened_again_is_found_again() -> None:
    with Acceptor.running() as acceptor:
        async with watching() as watched:
            watched.begin(acceptor)
            await watched.listening()
            (before,) = watched.found[-1]
            acceptor.do("reopen")
            await until(lambda: watched.found[-1] and watched.found[-1][0].inode != before.inode, "the other listener")
            assert watched.found[-1] == [acceptor.listening]
            acceptor.client()
            await watched.stalled()


async def test_a_listener_that_comes_late_is_found() -> None:
    with Acceptor.running() as acceptor:
        acceptor.do("close")
        async with watching() as watched:
            watched.begin(acceptor)
            await until(lambda: watched.found, "the first look")
            assert watched.found[-1] == []
            acceptor.do("reopen")
            await watched.listening()
            assert watched.found[-1] == [acceptor.listening]


async def test_two_listeners_are_watched_and_one_is_enough_for_a_stall() -> None:
    with Acceptor.running() as first, Acceptor.running() as second:
        async with watching() as watched:
            watched.watch.begin(Target(NOW, first.pid, None, (first.port, second.port)))
            await until(lambda: watched.found, "the first look")
            assert [one.address.port for one in watched.found[-1]] == [first.port]  # the other is not its own


async def test_it_ends_with_the_process() -> None:
    with Acceptor.running() as acceptor:
        async with watching() as watched:
            watched.begin(acceptor)
            await watched.listening()
            acceptor.client()
            await watched.stalled()
            watched.watch.end()
            acceptor.end()
            assert watched.watch._watched == []


async def test_a_process_that_dies_before_anybody_says_so_is_no_harm() -> None:
    with Acceptor.running() as acceptor:
        async with watching() as watched:
            watched.begin(acceptor)
            await watched.listening()
            acceptor.client()
            await watched.stalled()
            acceptor.end()
            await watched.recovered()  # nothing is known of it any more; its exit says the rest
            await until(lambda: watched.found[-1] == [], "that nothing is there")
            assert watched.events() == [EventName.INSTANCE_STALLED]


async def test_nothing_is_judged_while_it_is_being_stopped() -> None:
    with Acceptor.running() as acceptor:
        async with watching() as watched:
            watched.unit.unit = Unit(state=UnitState.STOPPING, incarnation=NOW)
            watched.begin(acceptor)
            await watched.listening()
            acceptor.client()
            looks = 0

            def counted() -> bool:
                nonlocal looks
                looks += 1
                return looks > 100

            await until(counted, "some time")
            assert watched.stages == [Stage.QUIET]


async def test_turned_off_it_knows_of_no_stall_but_of_the_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHILE_OFF", 0.01)
    with Acceptor.running() as acceptor:
        async with watching() as watched:
            watched.begin(acceptor)
            await watched.listening()
            acceptor.client()
            await watched.stalled()
            watched.watch.configure(None)
            assert watched.unit.said[-1] is None
            assert EventName.INSTANCE_RECOVERED not in watched.events(), "nobody knows that"
            acceptor.do("reopen")
            await until(lambda: watched.found[-1] == [acceptor.listening], "the other listener")
            watched.watch.configure(StallPolicy(0.05, 0.3))
            acceptor.client()
            await watched.stalled()


async def test_one_that_was_stalled_for_an_earlier_daemon_is_until_a_probe_is_accepted() -> None:
    with Acceptor.running() as acceptor:
        async with watching() as watched:
            watched.unit.is_stalled = True
            watched.begin(acceptor)
            await watched.listening()
            await until(lambda: watched.watch._watched[0].probe is not None, "a probe")
            assert watched.unit.said == []
            acceptor.do("serve")
            await watched.recovered()
            assert watched.events() == [EventName.INSTANCE_RECOVERED]


async def test_what_an_earlier_daemon_has_found_is_given_up_where_stalls_are_not_looked_for() -> None:
    with Acceptor.running() as acceptor:
        async with watching() as watched:
            watched.watch.configure(None)
            watched.unit.is_stalled = True
            watched.begin(acceptor)
            await watched.recovered()
            assert watched.events() == []


async def test_without_descriptors_what_is_known_holds_and_nobody_else_is_harmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Acceptor.running() as acceptor:
        async with watching(plan_for(acceptor)) as watched:
            looks, really = 0, watched.watch._queues.waiting

            def counted(found: Listening) -> int:
                nonlocal looks
                looks += 1
                return really(found)

            monkeypatch.setattr(watched.watch._queues, "waiting", counted)
            watched.begin(acceptor)
            await watched.listening()
            acceptor.client()
            await watched.stalled()
            watched.watch.may_rescue = lambda: True
            with descriptors_left(0):
                watched.rescue.prepare()
                before = looks
                await until(lambda: looks > before + 5, "some looks")
                assert watched.unit.is_stalled
            acceptor.do("serve")
            await watched.recovered()
            assert watched.unit.said[1:] == [None]


async def test_who_was_accepted_waits_for_a_descriptor_and_is_not_lost() -> None:
    with Acceptor.running() as acceptor:
        async with watching(plan_for(acceptor)) as watched, asyncio.TaskGroup() as group:
            for number in range(5):
                acceptor.client(b"say %d" % number)
            rescued = group.create_task(watched.rescue.rescue(P, [acceptor.listening]))
            await asyncio.sleep(0)  # it has begun
            with descriptors_left(0):
                await until(lambda: not watched.helpers, "the helper to have handed on all")
                assert watched.adopter.adopted == []
            assert await rescued == 5
            assert watched.adopter.adopted == [("line", b"say %d" % number) for number in range(5)]


async def test_who_waits_is_rescued_and_told_in_the_event() -> None:
    with Acceptor.running() as acceptor:
        async with watching(plan_for(acceptor)) as watched:
            watched.watch.may_rescue = lambda: True
            watched.begin(acceptor)
            await watched.listening()
            acceptor.stop()
            clients = [acceptor.client(b"say %d" % number) for number in range(3)]
            reason = await watched.stalled()
            await until(lambda: len(watched.adopter.adopted) == 3, "the rescue")
            assert watched.adopter.adopted == [("line", b"say %d" % number) for number in range(3)]
            for number, client in enumerate(clients):
                assert receive_to_the_end(client) == (b"SAY %d" % number, False)
            await until(lambda: watched.events() == [EventName.INSTANCE_STALLED], "the event")
            assert watched.history.messages == [f"primary is stalled: {reason}; 3 of them are served by backup"]
            assert watched.detail()["rescued"] == 3
            later = acceptor.client(b"later")
            await until(lambda: len(watched.adopter.adopted) == 4, "the next rescue")
            assert receive_to_the_end(later) == (b"LATER", False)
            acceptor.go_on()
            acceptor.do("serve")
            await watched.recovered()
            assert watched.detail()["rescued"] == 4
            assert receive_exactly(acceptor.client(), 6) == b"served"


async def test_an_instance_that_goes_on_during_the_rescue_serves_the_rest_itself() -> None:
    with Acceptor.running(backlog=1000) as acceptor:
        async with watching(plan_for(acceptor)) as watched:
            watched.watch.may_rescue = lambda: True
            watched.begin(acceptor)
            await watched.listening()
            acceptor.do("serve")
            acceptor.stop()
            clients = [acceptor.client(b"x") for _ in range(400)]
            await watched.stalled()
            await until(lambda: watched.adopter.adopted, "the rescue's begin")
            acceptor.go_on()
            answers = [(await asyncio.to_thread(receive_to_the_end, client))[0] for client in clients]
            assert set(answers) <= {b"X", b"served"}
            assert answers.count(b"X") == len(watched.adopter.adopted)
            await watched.recovered()


async def test_those_of_an_instance_that_fails_its_checks_are_rescued_without_a_verdict() -> None:
    with Acceptor.running() as acceptor:
        async with watching(plan_for(acceptor)) as watched:
            watched.watch.configure(StallPolicy(0.02, PATIENCE))
            watched.watch.may_rescue = lambda: True
            watched.watch.health = lambda: Health.DOWN
            watched.begin(acceptor)
            await watched.listening()
            client = acceptor.client(b"x")
            await until(lambda: watched.adopter.adopted, "the rescue")
            assert receive_to_the_end(client) == (b"X", False)
            assert watched.unit.said == []


@dataclass
class Check:
    path: str = "/health"
    status: tuple[int, ...] = (200,)
    timeout: float = PATIENCE


@asynccontextmanager
async def checked_while_stopped() -> AsyncIterator[tuple[Acceptor, Watched, Prober]]:
    """One that is stopped and whose clients may be rescued, and what checks it."""
    with Acceptor.running() as acceptor:
        async with watching(plan_for(acceptor)) as watched, Prober(watched.own) as prober:
            watched.watch.may_rescue = lambda: True
            watched.begin(acceptor)
            await watched.listening()
            acceptor.stop()
            yield acceptor, watched, prober


async def test_a_check_of_ours_that_says_that_it_is_no_clients_is_served_by_nobody_else() -> None:
    async with checked_while_stopped() as (acceptor, watched, prober):
        assert (await prober.tcp(Check(), acceptor.address, announced=True)).passed
        await watched.stalled()
        await until(lambda: not watched.helpers, "the end of the rescue")
        assert watched.adopter.adopted == []
        await until(lambda: watched.events() == [EventName.INSTANCE_STALLED], "the event")
        assert watched.detail()["rescued"] == 0


async def test_a_check_of_ours_is_answered_by_nobody_else() -> None:
    async with checked_while_stopped() as (acceptor, watched, prober):
        assert not (await prober.http(Check(), acceptor.address)).passed
        assert watched.adopter.adopted == []
        assert watched.unit.is_stalled


async def test_a_client_of_no_frontend_is_reset() -> None:
    with Acceptor.running() as acceptor:
        async with watching() as watched:
            watched.watch.may_rescue = lambda: True
            watched.begin(acceptor)
            await watched.listening()
            client = acceptor.client(b"x")
            await watched.stalled()
            assert await asyncio.to_thread(receive_to_the_end, client) == (b"", True)
            await until(lambda: watched.events() == [EventName.INSTANCE_STALLED], "the event")
            assert watched.detail()["rescued"] == 0


async def test_a_helper_for_a_stall_whose_clients_nobody_could_serve_ends_with_it() -> None:
    with Acceptor.running() as acceptor:
        async with watching(plan_for(acceptor)) as watched:
            watched.watch.may_rescue = lambda: not watched.helpers  # the other one is down before the verdict
            watched.begin(acceptor)
            await watched.listening()
            acceptor.client()
            await watched.stalled()
            assert len(watched.helpers) == 1
            acceptor.do("serve")
            await watched.recovered()
            await until(lambda: not watched.helpers, "its end")


async def test_helpers_that_nobody_needs_end() -> None:
    async with watching() as watched:
        watched.rescue.prepare()
        assert len(watched.helpers) == 1
        watched.rescue.prepare()
        assert len(watched.helpers) == 1
        watched.rescue.dismiss()
        await until(lambda: not watched.helpers, "its end")
        watched.rescue.prepare()  # and this one ends with the rescue
