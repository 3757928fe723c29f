"""clojarsctl as its users have it: a real process, a real control server, words and exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import pwd
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clojarsd.core.api import Verb
from clojarsd.core.connections import ConnectionList, ConnectionPhase, ConnectionView
from clojarsd.core.errors import Failed, Refused
from clojarsd.core.history import EventName
from clojarsd.core.names import Address, Health, Role, UnitState
from tests.support.clojarsctl import COMMAND, Run, ctl, running
from tests.support.control import AT, DEADLINE_S, PaperWork, Room, control_room, instance, open_directory
from tests.support.real import root_only
from tests.support.waiting import until

SEE = "clojarsctl status | clojarsctl events -f"
NO_SPACE = "cannot write the answer: no space left on device"


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory() as path:
        yield path


@pytest.fixture
async def room(directory: Path) -> AsyncIterator[Room]:
    async with control_room(directory, viewers=("nobody",)) as room:
        yield room


async def next_work(room: Room) -> PaperWork:
    async with asyncio.timeout(DEADLINE_S):
        return await room.orders.works.get()


# Looking.


async def test_status(room: Room) -> None:
    code, out, err = await ctl(room.path, "status")
    assert (code, err) == (0, "")
    assert out.startswith("clojars: primary and backup can serve; primary serves http\nclojarsd 0.1.0, process ")
    assert "\x1b" not in out


async def test_status_for_programs(room: Room) -> None:
    for words in (["status", "--json"], ["--json", "status"], ["--socket", str(room.path), "status", "--json"]):
        code, out, err = await ctl(room.path, *words)
        assert (code, err) == (0, "")
        assert json.loads(out) == json.loads(json.dumps(room.board.view().as_json()))


async def test_frequent_commands_say_the_same_with_and_without_click(room: Room) -> None:
    for words in (["status"], ["check"], ["why"], ["why", "clojars"], ["why", "third"]):
        fast = await ctl(room.path, *words)
        also_fast = await ctl(Path("/nowhere"), "--socket", str(room.path), *words)
        slow = await ctl(Path("/nowhere"), f"--socket={room.path}", *words)
        assert fast == also_fast == slow


@pytest.mark.parametrize("words", [["status"], ["why"], ["why", "primary"]])
@pytest.mark.parametrize("by_option", [False, True])
async def test_looking_imports_nothing_that_takes_long(room: Room, by_option: bool, words: list[str]) -> None:
    """click alone takes three times as long as an empty Python program."""
    slow = ("asyncio", "aiohttp", "click", "dataclasses", "decimal", "http.client", "inspect", "pydantic", "rich")
    option = ["--socket", str(room.path)] if by_option else []
    program = (
        f"import sys; from clojarsd.ctl.main import main; sys.argv = {['clojarsctl', *option, *words]!r}; main();"
        f"print(sorted(set({slow!r}) & set(sys.modules)))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        env={**os.environ, "CLOJARSD_SOCKET": "/nowhere" if by_option else str(room.path)},
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_S):
        out, _ = await process.communicate()
    assert out.splitlines()[-1] == b"[]"


async def test_status_has_colours_on_a_terminal(room: Room) -> None:
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            COMMAND,
            "status",
            env={**os.environ, "CLOJARSD_SOCKET": str(room.path), "TERM": "xterm", "NO_COLOR": ""},
            stdout=theirs,
        )
        async with asyncio.timeout(DEADLINE_S):
            assert await process.wait() == 0
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "\x1b[32mprimary and backup can serve\x1b[0m" in shown


@pytest.mark.slow
async def test_watch_prints_what_changes_without_a_terminal(room: Room) -> None:
    async with running(room.path, "status", "--watch") as run:
        assert await run.line() == "clojars: primary and backup can serve; primary serves http"
        while await run.line():
            pass
        room.board.publish(instance(Role.BACKUP, state=UnitState.FAILED, reason="given up"))
        while not (line := await run.line()).startswith("clojars: "):
            pass
        assert line == "clojars: only primary can serve; primary serves http"
        run.process.send_signal(signal.SIGINT)
        code, _, err = await run.end()
        assert (code, err) == (130, "")


@pytest.mark.slow
async def test_watch_outlives_the_daemon(directory: Path) -> None:
    async with control_room(directory) as room:
        run = Run(await start(room.path, "status", "--watch", "--json"))
        assert json.loads(await run.line())["service"] == "clojars"
    assert await run.line(error=True) == (
        f"cannot reach clojarsd at {room.path}: no such socket; is clojarsd.service running?"
    )
    async with control_room(directory):
        assert json.loads(await run.line())["service"] == "clojars"
        run.process.send_signal(signal.SIGINT)
        assert (await run.end())[0] == 130


async def start(socket: Path, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        COMMAND,
        *words,
        env={**os.environ, "CLOJARSD_SOCKET": str(socket)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_check_exits_as_a_nagios_plugin(room: Room) -> None:
    assert await ctl(room.path, "check") == (0, "clojars OK: primary and backup can serve\n", "")
    room.board.publish(instance(Role.PRIMARY, health=Health.DOWN, reason="its checks fail"))
    assert await ctl(room.path, "check") == (
        1,
        "clojars WARNING: only backup can serve; primary is ready: its checks fail\n",
        "",
    )
    room.board.publish(instance(Role.BACKUP, state=UnitState.STOPPED, reason="stopped by order"))
    code, out, _ = await ctl(room.path, "check", "--json")
    assert code == 2
    assert json.loads(out)["code"] == 2
    code, out, err = await ctl(Path("/nowhere"), "check")
    assert (code, err) == (3, "")
    assert out == "clojarsd UNKNOWN: cannot reach clojarsd at /nowhere: no such socket; is clojarsd.service running?\n"


async def test_events(room: Room) -> None:
    room.history.record(EventName.FAILOVER, "backup serves http")
    room.history.record(EventName.INSTANCE_READY, "primary is ready", Role.PRIMARY, "ann")
    code, out, err = await ctl(room.path, "events")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first[19:] == "Z  failover          backup serves http"
    assert second.endswith("Z  instance-ready    primary is ready (ordered by ann)")
    code, out, _ = await ctl(room.path, "events", "-n", "1", "--json")
    assert json.loads(out) == room.history.recent(1)[0].as_json()
    assert (await ctl(room.path, "events", "-n", "2000"))[::2] == (2, "n is 2000, not a number from 0 to 1000\n")


async def test_events_are_followed_until_interrupted(room: Room) -> None:
    room.history.record(EventName.FAILOVER, "first")
    async with running(room.path, "events", "-f", "-n", "1") as run:
        assert (await run.line()).endswith("first")
        room.history.record(EventName.FAILBACK, "second")
        assert (await run.line()).endswith("second")
        run.process.send_signal(signal.SIGINT)
        assert await run.end() == (130, "", "")


async def test_a_follower_is_told_that_the_daemon_ends(room: Room) -> None:
    room.history.record(EventName.FAILOVER, "first")
    async with running(room.path, "events", "-f") as run:
        await run.line()
        room.task.cancel()
        assert await run.end() == (1, "", "clojarsd is ending\n")


async def test_logs(room: Room) -> None:
    room.logs[Role.PRIMARY].write_text("a\nb\n")
    room.logs[Role.BACKUP].write_text("z\n")
    assert await ctl(room.path, "logs", "clojars", "-n", "1") == (0, "b\n", "")
    assert await ctl(room.path, "logs") == (0, "backup  | z\nprimary | a\nprimary | b\n", "")
    code, out, _ = await ctl(room.path, "logs", "backup", "--json")
    assert (code, json.loads(out)) == (0, {"role": "backup", "line": "z"})


async def test_a_log_is_followed(room: Room) -> None:
    room.logs[Role.PRIMARY].write_text("a\n")
    async with running(room.path, "logs", "primary", "-f") as run:
        assert await run.line() == "a"
        with room.logs[Role.PRIMARY].open("a") as log:
            log.write("b\n")
        assert await run.line() == "b"


async def test_a_log_that_is_not_there(room: Room) -> None:
    assert await ctl(room.path, "logs", "primary") == (3, "", f"there is no log at {room.logs[Role.PRIMARY]} yet\n")


# Orders.


async def test_an_order_is_narrated_and_ends_with_a_sentence(room: Room) -> None:
    async with running(room.path, "restart", "clojars-backup", "--force", "--timeout", "1m30s") as run:
        work = await next_work(room)
        assert room.orders.given == [(Verb.RESTART, (Role.BACKUP,), "root", True, 90)]
        work.note(Role.BACKUP, "backup is to be restarted")
        assert await run.line(error=True) == "12:00:09 backup is to be restarted"
        work.finish("backup is ready")
        assert await run.end() == (0, "backup is ready\n", "")


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "reload", "drain", "undrain"])
async def test_every_order(room: Room, verb: str) -> None:
    async with running(room.path, verb, "primary") as run:
        (await next_work(room)).finish("primary is as it was ordered")
        assert await run.end() == (0, "primary is as it was ordered\n", "")
    assert room.orders.given == [(Verb(verb), (Role.PRIMARY,), "root", False, None)]


async def test_an_environment_for_one_start(room: Room) -> None:
    words = ["start", "backup", "--no-wait", "--env", "LANG=C", "--env", "OPTS=-Da=b -Dc", "--env", "EMPTY="]
    assert (await ctl(room.path, *words))[0] == 0
    assert room.orders.environments == [{"LANG": "C", "OPTS": "-Da=b -Dc", "EMPTY": ""}]
    assert (await ctl(room.path, "restart", "backup", "--no-wait"))[0] == 0
    assert room.orders.environments[1:] == [{}]


async def test_an_environment_that_is_not_utf_8_is_refused_without_its_value(room: Room) -> None:
    run = await into(room.path, b"start", b"backup", b"--env", b"A=s3cret\xff")
    sentence = "the value of A cannot be given to a process (no NUL, and UTF-8)"
    assert await run.end() == (2, "", f"{sentence}\n")
    assert room.orders.given == []


async def test_waiting_for_what_others_do(room: Room) -> None:
    room.board.publish(instance(Role.BACKUP, state=UnitState.STOPPED, pid=None, reason="stopped by order"))
    async with running(room.path, "wait", "clojars-backup", "--for", "eligible", "--timeout", "5m") as run:
        await until(lambda: bool(room.board._changed), "somebody who waits")
        room.board.publish(instance(Role.BACKUP))
        assert (await run.line(error=True))[9:] == "backup is ready"
        assert await run.end() == (0, "backup is eligible\n", "")


async def test_waiting_in_vain(room: Room) -> None:
    words = ["wait", "all", "--for", "down", "--timeout", "10ms"]
    message = "backup and primary were not down within 0.01 s: backup is ready; primary is ready"
    assert await ctl(room.path, *words) == (1, "", f"{message}\n")
    code, out, _ = await ctl(room.path, *words, "--json")
    assert (code, json.loads(out)) == (1, {"result": "failed", "error": {"kind": "failed", "message": message}})


async def test_ctrl_c_stops_waiting(room: Room) -> None:
    async with running(room.path, "wait", "primary", "--for", "stopped") as run:
        await until(lambda: bool(room.board._changed), "somebody who waits")
        run.process.send_signal(signal.SIGINT)
        assert await run.end() == (130, "", "")


async def test_why(room: Room) -> None:
    sick = instance(
        Role.PRIMARY, health=Health.DOWN, reason="its checks fail (http: 503 in 3 ms)", since="2020-01-02T03:04:05.000Z"
    )
    room.board.publish(sick)
    room.frontend.active = Role.BACKUP
    message = "new connections of frontend http go to backup"
    room.history.record(EventName.FAILOVER, message, Role.BACKUP, frontend="http", before="primary")
    code, out, err = await ctl(room.path, "why", "clojars")
    assert (code, err) == (0, "")
    at = room.history.recent(1)[0].at[11:19]
    assert out.splitlines() == [
        "clojars: only backup can serve",
        "",
        f"backup serves http since {at}Z: primary is ready: its checks fail (http: 503",
        "in 3 ms)",
        "",
        "primary cannot serve: ready since 2020-01-02 03:04:05Z: its checks fail (http:",
        "503 in 3 ms)",
        "",
        "What led here",
        f"  {at}Z new connections of frontend http go to backup",
        "",
        "What to do",
        "  `clojarsctl logs primary` shows its last words; `clojarsctl restart primary`",
        "  gives it a new process",
    ]
    code, out, _ = await ctl(room.path, "why", "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "only backup can serve")
    assert list(json.loads(out)["instances"]) == ["primary", "backup"]


async def test_top_once(room: Room) -> None:
    began = (datetime.now(UTC) - timedelta(seconds=100_000)).isoformat()
    busy = instance(Role.PRIMARY, memory_bytes=600 * 1024**2, cpu_seconds=10_000.0, started_at=began, restarts=2)
    room.board.publish(busy)
    code, out, err = await ctl(room.path, "top", "--once")
    assert (code, err) == (0, "")
    head, _, titles, primary, backup, held = out.splitlines()
    assert head == "clojars: primary and backup can serve; primary serves http"
    assert titles.split() == ["state", "health", "CPU", "%", "memory", "heap", "threads", "restarts", "http"]
    assert primary.split() == ["primary", "ready", "up", "10.0", "600", "MiB", "-", "-", "2", "2"]
    assert backup.split() == ["backup", "ready", "up", "-", "-", "-", "-", "0", "0"]
    assert held.split() == ["held", "0"]
    assert len({len(line) for line in (titles, primary, backup, held)}) == 1
    code, out, _ = await ctl(room.path, "top", "--once", "--json")
    seen = json.loads(out)
    assert (code, seen["held"]) == (0, {"http": 0})
    assert seen["instances"]["primary"].pop("cpu_percent") == pytest.approx(10, abs=1)
    assert seen["instances"]["primary"] == {
        "state": "ready", "health": "up", "memory_bytes": 600 * 1024**2, "restarts": 2, "connections": {"http": 2},
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("words", [["top"], ["status", "--watch"]])
async def test_a_terminal_is_drawn_on_again_and_again(room: Room, words: list[str]) -> None:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    shown = bytearray()

    def read() -> int:
        with suppress(BlockingIOError):
            shown.extend(os.read(ours, 65536))
        return shown.count(b"primary and backup can serve")

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        COMMAND,
        *words,
        env={**os.environ, "CLOJARSD_SOCKET": str(room.path), "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        stdout=theirs,
    )
    try:
        await until(lambda: read() >= 2, "two pictures")
        process.send_signal(signal.SIGINT)
        await until(lambda: read() >= 0 and process.returncode is not None, "its end")
        assert process.returncode == 130
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
        os.close(theirs)


async def test_top_without_a_terminal_is_shown_once(room: Room) -> None:
    code, out, err = await ctl(room.path, "top")
    assert (code, err) == (0, "")
    assert out.count("primary and backup can serve") == 1


@pytest.mark.slow
async def test_top_for_programs_outlives_the_daemon(directory: Path) -> None:
    async with control_room(directory) as room:
        run = Run(await start(room.path, "top", "--json"))
        assert json.loads(await run.line())["instances"]["primary"]["state"] == "ready"
    assert await run.line(error=True) == (
        f"cannot reach clojarsd at {room.path}: no such socket; is clojarsd.service running?"
    )
    async with control_room(directory):
        while not await run.line():
            pass
        run.process.send_signal(signal.SIGINT)
        assert (await run.end())[0] == 130


@pytest.mark.slow
async def test_top_goes_on_until_interrupted(room: Room) -> None:
    async with running(room.path, "top", "--json") as run:
        for _ in range(2):
            assert json.loads(await run.line())["instances"]["backup"]["state"] == "ready"
        run.process.send_signal(signal.SIGINT)
        assert (await run.end())[::2] == (130, "")


# Frontends.


async def test_a_pause_and_its_end(room: Room) -> None:
    code, out, err = await ctl(room.path, "pause", "http", "--for", "90s")
    assert (code, err) == (0, "")
    assert out.startswith("new connections of http wait until ")
    (pause,) = room.frontends.paused.values()
    assert pause.by
    code, out, _ = await ctl(room.path, "status")
    assert f"http: paused by {pause.by} until " in out
    assert await ctl(room.path, "resume", "http") == (0, "new connections of http wait no more\n", "")
    assert await ctl(room.path, "resume", "http") == (0, "http is not paused\n", "")
    code, out, err = await ctl(room.path, "pause", "http", "--json")
    assert (code, json.loads(out)["result"], err) == (0, "done", "")


async def test_limits_and_counters(room: Room) -> None:
    assert await ctl(room.path, "cap", "http", "100") == (0, "the connections of http are at most 100\n", "")
    told = "the connections of http to backup are at most 5\n"
    assert await ctl(room.path, "cap", "http", "backup", "5") == (0, told, "")
    assert await ctl(room.path, "reset", "all") == (0, "connections of http are counted anew\n", "")
    code, out, err = await ctl(room.path, "frontends")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["frontend", "listens", "on", "mode", "serves", "limits", "open", "p/b/held", "total", "p/b/held"],
        ["http", "127.0.0.1:8080", "relay", "primary", "100", "connections,", "5", "to", "backup", "2/0/0", "0/0/0"],
    ]
    code, out, _ = await ctl(room.path, "frontends", "http", "--json")
    assert json.loads(out)["http"]["caps"] == {"total": 100, "primary": 0, "backup": 5}


async def test_a_share(room: Room) -> None:
    for words in ("5%", "5", "5.0 %"):
        code, out, err = await ctl(room.path, "share", words)
        assert (code, err) == (0, "")
        assert out.endswith("5 % of new connections go to backup while both can serve\n")
    _, out, _ = await ctl(room.path, "frontends")
    assert "primary, 5 % backup" in out
    assert "http: 5 % of new connections go to backup by order" in (await ctl(room.path, "status"))[1]
    code, out, _ = await ctl(room.path, "share", "0", "--json")
    assert json.loads(out)["message"] == "all new connections go to primary while it can serve"


async def test_single_connections(room: Room) -> None:
    one = ConnectionView(
        "http",
        "relay",
        Role.PRIMARY,
        Address("10.0.0.1", 5000),
        ConnectionPhase.OPEN,
        150.04,
        0.5,
        10,
        2**20,
        owed=True,
    )
    held = ConnectionView("http", "relay", None, None, ConnectionPhase.HELD, None, None, 0, 0, owed=False)
    room.frontends.listed = ConnectionList((one, held), 3)
    code, out, err = await ctl(room.path, "connections")
    assert (code, err) == (0, "3 more are not listed\n")
    assert [line.split() for line in out.splitlines()] == [
        ["client", "frontend", "instance", "state", "age", "silent", "up", "down", "owes"],
        ["10.0.0.1:5000", "http", "primary", "open", "150", "s", "0.5", "s", "10", "B", "1024", "KiB", "an", "answer"],
        ["?", "http", "nobody", "held", "?", "?", "0", "B", "0", "B"],
    ]
    code, out, err = await ctl(room.path, "connections", "http", "--json")
    assert (code, len(json.loads(out)["connections"]), err) == (0, 2, "")


@pytest.mark.parametrize("verb", ["stop", "restart", "drain"])
async def test_an_order_that_says_how_long_its_drain_may_take(room: Room, verb: str) -> None:
    for text, seconds in (("5s", 5.0), ("0s", 0.0)):
        code, _, err = await ctl(room.path, verb, "primary", "--within", text, "--no-wait")
        assert (code, err) == (0, "")
        assert room.orders.withins.pop() == seconds


async def test_an_order_for_all(room: Room) -> None:
    async with running(room.path, "stop", "all") as run:
        (await next_work(room)).finish("both are stopped")
        assert (await run.end())[0] == 0
    assert room.orders.given[0][1] == (Role.BACKUP, Role.PRIMARY)


async def test_an_order_that_is_not_waited_for(room: Room) -> None:
    assert await ctl(room.path, "stop", "backup", "--no-wait") == (
        0,
        "the order to stop backup was accepted; `clojarsctl status` and `clojarsctl events -f` show how it goes\n",
        "",
    )


async def test_an_order_for_programs(room: Room) -> None:
    async with running(room.path, "stop", "backup", "--json") as run:
        work = await next_work(room)
        work.note(None, "on it")
        work.finish("backup is stopped")
        code, out, _ = await run.end()
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [
        {"step": {"at": "2026-11-23T12:00:09.000Z", "role": None, "message": "on it"}},
        {"result": "done", "message": "backup is stopped"},
    ]


async def test_an_order_that_fails(room: Room) -> None:
    async with running(room.path, "start", "backup") as run:
        (await next_work(room)).fail(Failed("cannot start backup: it exited with 1; primary still serves http"))
        assert await run.end() == (1, "", "cannot start backup: it exited with 1; primary still serves http\n")


async def test_an_order_that_is_refused(room: Room) -> None:
    room.orders.refusal = Refused("cannot restart primary: backup is stopped, so nobody would serve")
    sentence = "cannot restart primary: backup is stopped, so nobody would serve"
    assert await ctl(room.path, "restart", "primary") == (3, "", f"{sentence}\n")
    code, out, err = await ctl(room.path, "restart", "primary", "--json")
    assert (code, err) == (3, f"{sentence}\n")
    assert json.loads(out) == {"error": {"kind": "refused", "message": sentence}}


async def test_ctrl_c_stops_the_watching_and_not_the_order(room: Room) -> None:
    async with running(room.path, "stop", "backup") as run:
        work = await next_work(room)
        work.note(Role.BACKUP, "backup is to be stopped")
        await run.line(error=True)
        run.process.send_signal(signal.SIGINT)
        assert await run.end() == (130, "", f"stopped watching; the order goes on: {SEE}\n")
    assert not work.ended.done()


async def test_a_daemon_that_dies_leaves_the_outcome_open(directory: Path) -> None:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.0 200 OK\r\n\r\n{"step": {"at": "2026-11-23T12:00:09.000Z", "role": null, "mess')
        writer.close()

    path = directory / "s"
    async with await asyncio.start_unix_server(die, path):
        code, out, err = await ctl(path, "stop", "backup")
    assert (code, out) == (4, "")
    assert err == (f"clojarsd at {path} ended the connection before the end; how the order went is not known: {SEE}\n")


# The daemon itself.


async def test_the_configuration(room: Room) -> None:
    assert await ctl(room.path, "config", "show") == (0, '[service]\nname = "clojars"\n', "")
    code, out, _ = await ctl(room.path, "config", "show", "--json")
    assert (code, json.loads(out)) == (0, {"service": {"name": "clojars"}})


async def test_the_configuration_is_read_again(room: Room) -> None:
    room.config.may_end.set()
    room.config.changes = ["checks.http: interval is 2s", "backup is restarted for its new command"]
    assert await ctl(room.path, "config", "reload") == (0, "\n".join(room.config.changes) + "\n", "")
    code, out, _ = await ctl(room.path, "config", "reload", "--json")
    assert (code, json.loads(out)["changes"]) == (0, room.config.changes)
    room.config.changes = []
    assert await ctl(room.path, "config", "reload") == (0, "the configuration is what it was\n", "")
    room.config.refusal = Refused("x.toml: service.name: 5: is not text")
    assert await ctl(room.path, "config", "reload") == (3, "", "x.toml: service.name: 5: is not text\n")
    room.config.refusal = Failed("cannot listen on 127.0.0.1:80: permission denied; the rest was applied")
    assert (await ctl(room.path, "config", "reload"))[0] == 1


async def next_life(room: Room) -> PaperWork:
    async with asyncio.timeout(DEADLINE_S):
        return await room.life.works.get()


async def test_an_upgrade_returns_when_the_new_one_answers(room: Room) -> None:
    async with running(room.path, "daemon", "upgrade") as run:
        work = await next_life(room)
        work.note(None, "clojarsd 0.2.0 can read the configuration")
        assert await run.line(error=True) == "12:00:09 clojarsd 0.2.0 can read the configuration"
        work.finish("clojarsd 0.2.0 takes over")
        room.board.daemon = replace(room.board.daemon, version="0.2.0", generation=2)
        assert await run.end() == (0, f"clojarsd 0.1.0 was replaced by 0.2.0 (process {os.getpid()})\n", "")
    async with running(room.path, "daemon", "upgrade", "--json") as run:
        (await next_life(room)).finish("clojarsd 0.2.0 takes over")
        room.board.daemon = replace(room.board.daemon, started_at="2026-11-23T13:00:00.000Z")
        code, out, err = await run.end()
    (last,) = (json.loads(line) for line in out.splitlines())
    assert (code, err, last["result"]) == (0, "", "done")
    assert last["message"] == f"clojarsd 0.2.0 (process {os.getpid()}) was replaced by the same version"
    assert (last["before"]["started_at"], last["after"]["started_at"]) == (AT, "2026-11-23T13:00:00.000Z")


async def test_an_upgrade_that_fails_leaves_the_old_one(room: Room) -> None:
    message = "cannot upgrade: clojarsd 0.2.0 cannot read x.toml; clojarsd 0.1.0 stays in charge"
    for words in (["daemon", "upgrade"], ["daemon", "upgrade", "--json"]):
        async with running(room.path, *words) as run:
            (await next_life(room)).fail(Failed(message))
            code, out, err = await run.end()
        assert (code, err) == (1, f"{message}\n")
        assert out == ("" if len(words) == 2 else json.dumps({"error": {"kind": "failed", "message": message}}) + "\n")
    room.life.refusal = Refused("cannot upgrade: a deploy is under way")
    assert await ctl(room.path, "daemon", "upgrade") == (3, "", "cannot upgrade: a deploy is under way\n")


async def test_an_upgrade_after_which_the_old_one_is_still_there(room: Room) -> None:
    async with running(room.path, "daemon", "upgrade", "--timeout", "100ms") as run:
        (await next_life(room)).finish("clojarsd 0.2.0 takes over")
        code, out, err = await run.end()
    still = f"clojarsd 0.1.0 (process {os.getpid()}) still answers after 0.1 s"
    assert (code, out, err) == (1, "", f"cannot say that clojarsd was replaced: {still}\n")


async def test_an_upgrade_after_which_nobody_answers(directory: Path) -> None:
    async with control_room(directory) as room:
        run = Run(await start(room.path, "daemon", "upgrade", "--timeout", "100ms"))
        (await next_life(room)).finish("clojarsd 0.2.0 takes over")
    code, out, err = await run.end()
    gone = f"cannot reach clojarsd at {room.path}: no such socket; is clojarsd.service running?"
    assert (code, out, err) == (4, "", f"the new clojarsd does not answer: {gone}\n")


async def test_an_upgrade_is_waited_for_while_nobody_answers(directory: Path) -> None:
    """The stream is cut, the socket is gone for a while, then somebody answers under another number."""
    async with control_room(directory) as room:
        run = Run(await start(room.path, "daemon", "upgrade"))
        (await next_life(room)).finish("clojarsd 0.2.0 takes over")
    async with control_room(directory) as room:
        room.board.daemon = replace(room.board.daemon, version="0.2.0", pid=7)
        code, out, err = await run.end()
    assert (code, err) == (0, "")
    assert out == "clojarsd 0.1.0 ended while it was replaced; clojarsd 0.2.0 (process 7) was started after it\n"


async def test_ctrl_c_stops_the_watching_of_an_upgrade(room: Room) -> None:
    async with running(room.path, "daemon", "upgrade") as run:
        (await next_life(room)).note(None, "one step")
        await run.line(error=True)
        run.process.send_signal(signal.SIGINT)
        assert await run.end() == (130, "", "stopped watching; the upgrade goes on: clojarsctl status\n")


DAEMON = """
import json, os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listening", flush=True)
connection, _ = listener.accept()
request = connection.recv(65536)
connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + sys.argv[2].encode())
listener.close()
os.unlink(sys.argv[1])
connection.close()
sys.stdin.read()
"""
"""A daemon that says what it is told to, closes its socket, and lives until its stdin ends."""
STEP = '{"step": {"at": "2026-11-23T12:00:09.000Z", "role": "backup", "message": "backup is stopped"}}\n'
DONE = '{"result": "done", "message": "backup and primary are stopped; clojarsd ends"}\n'


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (STEP + DONE, "backup and primary are stopped; clojarsd ends\n"),
        (STEP, "clojarsd has ended, without a word whether both instances had\n"),
    ],
)
async def test_a_stop_returns_when_the_process_is_gone(directory: Path, said: str, told: str) -> None:
    path = directory / "s"
    pipe = asyncio.subprocess.PIPE
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DAEMON, str(path), said, stdin=pipe, stdout=pipe
    )
    assert daemon.stdin is not None
    assert daemon.stdout is not None
    await daemon.stdout.readline()
    run = Run(await start(path, "daemon", "stop"))
    assert await run.line(error=True) == "12:00:09 backup is stopped"
    assert run.process.stdout is not None
    reading = asyncio.ensure_future(run.process.stdout.readline())
    await until(lambda: not path.exists(), "the end of the socket")
    await asyncio.wait([reading], timeout=0.1)  # that it says nothing yet can only be seen for a while
    assert not reading.done()
    daemon.stdin.close()
    await daemon.wait()
    assert (await reading).decode() == told
    assert await run.end() == (0, "", "")


async def test_a_stop_that_fails_or_is_refused(room: Room) -> None:
    async with running(room.path, "daemon", "stop") as run:
        (await next_life(room)).fail(Failed("cannot stop primary: it is still there"))
        assert await run.end() == (1, "", "cannot stop primary: it is still there\n")
    room.life.refusal = Refused("clojarsd is stopping already")
    assert await ctl(room.path, "daemon", "stop") == (3, "", "clojarsd is stopping already\n")


# What goes wrong.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "last"),
    [
        (["deploi", "2026-11-23"], "Error: No such command 'deploi'. Did you mean 'deploy'?"),
        (["restart"], "Error: Missing argument 'primary|backup|all'."),
        (["drain", "primary", "--force"], "Error: No such option '--force'."),
        (
            ["restart", "primary", "--timeout", "5"],
            "Error: Invalid value for '--timeout': 5 is not a duration"
            ' (text with a unit, such as "500ms", "30s", "5m", "1m30s", "2h", "7d")',
        ),
        (["restart", "primary", "--timeout", "0s"], "Error: Invalid value for '--timeout': 0s is no time at all"),
        (["start", "primary", "--env", "A"], "Error: Invalid value for '--env': A has no value (NAME=VALUE)"),
        (
            ["start", "primary", "--env", "A-B=s3cret"],
            "Error: Invalid value for '--env': \"A-B\" is not a name of a variable (letters, digits and _)",
        ),
        (
            ["restart", "primary", "--env", "NOTIFY_SOCKET=x"],
            "Error: Invalid value for '--env': NOTIFY_SOCKET is set by clojarsd alone",
        ),
        (["stop", "primary", "--env", "A=1"], "Error: No such option '--env'."),
        (
            ["wait", "primary", "--for", "up"],
            "Error: Invalid value for '--for': 'up' is not one of 'ready', 'eligible', 'stopped', 'down'.",
        ),
        (
            ["wait", "third", "--for", "ready"],
            "there is no instance third (primary, backup, all, clojars, clojars-backup)",
        ),
        (["why", "third"], "there is no instance third (primary, backup, clojars, clojars-backup)"),
        (["pause", "ftp"], "there is no frontend ftp (http)"),
        (["frontends", "ftp"], "there is no frontend ftp (http)"),
        (["connections", "ftp"], "there is no frontend ftp (http)"),
        (["reset", "ftp"], "there is no frontend ftp (http, all)"),
        (["pause", "http", "--for", "0s"], "Error: Invalid value for '--for': 0s is no time at all"),
        (["share", "half"], "Error: half is not a share of the connections in percent (0 to 50)"),
        (["share", "-1"], "Error: -1 is not a share of the connections in percent (0 to 50)"),
        (["share", "51 %"], "Error: 51 % is not a share of the connections in percent (0 to 50)"),
        (["cap", "http", "many"], "Error: many is not a number of connections"),
        (["cap", "http", "-1"], "Error: -1 is not a number of connections"),
        (["cap", "http", "backup", "-1"], "Error: -1 is not a number of connections"),
        (["cap", "http", "third", "5"], "Error: third 5 is not a limit ([total|primary|backup] N)"),
        (["cap", "http", "2000000"], "total is 2000000, not a number of connections (0 to 1000000)"),
        (["start", "primary", "--within", "5s"], "Error: No such option '--within'."),
        (["daemon", "restart"], "Error: No such command 'restart'."),
        (["start", "third"], "there is no instance third (primary, backup, all, clojars, clojars-backup)"),
        (["start", "../status"], "there is no instance ../status (primary, backup, all, clojars, clojars-backup)"),
        (["drain", "all"], "there is no instance all (primary, backup, clojars, clojars-backup)"),
        (
            ["start", "primary", "--timeout", "2d"],
            "Error: Invalid value for '--timeout': 2d is too long (at most 24h)",
        ),
        (
            ["pause", "http", "--for", "1d1ms"],
            "Error: Invalid value for '--for': 1d1ms is too long (at most 24h)",
        ),
        (
            ["stop", "primary", "--within", "25h"],
            "Error: Invalid value for '--within': 25h is too long (at most 24h)",
        ),
    ],
)
async def test_wrong_usage(room: Room, words: list[str], last: str) -> None:
    code, out, err = await ctl(room.path, *words)
    assert (code, out) == (2, "")
    assert err.endswith(f"{last}\n")
    assert room.orders.given == []


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["threads"])
async def test_verbs_that_are_not_in_this_version(verb: str) -> None:
    """Whatever follows them; that they are spelled right must not be put in doubt."""
    sentence = f"{verb} is not in this version"
    for words in ([], ["2026-11-23", "--yes"], ["--help"]):
        assert await ctl(Path("/nowhere"), verb, *words) == (2, "", f"{sentence}\n")
    code, out, err = await ctl(Path("/nowhere"), verb, "x", "--json")
    assert (code, json.loads(out), err) == (2, {"error": {"kind": "usage", "message": sentence}}, f"{sentence}\n")


@pytest.mark.slow
async def test_what_shows_a_jvm_is_not_in_this_version() -> None:
    told = "jvm is not in this version; `clojarsctl jvm cds ROLE` is\n"
    assert await ctl(Path("/nowhere"), "jvm") == (2, "", told)
    for words in (["primary"], ["backup", "--json"]):
        code, _, err = await ctl(Path("/nowhere"), "jvm", *words)
        assert (code, err) == (2, "jvm is not in this version\n")


async def test_an_archive_is_told_of_as_an_order_is(room: Room) -> None:
    async with running(room.path, "jvm", "cds", "backup") as run:
        await until(lambda: room.archives.given, "the order")
        work = room.archives.works[-1]
        work.note(Role.BACKUP, "has 4718 classes loaded")
        assert await run.line(error=True) == "12:00:09 has 4718 classes loaded"
        work.finish("archive x: 38 MB in 2.1 s")
        assert await run.end() == (0, "archive x: 38 MB in 2.1 s\n", "")
    assert room.archives.given == [Role.BACKUP]
    async with running(room.path, "jvm", "cds", "clojars") as run:
        await until(lambda: len(room.archives.given) == 2, "the order")
        room.archives.works[-1].fail(Failed("cannot make a class-data archive of primary: no"))
        assert await run.end() == (1, "", "cannot make a class-data archive of primary: no\n")
    room.archives.refusal = Refused("cannot make a class-data archive of backup: it is stopped; nothing was done")
    assert await ctl(room.path, "jvm", "cds", "backup") == (3, "", f"{room.archives.refusal}\n")


@pytest.mark.slow
async def test_no_daemon(directory: Path) -> None:
    path = directory / "control.sock"
    sentence = f"cannot reach clojarsd at {path}: no such socket; is clojarsd.service running?"
    looking = (["status"], ["top"], ["top", "--once"], ["why"], ["events"], ["logs"], ["config", "show"])
    watching = (["status", "--watch"],)
    acting = (["restart", "primary"], ["config", "reload"], ["daemon", "stop"], ["daemon", "upgrade"])
    for words in (*looking, *watching, *acting, ["wait", "all", "--for", "ready"]):
        assert await ctl(path, *words) == (4, "", f"{sentence}\n")
    for words in (["status"], ["status", "--watch"], ["top"]):
        code, out, _ = await ctl(path, *words, "--json")
        assert (code, json.loads(out)) == (4, {"error": {"kind": "unreachable", "message": sentence}})


@pytest.mark.slow
@pytest.mark.parametrize("words", [["top"], ["status", "--watch"]])
async def test_a_terminal_without_a_daemon_is_not_drawn_on(directory: Path, words: list[str]) -> None:
    path = directory / "control.sock"
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            COMMAND,
            *words,
            env={**os.environ, "CLOJARSD_SOCKET": str(path), "TERM": "xterm"},
            stdout=theirs,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(DEADLINE_S):
            _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
        os.close(theirs)
    sentence = f"cannot reach clojarsd at {path}: no such socket; is clojarsd.service running?"
    assert (process.returncode, err.decode()) == (4, f"{sentence}\n")


async def test_a_socket_that_a_dead_daemon_has_left(directory: Path) -> None:
    path = directory / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    sentence = f"cannot reach clojarsd at {path}: nobody listens there; is clojarsd.service running?"
    assert await ctl(path, "status") == (4, "", f"{sentence}\n")


async def test_a_path_that_is_too_long(directory: Path) -> None:
    path = directory / ("x" * 200)
    assert await ctl(path, "status") == (4, "", f"cannot reach clojarsd at {path}: af_unix path too long\n")


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>"])
async def test_a_stranger_who_answers(directory: Path, answer: bytes) -> None:
    async def answer_it(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    path = directory / "s"
    async with await asyncio.start_unix_server(answer_it, path):
        assert await ctl(path, "status") == (
            4,
            "",
            f"cannot reach clojarsd at {path}: what answers there is not clojarsd\n",
        )


async def test_a_daemon_that_hangs_up(directory: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    path = directory / "s"
    async with await asyncio.start_unix_server(hang_up, path):
        code, _, err = await ctl(path, "status")
    assert code == 4
    assert err == (
        f"cannot reach clojarsd at {path}: it ended the connection without an answer;"
        " `journalctl -u clojarsd` may tell why\n"
    )


@root_only
async def test_who_may_only_look(room: Room) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    assert (await ctl(room.path, "status", uid=nobody))[0] == 0
    assert await ctl(room.path, "stop", "backup", uid=nobody) == (
        3,
        "",
        "nobody may not give orders (operators: root)\n",
    )


@root_only
async def test_a_closed_directory(room: Room, directory: Path) -> None:
    directory.chmod(0o700)
    assert await ctl(room.path, "status", uid=pwd.getpwnam("nobody").pw_uid) == (
        4,
        "",
        f"cannot reach clojarsd at {room.path}: permission denied;"
        " the socket or its directory is closed to this user\n",
    )


async def test_a_reader_that_has_seen_enough(room: Room) -> None:
    read, write = os.pipe()
    os.close(read)
    for words in (["status"], ["--json", "events"]):
        room.history.record(EventName.FAILOVER, "x")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            COMMAND,
            *words,
            env={**os.environ, "CLOJARSD_SOCKET": str(room.path)},
            stdout=write,
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await process.communicate()
        assert (process.returncode, err) == (1, b"")
    os.close(write)


async def into(
    socket: Path, *words: str | bytes, stdout: Any = asyncio.subprocess.PIPE, stderr: Any = asyncio.subprocess.PIPE
) -> Run:
    """A clojarsctl whose stdout or stderr is somewhere else."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        COMMAND,
        *words,
        env={**os.environ, "CLOJARSD_SOCKET": str(socket)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
    )
    return Run(process)


