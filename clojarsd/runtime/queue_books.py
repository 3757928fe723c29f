"""Whether an accept queue moves that no look finds shorter: who waits in it, and who of those was accepted later."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from clojarsd.core.errors import Failed
from clojarsd.core.stall import Waiting, has_moved
from clojarsd.system.accept_queue import AcceptQueues
from clojarsd.system.instance_sockets import Listening
from clojarsd.system.sock_diag import CLOSE_WAIT, ESTABLISHED, SockDiag

_IN_QUEUE = frozenset({ESTABLISHED, CLOSE_WAIT})


@dataclass(frozen=True, slots=True)
class Entry:
    """Who waited when the books were opened; `with_steered`: whether those whom the kernel steers are among them."""

    before: Waiting
    with_steered: bool


class QueueBooks:
    """The books of one instance's listeners. Holds nothing that would have to be closed.

    A steered connection does not tell to which instance. One that waits before and after a moment at which no steered
    one waited at the other instance is known to wait at this one.

    Args:
        steered_ports: of a port of the instance: those from which the kernel steers connections to it, and perhaps to
            the other instance.
        others_wait: whether steered ones may wait at the other instance now.
    """

    def __init__(
        self,
        diag: SockDiag,
        queues: AcceptQueues,
        steered_ports: Callable[[int], Iterable[int]],
        others_wait: Callable[[], bool],
    ) -> None:
        self._diag = diag
        self._queues = queues
        self._steered_ports = steered_ports
        self._others_wait = others_wait

    def open(self, found: Listening, waiting: int) -> Entry:
        """Who waits there now. `waiting`: the length of its queue, as just read."""
        cookies, with_steered = self._who_waits(found.address.port, steered=True)
        return Entry(Waiting(waiting, cookies), with_steered)

    def have_moved(self, found: Listening, entry: Entry) -> bool:
        """Whether something was accepted there since; True when it is gone, of which something else tells."""
        port = found.address.port
        cookies, _ = self._who_waits(port, steered=entry.with_steered)
        try:
            accepted = self._cookies([port, *self._steered_ports(port)], accepted=True)
            length = self._queues.waiting(found)  # after the cookies, see `core.stall.has_moved`
        except (OSError, Failed):
            return True
        return has_moved(entry.before, Waiting(length, cookies, accepted))

    def may_have_steered(self, listeners: Iterable[Listening]) -> bool:
        """Whether somebody waits there who has not come by the instance's own port; True when that cannot be seen."""
        try:
            return any(self._has_strangers(found) for found in listeners)
        except (OSError, Failed):
            return True

    def _has_strangers(self, found: Listening) -> bool:
        first = self._queues.waiting(found)
        if not first:
            return False
        own = len(self._cookies([found.address.port]))
        return max(first, self._queues.waiting(found)) > own  # read twice: some come and go meanwhile

    def _who_waits(self, port: int, *, steered: bool) -> tuple[frozenset[int], bool]:
        """Those that wait in the accept queue of the port, and whether steered ones are among them."""
        try:
            found = self._cookies([port])
            ports = tuple(self._steered_ports(port)) if steered else ()
            if not ports:
                return found, False
            before = self._cookies(ports)
            if self._others_wait():
                return found, False
            return found | (before & self._cookies(ports)), True
        except OSError:
            return frozenset(), False  # the kernel does not tell now; the other signs remain

    def _cookies(self, ports: Iterable[int], *, accepted: bool = False) -> frozenset[int]:
        """The connections on these ports that wait to be accepted, or those that were and are open."""
        return frozenset(
            one.cookie
            for port in ports
            for one in self._diag.connections(port, info=False)
            if bool(one.inode) is accepted and one.state in _IN_QUEUE
        )
