"""Orders about frontends, as programs give them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from clojarsd.core.connections import ConnectionList, ConnectionPhase, ConnectionView
from clojarsd.core.names import Address, Role
from clojarsd.core.routing import Caps
from clojarsd.runtime import control_frontends as module
from tests.support.control import Room, control_room, open_directory


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory() as path:
        yield path


@pytest.fixture
async def room(directory: Path) -> AsyncIterator[Room]:
    async with control_room(directory) as room:
        yield room


async def order(room: Room, what: str, body: object = None, name: str = "http") -> str:
    status, answer = await room.ask("POST", f"/v1/frontends/{name}/{what}", body)
    assert (status, answer["result"]) == (200, "done")
    return str(answer["message"])


def ordered(room: Room) -> list[str]:
    return [event.message.partition(" orders: ")[2] for event in room.history.recent(50)]


async def test_a_pause_and_its_end(room: Room) -> None:
    assert (await order(room, "pause", {"for": 90})).startswith("new connections of http wait until ")
    assert room.board.view().frontends["http"].paused is not None
    again = await order(room, "pause")
    assert "; before, " in again
    assert "had paused them until" in again
    assert await order(room, "resume") == "new connections of http wait no more"
    assert await order(room, "resume") == "http is not paused"
    assert ordered(room) == ["pause http for 90 s", "pause http for 20 s", "resume http"]


async def test_a_pause_of_a_frontend_where_nobody_waits_needs_no_time(room: Room) -> None:
    from dataclasses import replace

    room.frontends.plans["http"] = replace(room.frontends.plans["http"], hold=0.0)
    await order(room, "pause")
    assert ordered(room) == ["pause http for 30 s"]


async def test_limits(room: Room) -> None:
    assert await order(room, "cap", {"total": 100}) == "the connections of http are at most 100"
    assert await order(room, "cap", {"primary": 60}) == "the connections of http to primary are at most 60"
    assert await order(room, "cap", {"primary": 60}) == "as before: the connections of http to primary are at most 60"
    assert room.board.view().frontends["http"].caps == Caps(100, 60, 0)
    assert await order(room, "cap", {"total": 0}) == "the connections of http have no limit"
    assert ordered(room) == ["cap http total 100", "cap http primary 60", "cap http total 0"]


@pytest.mark.parametrize("name", ["http", "all"])
async def test_counting_anew(room: Room, name: str) -> None:
    assert await order(room, "reset", name=name) == "connections of http are counted anew"
    status, seen = await room.ask("GET", "/v1/status")
    assert status == 200
    assert seen["frontends"]["http"]["accepted_total"] == {"primary": 0, "backup": 0, "held": 0}
    assert seen["frontends"]["http"]["counters_since"]["by"]
    assert room.board.view().frontends["http"].accepted_total[Role.PRIMARY] == 100
    assert ordered(room) == [f"reset {name}"]


async def test_a_relay_process_that_does_not_confirm(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    room.frontends.is_deaf = True
    message = "cannot say that http obeys: the relay process has not confirmed it within 0.05 s"
    assert await room.ask("POST", "/v1/frontends/http/pause") == (
        500,
        {"error": {"kind": "failed", "message": message}},
    )


async def test_single_connections(room: Room) -> None:
    one = ConnectionView(
        "http", "relay", Role.PRIMARY, Address("10.0.0.1", 5000), ConnectionPhase.OPEN, 1.5, 0.5, 10, 20, owed=True
    )
    room.frontends.listed = ConnectionList((one,), 3)
    for target in ("/v1/connections", "/v1/connections?frontend=http"):
        status, seen = await room.ask("GET", target)
        assert (status, seen["left_out"], len(seen["connections"])) == (200, 3, 1)
        assert seen["connections"][0]["client"] == "10.0.0.1:5000"


async def test_how_long_a_drain_may_take_is_given_on(room: Room) -> None:
    body = {"within": 5, "wait": False}
    assert (await room.ask("POST", "/v1/instances/primary/restart", body))[0] == 200
    assert room.orders.withins == [5]
    assert ordered(room) == ["restart primary within 5 s"]
    assert room.history.recent(1)[0].detail["within"] == 5


async def test_a_server_without_frontends_has_no_such_paths(directory: Path) -> None:
    async with control_room(directory, is_whole=False) as room:
        assert (await room.ask("POST", "/v1/frontends/http/pause"))[0] == 404


async def test_a_share(room: Room) -> None:
    async def share(percent: float) -> str:
        status, answer = await room.ask("POST", "/v1/share", {"percent": percent})
        assert (status, answer["result"]) == (200, "done")
        return str(answer["message"])

    assert await share(5) == "5 % of new connections go to backup while both can serve"
    assert room.board.view().frontends["http"].share == 0.05
    assert await share(5) == "as before: 5 % of new connections go to backup while both can serve"
    assert await share(0) == "all new connections go to primary while it can serve"
    assert ordered(room) == ["share 5 %", "share 0 %"]
    status, answer = await room.ask("POST", "/v1/share", {"percent": 60})
    assert (status, answer["error"]["message"]) == (400, "percent is 60, not a share (0 to 50)")
