"""The HTTP API on the control socket: what it answers, to whom, and what it survives."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import resource
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import uvloop

from clojarsd.core.api import MOST_EVENTS, Verb
from clojarsd.core.errors import Failed, Refused
from clojarsd.core.history import EventName
from clojarsd.core.names import Health, Role, UnitState
from clojarsd.runtime import control
from clojarsd.runtime.control_request import see_through
from tests.support.control import DEADLINE_S, PaperWork, Room, control_room, instance, open_directory
from tests.support.real import root_only
from tests.support.waiting import until

ASK_AS = """
import os, socket, sys
path, uid, gid, groups, head = sys.argv[1:]
os.setgroups([int(group) for group in groups.split()])
os.setgid(int(gid))
os.setuid(int(uid))
client = socket.socket(socket.AF_UNIX)
client.connect(path)
client.sendall(f"{head} HTTP/1.0\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
while some := client.recv(65536):
    sys.stdout.buffer.write(some)
"""
"""Somebody else, who asks something."""


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory() as path:
        yield path


@pytest.fixture
async def room(directory: Path) -> AsyncIterator[Room]:
    async with control_room(directory) as room:
        yield room


async def next_work(room: Room) -> PaperWork:
    async with asyncio.timeout(DEADLINE_S):
        return await room.orders.works.get()


async def test_the_picture_of_the_pair(room: Room) -> None:
    status, body = await room.ask("GET", "/v1/status")
    assert status == 200
    assert body == json.loads(json.dumps(room.board.view().as_json()))


async def test_the_judgement_of_the_pair(room: Room) -> None:
    assert await room.ask("GET", "/v1/check") == (
        200,
        {"code": 0, "message": "clojars OK: primary and backup can serve"},
    )
    room.board.publish(instance(Role.BACKUP, state=UnitState.FAILED, reason="given up"))
    _, body = await room.ask("GET", "/v1/check")
    assert body == {"code": 1, "message": "clojars WARNING: only primary can serve; backup is failed: given up"}


async def test_an_order_tells_its_steps_and_its_end(room: Room) -> None:
    async with room.stream("POST", "/v1/instances/clojars-backup/restart") as lines:
        work = await next_work(room)
        assert room.orders.given == [(Verb.RESTART, (Role.BACKUP,), "root", False, None)]
        work.note(Role.BACKUP, "backup is to be restarted")
        step = await lines.next()
        assert step == {
            "step": {"at": "2026-11-23T12:00:09.000Z", "role": "backup", "message": "backup is to be restarted"}
        }
        work.finish("backup is ready")
        assert await lines.next() == {"result": "done", "message": "backup is ready"}
        assert await lines.next() is None


async def test_an_order_that_fails_says_so_last(room: Room) -> None:
    async with room.stream("POST", "/v1/instances/primary/start") as lines:
        (await next_work(room)).fail(Failed("cannot start primary: it exited with 1; backup still serves http"))
        assert await lines.next() == {
            "result": "failed",
            "error": {"kind": "failed", "message": "cannot start primary: it exited with 1; backup still serves http"},
        }
        assert await lines.next() is None


async def test_an_order_for_all_takes_the_backup_first(room: Room) -> None:
    body = {"force": True, "timeout": 90, "wait": False}
    status, lines = await room.ask("POST", "/v1/instances/all/restart", body)
    assert status == 200
    assert lines == [
        {
            "result": "accepted",
            "message": "the order to restart backup and primary was accepted;"
            " `clojarsctl status` and `clojarsctl events -f` show how it goes",
        }
    ]
    assert room.orders.given == [(Verb.RESTART, (Role.BACKUP, Role.PRIMARY), "root", True, 90)]


async def test_a_caller_that_goes_away_ends_nothing_but_its_watching(room: Room) -> None:
    async with room.stream("POST", "/v1/instances/primary/stop"):
        work = await next_work(room)
    assert not work.ended.done()
    async with room.stream("POST", "/v1/instances/primary/start") as lines:
        (await next_work(room)).finish("primary is ready")
        assert (await lines.next())["result"] == "done"


async def test_an_order_is_given_though_its_caller_goes_away_meanwhile(room: Room) -> None:
    room.orders.may_begin.clear()
    _, writer = await asyncio.open_unix_connection(str(room.path))
    writer.write(b"POST /v1/instances/primary/stop HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
    await until(lambda: room.history.recent(1), "the order")
    writer.close()
    await writer.wait_closed()
    await room.ask("GET", "/v1/check")  # and whatever the server does about it is done
    room.orders.may_begin.set()
    await next_work(room)
    assert room.orders.given == [(Verb.STOP, (Role.PRIMARY,), "root", False, None)]


async def test_orders_go_into_the_history_with_who_gave_them(room: Room) -> None:
    await room.ask("POST", "/v1/instances/backup/stop", {"wait": False})
    room.orders.refusal = Refused("cannot restart primary: backup is stopped")
    await room.ask("POST", "/v1/instances/primary/restart")
    given, asked, refused = room.history.recent(50)
    assert (given.event, given.by, given.role, given.message) == (
        EventName.ORDER,
        "root",
        Role.BACKUP,
        "root orders: stop backup",
    )
    assert given.detail == {"pid": os.getpid(), "verb": "stop", "roles": ["backup"], "force": False}
    assert asked.message == "root orders: restart primary"
    assert (refused.event, refused.by, refused.role) == (EventName.ORDER, "root", Role.PRIMARY)
    assert refused.message == "refused to restart primary: cannot restart primary: backup is stopped"
    assert refused.detail["refused"] == "cannot restart primary: backup is stopped"


async def test_an_environment_is_given_on_and_only_its_names_are_kept(room: Room) -> None:
    body = {"environment": {"TOKEN": "s3cret", "LANG": "C"}, "wait": False}
    await room.ask("POST", "/v1/instances/backup/restart", body)
    assert room.orders.environments == [{"TOKEN": "s3cret", "LANG": "C"}]
    (given,) = room.history.recent(50)
    assert given.detail["environment"] == ["LANG", "TOKEN"]
    assert "s3cret" not in json.dumps(given.as_json())


async def test_a_refused_order_is_a_conflict(room: Room) -> None:
    room.orders.refusal = Refused("cannot restart primary: backup is stopped, so nobody would serve")
    assert await room.ask("POST", "/v1/instances/primary/restart") == (
        409,
        {"error": {"kind": "refused", "message": "cannot restart primary: backup is stopped, so nobody would serve"}},
    )


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "sentence"),
    [
        ("GET", "/v1/nothing", None, 404, "there is no /v1/nothing"),
        ("GET", "/", None, 404, "there is no /"),
        ("POST", "/v1/status", None, 405, "/v1/status does not take POST (GET)"),
        ("GET", "/v1/instances/primary/stop", None, 405, "/v1/instances/primary/stop does not take GET (POST)"),
        ("GET", "/v1/status?n=5", None, 400, "/v1/status has no parameter n"),
        ("GET", "/v1/events?count=5", None, 400, "/v1/events has no parameter count (n, follow)"),
        ("GET", "/v1/events?n=1001", None, 400, "n is 1001, not a number from 0 to 1000"),
        ("GET", "/v1/logs/primary?follow=yes", None, 400, "follow is yes, not 0 or 1"),
        (
            "GET",
            "/v1/logs/third",
            None,
            400,
            "there is no instance third (primary, backup, all, clojars, clojars-backup)",
        ),
        (
            "POST",
            "/v1/instances/all/drain",
            None,
            400,
            "there is no instance all (primary, backup, clojars, clojars-backup)",
        ),
        (
            "POST",
            "/v1/instances/primary/halt",
            None,
            400,
            "halt is not an order (start, stop, restart, drain, undrain, reload)",
        ),
        (
            "POST",
            "/v1/instances/primary/stop",
            {"environment": {"A": "1"}},
            400,
            "environment is for a process that is started (start, restart), not for stop",
        ),
        ("GET", "/v1/wait", None, 400, "for is missing, not one of ready, eligible, stopped, down"),
        (
            "GET",
            "/v1/wait?for=ready&role=third",
            None,
            400,
            "there is no instance third (primary, backup, all, clojars, clojars-backup)",
        ),
        (
            "GET",
            "/v1/wait?for=ready&timeout=5m",
            None,
            400,
            "timeout is 5m, not a number of seconds (more than 0, at most 86400)",
        ),
        ("GET", "/v1/wait?state=ready", None, 400, "/v1/wait has no parameter state (role, for, timeout)"),
        ("GET", "/v1/config?format=yaml", None, 400, "format is yaml, not json or toml"),
        ("GET", "/v1/config?n=1", None, 400, "/v1/config has no parameter n (format)"),
        ("POST", "/v1/config/reload", {"force": True}, 400, "/v1/config/reload takes no options"),
        ("POST", "/v1/daemon/stop?now=1", None, 400, "/v1/daemon/stop has no parameter now"),
        ("POST", "/v1/daemon/upgrade", b"now", 400, "/v1/daemon/upgrade takes no options"),
        ("POST", "/v1/instances/primary/stop", b"nonsense", 400, "the body is not JSON"),
        (
            "POST",
            "/v1/instances/primary/stop",
            {"speed": 1},
            400,
            "speed is not an option of an order (force, timeout, wait, within, environment)",
        ),
        (
            "POST",
            "/v1/instances/primary/start",
            {"within": 1},
            400,
            "within is for what drains an instance (stop, restart, drain), not for start",
        ),
        (
            "POST",
            "/v1/instances/primary/stop",
            {"within": -1},
            400,
            "within is -1, not a number of seconds (0 to 86400)",
        ),
        ("POST", "/v1/frontends/ftp/pause", None, 400, "there is no frontend ftp (http)"),
        ("POST", "/v1/frontends/all/pause", None, 400, "there is no frontend all (http)"),
        ("POST", "/v1/frontends/ftp/reset", None, 400, "there is no frontend ftp (http, all)"),
        ("POST", "/v1/frontends/http/cap", None, 400, "the body names nothing, not just one of total, primary, backup"),
        ("POST", "/v1/frontends/http/resume", {"for": 1}, 400, "this order has no options"),
        ("POST", "/v1/frontends/http/pause?for=1", None, 400, "/v1/frontends/http/pause has no parameter for"),
        ("POST", "/v1/frontends/http/halt", None, 404, "there is no /v1/frontends/http/halt"),
        ("GET", "/v1/frontends/http/pause", None, 405, "/v1/frontends/http/pause does not take GET (POST)"),
        ("GET", "/v1/connections?frontend=ftp", None, 400, "there is no frontend ftp (http)"),
        ("POST", "/v1/instances/primary/stop", b" " * 70_000, 413, "the body is too long (at most 65536 bytes)"),
    ],
)
async def test_what_is_not_understood(
    room: Room, method: str, target: str, body: Any, status: int, sentence: str
) -> None:
    assert await room.ask(method, target, body) == (status, {"error": {"kind": "usage", "message": sentence}})
    assert room.orders.given == []
    assert room.life.given == []
    assert room.history.recent(50) == ()


async def test_waiting_for_what_is_already(room: Room) -> None:
    assert await room.ask("GET", "/v1/wait?for=eligible") == (
        200,
        [{"result": "done", "message": "backup and primary are eligible"}],
    )
    _, lines = await room.ask("GET", "/v1/wait?for=ready&role=clojars")
    assert lines == [{"result": "done", "message": "primary is ready"}]


async def test_waiting_tells_what_happens_meanwhile(room: Room) -> None:
    room.board.publish(instance(Role.BACKUP, state=UnitState.STOPPED, pid=None, reason="stopped by order"))
    async with room.stream("GET", "/v1/wait?for=eligible&timeout=600") as lines:
        room.board.publish(instance(Role.BACKUP, state=UnitState.STARTING, pid=902, reason="no check has passed yet"))
        started = (await lines.next())["step"]
        assert (started["role"], started["message"]) == ("backup", "backup starts (process 902)")
        room.board.publish(instance(Role.BACKUP, state=UnitState.READY, pid=902))
        assert (await lines.next())["step"]["message"] == "backup is ready"
        assert await lines.next() == {"result": "done", "message": "backup and primary are eligible"}
        assert await lines.next() is None


async def test_waiting_misses_nothing_while_it_tells(room: Room) -> None:
    """A step so long that it is not read at once, and the end of the waiting in the meantime."""
    loop = asyncio.get_running_loop()
    starting = instance(Role.BACKUP, state=UnitState.STARTING, pid=None)
    room.board.publish(starting)
    with room.connect() as client:
        await loop.sock_sendall(client, b"GET /v1/wait?for=ready&role=backup HTTP/1.0\r\n\r\n")
        answer = bytearray(await loop.sock_recv(client, 65536))
        room.board.publish(instance(Role.BACKUP, state=UnitState.BACKOFF, pid=None, reason="x" * 8_000_000))
        answer += await loop.sock_recv(client, 4096)
        room.board.publish(instance(Role.BACKUP))
        async with asyncio.timeout(DEADLINE_S):
            while some := await loop.sock_recv(client, 1_000_000):
                answer += some
    assert [json.loads(line) for line in answer.splitlines()[-1:]] == [{"result": "done", "message": "backup is ready"}]


async def test_waiting_has_an_end(room: Room) -> None:
    room.board.publish(instance(Role.BACKUP, state=UnitState.FAILED, pid=None, reason="given up"))
    _, lines = await room.ask("GET", "/v1/wait?for=ready&role=all&timeout=0.05")
    message = "backup was not ready within 0.05 s: backup is failed (given up)"
    assert lines == [{"result": "failed", "error": {"kind": "failed", "message": message}}]


async def test_who_waits_is_told_that_the_server_ends(room: Room) -> None:
    async with room.stream("GET", "/v1/wait?for=stopped&timeout=600") as lines:
        room.server.why_ending = "clojarsd is being upgraded"
        room.task.cancel()
        assert (await lines.next())["error"]["message"] == "clojarsd is being upgraded"


async def test_the_configuration_is_shown(room: Room) -> None:
    assert await room.ask("GET", "/v1/config") == (200, {"service": {"name": "clojars"}})
    reader, writer = await asyncio.open_unix_connection(str(room.path))
    writer.write(b"GET /v1/config?format=toml HTTP/1.0\r\n\r\n")
    async with asyncio.timeout(DEADLINE_S):
        head, _, text = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    assert b"application/toml" in head
    assert text == b'[service]\nname = "clojars"\n'


async def test_the_configuration_is_read_again(room: Room) -> None:
    room.config.may_end.set()
    assert await room.ask("POST", "/v1/config/reload") == (
        200,
        {"result": "done", "message": "checks.http: interval is 2s", "changes": ["checks.http: interval is 2s"]},
    )
    assert room.config.reloaded == ["root"]
    room.config.changes = []
    _, body = await room.ask("POST", "/v1/config/reload", {})
    assert body == {"result": "done", "message": "the configuration is what it was", "changes": []}
    assert [event.message for event in room.history.recent(9)] == ["root orders: reload the configuration"] * 2


async def test_a_configuration_that_cannot_be_used_is_refused(room: Room) -> None:
    sentence = "x.toml: service.name: 5: is not text"
    room.config.refusal = Refused(sentence)
    answer = await room.ask("POST", "/v1/config/reload")
    assert answer == (409, {"error": {"kind": "refused", "message": sentence}})
    _, refused = room.history.recent(9)
    assert (refused.event, refused.message) == (EventName.ORDER, f"refused to reload the configuration: {sentence}")
    assert refused.detail == {"pid": os.getpid(), "refused": sentence}
    room.config.refusal = Failed("cannot listen on 127.0.0.1:80: permission denied; the rest was applied")
    assert (await room.ask("POST", "/v1/config/reload"))[0] == 500


async def test_a_reload_goes_on_when_its_caller_goes_away(room: Room) -> None:
    _, writer = await asyncio.open_unix_connection(str(room.path))
    writer.write(b"POST /v1/config/reload HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
    await until(lambda: room.history.recent(1), "the order")
    writer.close()
    await writer.wait_closed()
    await room.ask("GET", "/v1/check")  # and whatever the server does about it is done
    room.config.may_end.set()
    await until(lambda: room.config.reloaded == ["root"], "the reload")
    assert (await room.ask("GET", "/v1/check"))[0] == 200


async def test_what_comes_when_the_server_ends_is_refused() -> None:
    begun = False

    async def act() -> None:
        nonlocal begun
        begun = True

    async with asyncio.TaskGroup() as group:
        pass
    with pytest.raises(Refused, match=r"^clojarsd is ending; nothing was done$"):
        await see_through(group, act())
    assert not begun


async def next_life(room: Room) -> PaperWork:
    async with asyncio.timeout(DEADLINE_S):
        return await room.life.works.get()


async def test_an_upgrade_is_told_until_just_before_it(room: Room) -> None:
    async with room.stream("POST", "/v1/daemon/upgrade") as lines:
        work = await next_life(room)
        assert room.life.given == [("upgrade", "root")]
        work.note(None, "clojarsd 0.2.0 can read the configuration")
        assert (await lines.next())["step"]["message"] == "clojarsd 0.2.0 can read the configuration"
        work.finish("clojarsd 0.2.0 takes over")
        assert await lines.next() == {"result": "accepted", "message": "clojarsd 0.2.0 takes over"}
    assert room.history.recent(1)[0].message == "root orders: upgrade clojarsd"


async def test_an_upgrade_that_fails(room: Room) -> None:
    async with room.stream("POST", "/v1/daemon/upgrade") as lines:
        message = "cannot upgrade: clojarsd 0.2.0 cannot read x.toml; clojarsd 0.1.0 stays in charge"
        (await next_life(room)).fail(Failed(message))
        assert await lines.next() == {"result": "failed", "error": {"kind": "failed", "message": message}}
    room.life.refusal = Refused("cannot upgrade: a deploy is under way")
    answer = await room.ask("POST", "/v1/daemon/upgrade")
    assert answer == (409, {"error": {"kind": "refused", "message": "cannot upgrade: a deploy is under way"}})
    assert room.history.recent(1)[0].message == "refused to upgrade clojarsd: cannot upgrade: a deploy is under way"


@pytest.mark.parametrize(("what", "result"), [("upgrade", "accepted"), ("stop", "done")])
async def test_the_last_word_about_the_end_is_sent_though_the_server_ends(
    directory: Path, monkeypatch: pytest.MonkeyPatch, what: str, result: str
) -> None:
    monkeypatch.setattr(control, "CLOSE_TIMEOUT", DEADLINE_S)
    async with (
        control_room(directory) as room,
        room.stream("POST", f"/v1/daemon/{what}") as lines,
        room.stream("GET", "/v1/events?follow=1&n=0") as other,
    ):
        work = await next_life(room)
        room.task.cancel()
        assert (await other.next())["result"] == "failed"
        work.note(None, "a step")
        work.finish("so be it")
        assert (await lines.next())["step"]["message"] == "a step"
        assert await lines.next() == {"result": result, "message": "so be it"}
        assert await lines.next() is None


async def test_the_last_word_is_sent_when_it_comes_in_the_same_turn_as_the_end(room: Room) -> None:
    async with room.stream("POST", "/v1/daemon/stop") as lines:
        work = await next_life(room)
        work.finish("so be it")
        room.task.cancel()
        assert await lines.next() == {"result": "done", "message": "so be it"}


@pytest.mark.slow
async def test_the_end_of_the_server_is_not_held_up_by_a_life_that_does_not_end(room: Room) -> None:
    async with room.stream("POST", "/v1/daemon/stop"):
        await next_life(room)
        room.task.cancel()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait([room.task])


async def test_a_server_without_configuration_and_life_has_no_such_paths(directory: Path) -> None:
    async with control_room(directory, is_whole=False) as room:
        for method, path in (("GET", "/v1/config"), ("POST", "/v1/config/reload"), ("POST", "/v1/daemon/stop")):
            assert (await room.ask(method, path))[0] == 404


async def test_a_bug_in_one_request_is_one_logged_answer(room: Room) -> None:
    room.orders.refusal = ZeroDivisionError("a bug")
    with structlog.testing.capture_logs() as logged:
        answer = await room.ask("POST", "/v1/instances/primary/stop")
    message = "cannot go on: this is a bug in clojarsd, and its log has the details"
    assert answer == (500, {"error": {"kind": "failed", "message": message}})
    assert [(line["event"], line["path"]) for line in logged] == [
        ("control_request_failed", "/v1/instances/primary/stop")
    ]
    assert (await room.ask("GET", "/v1/check"))[0] == 200


async def test_a_bug_in_an_order_under_way_is_told_and_logged(room: Room) -> None:
    with structlog.testing.capture_logs() as logged:
        async with room.stream("POST", "/v1/instances/primary/stop") as lines:
            (await next_work(room)).fail(ZeroDivisionError("a bug"))
            message = "cannot go on: this is a bug in clojarsd, and its log has the details"
            assert await lines.next() == {"result": "failed", "error": {"kind": "failed", "message": message}}
    assert [line["event"] for line in logged] == ["control_request_failed"]


async def test_what_is_no_http_is_answered_and_survived(room: Room) -> None:
    reader, writer = await asyncio.open_unix_connection(str(room.path))
    writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
    async with asyncio.timeout(DEADLINE_S):
        assert b" 400 " in await reader.read()
    writer.close()
    await writer.wait_closed()
    assert (await room.ask("GET", "/v1/check"))[0] == 200


async def test_the_latest_events(room: Room) -> None:
    for number in range(60):
        room.history.record(EventName.DEPLOY_STEP, f"step {number}")
    _, lines = await room.ask("GET", "/v1/events")
    assert len(lines) == 51
    assert lines[-2] == room.history.recent(1)[0].as_json()
    assert lines[-1] == {"result": "done"}
    _, lines = await room.ask("GET", "/v1/events?n=2")
    assert [line.get("message") for line in lines] == ["step 58", "step 59", None]


async def test_events_are_followed(room: Room) -> None:
    room.history.record(EventName.FAILOVER, "before")
    async with room.stream("GET", "/v1/events?follow=1&n=1") as lines:
        assert (await lines.next())["message"] == "before"
        room.history.record(EventName.FAILBACK, "after")
        room.history.record(EventName.FAILOVER, "again")
        assert (await lines.next())["message"] == "after"
        assert (await lines.next())["message"] == "again"


async def test_a_follower_that_does_not_read_is_dropped_with_a_word(room: Room) -> None:
    loop = asyncio.get_running_loop()
    with room.connect() as client:
        await loop.sock_sendall(client, b"GET /v1/events?follow=1&n=0 HTTP/1.0\r\n\r\n")
        answer = bytearray(await loop.sock_recv(client, 65536))
        room.history.record(EventName.DEPLOY_STEP, "x" * 8_000_000)  # more than all buffers between us take
        answer += await loop.sock_recv(client, 4096)
        for number in range(MOST_EVENTS + 200):
            room.history.record(EventName.DEPLOY_STEP, str(number))
        async with asyncio.timeout(DEADLINE_S):
            while some := await loop.sock_recv(client, 1_000_000):
                answer += some
    *_, big, last = answer.splitlines()
    assert json.loads(big)["message"] == "x" * 8_000_000
    assert json.loads(last) == {
        "result": "failed",
        "error": {
            "kind": "failed",
            "message": "cannot follow the events: this reader was too slow and missed 200;"
            " `clojarsctl events` shows them",
        },
    }


async def test_the_end_of_the_server_is_told_to_who_watches(room: Room) -> None:
    async with (
        room.stream("GET", "/v1/events?follow=1&n=1") as events,
        room.stream("GET", "/v1/logs/all?follow=1&n=1") as logs,
        room.stream("POST", "/v1/instances/primary/stop") as order,
    ):
        await next_work(room)
        assert (await events.next())["event"] == "order"
        room.task.cancel()
        ended = {"result": "failed", "error": {"kind": "failed", "message": "clojarsd is ending"}}
        for stream in (events, logs, order):
            assert await stream.next() == ended
            assert await stream.next() is None


async def test_the_end_of_the_server_is_not_held_up_by_a_caller_that_does_not_read(room: Room) -> None:
    room.history.record(EventName.DEPLOY_STEP, "x" * 8_000_000)
    async with room.stream("GET", "/v1/events?follow=1&n=5"):
        room.task.cancel()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait([room.task])
        assert room.task.cancelled()


@pytest.mark.slow
async def test_the_end_of_the_server_is_not_held_up_by_a_caller_that_does_not_send(room: Room) -> None:
    with room.connect() as client:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, b"POST /v1/instances/primary/stop HTTP/1.0\r\nContent-Length: 9\r\n\r\n")
        await room.ask("GET", "/v1/check")
        room.task.cancel()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait([room.task])
        assert await loop.sock_recv(client, 4096) == b""


async def test_the_latest_lines_of_a_log(room: Room) -> None:
    room.logs[Role.PRIMARY].write_text("a\nb\nc\n")
    _, lines = await room.ask("GET", "/v1/logs/clojars?n=2")
    assert lines == [{"role": "primary", "line": "b"}, {"role": "primary", "line": "c"}, {"result": "done"}]
    room.logs[Role.BACKUP].write_text("z\n")
    _, lines = await room.ask("GET", "/v1/logs/all?n=1")
    assert lines == [{"role": "backup", "line": "z"}, {"role": "primary", "line": "c"}, {"result": "done"}]


async def test_a_log_that_is_not_there_yet(room: Room) -> None:
    missing = f"there is no log at {room.logs[Role.PRIMARY]} yet"
    assert await room.ask("GET", "/v1/logs/primary") == (409, {"error": {"kind": "refused", "message": missing}})
    room.logs[Role.BACKUP].write_text("z\n")
    _, lines = await room.ask("GET", "/v1/logs/all")
    assert lines == [{"role": "backup", "line": "z"}, {"result": "done"}]


async def test_both_logs_are_followed(room: Room) -> None:
    room.logs[Role.PRIMARY].write_text("a\n")
    async with room.stream("GET", "/v1/logs/all?follow=1") as lines:
        assert await lines.next() == {"role": "primary", "line": "a"}
        room.logs[Role.BACKUP].write_text("z\n")
        assert await lines.next() == {"role": "backup", "line": "z"}


async def test_a_follower_that_goes_away_leaves_nothing_behind(room: Room) -> None:
    before = inotify_descriptors()
    async with room.stream("GET", "/v1/logs/all?follow=1"):
        await until(lambda: inotify_descriptors() == before + 2, "two watched logs")
    await until(lambda: inotify_descriptors() == before, "no watched logs")


def inotify_descriptors() -> int:
    """How many this process has open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}") == "anon_inode:inotify"
        except FileNotFoundError:
            continue
    return found


