"""What the control socket answers about releases: bodies, streams, errors, and who may order what."""

from __future__ import annotations

import asyncio
import pwd
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from clojarsd.core import rollout_journal as journal
from clojarsd.core.api_rollout import DeployOrder, RollbackOrder
from clojarsd.core.errors import Failed, Refused
from clojarsd.core.history import EventName
from clojarsd.core.rollout_facts import Outcome, Rollout, StepName
from clojarsd.core.rollout_view import Question
from tests.support.control import DEADLINE_S, Room, control_room, open_directory
from tests.support.real import root_only
from tests.support.rollouts import AT, make_wish
from tests.support.waiting import until

QUESTION = Question("2026-11-28T12:30:00.000Z", ("curl -i http://127.0.0.1:8002/",), ("3 commits",))
WAITS = "it waits for `clojarsctl promote` or `clojarsctl abort` until 2026-11-28T12:30:00.000Z"
NOBODY = pwd.getpwnam("nobody").pw_uid


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory() as path:
        yield path


@pytest.fixture
async def room(directory: Path) -> AsyncIterator[Room]:
    async with control_room(directory, viewers=("nobody",)) as room:
        yield room


def under_way() -> Rollout:
    records = [journal.asked(make_wish()), journal.begun(StepName.BUILD, "2026-11-28T12:00:09.000Z")]
    return journal.told(records)


async def ask(room: Room, path: str, body: Any = None) -> tuple[int, Any]:
    """What is answered to an order whose rollout ends well at once."""
    room.rollouts.work.end(Outcome.DONE, "deploy of 1.2.0 is done")
    return await room.ask("POST", path, body)


@pytest.mark.parametrize(
    ("path", "body", "given"),
    [
        ("/v1/deploys", {"tag": "1.2.0"}, ("deploy", DeployOrder("1.2.0"), "root")),
        (
            "/v1/deploys",
            {"artifact": "/tmp/app.jar", "yes": True, "force": True, "promote": True, "skip_tests": True},
            ("deploy", DeployOrder(None, "/tmp/app.jar", yes=True, skip_tests=True, force=True), "root"),
        ),
        ("/v1/rollback", None, ("rollback", RollbackOrder(), "root")),
        ("/v1/rollback", {"release": "1.1.0", "yes": True}, ("rollback", RollbackOrder("1.1.0", yes=True), "root")),
        ("/v1/rollout/promote", None, ("promote", None, "root")),
        ("/v1/rollout/promote", {}, ("promote", None, "root")),
    ],
)
async def test_orders(room: Room, path: str, body: Any, given: tuple[str, Any, str]) -> None:
    assert await ask(room, path, body) == (200, [{"result": "done", "message": "deploy of 1.2.0 is done"}])
    assert room.rollouts.given == [given]


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        ("/v1/deploys", None, "a deploy has either a tag or an artifact"),
        ("/v1/deploys", {"tag": "1", "artifact": "/x"}, "a deploy has either a tag or an artifact"),
        (
            "/v1/deploys",
            {"tag": "1", "soon": 1},
            "soon is not an option of it (tag, artifact, yes, promote, skip_tests, force)",
        ),
        ("/v1/deploys?yes=1", {"tag": "1"}, "/v1/deploys has no parameter yes"),
        ("/v1/rollback", {"release": ""}, 'release is "", not the name of a release'),
        ("/v1/rollback?now=1", None, "/v1/rollback has no parameter now"),
        ("/v1/rollout/promote", {"by": "me"}, "/v1/rollout/promote takes no options"),
        ("/v1/rollout/abort?x=1", None, "/v1/rollout/abort has no parameter x"),
    ],
)
async def test_what_is_not_understood_is_not_ordered(room: Room, path: str, body: Any, why: str) -> None:
    assert await room.ask("POST", path, body) == (400, {"error": {"kind": "usage", "message": why}})
    assert room.rollouts.given == []


