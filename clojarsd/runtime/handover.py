"""Frontends go from one process to another with all their clients, and no client notices but by a pause.

::

    old                                              new
                                    ◄── hello ──     has started, imported, read what it needs
    stands still, sends
    the frontends, listening sockets ── frontends ─►
    the clients, some at a time      ── clients ──►  builds all of it, touches nothing
                                     ◄── got ─────
                                     ── all ──────►
                                     ◄── ready ───
                                     ── yours ────►
    lets go: closes its duplicates   ◄── begun ───   reads and writes from here on

`begun` is the commit point. The new process goes on only if its socket took this message, and the old one, when its
time is over, shuts the socket before it looks whether the message is there. So exactly one of them goes on, whichever
ends, hangs or is killed at whatever moment; only one that ends after it has begun takes the connections along.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import structlog

from clojarsd.core.codec import decode, encode
from clojarsd.core.errors import Failed
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.frozen import VERSION, FrozenConnection, FrozenFrontend, from_document, to_document
from clojarsd.core.names import Role
from clojarsd.runtime.frontend import Frontend
from clojarsd.runtime.standstill import Standstill
from clojarsd.system.channel import Channel, Descriptors

log = structlog.get_logger()

TIMEOUT = 10.0
"""Seconds in which all of it must be over, else the old process goes on."""
MOST_DESCRIPTORS = 252
"""In one message of clients. The kernel limits those that are on their way together, to RLIMIT_NOFILE of the user."""
MOST_BYTES = 1 << 20
"""About how long a message of clients may be."""
AHEAD = 2
"""Messages of clients that are sent before the first of them is acknowledged, so that both processes have work."""

_BEGUN = b'.{"kind":"begun"}'
"""The last message, in a packet as system/channel.py makes it."""

Batch = tuple[str, list[FrozenConnection], list[int]]
"""The name of a frontend, clients of it, and the descriptors of them all."""


class Heir(Protocol):
    """What takes frontends over."""

    def frontend(self, plan: FrontendPlan) -> Frontend:
        """A new frontend of that plan, which is then made like the old one. The caller keeps it, if it is to go on."""

    def inherit(self, extra: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Take what else the old process gives, before `frontend` is called. The descriptors are the heir's."""

    def drained(self, name: str, role: Role) -> None:
        """A drain that was under way is over in the frontend of that name."""


async def hand_over(
    end: socket.socket,
    frontends: Sequence[Frontend],
    *,
    extra: Mapping[str, Any] | None = None,
    descriptors: Sequence[int] = (),
    timeout: float = TIMEOUT,
) -> None:
    """Give the frontends away. When this returns, another process serves them, and here they hold nothing any more.

    When it raises, they go on here as if nothing had been; also when it is cancelled, but for a moment at the very end:
    if the other process has begun by then, they hold nothing here any more.

    Args:
        end: our end of a pair of SOCK_SEQPACKET sockets; closed here.
        extra: what else the new process gets, as JSON can hold it.
        descriptors: what goes with `extra`; they remain the caller's.

    Raises:
        Failed: the new process did not take them; says why.
    """
    with _in_words("cannot hand the connections over", "this process goes on"):
        line = _Line(end)
    stand: list[Standstill] = []
    loop = asyncio.get_running_loop()
    since = loop.time()
    clients = 0
    promised = False
    try:
        with _in_words("cannot hand the connections over", "this process goes on"):
            async with asyncio.timeout(timeout):
                await line.expect("hello", version=VERSION)
                since = loop.time()
                stand = [Standstill.freeze(frontend) for frontend in frontends]
                clients = await _send_all(line, stand, extra or {}, descriptors)
                await line.expect("ready")
                promised = True
                line.say("yours")
                await line.expect("begun")
    except BaseException as error:
        if not (line.revoke() and promised):
            for standing in stand:
                standing.unfreeze()
            raise
        _let_go(stand)
        if isinstance(error, asyncio.CancelledError):
            raise
        log.warning("handover_was_late", reason=str(error))
    finally:
        line.close()
    _let_go(stand)
    log.info("handed_over", clients=clients, paused_s=round(loop.time() - since, 3))


def _let_go(stand: list[Standstill]) -> None:
    while stand:
        stand.pop().let_go()


async def _send_all(
    line: _Line, stand: Sequence[Standstill], extra: Mapping[str, Any], descriptors: Sequence[int]
) -> int:
    """Send everything; how many clients there were."""
    heads = [standing.head() for standing in stand]
    batches = [(standing.frontend.plan.name, standing.connections()) for standing in stand]
    numbers = [*descriptors, *(number for _, listeners in heads for number in listeners)]
    frozen = [encode(head) for head, _ in heads]
    line.say("frontends", numbers, version=VERSION, extra=extra, extra_descriptors=len(descriptors), frontends=frozen)
    unanswered = 0
    for name, connections, numbers in _batches(batches):
        if unanswered == AHEAD:
            await line.expect("got")
            unanswered -= 1
        line.say("clients", numbers, of=name, clients=[to_document(connection) for connection in connections])
        unanswered += 1
    for _ in range(unanswered):
        await line.expect("got")
    line.say("all")
    return sum(len(connections) for _, connections in batches)


def _batches(found: Sequence[tuple[str, list[tuple[FrozenConnection, tuple[int, ...]]]]]) -> Iterator[Batch]:
    for name, connections in found:
        batch: list[FrozenConnection] = []
        numbers: list[int] = []
        size = 0
        for connection, descriptors in connections:
            if batch and (len(numbers) + len(descriptors) > MOST_DESCRIPTORS or size > MOST_BYTES):
                yield name, batch, numbers
                batch, numbers, size = [], [], 0
            batch.append(connection)
            numbers.extend(descriptors)
            size += connection.size
        if batch:
            yield name, batch, numbers


