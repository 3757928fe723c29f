"""A control server on a real Unix socket, over a pair that exists on paper only."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clojarsd.core.api import Access, Step, Verb
from clojarsd.core.api_rollout import DeployOrder, RollbackOrder
from clojarsd.core.connections import ConnectionList
from clojarsd.core.errors import ClojarsdError, Refused
from clojarsd.core.frontend_plan import CountedFrom, Pause
from clojarsd.core.history import PastEvent
from clojarsd.core.names import Address, Goal, Health, Incarnation, Role, UnitState
from clojarsd.core.rollout_facts import Rollout
from clojarsd.core.rollout_view import RolloutView
from clojarsd.core.routing import Caps
from clojarsd.core.unit import Unit
from clojarsd.core.view import CheckView, DaemonView, FrontendView, InstanceView, PausedView
from clojarsd.runtime.control import ControlServer
from clojarsd.runtime.history import History
from clojarsd.runtime.rollout_work import RolloutWork
from clojarsd.runtime.status import Board
from clojarsd.system.control_socket import ControlSocket
from tests.support.fronts import make_plan

AT = "2026-11-23T12:00:09.000Z"
DEADLINE_S = 30.0 * float(os.environ.get("CLOJARSD_TEST_TIME", "1"))
"""Seconds that a fact may take to become true on a machine under load."""


class MemoryStore:
    """A store that keeps events in memory, and fails while told to."""

    def __init__(self, *past: PastEvent) -> None:
        self.events = {event.id: event for event in past}
        self.failure: ClojarsdError | None = None
        self.pruned: list[str] = []
        self.is_closed = False

    def last_id(self) -> int:
        self._fail()
        return max(self.events, default=0)

    def last(self, count: int) -> Sequence[PastEvent]:
        self._fail()
        return [self.events[number] for number in sorted(self.events)][-count:]

    def write(self, events: Sequence[PastEvent]) -> None:
        self._fail()
        for event in events:
            self.events.setdefault(event.id, event)

    def prune(self, before: str) -> None:
        self._fail()
        self.pruned.append(before)

    def close(self) -> None:
        self.is_closed = True

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


class PaperWork:
    """An order that goes on as the test says."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[Step | None] = asyncio.Queue()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def note(self, role: Role | None, message: str) -> None:
        self.told.put_nowait(Step(AT, role, message))

    def finish(self, message: str) -> None:
        self.ended.set_result(message)
        self.told.put_nowait(None)

    def fail(self, error: BaseException) -> None:
        self.ended.set_exception(error)
        self.told.put_nowait(None)

    async def steps(self) -> AsyncIterator[Step]:
        while (step := await self.told.get()) is not None:
            yield step

    async def result(self) -> str:
        return await asyncio.shield(self.ended)


@dataclass
class PaperOrders:
    """Takes every order, unless it is to refuse or to wait; each becomes work that the test ends."""

    refusal: BaseException | None = None
    given: list[tuple[Verb, tuple[Role, ...], str, bool, float | None]] = field(default_factory=list)
    environments: list[Mapping[str, str]] = field(default_factory=list)
    withins: list[float | None] = field(default_factory=list)
    may_begin: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_begin.set()

    works: asyncio.Queue[PaperWork] = field(default_factory=asyncio.Queue)

    async def begin(
        self,
        verb: Verb,
        roles: tuple[Role, ...],
        by: str,
        *,
        force: bool = False,
        timeout: float | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
        within: float | None = None,
    ) -> PaperWork:
        await self.may_begin.wait()
        if self.refusal is not None:
            raise self.refusal
        self.given.append((verb, roles, by, force, timeout))
        self.environments.append(dict(environment))
        self.withins.append(within)
        work = PaperWork()
        self.works.put_nowait(work)
        return work


@dataclass
class PaperConfig:
    """A configuration whose reload changes what it is told to, once the test lets it."""

    refusal: BaseException | None = None
    changes: list[str] = field(default_factory=lambda: ["checks.http: interval is 2s"])
    reloaded: list[str] = field(default_factory=list)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    async def reload(self, by: str) -> Sequence[str]:
        if self.refusal is not None:
            raise self.refusal
        await self.may_end.wait()
        self.reloaded.append(by)
        return self.changes

    def show(self) -> dict[str, Any]:
        return {"service": {"name": "clojars"}}

    def show_toml(self) -> str:
        return '[service]\nname = "clojars"\n'


