"""What the supervisor tells the kernel: nothing late, nothing twice, nothing of what it does not know yet."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from clojarsd.core.errors import CannotSteer, Failed
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.history import EventName
from clojarsd.core.names import Address, Role
from clojarsd.core.spreading import WHOLE, as_part
from clojarsd.core.steering import IPV4
from clojarsd.core.view import FrontendView
from clojarsd.runtime import steering as module
from clojarsd.runtime.steered_connections import SteeredConnections
from clojarsd.runtime.steering import Steering
from tests.support.fronts import B, P, Past, make_plan
from tests.support.kernel import OwnReach, RememberingKernel
from tests.support.waiting import until

HTTP = (Address("127.0.0.1", 8080),)


def nothing_open() -> SteeredConnections:
    return SteeredConnections(lambda role: ())


class World:
    """A kernel, instances that listen, and the supervisor that comes and goes."""

    def __init__(self) -> None:
        self.kernel = RememberingKernel()
        self.listeners = {role: socket.create_server(("127.0.0.1", 0)) for role in Role}
        self.backends = {role: Address(*one.getsockname()) for role, one in self.listeners.items()}
        self.reach = OwnReach(self.listeners)
        self.past = Past()
        self.since: dict[Role, float | None] = {P: None, B: None}
        self.plans: dict[str, FrontendPlan] = {}
        self.cannot_take_away: str | None = None
        self._made: list[Steering] = []

    def plan(self, name: str = "http", **changes: Any) -> FrontendPlan:
        return make_plan(self.backends, **{"name": name, "mode": "auto", **changes})

    def steering(self, *plans: FrontendPlan, begin: bool = True) -> Steering:
        steering = self.make(self.kernel.open, is_left=bool(self.kernel.frontends))
        steering.attach(self.past)
        self.configure(steering, *(plans or (self.plan(),)))
        if begin:
            steering.begin()
        return steering

    def make(self, open_kernel: Callable[[], RememberingKernel], *, is_left: bool = False) -> Steering:
        steering = Steering(open_kernel, lambda: is_left, self.reach, nothing_open, self.take_away)
        steering.configure_again = partial(self._configure_again, steering)
        self._made.append(steering)
        return steering

    def take_away(self) -> None:
        if self.cannot_take_away is not None:
            raise CannotSteer(self.cannot_take_away)
        self.kernel.frontends, self.kernel.orders = {}, {}

    async def _configure_again(self, steering: Steering) -> None:
        self.plans = self.configure(steering, *self.plans.values())

    def close(self) -> None:
        for steering in self._made:
            steering.detach()
        for listener in self.listeners.values():
            listener.close()

    def configure(self, steering: Steering, *plans: FrontendPlan) -> dict[str, FrontendPlan]:
        self.plans = steering.configure(steering.plan(plans), lambda name: HTTP)
        return self.plans

    def eligible(self, steering: Steering, *roles: Role) -> None:
        now = asyncio.get_running_loop().time()
        for role in Role:
            before = self.since[role]
            self.since[role] = (now if before is None else before) if role in roles else None
        steering.set_eligible(self.since)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    world.close()


SEEN = FrontendView(("127.0.0.1:8080",), "relay", None, None, {P: 1, B: 2, None: 3}, {P: 10, B: 20, None: 30})


async def test_the_kernel_knows_before_the_call_returns(world: World) -> None:
    steering = world.steering()
    world.eligible(steering, P)
    assert world.kernel.log == [("http", (P,))]
    world.eligible(steering, P, B)
    assert world.kernel.log[1:] == [("http", (P, B))]
    world.eligible(steering, B)
    assert world.kernel.log[2:] == [("http", (B,))]
    world.eligible(steering)
    assert world.kernel.log[3:] == [("http", ())]


async def test_nothing_is_told_twice(world: World) -> None:
    steering = world.steering(world.plan("one"), world.plan("two"))
    world.eligible(steering, P, B)
    world.eligible(steering, P, B)
    assert sorted(name for name, _ in world.kernel.log) == ["one", "two"]


async def test_an_instance_that_returns_is_second_until_its_failback(world: World) -> None:
    steering = world.steering(world.plan(failback=0.05))
    world.eligible(steering, P, B)
    world.eligible(steering, B)
    world.eligible(steering, P, B)
    assert world.kernel.orders["http"] == (B, P)
    next_step = steering.show("http", SEEN).next
    assert next_step is not None
    await until(lambda: world.kernel.orders["http"] == (P, B), "the failback")
    assert world.past.events == [EventName.FAILOVER, EventName.FAILBACK]


async def test_a_new_incarnation_brings_its_own_socket(world: World) -> None:
    steering = world.steering()
    world.eligible(steering, P)
    first = world.kernel.has("http", P)
    world.eligible(steering)
    world.listeners[P].close()
    world.listeners[P] = world.reach.listeners[P] = socket.create_server(("127.0.0.1", 0))
    world.eligible(steering, P)
    assert world.kernel.has("http", P) not in (first, {})


async def test_an_instance_whose_socket_cannot_be_had_is_relayed_and_not_passed_over(world: World) -> None:
    world.reach.refuses[P] = Failed("cannot take its listening socket: operation not permitted")
    steering = world.steering()
    world.eligible(steering, P, B)
    assert world.kernel.orders == {"http": ()}
    shown = steering.show("http", SEEN)
    reason = "primary is relayed: cannot take its listening socket: operation not permitted"
    assert (shown.mode, shown.mode_reason, shown.active) == ("relay", reason, P)
    world.eligible(steering, B)
    assert world.kernel.orders == {"http": (B,)}
    assert steering.show("http", SEEN).mode == "steer"


IPV6_TOO = (Address("127.0.0.1", 8080), Address("::1", 8080))


def takes_both(world: World, role: Role) -> None:
    """Have the instance listen for IPv4 and IPv6."""
    world.listeners[role].close()
    both = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    world.listeners[role] = world.reach.listeners[role] = both


def listen(world: World, steering: Steering, *addresses: Address) -> None:
    steering.configure(steering.plan([world.plan(failback=60.0)]), lambda name: addresses)


async def test_who_has_clients_of_a_family_that_the_primary_does_not_take_is_not_its_standby(world: World) -> None:
    """The kernel would give it those while the primary serves the others, so that both had clients at once."""
    takes_both(world, B)
    steering = world.steering()
    listen(world, steering, *IPV6_TOO)
    world.eligible(steering, P, B)
    assert world.kernel.orders == {"http": (P,)}
    world.eligible(steering, B)
    assert world.kernel.orders == {"http": (B,)}
    listen(world, steering, *HTTP)
    world.eligible(steering, P, B)
    assert world.kernel.orders == {"http": (B, P)}, "nobody has an IPv6 client"


async def test_clients_of_a_family_that_the_active_instance_does_not_take_are_said_to_be_relayed(world: World) -> None:
    takes_both(world, B)
    steering = world.steering()
    listen(world, steering, *IPV6_TOO)
    world.eligible(steering, P)
    seen = steering.show("http", SEEN)
    assert (seen.mode, seen.mode_reason) == ("steer", "IPv6 clients are relayed: primary does not listen for them")
    listen(world, steering, *IPV6_TOO[1:])
    seen = steering.show("http", SEEN)
    assert (seen.mode, seen.mode_reason) == ("relay", "IPv6 clients are relayed: primary does not listen for them")
    assert world.kernel.orders == {"http": ()}
    world.eligible(steering, B)
    seen = steering.show("http", SEEN)
    assert (seen.mode, seen.mode_reason) == ("steer", None)
    assert world.kernel.orders == {"http": (B,)}


async def test_a_socket_is_asked_for_again_until_it_is_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    world.reach.refuses[P] = Failed("none of its processes listens")
    steering = world.steering()
    world.eligible(steering, P)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(steering.run())
        await until(lambda: world.reach.asked.count(P) > 2, "another try")
        del world.reach.refuses[P]
        await until(lambda: world.kernel.orders["http"] == (P,), "the order")
        world.kernel.sockets.clear()  # as when an instance closes its listener
        await until(lambda: world.kernel.has("http", P), "the socket")
        running.cancel()


async def test_a_listener_that_was_opened_again_is_taken_as_soon_as_that_is_said(world: World) -> None:
    steering = world.steering(world.plan("one"), world.plan("two"))
    world.eligible(steering, P, B)
    world.kernel.sockets["one", P].clear()  # it has closed its listener
    world.reach.asked.clear()
    steering.listeners_changed(P)
    assert world.kernel.has("one", P)
    assert world.reach.asked == [P], "only what is missing"
    steering.listeners_changed(B)
    assert world.reach.asked == [P]


async def test_the_ports_from_which_an_instance_gets_connections(world: World) -> None:
    wide = (Address("127.0.0.1", 8080), Address("::1", 8080), Address("127.0.0.1", 8443))
    steering = world.steering(world.plan("one"), world.plan("two", mode="relay"))
    plans = steering.plan([world.plan("one"), world.plan("two", mode="relay")])
    steering.configure(plans, lambda name: wide)
    assert steering.ports_to(P, world.backends[P].port) == [8080, 8443]
    assert steering.ports_to(B, world.backends[P].port) == []
    assert steering.ports_to(P, 1) == []


async def test_failures_in_a_row_are_remembered_over_a_restart_of_the_daemon(world: World) -> None:
    world.eligible(world.steering(), P, B)
    world.kernel.counts["http"][P] = 5
    steering = world.make(world.kernel.open, is_left=True)
    steering.shown = {"http": replace(SEEN, failures=3)}.get
    world.configure(steering, world.plan(failback=1.0, failback_max=60.0))
    world.eligible(steering, P, B)
    steering.begin()
    assert steering.show("http", SEEN).failures == 3
    world.eligible(steering, B)
    world.eligible(steering, P, B)
    shown = steering.show("http", SEEN)
    assert shown.failures == 4
    assert shown.next is not None
    assert shown.next.reason == "it has failed 4 times in a row and must be eligible for 8 s, not 1 s"


async def test_one_that_was_relayed_goes_on_with_its_route_and_does_not_fail_back_before_its_time(world: World) -> None:
    steering = world.steering(world.plan(mode="relay"))
    world.eligible(steering, P, B)
    seen = replace(SEEN, active=B, failures=3)
    steering.shown = {"http": seen}.get
    world.configure(steering, world.plan(failback=1.0, failback_max=60.0))
    assert world.kernel.orders["http"] == (B, P)
    shown = steering.show("http", seen)
    assert (shown.active, shown.failures) == (B, 3)
    assert shown.next is not None
    assert shown.next.reason == "it has failed 3 times in a row and must be eligible for 4 s, not 1 s"
    assert world.past.events == []


async def test_a_primary_that_has_served_for_long_under_this_daemon_is_trusted_again(world: World) -> None:
    world.eligible(world.steering(), P, B)
    steering = world.make(world.kernel.open, is_left=True)
    steering.shown = {"http": replace(SEEN, failures=3)}.get
    world.configure(steering, world.plan(failback=0.01, failback_max=0.01))
    world.eligible(steering, P, B)
    steering.begin()
    served_from = asyncio.get_running_loop().time()
    await until(lambda: asyncio.get_running_loop().time() - served_from > 0.02, "more than it must last")
    world.eligible(steering, B)
    assert steering.show("http", SEEN).failures == 1


async def test_what_an_earlier_daemon_has_left_holds_until_it_is_known_who_may_serve(world: World) -> None:
    world.eligible(world.steering(), P, B)
    world.kernel.counts["http"][P] = 5
    world.reach.refuses = dict.fromkeys(Role, PermissionError("ptrace_scope"))
    del world.kernel.log[:]
    steering = world.steering(begin=False)
    assert world.kernel.orders["http"] == (P, B)
    world.eligible(steering, P, B)
    steering.begin()
    assert world.kernel.log == []
    world.eligible(steering, B)
    assert world.kernel.log == [("http", (B,))]
    assert world.past.events == [EventName.FAILOVER]


async def test_an_earlier_daemon_that_knew_of_the_backup_alone_is_failed_back_from(world: World) -> None:
    before = world.steering()
    world.eligible(before, P, B)
    world.kernel.counts["http"][P] = 5
    world.eligible(before, B)
    before.detach()
    steering = world.steering(begin=False)
    world.since[P] = None
    world.eligible(steering, P, B)
    steering.begin()
    assert world.kernel.orders["http"][0] is P
    assert world.past.events[-1] is EventName.FAILBACK


async def test_a_paused_frontend_comes_to_the_relay_and_others_do_not(world: World) -> None:
    steering = world.steering(world.plan("one"), world.plan("two"))
    world.eligible(steering, P, B)
    steering.set_paused({"one"})
    assert world.kernel.orders == {"one": (), "two": (P, B)}
    world.eligible(steering, B)
    assert world.kernel.orders == {"one": (), "two": (B,)}
    steering.set_paused(())
    assert world.kernel.orders == {"one": (B,), "two": (B,)}


async def test_the_view_adds_up_what_kernel_and_relay_have_carried(world: World) -> None:
    steering = world.steering()
    world.eligible(steering, P)
    world.kernel.counts["http"].update({P: 100, B: 200, None: 50})
    shown = steering.show("http", SEEN)
    assert (shown.mode, shown.mode_reason, shown.active) == ("steer", None, P)
    assert dict(shown.accepted_total) == {P: 110, B: 220, None: 30}
    assert steering.show("other", SEEN) is SEEN


def accepted_by_primary(steering: Steering) -> int:
    return steering.show("http", SEEN).accepted_total[P]


async def test_what_was_counted_stays_counted_when_the_kernel_steers_no_more_or_again(world: World) -> None:
    steering = world.steering()
    world.eligible(steering, P, B)
    world.kernel.counts["http"][P] = 5
    world.configure(steering, world.plan(mode="relay"), world.plan("other"))
    assert accepted_by_primary(steering) == 15
    world.configure(steering, world.plan(), world.plan("other"))
    assert accepted_by_primary(steering) == 15
    world.kernel.counts["http"][P] = 2
    assert accepted_by_primary(steering) == 17
    world.kernel.breaks["set_order"] = OSError(errno.ENOMEM, "no memory")
    world.eligible(steering, B)
    assert steering.show("http", SEEN).mode == "relay"
    assert accepted_by_primary(steering) == 17
    assert steering.show("other", SEEN) is SEEN


# Frontends that come and go.


async def test_a_frontend_that_wants_the_relay_is_left_to_it(world: World) -> None:
    steering = world.steering(world.plan(mode="relay"))
    assert not world.kernel.is_open
    assert steering.show("http", SEEN).mode == "relay"
    assert steering.show("http", SEEN) is SEEN


async def test_what_was_left_is_taken_away_when_nothing_is_to_be_steered(world: World) -> None:
    world.eligible(world.steering(), P)
    world.steering(world.plan(mode="relay"))
    assert world.kernel.frontends == {}
    assert not world.kernel.is_open


async def test_a_change_is_made_in_place_and_the_last_steered_frontend_takes_all_along(world: World) -> None:
    steering = world.steering(world.plan("one"))
    world.eligible(steering, P)
    plans = world.configure(steering, world.plan("one"), world.plan("two"), world.plan("three", mode="relay"))
    assert world.kernel.orders == {"one": (P,), "two": (P,)}
    assert [plan.is_steered for plan in plans.values()] == [True, True, False]
    world.configure(steering, world.plan("two", mode="relay"))
    assert world.kernel.frontends == {}
    world.configure(steering, world.plan("two"))
    assert world.kernel.orders == {"two": (P,)}


async def test_an_instance_that_moves_to_another_port_is_found_there(world: World) -> None:
    steering = world.steering()
    world.eligible(steering, P)
    with socket.create_server(("127.0.0.1", 0)) as other:
        world.reach.listeners[P] = other
        moved = {**world.backends, P: Address(*other.getsockname())}
        world.configure(steering, replace(world.plan(), backends=moved))
        assert world.kernel.has("http", P) == {IPV4: other.getsockname()[1]}


async def test_a_kernel_that_cannot_is_named_and_all_is_relayed(world: World) -> None:
    def refuse() -> RememberingKernel:
        raise CannotSteer("no CAP_BPF")

    steering = world.make(refuse)
    (plan,) = world.configure(steering, world.plan()).values()
    assert (plan.is_steered, plan.mode_reason) == (False, "no CAP_BPF")


async def test_a_kernel_that_does_not_take_them_leaves_nothing_behind(world: World) -> None:
    world.kernel.refuses = "the kernel has no memory left for it"
    steering = world.make(world.kernel.open)
    world.kernel.refuses = None
    world.configure(steering, world.plan())
    world.kernel.refuses = "the kernel has no memory left for it"
    with pytest.raises(CannotSteer):
        world.kernel.configure(())
    plans = {"http": world.plan(is_steered=True)}
    world.kernel.remove = lambda: setattr(world.kernel, "is_open", False)  # type: ignore[method-assign]
    (plan,) = steering.configure(plans, lambda name: HTTP).values()
    assert (plan.is_steered, plan.mode_reason) == (False, "the kernel has no memory left for it")
    assert not world.kernel.is_open


async def test_an_instance_out_of_reach_is_named(world: World) -> None:
    world.reach.away[world.backends[B]] = "is on another host (10.0.0.2)"
    steering = world.steering()
    (plan,) = world.configure(steering, world.plan()).values()
    assert (plan.is_steered, plan.mode_reason) == (False, "backup is on another host (10.0.0.2)")


async def test_who_never_began_leaves_nothing_behind_and_what_he_found(world: World) -> None:
    world.steering(begin=False).detach()
    assert world.kernel.frontends == {}
    world.eligible(world.steering(), P)
    world.steering(begin=False).detach()
    assert world.kernel.orders == {"http": (P,)}


async def test_who_fails_before_it_configures_anything_leaves_what_it_found(world: World) -> None:
    """As a daemon does that cannot listen somewhere: the kernel steers on for the instances that run."""
    world.eligible(world.steering(), P)
    steering = world.make(world.kernel.open, is_left=True)
    steering.plan([world.plan()])
    steering.detach()
    assert world.kernel.orders == {"http": (P,)}
    assert not world.kernel.is_open


async def test_who_fails_before_it_configures_anything_leaves_nothing_where_nothing_was(world: World) -> None:
    steering = world.make(world.kernel.open)
    steering.plan([world.plan()])
    steering.detach()
    assert world.kernel.was_removed


# What the kernel refuses while the daemon runs.


BROKEN = {
    "memory": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "permission": PermissionError(errno.EPERM, "Operation not permitted"),
    "descriptor": OSError(errno.EBADF, "Bad file descriptor"),
    "words": CannotSteer("not today"),
}
EACH = pytest.mark.parametrize("error", BROKEN.values(), ids=BROKEN)


@asynccontextmanager
async def looking(steering: Steering, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """`run`, with times that suit a test."""
    for name, seconds in (("LOOK_EVERY", 0.01), ("FIRST_RETRY", 0.01), ("LONGEST_RETRY", 0.05)):
        monkeypatch.setattr(module, name, seconds)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(steering.run())
        yield
        running.cancel()


@EACH
async def test_an_order_that_cannot_be_told_leaves_nobody_in_the_kernel(world: World, error: Exception) -> None:
    """The instance that may serve no more gets nothing: all comes to the relay process."""
    steering = world.steering(world.plan("one"), world.plan("two"))
    world.eligible(steering, P, B)
    world.kernel.breaks["set_order"] = error
    world.eligible(steering, B)
    assert world.kernel.frontends == {}
    assert not world.kernel.is_open
    assert [steering.show(name, SEEN) for name in ("one", "two")] == [SEEN, SEEN]


@EACH
async def test_what_was_given_up_is_named_and_comes_again(
    world: World, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    steering = world.steering(world.plan(failback=0.0))
    world.eligible(steering, P, B)
    world.kernel.breaks = {"set_order": error, "open": error}
    async with looking(steering, monkeypatch):
        world.eligible(steering, B)
        await until(lambda: not world.plans["http"].is_steered, "the relay")
        assert world.plans["http"].mode_reason is not None
        world.kernel.breaks.clear()
        await until(lambda: world.kernel.orders == {"http": (B,)}, "the kernel again")
        again = world.plans["http"]
        assert (again.is_steered, again.mode_reason) == (True, None)
        assert steering.show("http", SEEN).mode == "steer"
        world.eligible(steering, P, B)
        assert world.kernel.orders == {"http": (P, B)}


@EACH
@pytest.mark.parametrize("act", ["has", "order", "lacks"])
async def test_a_look_that_fails_gives_the_kernel_up(
    world: World, act: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    steering = world.steering()
    world.eligible(steering, P)
    async with looking(steering, monkeypatch):
        world.kernel.breaks = {act: error, "open": error}
        await until(lambda: not world.plans["http"].is_steered, "the relay")
        assert world.kernel.frontends == {}


@EACH
async def test_counters_that_cannot_be_read_are_shown_as_they_were(world: World, error: Exception) -> None:
    steering = world.steering()
    world.eligible(steering, P)
    world.kernel.counts["http"][P] = 7
    before = steering.show("http", SEEN)
    world.kernel.breaks["counters"] = error
    assert steering.show("http", SEEN) == before


@EACH
async def test_a_socket_that_is_not_taken_leaves_the_instance_to_the_relay(world: World, error: Exception) -> None:
    """Also where the kernel has one of an earlier incarnation, that somebody else may have."""
    steering = world.steering(world.plan(failback=60.0))
    world.eligible(steering, P, B)
    world.eligible(steering, B)
    world.kernel.breaks["put"] = error
    world.eligible(steering, P, B)
    assert world.kernel.orders == {"http": (B,)}
    world.eligible(steering, P)
    assert world.kernel.orders == {"http": ()}
    assert steering.show("http", SEEN).mode == "relay"


@EACH
async def test_a_frontend_that_cannot_be_begun_is_relayed(world: World, error: Exception) -> None:
    world.kernel.breaks["order"] = error
    world.steering()
    assert not world.plans["http"].is_steered
    said = {"cannot allocate memory", "operation not permitted", "bad file descriptor", "not today"}
    assert world.plans["http"].mode_reason in said
    assert world.kernel.frontends == {}


@EACH
async def test_what_cannot_be_told_in_the_middle_of_a_change_leaves_all_to_the_relay(
    world: World, error: Exception
) -> None:
    """Here the first frontend gets the primary back by its new settings, and the kernel refuses the order."""
    plans = [world.plan("one", failback=60.0), world.plan("two", failback=60.0)]
    steering = world.steering(*plans)
    world.eligible(steering, P, B)
    world.eligible(steering, B)
    world.eligible(steering, P, B)
    assert world.kernel.orders == {"one": (B, P), "two": (B, P)}
    world.kernel.breaks["set_order"] = error
    planned = world.configure(steering, *(replace(plan, failback=0.0) for plan in plans), world.plan("three"))
    assert world.kernel.frontends == {}
    assert {name: plan.is_steered for name, plan in planned.items()} == {"one": False, "two": False, "three": False}
    assert planned["three"].mode_reason == planned["one"].mode_reason
    assert (planned["one"].mode_reason or "").startswith("the kernel could not be told: ")


@EACH
async def test_an_end_goes_on_where_something_is_left(world: World, error: Exception) -> None:
    steering = world.steering()
    world.eligible(steering, P)
    world.kernel.breaks["remove"] = error
    steering.end()
    assert steering.show("http", SEEN).mode == "relay"


async def test_nothing_is_steered_again_once_it_has_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    steering = world.steering()
    world.eligible(steering, P)
    async with looking(steering, monkeypatch):
        world.kernel.breaks["set_order"] = BROKEN["memory"]
        world.eligible(steering)
        steering.end()
        world.kernel.breaks.clear()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not world.kernel.is_open


async def test_what_a_dead_daemon_has_left_is_taken_away_where_it_cannot_be_taken_up(world: World) -> None:
    world.eligible(world.steering(), P)
    world.kernel.breaks["open"] = CannotSteer("no CAP_BPF")
    world.steering()
    assert world.kernel.orders == {}
    assert world.plans["http"].mode_reason == "no CAP_BPF"


async def test_what_cannot_be_taken_away_is_named(world: World) -> None:
    world.eligible(world.steering(), P)
    world.kernel.breaks["open"] = CannotSteer("no CAP_BPF")
    world.cannot_take_away = "what steers as demo cannot be removed: permission denied"
    world.steering()
    assert world.plans["http"].mode_reason == (
        "no CAP_BPF; and what steers as demo cannot be removed: permission denied, "
        "so that connections go where the last daemon has sent them"
    )


async def test_what_was_taken_away_is_made_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    steering = world.steering()
    world.eligible(steering, P)
    async with looking(steering, monkeypatch):
        world.kernel.lost = "the program was detached"
        await until(lambda: world.kernel.lost is None, "the program")
        world.kernel.orders["http"] = (B,)
        await until(lambda: world.kernel.orders["http"] == (P,), "the order that somebody has changed")
    assert steering.show("http", SEEN).mode_reason is None


async def test_pins_that_cannot_be_made_again_are_named_while_the_kernel_steers_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    steering = world.steering()
    world.eligible(steering, P)
    world.kernel.lost, world.kernel.cannot_mend = "what was pinned is gone", "only root may mount"
    async with looking(steering, monkeypatch):
        await until(lambda: steering.show("http", SEEN).mode_reason is not None, "the reason")
        shown = steering.show("http", SEEN)
        reason = "what was pinned is gone, and steering ends with this daemon: only root may mount"
        assert (shown.mode, shown.mode_reason) == ("steer", reason)
        world.kernel.cannot_mend = None
        await until(lambda: steering.show("http", SEEN).mode_reason is None, "the pins")


async def test_a_program_that_cannot_be_attached_again_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    steering = world.steering()
    world.eligible(steering, P)
    world.kernel.lost, world.kernel.cannot_mend, world.kernel.attached = "the program was detached", "no memory", False
    world.kernel.breaks["open"] = CannotSteer("no memory")
    async with looking(steering, monkeypatch):
        await until(lambda: not world.plans["http"].is_steered, "the relay")


async def test_a_frontend_that_is_steered_again_is_still_paused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    steering = world.steering()
    world.eligible(steering, P)
    steering.set_paused({"http"})
    world.kernel.breaks["lacks"] = BROKEN["memory"]
    async with looking(steering, monkeypatch):
        await until(lambda: not world.kernel.is_open, "the end")
        world.kernel.breaks.clear()
        await until(lambda: "http" in world.kernel.orders, "the kernel again")
        assert world.kernel.orders == {"http": ()}


# Shares.


async def test_a_share_is_told_with_the_order_while_there_is_a_second_one(world: World) -> None:
    steering = world.steering()
    world.eligible(steering, P, B)
    steering.set_share(0.25)
    assert (world.kernel.orders["http"], world.kernel.parts["http"]) == ((P, B), WHOLE // 4)
    world.eligible(steering, P)
    assert (world.kernel.orders["http"], world.kernel.parts["http"]) == ((P,), 0)
    world.eligible(steering, P, B)
    assert world.kernel.parts["http"] == WHOLE // 4
    world.eligible(steering, B)
    assert (world.kernel.orders["http"], world.kernel.parts["http"]) == ((B,), 0)
    world.eligible(steering, P, B)
    told = len(world.kernel.log)
    steering.set_share(0.25)
    assert len(world.kernel.log) == told
    steering.set_share(0.0)
    assert world.kernel.parts["http"] == 0


async def test_the_backup_that_serves_shares_with_nobody(world: World) -> None:
    steering = world.steering(world.plan(failback=3600.0))
    steering.set_share(0.25)
    world.eligible(steering, P, B)
    world.eligible(steering, B)
    world.eligible(steering, P, B)
    assert (world.kernel.orders["http"], world.kernel.parts["http"]) == ((B, P), 0)


@pytest.mark.parametrize("shown", [0.25, 0.0])
async def test_the_next_daemon_tells_the_kernel_what_the_relay_process_shows(world: World, shown: float) -> None:
    """Which knows what is wanted, also where an earlier daemon has died before it told the kernel."""
    first = world.steering()
    world.eligible(first, P, B)
    first.set_share(0.5)
    first.detach()
    steering = world.make(world.kernel.open, is_left=True)
    steering.shown = lambda name: replace(SEEN, active=P, share=shown)
    world.configure(steering, world.plan())
    assert world.kernel.parts["http"] == WHOLE // 2
    steering.set_eligible(world.since)
    steering.begin()
    assert world.kernel.parts["http"] == as_part(shown)


async def test_a_part_that_somebody_has_changed_is_told_again(world: World) -> None:
    steering = world.steering()
    world.eligible(steering, P, B)
    world.kernel.parts["http"] = 5
    steering.listeners_changed(P)
    assert world.kernel.parts["http"] == 0


async def test_a_slow_start_is_relayed(world: World) -> None:
    steering = world.steering(world.plan(needs_relay=("slow_start",)))
    assert world.plans["http"].mode_reason == "slow_start needs the relay"
    assert not world.plans["http"].is_steered
    assert steering.show("http", SEEN) == SEEN