async def test_a_log_that_cannot_be_followed(room: Room) -> None:
    room.logs[Role.BACKUP].symlink_to("/etc/passwd")
    _, lines = await room.ask("GET", "/v1/logs/all?follow=1")
    message = f"cannot read the log {room.logs[Role.BACKUP]}: it is a symbolic link"
    assert lines == [{"result": "failed", "error": {"kind": "failed", "message": message}}]


async def test_a_removed_socket_comes_back(room: Room) -> None:
    with structlog.testing.capture_logs() as logged:
        async with room.stream("GET", "/v1/events?follow=1&n=0") as lines:
            await room.ask("POST", "/v1/instances/primary/stop", {"wait": False})
            assert (await lines.next())["event"] == "order"
            room.path.unlink()
            await until(room.path.exists, "the socket")
            assert (await room.ask("GET", "/v1/check"))[0] == 200
            room.history.record(EventName.FAILOVER, "still heard")
            assert (await lines.next())["message"] == "still heard"
    assert [line["event"] for line in logged] == ["control_socket_restored"]


async def test_a_removed_directory_comes_back(room: Room) -> None:
    for entry in room.path.parent.iterdir():
        entry.unlink()
    room.path.parent.rmdir()
    await until(room.path.exists, "the socket")
    assert (await room.ask("GET", "/v1/check"))[0] == 200