@pytest.fixture(params=["full", "unread"])
def deaf(request: pytest.FixtureRequest) -> Iterator[int]:
    """What takes no byte: a full device, or a pipe that nobody reads."""
    if request.param == "full":
        write = os.open("/dev/full", os.O_WRONLY)
    else:
        read, write = os.pipe()
        os.close(read)
    yield write
    os.close(write)


@pytest.fixture
def full() -> Iterator[int]:
    write = os.open("/dev/full", os.O_WRONLY)
    yield write
    os.close(write)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("both", [False, True])
async def test_an_order_goes_on_though_nobody_hears_of_it(room: Room, deaf: int, both: bool, as_json: bool) -> None:
    option = ["--json"] if as_json else []
    stdout = deaf if both else asyncio.subprocess.PIPE
    for fails in (False, True):
        run = await into(room.path, "restart", "backup", *option, stdout=stdout, stderr=deaf)
        work = await next_work(room)
        work.note(Role.BACKUP, "backup is to be restarted")
        work.note(Role.BACKUP, "backup is stopped")
        if fails:
            work.fail(Failed("cannot start backup"))
        else:
            work.finish("backup is ready")
        async with asyncio.timeout(DEADLINE_S):
            out, _ = await run.process.communicate()
        assert run.process.returncode == (1 if fails else 0)
        if not both and not as_json:
            assert out == (b"" if fails else b"backup is ready\n")