@dataclass
class PaperLife:
    """A life whose works the test ends."""

    refusal: BaseException | None = None
    given: list[tuple[str, str]] = field(default_factory=list)
    works: asyncio.Queue[PaperWork] = field(default_factory=asyncio.Queue)

    def upgrade(self, by: str) -> PaperWork:
        return self._begin("upgrade", by)

    def stop(self, by: str) -> PaperWork:
        return self._begin("stop", by)

    def _begin(self, what: str, by: str) -> PaperWork:
        if self.refusal is not None:
            raise self.refusal
        self.given.append((what, by))
        work = PaperWork()
        self.works.put_nowait(work)
        return work


class PaperRollouts:
    """Deploys and rollbacks that go on as the test says, by `work` and `rollout`.

    Attributes:
        given: verb, order and user of what was ordered.
        rollout: what is under way, or was the latest.
    """

    def __init__(self) -> None:
        self.refusal: BaseException | None = None
        self.given: list[tuple[str, Any, str]] = []
        self.rollout: Rollout | None = None
        self.work = RolloutWork()
        self.listed: dict[str, Any] = {"current": None, "releases": [], "warnings": []}

    @property
    def view(self) -> RolloutView | None:
        if self.rollout is None:
            return None
        return RolloutView(self.rollout, "/var/log/clojarsd/rollouts/20261123-120000.log", self.work.question)

    async def deploy(self, order: DeployOrder, by: str) -> RolloutWork:
        return self._take("deploy", order, by)

    async def rollback(self, order: RollbackOrder, by: str) -> RolloutWork:
        return self._take("rollback", order, by)

    async def promote(self, by: str) -> RolloutWork:
        return self._take("promote", None, by)

    def abort(self, by: str) -> RolloutWork:
        return self._take("abort", None, by)

    async def releases(self) -> dict[str, Any]:
        if self.refusal is not None:
            raise self.refusal
        return self.listed

    def _take(self, verb: str, order: Any, by: str) -> RolloutWork:
        if self.refusal is not None:
            raise self.refusal
        self.given.append((verb, order, by))
        return self.work


class PaperFrontend:
    """A frontend as it is told to look."""

    def __init__(self, active: Role | None = Role.PRIMARY) -> None:
        self.active = active
        self.shown: dict[str, Any] = {}

    def view(self) -> FrontendView:
        counts = {Role.PRIMARY: 2, Role.BACKUP: 0, None: 0}
        totals = {Role.PRIMARY: 100, Role.BACKUP: 3, None: 0}
        return FrontendView(("127.0.0.1:8080",), "relay", None, self.active, counts, totals, **self.shown)


class PaperArchives:
    """Archives that are made as the test says."""

    def __init__(self) -> None:
        self.given: list[Role] = []
        self.works: list[PaperWork] = []
        self.refusal: Refused | None = None

    def order(self, role: Role, group: asyncio.TaskGroup) -> PaperWork:
        if self.refusal is not None:
            raise self.refusal
        self.given.append(role)
        self.works.append(PaperWork())
        return self.works[-1]


class PaperFrontends:
    """Frontends that obey at once, unless they are deaf."""

    def __init__(self, frontend: PaperFrontend) -> None:
        self.views = {"http": frontend}
        self.plans = {"http": make_plan({role: Address("127.0.0.1", 1) for role in Role}, name="http", hold=20.0)}
        self.paused: dict[str, Pause] = {}
        self.listed = ConnectionList(())
        self.is_deaf = False
        self.board: Board

    def pause(self, name: str, until: float, by: str) -> None:
        self.paused[name] = Pause(until, by)
        seconds = until - asyncio.get_running_loop().time()
        until_at = (datetime.fromisoformat(AT) + timedelta(seconds=round(seconds))).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        self._show(paused=PausedView(until_at, by))

    def resume(self, name: str) -> None:
        del self.paused[name]
        self._show(paused=None)

    def cap(self, name: str, caps: Caps) -> None:
        self._show(caps=caps)

    def set_share(self, share: float | None) -> None:
        self._show(share=share or 0.0)

    def count_from(self, name: str, counted_from: CountedFrom) -> None:
        self._show(counted_from=counted_from)

    async def connections(self, frontend: str | None = None) -> ConnectionList:
        return self.listed

    def _show(self, **shown: Any) -> None:
        if not self.is_deaf:
            self.views["http"].shown.update(shown)
            self.board.wake()


