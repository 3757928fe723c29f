"""Deploys at the command line: what is told and asked, at a terminal and without one, and how the command ends."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from clojarsd.core import rollout_journal as journal
from clojarsd.core.api_rollout import DeployOrder, RollbackOrder
from clojarsd.core.errors import Refused
from clojarsd.core.rollout_facts import GoingBack, Outcome, StepName
from clojarsd.core.rollout_view import Question
from tests.support.clojarsctl import COMMAND, ctl, running
from tests.support.control import DEADLINE_S, Room, control_room, open_directory
from tests.support.rollouts import AT, make_wish
from tests.support.waiting import until

QUESTION = Question("2026-11-28T12:30:00.000Z", ("curl -i http://127.0.0.1:8002/",), ("1.1.0 -> 1.2.0", "  a fix"))
ASKED = [
    "the backup runs it: look at it",
    "  curl -i http://127.0.0.1:8002/",
    "1.1.0 -> 1.2.0",
    "  a fix",
    "clojarsctl promote, or clojarsctl abort, until 2026-11-28T12:30:00.000Z; then it goes back",
]
PROMPT = "promote it to the primary? yes or no:"
SEE = "clojarsctl rollout -f shows it again; clojarsctl abort brings everything back"


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory() as path:
        yield path


@pytest.fixture
async def room(directory: Path) -> AsyncIterator[Room]:
    async with control_room(directory) as room:
        yield room


class Terminal:
    """A terminal at which somebody has given a command."""

    def __init__(self, process: asyncio.subprocess.Process, ours: int) -> None:
        self.process = process
        self._ours = ours
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    async def shows(self, text: str, times: int = 1) -> None:
        await until(lambda: self._read().count(text) >= times, text)

    async def end(self) -> int:
        async with asyncio.timeout(DEADLINE_S):
            while self.process.returncode is None:
                self._read()
                await asyncio.sleep(0.005)
        self._read()
        return self.process.returncode

    def _read(self) -> str:
        with suppress(BlockingIOError, OSError):
            self.shown += os.read(self._ours, 65536).decode()
        return self.shown


@asynccontextmanager
async def terminal(room: Room, *words: str) -> AsyncIterator[Terminal]:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        COMMAND,
        *words,
        env={**os.environ, "CLOJARSD_SOCKET": str(room.path)},
        preexec_fn=lambda: os.login_tty(theirs),
        pass_fds=(theirs,),
    )
    try:
        yield Terminal(process, ours)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
        os.close(theirs)


async def ordered(room: Room, count: int = 1) -> None:
    await until(lambda: len(room.rollouts.given) == count, "the order")


async def test_a_deploy_is_told_step_by_step(room: Room) -> None:
    async with running(room.path, "deploy", "1.2.0") as run:
        await ordered(room)
        assert room.rollouts.given == [("deploy", DeployOrder("1.2.0"), "root")]
        work = room.rollouts.work
        work.note("building it")
        assert (await run.line(error=True))[9:] == "building it"
        work.show_output(["Compiling \x1b[31mapp", "done"])
        assert await run.line(error=True) == "  | Compiling [31mapp"
        assert await run.line(error=True) == "  | done"
        work.ask(QUESTION)
        assert [await run.line(error=True) for _ in ASKED] == ASKED
        work.ask(None)
        work.note("restarting primary")
        assert (await run.line(error=True))[9:] == "restarting primary", "without a terminal nobody is asked"
        work.end(Outcome.DONE, "deploy of 1.2.0 is done")
        assert await run.end() == (0, "deploy of 1.2.0 is done\n", "")


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (
            "deploy 1.2.0 --yes --skip-tests --force",
            ("deploy", DeployOrder("1.2.0", yes=True, skip_tests=True, force=True)),
        ),
        ("deploy 1.2.0 --no-promote", ("deploy", DeployOrder("1.2.0", promote=False))),
        ("deploy --artifact /tmp/x.jar", ("deploy", DeployOrder(artifact="/tmp/x.jar"))),
        ("rollback", ("rollback", RollbackOrder())),
        ("rollback 1.1.0 --yes", ("rollback", RollbackOrder("1.1.0", yes=True))),
        ("promote", ("promote", None)),
        ("abort", ("abort", None)),
    ],
)
async def test_orders(room: Room, words: str, given: tuple[str, object]) -> None:
    async with running(room.path, *words.split()) as run:
        await ordered(room)
        outcome = Outcome.ABORTED if words == "abort" else Outcome.DONE
        room.rollouts.work.end(outcome, "so it is")
        assert await run.end() == (0, "so it is\n", "")
    assert room.rollouts.given == [(*given, "root")]


async def test_a_relative_artifact_is_one_from_where_the_command_is(room: Room) -> None:
    async with running(room.path, "deploy", "--artifact", "x.jar") as run:
        await ordered(room)
        room.rollouts.work.end(Outcome.DONE, "so it is")
        await run.end()
    assert room.rollouts.given[0][1] == DeployOrder(artifact=str(Path.cwd() / "x.jar"))


async def test_a_failure_comes_with_its_last_lines_unless_they_were_told(room: Room) -> None:
    async with running(room.path, "deploy", "1.2.0") as run:
        await ordered(room)
        room.rollouts.work.end(Outcome.FAILED, "cannot deploy 1.2.0: building it: no", ("one", "two"))
        assert await run.end() == (1, "", "  | one\n  | two\ncannot deploy 1.2.0: building it: no\n")
    assert room.rollouts.work.outcome is Outcome.FAILED
    async with running(room.path, "deploy", "1.2.0") as run:
        room.rollouts.work.__init__()  # type: ignore[misc]
        await ordered(room, 2)
        room.rollouts.work.show_output(["one", "two"])
        room.rollouts.work.end(Outcome.FAILED, "cannot deploy 1.2.0: building it: no", ("one", "two"))
        assert await run.end() == (1, "", "  | one\n  | two\ncannot deploy 1.2.0: building it: no\n")


async def test_a_refusal(room: Room) -> None:
    room.rollouts.refusal = Refused("cannot deploy 1.2.0: somebody else does; nothing was done")
    told = "cannot deploy 1.2.0: somebody else does; nothing was done\n"
    assert await ctl(room.path, "deploy", "1.2.0") == (3, "", told)
    for words in (["promote"], ["abort"], ["rollback"], ["releases"]):
        assert await ctl(room.path, *words) == (3, "", told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("deploy", "a deploy needs a TAG, or --artifact FILE"),
        ("deploy 1.2.0 --artifact /x", "--artifact FILE takes the place of a TAG: only one of them"),
        (
            "deploy 1.2.0 --yes --no-promote",
            "--yes asks nobody, --no-promote stops before asking: only one of them",
        ),
        ("deploy ../1", '"../1" is not the name of a tag that git would take'),
        (
            "rollback --yes --no-promote",
            "yes and promote = false exclude each other: one asks nobody, the other stops before asking",
        ),
    ],
)
async def test_wrong_usage(room: Room, words: str, told: str) -> None:
    assert await ctl(room.path, *words.split()) == (2, "", f"{told}\n")
    code, out, _ = await ctl(room.path, *words.split(), "--json")
    assert (code, json.loads(out)) == (2, {"error": {"kind": "usage", "message": told}})
    assert room.rollouts.given == []


async def test_who_does_not_wait_for_the_answer(room: Room) -> None:
    async with running(room.path, "deploy", "1.2.0", "--no-promote") as run:
        await ordered(room)
        room.rollouts.work.ask(QUESTION)
        code, out, err = await run.end()
    assert (code, out) == (
        0,
        "it waits for `clojarsctl promote` or `clojarsctl abort` until 2026-11-28T12:30:00.000Z\n",
    )
    assert err.splitlines() == ASKED


async def test_for_programs(room: Room) -> None:
    async with running(room.path, "deploy", "1.2.0", "--json") as run:
        await ordered(room)
        room.rollouts.work.show_output(["Compiling"])
        room.rollouts.work.ask(QUESTION)
        room.rollouts.work.ask(None)
        room.rollouts.work.end(Outcome.STUCK, "no", ("one",))
        code, out, _ = await run.end()
    assert code == 1
    assert [json.loads(line) for line in out.splitlines()] == [
        {"output": "Compiling"},
        {"question": None},
        {"result": "failed", "error": {"kind": "failed", "message": "no", "output": ["one"]}},
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("said", "verb"), [("yes", "promote"), ("Y", "promote"), ("no", "abort"), (" n ", "abort")])
async def test_the_question_is_answered_at_the_terminal(room: Room, said: str, verb: str) -> None:
    async with terminal(room, "deploy", "1.2.0") as at:
        await ordered(room)
        at.type("no\n")  # before anything was asked: that is no answer
        await at.shows("no\r\n")
        room.rollouts.work.ask(QUESTION)
        await at.shows(PROMPT)
        at.type("perhaps\n")
        await at.shows(PROMPT, 2)
        at.type(f"{said}\n")
        await ordered(room, 2)
        assert room.rollouts.given[1] == (verb, None, "root")
        room.rollouts.work.ask(None)
        room.rollouts.work.end(Outcome.DONE, "so it is")
        assert await at.end() == 0
        assert at.shown.rstrip().endswith("so it is")


@pytest.mark.slow
async def test_the_question_is_answered_elsewhere(room: Room) -> None:
    """What is typed afterwards must not abort what somebody has approved."""
    async with terminal(room, "deploy", "1.2.0") as at:
        await ordered(room)
        room.rollouts.work.ask(QUESTION)
        await at.shows(PROMPT)
        room.rollouts.work.ask(None)
        room.rollouts.work.note("bob has approved it")
        await at.shows("bob has approved it")
        at.type("no\n")
        room.rollouts.work.note("restarting primary")
        await at.shows("restarting primary")
        room.rollouts.work.end(Outcome.DONE, "so it is")
        assert await at.end() == 0, "a thread that waits for the terminal keeps nobody from ending"
    assert len(room.rollouts.given) == 1


@pytest.mark.slow
async def test_an_answer_that_is_refused_is_asked_for_again(room: Room) -> None:
    async with terminal(room, "deploy", "1.2.0") as at:
        await ordered(room)
        room.rollouts.work.ask(QUESTION)
        await at.shows(PROMPT)
        room.rollouts.refusal = Refused("cannot promote: the journal is full; it waits on")
        at.type("yes\n")
        await at.shows("cannot promote: the journal is full; it waits on")
        await at.shows(PROMPT, 2)
        room.rollouts.refusal = None
        at.type("no\n")
        await ordered(room, 2)
        room.rollouts.work.end(Outcome.ABORTED, "given up")
        assert await at.end() == 1


@pytest.mark.slow
async def test_who_leaves_the_terminal_has_answered_nothing(room: Room) -> None:
    async with terminal(room, "deploy", "1.2.0") as at:
        await ordered(room)
        room.rollouts.work.ask(QUESTION)
        await at.shows(PROMPT)
        at.type("\x04")
        at.process.send_signal(signal.SIGINT)
        assert await at.end() == 130
        assert f"stopped watching; it goes on: {SEE}" in at.shown
    assert room.rollouts.work.outcome is None


@pytest.mark.slow
async def test_nobody_is_asked_who_does_not_wait(room: Room) -> None:
    async with terminal(room, "deploy", "1.2.0", "--no-promote") as at:
        await ordered(room)
        room.rollouts.work.ask(QUESTION)
        assert await at.end() == 0
        assert PROMPT not in at.shown


async def test_ctrl_c_stops_the_watching_and_not_the_deploy(room: Room) -> None:
    async with running(room.path, "deploy", "1.2.0") as run:
        await ordered(room)
        room.rollouts.work.note("building it")
        await run.line(error=True)
        run.process.send_signal(signal.SIGINT)
        assert await run.end() == (130, "", f"stopped watching; it goes on: {SEE}\n")
    assert room.rollouts.work.outcome is None


async def test_a_daemon_that_dies(directory: Path) -> None:
    async with control_room(directory) as room, running(room.path, "deploy", "1.2.0") as run:
        await ordered(room)
        room.task.cancel()
        code, _, err = await run.end()
    assert code == 4
    assert "takes it up" in err


async def test_a_stream_that_is_cut(directory: Path) -> None:
    path = directory / "cut.sock"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.0 200 OK\r\n\r\n{"output": "Compiling"}\n')
        writer.close()

    server = await asyncio.start_unix_server(answer, path)
    async with server:
        told = (
            f"clojarsd at {path} ended the connection before the end; when clojarsd runs again it takes it up: {SEE}\n"
        )
        assert await ctl(path, "deploy", "1.2.0") == (4, "", f"  | Compiling\n{told}")


async def test_what_is_under_way(room: Room) -> None:
    assert await ctl(room.path, "rollout") == (0, "no deploy or rollback is under way\n", "")
    begun = [journal.asked(make_wish()), journal.begun(StepName.BUILD, "2026-11-28T12:00:09.000Z")]
    room.rollouts.rollout = journal.told(begun)
    log = "  whole output: /var/log/clojarsd/rollouts/20261123-120000.log\n"
    line = "deploy of 1.2.0 by ann: step 3 of 17, building it, since 2026-11-28T12:00:09.000Z\n"
    assert await ctl(room.path, "rollout") == (0, line + log, "")
    turned = journal.turned(GoingBack("lein failed", StepName.BUILD), AT)
    room.rollouts.rollout = journal.told([*begun, turned])
    line = "deploy of 1.2.0 by ann: on its way back, since 2026-11-28T12:00:00.000Z\n  it goes back: lein failed\n"
    assert await ctl(room.path, "rollout") == (0, line + log, "")
    asking = [journal.asked(make_wish()), journal.begun(StepName.APPROVE, AT, QUESTION.until)]
    room.rollouts.rollout = journal.told(asking)
    room.rollouts.work.ask(QUESTION)
    _, out, _ = await ctl(room.path, "rollout")
    assert out.splitlines()[1:-1] == [f"  {line}" for line in ASKED]
    _, out, _ = await ctl(room.path, "rollout", "--json")
    assert json.loads(out)["rollout"]["question"] == QUESTION.as_json()
    room.rollouts.rollout = journal.told([*begun, turned, journal.ended(Outcome.FAILED, "cannot deploy 1.2.0", AT)])
    told = "no deploy or rollback is under way\nthe latest: cannot deploy 1.2.0\n"
    assert await ctl(room.path, "rollout") == (0, told, "")


async def test_a_rollout_is_followed(room: Room) -> None:
    assert await ctl(room.path, "rollout", "-f") == (3, "", "no deploy or rollback is under way\n")
    room.rollouts.rollout = journal.told([journal.asked(make_wish())])
    room.rollouts.work.show_output(["Compiling"])
    async with running(room.path, "rollout", "-f") as run:
        assert await run.line(error=True) == "  | Compiling"
        room.rollouts.work.end(Outcome.DONE, "so it is")
        assert await run.end() == (0, "so it is\n", "")


async def test_releases(room: Room) -> None:
    assert await ctl(room.path, "releases") == (0, "no release: clojarsctl deploy TAG\n", "")
    one = {"tag": "1.1.0", "commit": "c0ffee" * 6, "by": "ann", "at": AT, "runs_on": ["primary"], "state": "good"}
    two: dict[str, Any] = {"tag": None, "commit": None, "by": "bob", "at": AT, "runs_on": [], "state": "bad"}
    room.rollouts.listed = {
        "current": "app-1.1.jar",
        "releases": [
            {"name": "app-1.2.jar", **two, "current": False, "previous": False},
            {"name": "app-1.1.jar", **one, "current": True, "previous": False},
            {"name": "app-1.0.jar", **one, "runs_on": ["backup"], "current": False, "previous": True},
        ],
        "warnings": ["backup runs app-1.0.jar, and the link names app-1.1.jar: clojarsctl restart backup"],
    }
    code, out, err = await ctl(room.path, "releases")
    assert (code, err) == (0, f"{room.rollouts.listed['warnings'][0]}\n")
    assert (
        out
        == """\
          release      tag    commit      state  runs on  by   at
          app-1.2.jar  -      -           bad    -        bob  2026-11-28T12:00:00.000Z
