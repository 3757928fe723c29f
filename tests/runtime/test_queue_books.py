"""Whether accept queues move to which the kernel steers: whose are those that wait, and who was accepted."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

from clojarsd.runtime.queue_books import QueueBooks
from clojarsd.system.accept_queue import AcceptQueues
from clojarsd.system.instance_sockets import Listening, find_listening
from clojarsd.system.sock_diag import SockDiag
from tests.support.namespaces import apart
from tests.support.steered import B, P, Rig, rig
from tests.support.waiting import PATIENCE

STEERED = 8080


class Books:
    """The books of both instances of a steered pair, which this process plays, and their clients."""

    def __init__(self, closing: ExitStack, steered: Rig) -> None:
        self._closing = closing
        self.steered = steered
        self._diag = closing.enter_context(SockDiag())
        self._queues = AcceptQueues(self._diag)
        closing.callback(self._queues.forget)
        self.primary, self.backup = self.listening("primary"), self.listening("backup")
        self.of_backup = QueueBooks(self._diag, self._queues, lambda port: [STEERED], lambda: True)
        self.of_primary = QueueBooks(self._diag, self._queues, lambda port: [STEERED], self._others_wait)

    def listening(self, name: str) -> Listening:
        (found,) = find_listening([os.getpid()], self.steered.among[name].getsockname()[1])
        return found

    def _others_wait(self) -> bool:
        return self.of_backup.may_have_steered([self.backup])

    def waiting(self) -> int:
        return self._queues.waiting(self.primary)

    def come(self, count: int, port: int = STEERED) -> list[socket.socket]:
        """So many clients that connect and wait."""
        made = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(count)]
        return [self._closing.enter_context(one) for one in made]

    def accept(self, name: str = "primary") -> None:
        """Serve the first one in the queue, who is gone then."""
        self.steered.among[name].accept()[0].close()


@contextlib.contextmanager
def books() -> Iterator[Books]:
    with ExitStack() as closing:
        steered = closing.enter_context(rig())
        steered.steering.set_order("http", (P, B))
        yield Books(closing, steered)


@apart
def test_a_queue_of_steered_clients_that_is_as_long_as_before_has_moved_if_one_was_accepted() -> None:
    with books() as seen:
        seen.come(3)
        entry = seen.of_primary.open(seen.primary, seen.waiting())
        assert (entry.before.length, len(entry.before.cookies), entry.with_steered) == (3, 3, True)
        assert not seen.of_primary.have_moved(seen.primary, entry)
        seen.come(2)
        assert not seen.of_primary.have_moved(seen.primary, entry), "all who came still wait"
        seen.accept()
        seen.come(1)
        assert seen.of_primary.have_moved(seen.primary, entry)


@apart
def test_clients_that_may_wait_at_the_other_instance_are_nobodys() -> None:
    with books() as seen:
        seen.steered.steering.set_order("http", (B, P))
        seen.come(1)
        seen.steered.steering.set_order("http", (P, B))
        seen.come(2)
        entry = seen.of_primary.open(seen.primary, seen.waiting())
        assert (entry.before.length, entry.before.cookies, entry.with_steered) == (2, frozenset(), False)
        seen.come(1)
        assert not seen.of_primary.have_moved(seen.primary, entry), "one that has come is no sign of one that has gone"


@apart
def test_clients_of_the_other_ones_own_port_are_not_taken_for_steered_ones() -> None:
    """It is busy with others: what waits at the first one is known all the same."""
    with books() as seen:
        seen.come(2, seen.backup.address.port)
        assert not seen.of_backup.may_have_steered([seen.backup])
        seen.come(3)
        entry = seen.of_primary.open(seen.primary, seen.waiting())
        assert (len(entry.before.cookies), entry.with_steered) == (3, True)
        seen.steered.steering.set_order("http", (B, P))
        seen.come(1)
        assert seen.of_backup.may_have_steered([seen.backup])


@apart
def test_a_queue_that_is_gone_is_not_stuck() -> None:
    with books() as seen:
        seen.come(1)
        entry = seen.of_primary.open(seen.primary, seen.waiting())
        seen.steered.among["primary"].close()
        assert seen.of_primary.have_moved(seen.primary, entry)
        seen.steered.among["backup"].close()
        assert seen.of_backup.may_have_steered([seen.backup]), "nobody knows"
