"""Threads for work that may hang, when the kernel gives none."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest

from clojarsd.system import threads as module
from clojarsd.system.threads import Threads, executor
from tests.support.waiting import PATIENCE, until


class Kernel:
    """A kernel that gives no threads while it is told so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gives = False
        self.asked = 0
        self._start = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda thread: self._maybe(thread))

    def _maybe(self, thread: threading.Thread) -> None:
        self.asked += 1
        if not self.gives:
            raise RuntimeError("can't start new thread")
        self._start(thread)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(module, "START_PAUSE", 0.001)
    return Kernel(monkeypatch)


async def test_work_waits_for_the_first_thread_and_is_then_done(kernel: Kernel) -> None:
    threads = Threads("test")
    async with asyncio.TaskGroup() as group:
        work = group.create_task(threads.run(lambda: "done"))
        await until(lambda: kernel.asked >= 3, "some tries")
        assert not work.done()
        kernel.gives = True
    assert work.result() == "done"
    threads.close()


async def test_another_thread_that_is_not_given_is_no_matter(kernel: Kernel) -> None:
    kernel.gives = True
    threads = Threads("test", most=2)
    assert await threads.run(lambda: 1) == 1
    kernel.gives = False
    assert await threads.run(lambda: 2) == 2
    threads.close()


async def test_an_executor_that_has_all_its_threads_needs_none_later(kernel: Kernel) -> None:
    kernel.gives = True
    with executor("test", 3) as made:
        kernel.gives = False
        gate = threading.Barrier(3)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            for meeting in [loop.run_in_executor(made, gate.wait) for _ in range(3)]:
                await meeting  # all three run at the same time
    assert kernel.asked == 3


async def test_an_executor_that_cannot_have_its_threads_says_so(kernel: Kernel) -> None:
    with pytest.raises(RuntimeError):
        executor("test", 3)


async def test_threads_leave_the_signals_of_the_process_to_its_main_thread() -> None:
    def held() -> set[int]:
        return set(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    before, threads = held(), Threads("test")
    with executor("test", 1) as made:
        for seen in (await threads.run(held), await asyncio.get_running_loop().run_in_executor(made, held)):
            assert seen >= {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD}
            assert not seen & {signal.SIGSEGV, signal.SIGABRT}, "which it gets for what it does itself"
    assert held() == before
    threads.close()


async def test_the_last_act_is_done_when_all_others_are() -> None:
    done, gate = list[str](), threading.Event()
    threads = Threads("test")
    under_way = asyncio.ensure_future(threads.run(gate.wait))
    await asyncio.sleep(0)
    after = asyncio.ensure_future(threads.run(done.append, "another"))
    await asyncio.sleep(0)
    threads.close(lambda: done.append("the last"))
    assert done == []
    gate.set()
    async with asyncio.timeout(PATIENCE):
        await under_way
        await after
    await until(lambda: done == ["another", "the last"], "the last act")
    Threads("test").close(lambda: done.append("at once"))
    assert done[-1] == "at once", "where no thread was wanted"