async def test_a_deploy_is_told_as_it_goes(room: Room) -> None:
    work = room.rollouts.work
    async with room.stream("POST", "/v1/rollout/promote") as lines:
        await until(lambda: room.rollouts.given)
        work.note("building it")
        assert (await lines.next())["step"]["message"] == "building it"
        work.show_output(["Compiling", "done"])
        assert [await lines.next(), await lines.next()] == [{"output": "Compiling"}, {"output": "done"}]
        work.ask(QUESTION)
        assert await lines.next() == {
            "question": {
                "until": "2026-11-28T12:30:00.000Z",
                "look": ["curl -i http://127.0.0.1:8002/"],
                "changes": ["3 commits"],
            }
        }
        work.ask(None)
        assert await lines.next() == {"question": None}
        work.end(Outcome.FAILED, "cannot deploy 1.2.0: building it: no", ("one", "two"))
        assert await lines.next() == {
            "result": "failed",
            "error": {
                "kind": "failed",
                "message": "cannot deploy 1.2.0: building it: no",
                "output": ["one", "two"],
            },
        }
        assert await lines.next() is None


async def test_who_watches_only_to_the_question_hears_no_more(room: Room) -> None:
    room.rollouts.work.note("building it")
    room.rollouts.work.ask(QUESTION)
    status, lines = await room.ask("POST", "/v1/deploys", {"tag": "1.2.0", "promote": False})
    assert status == 200
    assert [next(iter(line)) for line in lines] == ["step", "question", "result"]
    assert lines[-1] == {"result": "waiting", "message": WAITS}
    room.rollouts.work.ask(None)
    room.rollouts.work.end(Outcome.ABORTED, "given up")
    status, lines = await room.ask("POST", "/v1/rollback", {"promote": False})
    assert lines[-1]["result"] == "failed", "it has never asked"


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        (Outcome.ABORTED, "done"),
        (Outcome.FAILED, "done"),  # everything is as it was, which is what was wanted
        (Outcome.STUCK, "failed"),
        (Outcome.DONE, "failed"),
    ],
)
async def test_an_abort_is_done_when_everything_is_as_it_was(room: Room, outcome: Outcome, result: str) -> None:
    work = room.rollouts.work
    work.note("building it")
    async with room.stream("POST", "/v1/rollout/abort") as lines:
        await until(lambda: room.rollouts.given == [("abort", None, "root")])
        work.note("it goes back")
        assert (await lines.next())["step"]["message"] == "it goes back", "what was before is no news"
        work.end(outcome, "so it is")
        assert (await lines.next())["result"] == result


async def test_a_refusal_is_answered_and_remembered(room: Room) -> None:
    why = "cannot deploy 1.2.0: deploy of 1.1.0 by ann is at step 3 of 17 (building it), since then; nothing was done"
    room.rollouts.refusal = Refused(why)
    for path, body, text in (
        ("/v1/deploys", {"tag": "1.2.0"}, "deploy 1.2.0"),
        ("/v1/deploys", {"artifact": "/tmp/x.jar"}, "deploy /tmp/x.jar"),
        ("/v1/rollback", None, "roll back"),
        ("/v1/rollback", {"release": "1.1.0"}, "roll back to 1.1.0"),
        ("/v1/rollout/promote", None, "promote"),
        ("/v1/rollout/abort", None, "abort"),
    ):
        assert await room.ask("POST", path, body) == (409, {"error": {"kind": "refused", "message": why}})
        ordered, refused = room.history.recent(2)
        assert (ordered.event, ordered.message) == (EventName.ORDER, f"root orders: {text}")
        assert refused.message == f"refused to {text}: {why}"
        assert refused.detail["refused"] == why


async def test_what_fails_before_it_begins(room: Room) -> None:
    room.rollouts.refusal = Failed("cannot reserve 131072 bytes")
    status, body = await room.ask("POST", "/v1/deploys", {"tag": "1.2.0"})
    assert (status, body["error"]["kind"]) == (500, "failed")


async def test_a_caller_that_goes_away_ends_nothing(room: Room) -> None:
    async with room.stream("POST", "/v1/rollout/promote"):
        await until(lambda: room.rollouts.given)
    assert room.rollouts.work.outcome is None
    assert (await ask(room, "/v1/rollout/promote"))[0] == 200


async def test_a_watcher_is_told_that_the_daemon_ends(directory: Path) -> None:
    async with control_room(directory) as room, room.stream("POST", "/v1/rollout/promote") as lines:
        await until(lambda: room.rollouts.given)
        room.server.why_ending = "clojarsd is being upgraded"
        finishing = asyncio.ensure_future(room.server.finish())
        last = await lines.next()
        told = "clojarsd is being upgraded; the next clojarsd takes it up"
        assert last == {"result": "left", "message": told}, "which is no failure: it is not over"
        await finishing