async def test_a_refusal_keeps_its_code_though_nobody_hears_of_it(room: Room, deaf: int) -> None:
    room.orders.refusal = Refused("cannot restart primary: backup is stopped, so nobody would serve")
    for words in (["restart", "primary"], ["restart", "primary", "--json"]):
        run = await into(room.path, *words, stdout=deaf, stderr=deaf)
        assert await run.process.wait() == 3
    run = await into(room.path, "restart", "--nonsense", stdout=deaf, stderr=deaf)
    assert await run.process.wait() == 2


async def test_a_full_disk_does_not_change_how_an_order_ended(room: Room, full: int) -> None:
    for option in ([], ["--json"]):
        run = await into(room.path, "stop", "backup", *option, stdout=full)
        work = await next_work(room)
        work.note(Role.BACKUP, "one")
        work.note(Role.BACKUP, "two")
        work.finish("backup is stopped")
        async with asyncio.timeout(DEADLINE_S):
            _, err = await run.process.communicate()
        assert run.process.returncode == 0
        assert sorted(err.decode().splitlines()) == ["12:00:09 one", "12:00:09 two", NO_SPACE]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["status"], ["status", "--watch"], ["check"], ["events"], ["events", "-f"], ["logs"], ["--help"]]
)
async def test_an_answer_that_does_not_fit(room: Room, full: int, words: list[str]) -> None:
    room.history.record(EventName.FAILOVER, "x")
    for log in room.logs.values():
        log.write_text("a\nb\n")
    for option in [[]] if words == ["--help"] else [[], ["--json"]]:
        run = await into(room.path, *option, *words, stdout=full)
        async with asyncio.timeout(DEADLINE_S):
            _, err = await run.process.communicate()
        assert (run.process.returncode, err.decode()) == (3 if words == ["check"] else 1, f"{NO_SPACE}\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["status", "status --json", "check", "--json check", "events", "logs", "stop backup --no-wait", "--help"]
)
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
async def test_streams_that_are_closed(room: Room, words: str, closed: str) -> None:
    for log in room.logs.values():
        log.write_text("a\n")
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        f'exec "$0" -c "$1" {words} {closed}',
        sys.executable,
        COMMAND,
        env={**os.environ, "CLOJARSD_SOCKET": str(room.path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_S):
        _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")


async def test_what_is_for_stderr_does_not_get_into_stdout(room: Room) -> None:
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        'exec "$0" -c "$1" restart third 2>&-',
        sys.executable,
        COMMAND,
        env={**os.environ, "CLOJARSD_SOCKET": str(room.path)},
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_S):
        out, _ = await process.communicate()
    assert (process.returncode, out) == (2, b"")


