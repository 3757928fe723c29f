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
from tests.support.control import DEADLINE_S, PaperWork, Room, control_room, instance, open_directory
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

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


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
            "/v1/instances/primary/reload",
            None,
            400,
            "reload is not an order (start, stop, restart, drain, undrain)",
        ),
        ("POST", "/v1/instances/primary/stop", b"nonsense", 400, "the body is not JSON"),
        (
            "POST",
            "/v1/instances/primary/stop",
            {"speed": 1},
            400,
            "speed is not an option of an order (force, timeout, wait)",
        ),
        ("POST", "/v1/instances/primary/stop", b" " * 70_000, 413, "the body is too long (at most 65536 bytes)"),
    ],
)
async def test_what_is_not_understood(
    room: Room, method: str, target: str, body: Any, status: int, sentence: str
) -> None:
    assert await room.ask(method, target, body) == (status, {"error": {"kind": "usage", "message": sentence}})
    assert room.orders.given == []
    assert room.history.recent(50) == ()


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