async def test_what_is_under_way_and_how_the_latest_has_ended(room: Room) -> None:
    nothing = {"rollout": None, "last_rollout": None}
    assert await room.ask("GET", "/v1/rollout") == (200, nothing)
    room.rollouts.rollout = under_way()
    _, seen = await room.ask("GET", "/v1/rollout")
    assert seen["last_rollout"] is None
    assert seen["rollout"]["text"] == "deploy of 1.2.0"
    assert seen["rollout"]["step"] == "build"
    room.rollouts.rollout = journal.after(under_way(), journal.ended(Outcome.FAILED, "cannot deploy 1.2.0", AT))
    _, seen = await room.ask("GET", "/v1/rollout")
    assert seen == {
        "rollout": None,
        "last_rollout": {
            "id": "20261128-120000",
            "text": "deploy of 1.2.0",
            "outcome": "failed",
            "message": "cannot deploy 1.2.0",
            "log": "/var/log/clojarsd/rollouts/20261123-120000.log",
        },
    }
    _, status = await room.ask("GET", "/v1/status")
    assert (status["rollout"], status["last_rollout"]) == (None, seen["last_rollout"])


async def test_a_rollout_is_followed_from_its_beginning(room: Room) -> None:
    refused = {"error": {"kind": "refused", "message": "no deploy or rollback is under way"}}
    assert await room.ask("GET", "/v1/rollout?follow=1") == (409, refused)
    room.rollouts.rollout = under_way()
    room.rollouts.work.note("checking it out")
    room.rollouts.work.ask(QUESTION)
    room.rollouts.work.ask(None)
    async with room.stream("GET", "/v1/rollout?follow=1") as lines:
        assert (await lines.next())["step"]["message"] == "checking it out"
        assert await lines.next() == {"question": None}, "nobody is to answer what is answered"
        room.rollouts.work.end(Outcome.DONE, "done")
        assert await lines.next() == {"result": "done", "message": "done"}
    status, body = await room.ask("GET", "/v1/rollout?follow=perhaps")
    assert status == 400
    status, body = await room.ask("GET", "/v1/rollout?n=1")
    assert body["error"]["message"] == "/v1/rollout has no parameter n (follow)"


async def test_releases(room: Room) -> None:
    room.rollouts.listed = {"current": "app.jar", "releases": [{"name": "app.jar"}], "warnings": ["so"]}
    assert await room.ask("GET", "/v1/releases") == (200, room.rollouts.listed)
    room.rollouts.refusal = Refused("there are no releases: the configuration has no table [deploy]")
    status, body = await room.ask("GET", "/v1/releases")
    assert (status, body["error"]["message"]) == (409, str(room.rollouts.refusal))


async def test_a_daemon_without_rollouts_has_none_of_the_paths(directory: Path) -> None:
    async with control_room(directory, is_whole=False) as room:
        for method, path in (("GET", "/v1/releases"), ("POST", "/v1/deploys"), ("GET", "/v1/rollout")):
            assert (await room.ask(method, path))[0] == 404


@root_only
async def test_viewers_look_and_do_not_order(room: Room) -> None:
    room.rollouts.rollout = under_way()
    for method, path, status in (
        ("GET", "/v1/releases", 200),
        ("GET", "/v1/rollout", 200),
        ("POST", "/v1/deploys", 403),
        ("POST", "/v1/rollback", 403),
        ("POST", "/v1/rollout/promote", 403),
        ("POST", "/v1/rollout/abort", 403),
    ):
        answer = await _ask_as_nobody(room.path, f"{method} {path}")
        assert answer.split()[1] == str(status).encode(), path
    assert room.rollouts.given == []
    assert b"nobody may not give orders (operators: root)" in answer


async def _ask_as_nobody(path: Path, head: str) -> bytes:
    script = """
import os, socket, sys
path, uid, head = sys.argv[1:]
os.setgroups([])
os.setuid(int(uid))
client = socket.socket(socket.AF_UNIX)
client.connect(path)
client.sendall(f"{head} HTTP/1.0\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
while some := client.recv(65536):
    sys.stdout.buffer.write(some)
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(path), str(NOBODY), head, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE_S):
        answer, _ = await process.communicate()
    return answer
