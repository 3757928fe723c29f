"""Peers that do not read, do not answer, or talk nonsense harm nobody but themselves."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable

import pytest

from tests.support.fronts import Front
from tests.support.sockets import DEADLINE_S, Rig, in_background, noise, receive_exactly, receive_to_the_end

MIB = 1 << 20
EACH_WAY = 64 * MIB


def sender(end: socket.socket, size: int) -> Callable[[], None]:
    """Sends so much, and then its end."""

    def send() -> None:
        block = noise(MIB)
        for _ in range(size // MIB):
            end.sendall(block)
        end.shutdown(socket.SHUT_WR)

    return send


def count(end: socket.socket) -> int:
    """How many bytes come until the end, all of which must be what `sender` has sent."""
    block = noise(MIB)
    received = 0
    while part := end.recv(MIB):
        start = received % MIB
        assert part == (block + block)[start : start + len(part)]
        received += len(part)
    return received


@pytest.mark.slow
def test_64_mib_each_way_while_nobody_reads_and_all_of_it_afterwards(rig: Rig) -> None:
    """Both windows and the relay's own room are full: nothing moves, nothing grows, and nothing is stuck."""
    with Front(rig) as front:
        client = front.client()
        end = front.primary.accept()
        with end, in_background(sender(client, EACH_WAY), sender(end, EACH_WAY)):
            (session,) = rig.call(lambda: list(front.frontend._every_session()))
            seen = [(-1, -1)]

            def stands_still() -> bool:
                now = (session.bytes_up, session.bytes_down)
                seen.append(now)
                return min(now) > 0 and len(seen) > 200 and len(set(seen[-200:])) == 1

            rig.until(stands_still, lambda: seen[-3:])
            other = front.client(b"another")  # is not in the way of others
            with front.primary.accept() as end_of_other:
                assert receive_exactly(end_of_other, 7) == b"another"
                end_of_other.sendall(b"answer")
                assert receive_exactly(other, 6) == b"answer"
            counts: dict[str, int] = {}
            reader = threading.Thread(target=lambda: counts.update(up=count(end)))
            reader.start()
            counts["down"] = count(client)
            reader.join(DEADLINE_S)
            assert counts == {"up": EACH_WAY, "down": EACH_WAY}


def test_an_instance_that_accepts_and_never_answers_holds_up_nobody_else(rig: Rig) -> None:
    with Front(rig) as front:
        mute = front.client(b"?")
        with front.primary.accept() as end:
            assert receive_exactly(end, 1) == b"?"
            for _ in range(20):
                with front.client(b"ask") as client, front.primary.accept() as other:
                    assert receive_exactly(other, 3) == b"ask"
                    other.sendall(b"answer")
                    assert receive_exactly(client, 6) == b"answer"
            mute.close()
            assert receive_to_the_end(end) == (b"", False)
        front.until()


@pytest.mark.parametrize("movable", [False, True], ids=["any protocol", "HTTP is expected"])
def test_random_bytes_arrive_as_they_are(rig: Rig, movable: bool) -> None:
    seed = 20_261_128
    chosen = random.Random(seed)
    with Front(rig, movable=movable) as front:
        for _ in range(50):
            said = chosen.randbytes(chosen.choice((1, 2, 17, 1000, 65_536, 65_537, 300_000)))
            answered = chosen.randbytes(chosen.choice((0, 1, 100_000)))
            client = front.client()
            end = front.primary.accept()

            def ask(client: socket.socket = client, said: bytes = said) -> None:
                client.sendall(said)
                client.shutdown(socket.SHUT_WR)

            with in_background(ask):
                assert receive_to_the_end(end) == (said, False), seed
            with in_background(lambda end=end, answered=answered: (end.sendall(answered), end.close())):  # type: ignore[misc]
                assert receive_to_the_end(client) == (answered, False), seed
            client.close()
        front.until()
        assert front.accepted() == (50, 0, 0)
