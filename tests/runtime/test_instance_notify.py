"""What instances say of themselves, from real processes on a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import uvloop

from clojarsd.core.instance_notify import notify_environment
from clojarsd.core.names import Incarnation, Role
from clojarsd.runtime import instance_notify
from clojarsd.runtime.instance_notify import InstanceNotify
from clojarsd.system.kinship import belongs
from clojarsd.system.notify_socket import Datagram, NotifySocket
from tests.support.waiting import until

FIRST, SECOND = Incarnation(1), Incarnation(2)

SENDER = """
import array, os, socket, sys
address = os.environ["NOTIFY_SOCKET"]
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

def notify(text, *descriptors):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sender.sendmsg([text.encode()], rights, 0, address)

def barrier():
    ours, theirs = os.pipe()
    notify("BARRIER=1", theirs)
    os.close(theirs)
    assert os.read(ours, 1) == b""  # as soon as the receiver has closed its end
    os.close(ours)
"""


class Heard:
    """A unit and its watchdog: everything that they are told, in its order."""

    def __init__(self) -> None:
        self.words: list[object] = []

    def notified_ready(self, incarnation: Incarnation) -> None:
        self.words.append(("ready", incarnation))

    def notified_status(self, incarnation: Incarnation, text: str) -> None:
        self.words.append(text)

    def extend_deadline(self, incarnation: Incarnation, seconds: float) -> None:
        self.words.append(("extended", incarnation, seconds))

    def feed(self) -> None:
        self.words.append("fed")

    def extend(self, seconds: float) -> None:
        self.words.append(("watchdog extended", seconds))

    def trigger(self) -> None:
        self.words.append("triggered")


class Ear:
    """A listening role."""

    def __init__(self, path: Path) -> None:
        self.socket = NotifySocket(path)
        self.heard = Heard()
        self.notify = InstanceNotify(Role.BACKUP, self.socket, self.heard, self.heard)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.notify.run())
            await asyncio.sleep(0)
            yield
            task.cancel()

    @contextmanager
    def instance(self, program: str, incarnation: Incarnation = FIRST) -> Iterator[subprocess.Popen[bytes]]:
        """A process that is this incarnation, and ends by itself."""
        with self.stranger(program) as running:
            self.notify.begin(incarnation, partial(belongs, leader=running.pid))
            assert running.stdin is not None
            running.stdin.close()  # it waits for that
            yield running

    @contextmanager
    def stranger(self, program: str) -> Iterator[subprocess.Popen[bytes]]:
        text = f"{SENDER}\nsys.stdin.read()\n{program}"
        environment = {"PATH": os.environ["PATH"], **notify_environment(str(self.socket.path), None)}
        with subprocess.Popen(
            [sys.executable, "-S", "-c", text], stdin=subprocess.PIPE, env=environment, start_new_session=True
        ) as running:
            try:
                yield running
            finally:
                running.kill()


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    descriptors = len(os.listdir("/proc/self/fd"))
    ear = Ear(tmp_path / "run" / "notify-backup.sock")
    yield ear
    ear.socket.close()
    assert os.listdir(tmp_path / "run") == []
    assert len(os.listdir("/proc/self/fd")) <= descriptors


async def ended(running: subprocess.Popen[bytes]) -> None:
    await until(lambda: running.poll() is not None, "the end of the sender")
    assert running.returncode == 0


async def test_everything_is_passed_on_in_its_order(ear: Ear) -> None:
    program = (
        'notify("STATUS=loading")\nnotify("EXTEND_TIMEOUT_USEC=2500000\\nMAINPID=1")\nnotify("WATCHDOG=1")\n'
        'notify("STATUS=serving\\nREADY=1")\nnotify("WATCHDOG=trigger")\nbarrier()'
    )
    async with ear.listening():
        with ear.instance(program, SECOND) as running:
            await ended(running)
    assert ear.heard.words == [
        "loading",
        ("watchdog extended", 2.5),
        ("extended", SECOND, 2.5),
        "fed",
        "serving",
        ("ready", SECOND),
        "triggered",
    ]


async def test_a_child_of_the_instance_speaks_for_it(ear: Ear) -> None:
    async with ear.listening():
        with ear.instance('if not os.fork(): notify("READY=1"); barrier(); os._exit(0)\nos.wait()') as running:
            await ended(running)
    assert ear.heard.words == [("ready", FIRST)]


async def test_a_stranger_is_not_heard(ear: Ear, capsys: pytest.CaptureFixture[str]) -> None:
    async with ear.listening():
        with (
            ear.stranger('for _ in range(5): notify("READY=1")\nbarrier()') as stranger,
            ear.instance("barrier()") as one,
        ):
            assert stranger.stdin is not None
            stranger.stdin.close()
            await ended(one)
            await ended(stranger)
        assert ear.heard.words == []
        assert capsys.readouterr().out.count("notification_from_a_stranger") == 1
        ear.notify.end()
        with ear.stranger('notify("READY=1")\nbarrier()') as late:
            assert late.stdin is not None
            late.stdin.close()
            await ended(late)
    assert ear.heard.words == []


async def test_what_is_too_large_is_dropped_and_the_next_is_heard(ear: Ear) -> None:
    program = (
        'notify("STATUS=" + "x" * 5000 + "\\nREADY=1")\nnotify("STATUS=" + "y" * 4089)\nnotify("WATCHDOG=1")\nbarrier()'
    )
    async with ear.listening():
        with ear.instance(program) as running:
            await ended(running)
    assert set(ear.heard.words) == {"y" * 199 + "…", "fed"}


async def test_passed_descriptors_are_closed_at_once(ear: Ear) -> None:
    program = (
        "many = [os.dup(0) for _ in range(253)]\nours, theirs = os.pipe()\n"
        'for _ in range(20): notify("FDSTORE=1", *many[:252], theirs)\n'
        "os.close(theirs)\nassert os.read(ours, 1) == b''\nbarrier()"
    )
    async with ear.listening():
        before = len(os.listdir("/proc/self/fd"))
        with ear.instance(program) as running:
            await ended(running)
        assert len(os.listdir("/proc/self/fd")) <= before
    assert ear.heard.words == []


async def test_a_removed_socket_is_made_again(ear: Ear) -> None:
    async with ear.listening():
        ear.socket.path.unlink()
        await until(ear.socket.is_there)
        with ear.instance('notify("READY=1"); barrier()') as running:
            await ended(running)
        assert ear.heard.words == [("ready", FIRST)]
        ear.socket.path.unlink()
        ear.socket.path.parent.rmdir()
        await until(ear.socket.is_there)
        with ear.instance('notify("WATCHDOG=1"); barrier()') as running:
            await ended(running)
    assert ear.heard.words[1:] == ["fed"]


async def test_a_successor_binds_the_same_path_and_hears_an_old_instance(ear: Ear, tmp_path: Path) -> None:
    with ear.instance('notify("READY=1"); barrier()'):
        pass  # ended by the test: it only made the directory busy
    ear.notify.end()
    ear.socket.detach()
    assert ear.socket.path.is_socket()
    successor = Ear(ear.socket.path)
    async with successor.listening():
        with successor.instance('notify("READY=1"); barrier()') as running:
            await ended(running)
    assert successor.heard.words == [("ready", FIRST)]
    assert not ear.socket.is_there()
    successor.socket.close()


async def test_a_socket_that_is_handed_over_keeps_what_waits_in_it(ear: Ear) -> None:
    path = ear.socket.path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"READY=1", str(path))
    handed = os.dup(ear.socket.socket.fileno())
    os.set_inheritable(handed, True)  # over the exec
    ear.socket.detach()
    adopted = NotifySocket(path, adopted=handed)
    heard = Heard()
    notify = InstanceNotify(Role.BACKUP, adopted, heard, heard)
    notify.begin(FIRST, lambda pid: pid == os.getpid())
    async with asyncio.TaskGroup() as group:
        task = group.create_task(notify.run())
        await until(lambda: heard.words)
        task.cancel()
    assert heard.words == [("ready", FIRST)]
    assert not os.get_inheritable(adopted.socket.fileno())
    adopted.close()


class Flooded:
    """A listener whose queue is never empty. `read`: how many datagrams were taken from it."""

    path = Path("/nowhere")

    def __init__(self) -> None:
        self.socket, self._other = socket.socketpair()
        self._other.send(b"x")
        self.read = 0

    def receive(self) -> Datagram:
        self.read += 1
        return Datagram(os.getpid(), b"WATCHDOG=1")

    def is_there(self) -> bool:
        return True

    def restore(self) -> None:
        raise AssertionError("it is there")

    def close(self) -> None:
        self.socket.close()
        self._other.close()


async def test_an_endless_queue_is_read_in_small_turns_with_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_notify, "WINDOW", 3600.0)
    flooded, heard = Flooded(), Heard()
    notify = InstanceNotify(Role.BACKUP, flooded, heard, heard)
    notify.begin(FIRST, lambda pid: True)
    notify._read_on()
    seen = []
    while flooded.read < 100:
        seen.append(flooded.read)
        await asyncio.sleep(0)
    assert max(after - before for before, after in pairwise(seen)) == 16
    for _ in range(20):
        await asyncio.sleep(0)
    assert flooded.read == 112
    notify._stop_reading()
    flooded.close()


@pytest.mark.slow
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_flood_starves_nobody(tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """While 10,000 messages come, the loop goes on turning; none is lost but statuses that others have replaced."""

    async def main() -> None:
        ear = Ear(tmp_path / "notify.sock")
        loop, turns = asyncio.get_running_loop(), list[float]()
        program = 'for number in range(10_000): notify(f"STATUS={number}")\nbarrier()'
        async with ear.listening():
            with ear.instance(program) as running:
                while running.poll() is None:
                    turns.append(loop.time())
                    await asyncio.sleep(0.001)
                assert running.returncode == 0
        numbers = [int(str(word)) for word in ear.heard.words]
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == 9_999
        longest = max(after - before for before, after in pairwise(turns))
        assert longest < 0.5
        ear.socket.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