async def test_running_out_of_descriptors_leaves_callers_waiting(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ACCEPT_PAUSE", 0.01)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with room.connect() as client, structlog.testing.capture_logs() as logged:
        client.setblocking(False)
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        try:
            fillers = fill_descriptors()
            await until(lambda: [line for line in logged if line["event"] == "control_accept_paused"])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in fillers:
                os.close(descriptor)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, b"GET /v1/check HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(DEADLINE_S):
            assert b" 200 " in await loop.sock_recv(client, 65536)


def fill_descriptors() -> list[int]:
    """Every descriptor below the limit."""
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        return taken


@root_only
class TestOthers:
    """What is decided by who calls."""

    @pytest.fixture
    async def room(self, directory: Path) -> AsyncIterator[Room]:
        async with control_room(directory, operators=("daemon", "@sys"), viewers=("@adm",)) as room:
            yield room

    async def ask_as(self, room: Room, user: str, head: str, groups: str = "") -> tuple[int, Any]:
        entry = pwd.getpwnam(user)
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            ASK_AS,
            str(room.path),
            str(entry.pw_uid),
            str(entry.pw_gid),
            groups,
            head,
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(DEADLINE_S):
            answer, _ = await child.communicate()
        head_, _, body = answer.partition(b"\r\n\r\n")
        return int(head_.split()[1]), json.loads(body.splitlines()[-1])

    async def test_an_operator_by_name_gives_orders(self, room: Room) -> None:
        asking = asyncio.ensure_future(self.ask_as(room, "daemon", "POST /v1/instances/backup/stop"))
        (await next_work(room)).finish("backup is stopped")
        assert await asking == (200, {"result": "done", "message": "backup is stopped"})
        assert room.orders.given == [(Verb.STOP, (Role.BACKUP,), "daemon", False, None)]
        assert room.history.recent(1)[0].by == "daemon"

    async def test_an_operator_by_group_gives_orders(self, room: Room) -> None:
        asking = asyncio.ensure_future(self.ask_as(room, "nobody", "POST /v1/instances/backup/stop", "3"))
        (await next_work(room)).finish("backup is stopped")
        assert (await asking)[0] == 200

    async def test_a_viewer_may_look_only(self, room: Room) -> None:
        assert (await self.ask_as(room, "nobody", "GET /v1/check", "4"))[0] == 200
        denied = {"kind": "denied", "message": "nobody may not give orders (operators: daemon, @sys)"}
        with structlog.testing.capture_logs() as logged:
            answer = await self.ask_as(room, "nobody", "POST /v1/instances/backup/stop", "4")
        assert answer == (403, {"error": denied})
        assert [(line["event"], line["by"]) for line in logged] == [("control_request_denied", "nobody")]
        assert room.orders.given == []

    async def test_a_viewer_may_not_see_the_configuration(self, room: Room) -> None:
        denied = {"kind": "denied", "message": "nobody may not see the configuration (operators: daemon, @sys)"}
        assert await self.ask_as(room, "nobody", "GET /v1/config", "4") == (403, {"error": denied})
        assert await self.ask_as(room, "daemon", "GET /v1/config") == (200, {"service": {"name": "clojars"}})
        assert (await self.ask_as(room, "nobody", "GET /v1/wait?for=ready", "4"))[0] == 200

    @pytest.mark.parametrize("path", ["/v1/config/reload", "/v1/daemon/stop", "/v1/daemon/upgrade"])
    async def test_a_viewer_may_not_change_the_daemon(self, room: Room, path: str) -> None:
        denied = {"kind": "denied", "message": "nobody may not give orders (operators: daemon, @sys)"}
        assert await self.ask_as(room, "nobody", f"POST {path}", "4") == (403, {"error": denied})
        assert room.life.given == []

    async def test_a_stranger_may_not_even_look(self, room: Room) -> None:
        denied = {"kind": "denied", "message": "nobody may not look (operators: daemon, @sys; viewers: @adm)"}
        assert await self.ask_as(room, "nobody", "GET /v1/status") == (403, {"error": denied})
        assert await self.ask_as(room, "nobody", "GET /v1/nothing") == (403, {"error": denied})

    async def test_one_user_cannot_take_all_connections(self, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(control, "CONNECTIONS_PER_USER", 0)
        with structlog.testing.capture_logs() as logged, pytest.raises((IndexError, ValueError)):
            await self.ask_as(room, "nobody", "GET /v1/check", "4")
        assert [line["event"] for line in logged] == ["control_connection_refused"]
        assert (await room.ask("GET", "/v1/check"))[0] == 200


async def test_many_callers_at_once(room: Room) -> None:
    async with asyncio.TaskGroup() as group:
        answers = [group.create_task(room.ask("GET", "/v1/check")) for _ in range(100)]
    assert all(answer.result()[0] == 200 for answer in answers)


async def test_a_health_that_changes_is_seen(room: Room) -> None:
    room.board.publish(instance(Role.PRIMARY, health=Health.DOWN, reason="its checks fail (http: 503 in 3 ms)"))
    _, body = await room.ask("GET", "/v1/status")
    assert body["instances"]["primary"]["eligible"] is False


def test_on_the_loop_of_the_daemon(directory: Path) -> None:
    """uvloop has its own sockets, readers and ways to close: the same conversation once more on it."""

    async def conversation() -> None:
        async with control_room(directory) as room:
            assert (await room.ask("GET", "/v1/check"))[0] == 200
            async with room.stream("POST", "/v1/instances/primary/stop") as lines:
                (await next_work(room)).finish("primary is stopped")
                assert await lines.next() == {"result": "done", "message": "primary is stopped"}
            room.path.unlink()
            await until(room.path.exists, "the socket")
            async with room.stream("GET", "/v1/events?follow=1&n=1") as events:
                assert (await events.next())["event"] == "order"
                room.task.cancel()
                assert (await events.next())["error"]["message"] == "clojarsd is ending"

    uvloop.run(conversation())