current   app-1.1.jar  1.1.0  c0ffeec0ff  good   primary  ann  2026-11-28T12:00:00.000Z
previous  app-1.0.jar  1.1.0  c0ffeec0ff  good   backup   ann  2026-11-28T12:00:00.000Z
"""
    )
    code, out, _ = await ctl(room.path, "releases", "--json")
    assert json.loads(out) == room.rollouts.listed


async def test_deploy_clojars_does_the_same(room: Room) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from clojarsd.ctl.main import deploy_main; deploy_main()",
        "1.2.0",
        "--yes",
        env={**os.environ, "CLOJARSD_SOCKET": str(room.path)},
        stdout=asyncio.subprocess.PIPE,
    )
    await ordered(room)
    room.rollouts.work.end(Outcome.DONE, "deploy of 1.2.0 is done")
    async with asyncio.timeout(DEADLINE_S):
        out, _ = await process.communicate()
    assert (process.returncode, out) == (0, b"deploy of 1.2.0 is done\n")
    assert room.rollouts.given == [("deploy", DeployOrder("1.2.0", yes=True), "root")]


async def test_what_is_pictured_of_a_rollout(room: Room) -> None:
    asking = [journal.asked(make_wish()), journal.begun(StepName.APPROVE, AT, QUESTION.until)]
    room.rollouts.rollout = journal.told(asking)
    room.rollouts.work.ask(QUESTION)
    _, out, _ = await ctl(room.path, "status")
    assert "deploy of 1.2.0 by ann: step 11 of 17, waiting for promote or abort, for" in out
    code, out, _ = await ctl(room.path, "check")
    assert (code, out) == (
        0,
        "clojars OK: primary and backup can serve; deploy of 1.2.0 by ann is at step 11 of 17 (waiting for promote or"
        " abort), since 2026-11-28T12:00:00.000Z, and waits for an answer until 2026-11-28T12:30:00.000Z\n",
    )
    _, out, _ = await ctl(room.path, "why")
    assert "deploy of 1.2.0 by ann: step 11 of 17" in out
    assert "look at the backup: curl -i http://127.0.0.1:8002/" in out
