"""Steered connections when new ones go elsewhere: reset at an instance that is down, and home from the backup.

The kernel's connections, and the resets of them, are real; what steers is a stand-in.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import ExitStack
from typing import Any

import pytest

from clojarsd.core.frontend_plan import FrontendPlan, Pause
from clojarsd.core.names import Address, Role
from clojarsd.runtime import steered_switchover
from clojarsd.runtime.steered_connections import SteeredConnections
from clojarsd.runtime.steering import Steering
from tests.runtime.test_steered_connections import Steered, logged
from tests.support.fronts import B, P, Past
from tests.support.kernel import OwnReach, RememberingKernel
from tests.support.sockets import receive_exactly, receive_to_the_end, stays_silent
from tests.support.waiting import until

__all__ = ["logged"]

SHORT = 0.1
pytestmark = pytest.mark.slow


class Rig:
    """A pair with connections, and a supervisor whose frontend `http` is steered."""

    def __init__(self, stack: ExitStack) -> None:
        self.pair = Steered(stack)
        listeners = {role: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for role in Role}
        self.kernel = RememberingKernel()
        made = self.known = SteeredConnections(self.pair.pids_of)
        self.steering = Steering(self.kernel.open, lambda: False, OwnReach(listeners), lambda: made)
        stack.callback(self.steering.detach)
        self.steering.attach(Past())
        self.since: dict[Role, float | None] = dict.fromkeys(Role)

    def configure(self, *roles: Role, **plan: Any) -> None:
        self.plan = self.pair.plan(mode="auto", **plan)
        self.replan(self.plan)
        self.steering.begin()
        self.eligible(*roles)

    def replan(self, plan: FrontendPlan) -> None:
        self.steering.configure(self.steering.plan([plan]), lambda name: plan.listen)

    def eligible(self, *roles: Role, down: Collection[Role] = (), is_ordered: bool = False) -> None:
        now = asyncio.get_running_loop().time()
        self.since = {role: now if role in roles else None for role in Role}
        self.steering.set_eligible(self.since, is_ordered=is_ordered, down=down)

    def client(self, role: Role, said: bytes = b"!", answer: bytes = b"A") -> socket.socket:
        return self.pair.client(self.pair.primary if role is P else self.pair.backup, said, answer)

    async def answer(self, client: socket.socket) -> None:
        """Have the backup answer it, once it has heard the question."""

        def has_answered() -> bool:
            self.pair.backup.answer()
            return bool(select.select([client], [], [], 0)[0])

        await until(has_answered, "the answer")
        assert receive_exactly(client, 1) == b"A"

    async def looked(self) -> None:
        """Return when everything that the thread has been asked for so far is done and told."""
        await self.known.connections()
        await asyncio.sleep(0)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    with ExitStack() as stack:
        yield Rig(stack)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steered_switchover, "SECOND_LOOK", SHORT)


def is_open(client: socket.socket) -> bool:
    client.sendall(b"!")
    return receive_exactly(client, 1) == b"A"


async def test_connections_of_an_instance_that_is_down_are_left_unless_the_settings_say_otherwise(rig: Rig) -> None:
    rig.configure(P, B)
    client = rig.client(P)
    rig.eligible(B, down=[P])
    await rig.looked()
    assert is_open(client)


async def test_connections_of_an_ipv4_address_that_is_written_as_ipv6_are_the_frontends(rig: Rig) -> None:
    listen = (Address("::ffff:127.0.0.1", rig.pair.port),)
    rig.steering.configure(rig.steering.plan([rig.pair.plan(mode="auto")]), lambda name: listen)
    rig.client(P)
    assert [one.role for one in (await rig.steering.connections()).connections] == [P]


async def test_they_are_reset_and_the_other_ones_are_not(rig: Rig, logged: list[Any]) -> None:
    rig.configure(P, B, cuts_on_down=True)
    waits, others = rig.client(P, b"?", b""), rig.client(B)
    await rig.looked()
    rig.eligible(B, down=[P])
    assert rig.kernel.orders["http"] == (B,)
    await rig.looked()
    assert receive_to_the_end(waits) == (b"", True)
    assert is_open(others)
    (told,) = [line for line in logged if line["event"] == "steered_connections_cut"]
    assert (told["frontend"], told["role"], told["connections"], told["reason"]) == ("http", "primary", 1, "it is down")


@pytest.mark.usefixtures("soon")
async def test_one_that_it_accepts_afterwards_is_reset_as_well(rig: Rig) -> None:
    rig.configure(P, B, cuts_on_down=True)
    rig.pair.primary.stop()
    client = rig.client(P, b"?", b"")
    rig.eligible(B, down=[P])
    await rig.looked()
    rig.pair.primary.go_on()
    await until(lambda: was_reset(client), "the second look")


def was_reset(client: socket.socket) -> bool:
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


async def test_an_order_to_leave_resets_nothing(rig: Rig) -> None:
    rig.configure(P, B, cuts_on_down=True)
    client = rig.client(P)
    rig.eligible(B, is_ordered=True)
    await rig.looked()
    assert is_open(client)


async def test_nothing_is_reset_while_the_other_one_cannot_serve_and_then_it_is(rig: Rig) -> None:
    rig.configure(P, cuts_on_down=True)
    client = rig.client(P)
    rig.eligible(down=[P])
    await rig.looked()
    assert is_open(client)
    rig.eligible(B, down=[P])
    await rig.looked()
    assert receive_to_the_end(client) == (b"", True)


async def test_not_while_new_connections_wait_by_order(rig: Rig) -> None:
    rig.configure(P, B, cuts_on_down=True)
    client = rig.client(P)
    rig.steering.set_paused({"http": Pause(0.0, "me")})
    rig.eligible(B, down=[P])
    await rig.looked()
    assert is_open(client)
    rig.steering.set_paused({})
    await rig.looked()
    assert receive_to_the_end(client) == (b"", True)


async def test_settings_take_effect_at_once(rig: Rig) -> None:
    rig.configure(P, B)
    client = rig.client(P)
    rig.eligible(B, down=[P])
    rig.replan(rig.pair.plan(mode="auto", cuts_on_down=True))
    await rig.looked()
    assert receive_to_the_end(client) == (b"", True)


async def test_the_backups_connections_stay_there_unless_the_settings_say_otherwise(rig: Rig) -> None:
    rig.configure(B, drain_idle=0.0)
    client = rig.client(B)
    rig.eligible(P, B)
    await rig.looked()
    assert is_open(client)


async def test_silent_ones_are_reset_when_the_primary_is_back_and_others_are_left(rig: Rig, logged: list[Any]) -> None:
    rig.configure(B, moves_on_up=True, drain_idle=SHORT)
    silent, owed = rig.client(B), rig.client(B, b"?", b"")
    rig.eligible(P, B)
    await until(lambda: was_reset(silent), "the reset of the silent one")
    await rig.looked()
    assert stays_silent(owed)
    await rig.answer(owed)
    await until(lambda: was_reset(owed), "its reset when it is silent as well")
    await rig.looked()  # which is told after it was done
    (told, _) = [line for line in logged if line["event"] == "steered_connections_cut"]
    assert (told["role"], told["reason"]) == ("backup", "new connections go to the primary again")


async def test_after_the_time_of_a_drain_they_are_left_alone(rig: Rig) -> None:
    rig.configure(B, moves_on_up=True, drain_idle=SHORT, drain=2 * SHORT)
    owed = rig.client(B, b"?", b"")
    rig.eligible(P, B)
    switchover = rig.steering._frontends["http"]._switchover
    await until(lambda: switchover._until is None, "the end of it")
    await rig.answer(owed)
    assert stays_silent(owed)
    assert is_open(owed)


async def test_when_the_primary_fails_again_they_stay(rig: Rig) -> None:
    rig.configure(B, moves_on_up=True, drain_idle=SHORT)
    client = rig.client(B, b"?", b"")
    rig.eligible(P, B)
    rig.eligible(B)
    await rig.answer(client)
    await rig.looked()
    assert stays_silent(client)
    assert is_open(client)