async def test_names_that_are_not_utf_8(room: Room) -> None:
    for words in ([b"restart", b"\xff"], [b"logs", b"\xff"]):
        assert await (await into(room.path, *words)).end() == (2, "", "the instance name \\xff is not valid UTF-8\n")
    assert room.orders.given == []


# Words.


async def run_help(*words: str) -> str:
    code, out, err = await ctl(Path("/nowhere"), *words, "--help")
    assert (code, err) == (0, "")
    return out


async def test_help_lists_every_verb_in_a_line_each() -> None:
    text = await run_help()
    looking, ordering = ["status", "top", "why", "check"], ["start", "stop", "restart", "reload", "drain", "undrain"]
    fronts = ["frontends", "connections", "pause", "resume", "cap", "share", "reset"]
    rollouts = ["deploy", "promote", "abort", "rollback", "releases", "rollout"]
    verbs = [*looking, *ordering, "wait", "logs", "events", *rollouts, *fronts, "jvm", "config", "daemon"]
    listed = text[text.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in listed] == verbs
    assert not any(line.endswith("...") for line in listed)
    for code in ("0 done", "1 failed", "2 wrong usage", "3 refused", "4 clojarsd cannot be reached"):
        assert code in " ".join(text.split())


async def test_help_of_a_verb() -> None:
    text = " ".join((await run_help("restart")).split())
    for words in ("primary|backup|all", "--no-wait", "--force", "--timeout", "--json", "the order goes on"):
        assert words in text


@pytest.mark.slow
async def test_help_of_options_that_differ() -> None:
    symmetric = "Accepted for symmetry: only a restart is ever refused for the other one's sake."
    for verb, words in (
        ("restart", "Restart although the other one could not take over."),
        ("start", symmetric),
        ("stop", symmetric),
        ("logs", "at most 10000."),
        ("events", "at most 1000."),
    ):
        assert words in " ".join((await run_help(verb)).split())


async def test_roles_are_completed() -> None:
    environment = {"_CLOJARSCTL_COMPLETE": "bash_complete", "COMP_WORDS": "clojarsctl restart b", "COMP_CWORD": "2"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", COMMAND, env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out == b"plain,backup\n"


async def test_deploy_clojars_is_deploy() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from clojarsd.ctl.main import deploy_main; deploy_main()",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    answer: tuple[Any, Any] = await process.communicate()
    assert (process.returncode, *answer) == (
        2,
        b"",
        b"a deploy needs a TAG, or --artifact FILE\n",
    )