def instance(role: Role, **changes: Any) -> InstanceView:
    """An instance that serves, but for the changes; `state` stands for that of its unit."""
    state = changes.pop("state", UnitState.READY)
    name = {Role.PRIMARY: "clojars", Role.BACKUP: "clojars-backup"}[role]
    check = CheckView("http", Health.UP, "200 in 3 ms", AT)
    unit = Unit(goal=Goal.UP, state=state, incarnation=Incarnation(3))
    view = InstanceView(
        role, name, unit, Health.UP, 901, AT, 0, None, None, "app.jar", {"http": 8001, "nailgun": 8101}, (check,)
    )
    return replace(view, **changes)


@dataclass
class Room:
    """A control server with all that is around it."""

    path: Path
    orders: PaperOrders
    board: Board
    frontend: PaperFrontend
    history: History
    logs: Mapping[Role, Path]
    task: asyncio.Task[None]
    config: PaperConfig
    life: PaperLife
    server: ControlServer
    frontends: PaperFrontends
    archives: PaperArchives
    rollouts: PaperRollouts

    def connect(self) -> socket.socket:
        """A connection that the test closes."""
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        client.connect(str(self.path))
        return client

    async def ask(self, method: str, target: str, body: Any = None) -> tuple[int, Any]:
        """The status of the answer and its body: JSON, or a list for lines of JSON."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        try:
            writer.write(f"{method} {target} HTTP/1.0\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
            async with asyncio.timeout(DEADLINE_S):
                head, _, text = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
            await writer.wait_closed()
        status = int(head.split()[1])
        if b"application/x-ndjson" in head:
            return status, [json.loads(line) for line in text.splitlines()]
        return status, json.loads(text)

    @asynccontextmanager
    async def stream(self, method: str, target: str) -> AsyncIterator[Lines]:
        """The lines of an answer as they come."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        try:
            writer.write(f"{method} {target} HTTP/1.0\r\n\r\n".encode())
            async with asyncio.timeout(DEADLINE_S):
                await reader.readuntil(b"\r\n\r\n")
            yield Lines(reader)
        finally:
            writer.close()
            await writer.wait_closed()


class Lines:
    """What comes on one stream."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def next(self) -> Any:
        """The next object; None at the end."""
        async with asyncio.timeout(DEADLINE_S):
            line = await self._reader.readline()
        return json.loads(line) if line else None


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory with a short path that every user can reach, other than pytest's own."""
    with tempfile.TemporaryDirectory(prefix="clojarsd-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@asynccontextmanager
async def control_room(
    directory: Path,
    *,
    operators: tuple[str, ...] = (),
    viewers: tuple[str, ...] = (),
    store: MemoryStore | None = None,
    is_whole: bool = True,
) -> AsyncIterator[Room]:
    """A running control server; its socket and logs are in the directory. One that is not whole has no life."""
    frontend, orders = PaperFrontend(), PaperOrders()
    daemon = DaemonView("0.1.0", os.getpid(), AT, "/etc/clojarsd.toml")
    board = Board("clojars", daemon, lambda: "app.jar", {"http": frontend})
    for role in Role:
        board.publish(instance(role))
    logs = {role: directory / f"{role.value}.log" for role in Role}
    access = Access(operators, viewers, os.geteuid())
    with ControlSocket.bind(directory / "run" / "control.sock") as listener:
        async with History(store or MemoryStore()) as history, asyncio.TaskGroup() as group:
            config, life = PaperConfig(), PaperLife()
            frontends = PaperFrontends(frontend)
            frontends.board = board
            archives = PaperArchives()
            rollouts = PaperRollouts()
            board.rollout = lambda: rollouts.view
            whole: dict[str, Any] = {"config": config, "life": life, "frontends": frontends, "archives": archives}
            about_itself = {**whole, "rollouts": rollouts} if is_whole else {}
            control = ControlServer(listener, orders, board, history, access, logs, **about_itself)
            task = group.create_task(control.serve())
            parts = (task, config, life, control, frontends, archives, rollouts)
            yield Room(listener.path, orders, board, frontend, history, logs, *parts)
            task.cancel()
