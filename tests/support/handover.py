"""Processes that relay, one after the other: `python -m tests.support.handover CONTROL_FD LOOP` does as it is told.

The test has the other end of the control socket: each packet is an order as JSON, perhaps with a descriptor, and each
order is answered when it was carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvloop

from clojarsd.core.codec import decode, encode
from clojarsd.core.errors import Failed
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Role
from clojarsd.runtime.budget import Budget
from clojarsd.runtime.frontend import Frontend
from clojarsd.runtime.handover import hand_over, take_over
from clojarsd.system.relay import RelayResources
from tests.support.fronts import Past
from tests.support.sockets import DEADLINE_S, open_descriptors

ROOT = Path(__file__).parents[2]


class Mortal(socket.socket):
    """Kills or stops this process before a packet is sent, or after one has come."""

    fatal = 0
    at = ""
    number = 0

    def sendmsg(self, *arguments: Any) -> int:
        self._count("send")
        return super().sendmsg(*arguments)

    def send(self, *arguments: Any) -> int:
        self._count("send")
        return super().send(*arguments)

    def dup(self) -> Mortal:
        twin = super().dup()
        twin.fatal, twin.at, twin.number = self.fatal, self.at, self.number - 3  # the last of four goes this way
        return twin

    def recvmsg(self, *arguments: Any) -> Any:
        received = super().recvmsg(*arguments)
        self._count("receive")
        return received

    def _count(self, what: str) -> None:
        if self.at == what:
            self.number -= 1
            if self.number == 0:
                os.kill(os.getpid(), self.fatal)


class Relaying:
    """What runs in the process."""

    def __init__(self, control: socket.socket, group: asyncio.TaskGroup) -> None:
        self._control = control
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._resources = RelayResources(reset_flush=DEADLINE_S, move_flush=0.2, max_pipes=4)
        self._resources.poller.attach(self._loop)
        self._budget = Budget(100_000)
        self._frontends: dict[str, Frontend] = {}
        self._drained: list[str] = []
        self._inherited: dict[str, Any] = {}
        self._past = Past()
        self._over = asyncio.Event()
        self._loop.add_reader(control.fileno(), self._order)

    async def run(self) -> None:
        """Until told to end, or the test is gone."""
        await self._over.wait()
        self._loop.remove_reader(self._control.fileno())
        for frontend in self._frontends.values():
            frontend.close()
        self._resources.close()

    # What an heir is asked.

    def frontend(self, plan: FrontendPlan) -> Frontend:
        frontend = self._frontends[plan.name] = Frontend(plan, self._resources, self._budget)
        frontend.attach(self._past)
        return frontend

    def inherit(self, extra: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        self._inherited = dict(extra)
        for number in descriptors:
            with open(number, "wb", buffering=0) as pipe, contextlib.suppress(BrokenPipeError):
                pipe.write(b"here")

    def drained(self, name: str, role: Role) -> None:
        self._drained.append(role.value)

    # What the test orders.

    def _order(self) -> None:
        text, numbers, _, _ = socket.recv_fds(self._control, 1 << 16, 1)
        if not text:
            self._over.set()
            return
        order = json.loads(text)
        done = getattr(self, order.pop("do"))(*numbers, **order)
        if done is not None:
            self._answer(done)

    def _answer(self, answer: object) -> None:
        self._control.send(json.dumps(answer).encode())

    def open(self, plan: Any, eligible: Sequence[str], begin: bool = True) -> object:
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        listener.setblocking(False)
        frontend = self.frontend(decode(FrontendPlan, plan))
        frontend.listen([listener])
        self.eligible(eligible)
        if begin:
            frontend.begin()
        return listener.getsockname()[1]

    def eligible(self, roles: Sequence[str]) -> object:
        now = self._loop.time()
        for frontend in self._frontends.values():
            frontend.set_eligible({role: now if role.value in roles else None for role in Role})
        return True

    def drain(self, role: str) -> object:
        for name, frontend in self._frontends.items():
            frontend.begin_drain(Role(role), lambda name=name: self.drained(name, Role(role)))  # type: ignore[misc]
        return True

    def look(self) -> object:
        frontends = {}
        for name, frontend in self._frontends.items():
            view = frontend.view()
            sessions = [session for role in Role for session in frontend.open_sessions(role)]
            frontends[name] = {
                "active": view.active and view.active.value,
                "open": [view.connections[Role.PRIMARY], view.connections[Role.BACKUP], view.connections[None]],
                "accepted": [view.accepted_total[role] for role in (Role.PRIMARY, Role.BACKUP, None)],
                "piped": [session._up._piped + session._down._piped for session in sessions],
                "phases": sorted(session._phase.name for session in sessions),
            }
        return {
            "frontends": frontends,
            "descriptors": open_descriptors() - 2 * self._resources.pipes.free,
            "watched": len(self._resources.poller),
            "lent": self._resources.pipes.lent,
            "drained": self._drained,
            "inherited": self._inherited,
            "happened": [event.name for event in self._past.events],
        }

    def give(self, number: int, timeout: float) -> None:
        end = socket.socket(fileno=number)
        self._giving = self._group.create_task(self._give(end, timeout))

    def cancel(self) -> None:
        self._giving.cancel()

    async def _give(self, end: socket.socket, timeout: float) -> None:
        reader, writer = os.pipe()
        try:
            began = self._loop.time()
            await hand_over(
                end, list(self._frontends.values()), extra={"number": 7}, descriptors=[writer], timeout=timeout
            )
            os.close(writer)
            self._answer({"paused_s": self._loop.time() - began, "heard": os.read(reader, 10).decode()})
        except Failed as error:
            os.close(writer)
            self._answer({"failed": str(error)})
        except asyncio.CancelledError:
            os.close(writer)
            self._answer({"failed": "cancelled"})
            raise
        finally:
            os.close(reader)

    def take(self, number: int, timeout: float, fatal: int = 0, at: str = "", packet: int = 0) -> None:
        end = Mortal(fileno=number)
        end.fatal, end.at, end.number = fatal, at, packet
        self._group.create_task(self._take(end, timeout))

    async def _take(self, end: socket.socket, timeout: float) -> None:
        try:
            taken = await take_over(end, self, timeout=timeout)
            self._answer({"taken": [frontend.plan.name for frontend in taken]})
        except Failed as error:
            self._frontends.clear()
            self._answer({"failed": str(error)})


class Process:
    """One such process, as the test sees it. `with` ends it."""

    def __init__(self, loop: str) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(DEADLINE_S)
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-m", "tests.support.handover", str(number), loop]
            self.process = subprocess.Popen(command, pass_fds=[number], cwd=ROOT)
        self.answer()  # it is there

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._control.close()
        try:
            code = self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        assert kind is not None or code in (0, -signal.SIGKILL), code

    def order(self, do: str, descriptor: int | None = None, **fields: Any) -> None:
        """Tell it something."""
        text = json.dumps({"do": do, **fields}).encode()
        socket.send_fds(self._control, [text], [] if descriptor is None else [descriptor])

    def answer(self) -> Any:
        """What it says to the order whose turn it is."""
        text = self._control.recv(1 << 16)
        assert text, "the process has gone"
        return json.loads(text)

    def ask(self, do: str, descriptor: int | None = None, **fields: Any) -> Any:
        """Tell it something, and what it says."""
        self.order(do, descriptor, **fields)
        return self.answer()

    def open(self, plan: FrontendPlan, eligible: Sequence[str] = ("primary",)) -> int:
        """Have it listen; the port."""
        return int(self.ask("open", plan=encode(plan), eligible=eligible))

    def look(self, name: str = "line") -> dict[str, Any]:
        """What it looks like, with what the frontend of that name does."""
        seen: dict[str, Any] = self.ask("look")
        return {**seen, **seen["frontends"].get(name, {})}

    def until(self, **wanted: Any) -> None:
        """Wait until it looks like that."""
        seen: dict[str, Any] = {}
        for _ in range(int(DEADLINE_S / 0.01)):
            seen = self.look()
            if all(seen.get(name) == value for name, value in wanted.items()):
                return
            with contextlib.suppress(TimeoutError):
                self._control.settimeout(0.01)
                self._control.recv(1, socket.MSG_PEEK)
            self._control.settimeout(DEADLINE_S)
        raise AssertionError(f"not {wanted} but {seen}")


def begin_handover(old: Process, new: Process, *, timeout: float = DEADLINE_S, **fatal: Any) -> None:
    """Let the one give all it has to the other."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        new.order("take", theirs.fileno(), timeout=DEADLINE_S, **fatal)
        old.order("give", ours.fileno(), timeout=timeout)


def hand_on(old: Process, new: Process) -> dict[str, Any]:
    """Let the one give all it has to the other, and wait for the end of that."""
    begin_handover(old, new)
    given = old.answer()
    taken = new.answer()
    assert "failed" not in given, given
    assert "failed" not in taken, taken
    assert isinstance(given, dict)
    return given


async def _main(control: socket.socket) -> None:
    async with asyncio.TaskGroup() as group:
        relaying = Relaying(control, group)
        control.send(b"true")
        await relaying.run()


def main() -> None:
    """Run the process."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        factory = uvloop.new_event_loop if sys.argv[2] == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_main(control))


if __name__ == "__main__":
    main()
