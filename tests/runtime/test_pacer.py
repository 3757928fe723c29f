"""An instance that has just come up gets those who have waited at the pace of its answers."""

from __future__ import annotations

import queue
import socket
import threading
import time

import pytest

from clojarsd.core.pacing import FIRST, PATIENCE, WARM
from tests.support.fronts import Front, Instance
from tests.support.sockets import DEADLINE_S, Rig, receive_exactly

WAITS = {"primary": False, "backup": False}


class Cold:
    """An application that answers one client at a time, slowly at first: each answer is faster than the one before.

    Attributes:
        crowds: how many were connected and not answered, and how many were answered, whenever one had come.
    """

    def __init__(self, instance: Instance, clients: int, first: float) -> None:
        self.crowds: list[tuple[int, int]] = []
        self._came: queue.Queue[socket.socket] = queue.Queue()
        self._answered = 0
        self._clients = clients
        self._first = first
        self._threads = [
            threading.Thread(target=self._accept, args=(instance,)),
            threading.Thread(target=self._answer),
        ]
        for thread in self._threads:
            thread.start()

    def _accept(self, instance: Instance) -> None:
        for number in range(self._clients):
            end = instance.accept()
            answered = self._answered
            self.crowds.append((number + 1 - answered, answered))
            self._came.put(end)

    def _answer(self) -> None:
        for number in range(self._clients):
            with self._came.get(timeout=DEADLINE_S) as end:
                receive_exactly(end, 1)
                time.sleep(self._first / (number + 1))  # what a cold application does: no fact to wait for
                self._answered += 1
                end.sendall(b"!")

    def join(self) -> None:
        for thread in self._threads:
            thread.join(DEADLINE_S)


@pytest.mark.slow
def test_a_cold_instance_is_not_overrun_and_a_warm_one_is_not_held_up(rig: Rig) -> None:
    count = 300
    with Front(rig, **WAITS) as front:
        clients = [front.client(b"?") for _ in range(count)]
        front.until(held=count)
        cold = Cold(front.primary, count, first=0.2)
        began = time.monotonic()
        front.eligible(primary=True, backup=False)
        for client in clients:
            assert receive_exactly(client, 1) == b"!"
        took = time.monotonic() - began
        cold.join()
    for crowd, answered in cold.crowds:
        assert crowd <= FIRST + answered or answered >= WARM - FIRST, cold.crowds
    assert took < 10.0, "of 1.3 s that the application itself needs"


@pytest.mark.slow
def test_an_instance_that_answers_nobody_gets_the_next_ones_all_the_same(rig: Rig) -> None:
    with Front(rig, **WAITS) as front:
        for _ in range(3 * FIRST + 1):
            front.client(b"?")
        front.until(held=3 * FIRST + 1)
        began = time.monotonic()
        front.eligible(primary=True, backup=False)
        assert front.connections()[0] == FIRST
        front.until(primary=3 * FIRST + 1)
        assert time.monotonic() - began >= 2 * PATIENCE * 0.9


def test_who_comes_while_others_wait_does_not_overtake_them(rig: Rig) -> None:
    with Front(rig, **WAITS) as front:
        for number in range(FIRST + 1):
            front.client(bytes([number]))
            front.until(held=number + 1)
        front.eligible(primary=True, backup=False)
        front.client(b"\xff")
        order = []
        for _ in range(FIRST + 2):
            with front.primary.accept() as end:
                order.append(receive_exactly(end, 1)[0])
                end.sendall(b"!")
        assert order == [*range(FIRST + 1), 0xFF]


def test_an_instance_that_answers_fast_gets_all_in_a_moment(rig: Rig) -> None:
    count = 2 * WARM
    with Front(rig, **WAITS) as front:
        clients = [front.client(b"?") for _ in range(count)]
        front.until(held=count)
        cold = Cold(front.primary, count, first=0.0)
        began = time.monotonic()
        front.eligible(primary=True, backup=False)
        for client in clients:
            assert receive_exactly(client, 1) == b"!"
        took = time.monotonic() - began
        cold.join()
    assert took < 2.0, "some five looks of 10 ms, on a machine that is not busy"