async def take_over(end: socket.socket, heir: Heir, *, timeout: float = TIMEOUT) -> list[Frontend]:
    """Get the frontends of another process, which go on here when this returns.

    When it raises, also when it is cancelled, the other process goes on with them, and nothing was touched.

    Args:
        end: our end of a pair of SOCK_SEQPACKET sockets; closed here.
        timeout: seconds from our start to the end; how long the other one waits, it decides itself.

    Raises:
        Failed: they were not given, or could not be built; says why.
    """
    with _in_words("cannot take connections over", "nothing was touched"):
        line = _Line(end)
    stand: dict[str, Standstill] = {}
    try:
        with _in_words("cannot take connections over", "nothing was touched"):
            async with asyncio.timeout(timeout):
                line.say("hello", version=VERSION)
                await _build_all(line, heir, stand)
                line.say("ready")
                await line.expect("yours")
                line.commit()
    except BaseException:
        for standing in stand.values():
            standing.let_go()
        raise
    finally:
        line.close()
    for standing in stand.values():
        standing.unfreeze()
    return [standing.frontend for standing in stand.values()]


async def _build_all(line: _Line, heir: Heir, stand: dict[str, Standstill]) -> None:
    message, brought = await line.expect("frontends", version=VERSION)
    heir.inherit(message["extra"], brought.take(message["extra_descriptors"]))
    for document in message["frontends"]:
        frozen = decode(FrozenFrontend, document)
        name = frozen.plan.name
        frontend = heir.frontend(frozen.plan)
        listeners = [socket.socket(fileno=number) for number in brought.take(frozen.listeners)]
        for listener in listeners:
            listener.setblocking(False)
        stand[name] = Standstill.thaw(frontend, frozen, listeners, partial(heir.drained, name))
    with _without_collector():
        while True:
            message, brought = await line.expect("clients", "all")
            if message["kind"] == "all":
                return
            standing = stand[message["of"]]
            for document in message["clients"]:
                connection = from_document(document)
                standing.thaw_connection(connection, brought.take(connection.descriptors))
            line.say("got")


class _Line:
    """A channel as a conversation. What comes waits here, with its descriptors, until it is expected."""

    def __init__(self, end: socket.socket) -> None:
        self._news: asyncio.Queue[tuple[dict[str, Any], Descriptors] | str] = asyncio.Queue()
        self._current = Descriptors()
        try:  # a twin for the one message of which both sides must know whether it was sent in time
            self._twin = end.dup()
        except OSError:
            end.close()
            raise
        self._channel = Channel(end, self._keep, self._news.put_nowait)

    def say(self, kind: str, descriptors: Sequence[int] = (), **fields: Any) -> None:
        """Send a message, soon; when the other side has gone, `expect` says so."""
        self._channel.send({"kind": kind, **fields}, descriptors)

    def commit(self) -> None:
        """Say `begun`: the other side's kernel has it when this returns.

        Past the channel, which does not tell whether a message will ever arrive.

        Raises:
            Failed: it has not, and never will: the other side has gone, or has given up waiting.
        """
        try:
            self._twin.send(_BEGUN, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            raise Failed("the old process has gone or has given up waiting") from error

    async def expect(self, *kinds: str, version: int | None = None) -> tuple[dict[str, Any], Descriptors]:
        """The next message, and its descriptors; those that are not taken are closed with the next call.

        Raises:
            Failed: it is another one, or of another version, or the other side has gone.
        """
        self._current.close()
        news = await self._news.get()
        if isinstance(news, str):
            raise Failed(f"the other process: {news}")
        message, self._current = news
        if message.get("kind") not in kinds:
            raise Failed(f"the other process says {message.get('kind')!r} instead of {' or '.join(kinds)}")
        if version is not None and message.get("version") != version:
            raise Failed(f"the other process speaks version {message.get('version')}, and this one {version}")
        return message, self._current

    def revoke(self) -> bool:
        """Make it impossible that the other side says any more. Whether it has said what was not expected yet."""
        with contextlib.suppress(OSError):  # nobody is there any more
            self._twin.shutdown(socket.SHUT_RDWR)
        self._channel.close()
        while not self._news.empty():
            news = self._news.get_nowait()
            if not isinstance(news, str):
                news[1].close()
                return True
        return _has_packet(self._twin)

    def close(self) -> None:
        """Close everything, also descriptors that nobody has taken."""
        self._channel.close()
        self._twin.close()
        self._current.close()
        while not self._news.empty():
            news = self._news.get_nowait()
            if not isinstance(news, str):
                news[1].close()

    def _keep(self, message: dict[str, Any], brought: Descriptors) -> None:
        self._news.put_nowait((message, Descriptors(brought.take())))


def _has_packet(end: socket.socket) -> bool:
    """Whether a packet waits at an end that was shut down, so that none can come any more."""
    while True:
        try:
            return bool(end.recv(1, socket.MSG_DONTWAIT))
        except ConnectionResetError:
            continue  # said once, of a peer that has left without reading all; what it had sent comes now
        except OSError:
            return False


@contextlib.contextmanager
def _in_words(what: str, now: str) -> Iterator[None]:
    """Raise whatever a broken, dead or foreign process on the other side leads to as `Failed`."""
    try:
        yield
    except TimeoutError as error:
        raise Failed(f"{what}: not over in time; {now}") from error
    except (Failed, OSError, LookupError, TypeError, ValueError) as error:
        raise Failed(f"{what}: {error}; {now}") from error


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Let no collection come in between: much is made here, none of it is garbage, and traffic waits."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
