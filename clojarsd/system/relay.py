"""Bytes both ways between two connected sockets, with the semantics of one TCP connection.

::

    client ──up──► instance        each way is a `Flow` (flow.py), which carries bytes;
    client ◄─down─ instance        the session decides what an end or a reset of one side means for the other

An end (FIN) is passed on as an end, and the other way goes on. A reset is passed on as a reset, after everything that
was sent before it has been delivered and acknowledged. A quiet HTTP connection can leave its instance at a request
boundary. Why each rule is as it is: docs/decisions/0003-relay.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from functools import partial

from clojarsd.core.end_reason import EndReason as EndReason
from clojarsd.core.frozen import FrozenSession
from clojarsd.system.flow import Flow
from clojarsd.system.queues import has_news, request_waits, unacknowledged, unread
from clojarsd.system.relay_phases import DONE, DROPPING, ENDED, LOOKING, LOST, MOVING, OPEN, RELAYING, Phase
from clojarsd.system.relay_resources import RelayResources as RelayResources
from clojarsd.system.sockets import close, reset_when_closed

_FINISHED, _MOVED = EndReason.FINISHED, EndReason.MOVED  # by name, as in relay_phases.py
FIRST_DELAY = 0.001
LONGEST_DELAY = 0.05
"""Seconds between two looks at a send queue: the first, and what the doubling ends at."""


class Session:
    """One relayed connection. The frontend makes it, calls `start`, and hears of its end exactly once, by `on_end`.

    Both sockets are non-blocking and belong to it from `start` on. They are closed when `on_end` is called, except the
    client's after a move: that one is open and unwatched, and what the client sent last is still in the kernel's queue.

    Attributes:
        client, instance: the two sockets.
        is_duplicated: whether another process has, or may have had, descriptors of the same sockets.
        owed: whether the last bytes came from the client.
        began_at: loop time.
    """

    __slots__ = (
        "_down",
        "_give_up_at",
        "_loop",
        "_lost",
        "_on_end",
        "_phase",
        "_resources",
        "_said",
        "_seen",
        "_timer",
        "_timer_at",
        "_up",
        "began_at",
        "client",
        "instance",
        "is_duplicated",
        "owed",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: socket.SocketType,
        instance: socket.SocketType,
        resources: RelayResources,
        *,
        quickack: bool,
        is_duplicated: bool = False,
        on_end: Callable[[Session, EndReason], None],
    ) -> None:
        self.client, self.instance, self.is_duplicated = client, instance, is_duplicated
        self.owed, self.began_at = False, loop.time()
        self._loop, self._resources, self._on_end = loop, resources, on_end
        self._phase: Phase = RELAYING
        self._give_up_at = 0.0
        self._lost: Flow | None = None
        """The flow whose source was reset or takes no more."""
        self._said = 0
        """Bytes that the instance had said when the move began."""
        self._seen: int | None = None
        """How far the delivery, or the instance that is left, had come at the last look; None before the first."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        """When a frozen session's timer was due, or None."""
        self._up = Flow(self, client, instance, resources, from_client=True, quickack=quickack)
        self._down = Flow(self, instance, client, resources, from_client=False, quickack=quickack)
        self._up.twin, self._down.twin = self._down, self._up

    def start(self) -> None:
        """Carry bytes from now on; what the client has sent by now is carried when this returns, and it may be over."""
        self._resources.poller.attach(self._loop)
        if self._up.is_flushed:
            self._up.readable()
        if self._phase is not ENDED:
            if not self.owed:
                self._up.acknowledge_handshake()
            self._up.watch()
            self._down.watch()

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""
        return self._phase

    @property
    def bytes_up(self) -> int:
        """Bytes of the client that the instance's socket has taken."""
        return self._up.delivered

    @property
    def bytes_down(self) -> int:
        """Bytes of the instance that the client's socket has taken."""
        return self._down.delivered

    def is_quiet(self) -> bool:
        """Whether no answer is owed: nothing is buffered, and the last bytes came from the instance or none have."""
        return not self.owed and self._up.is_flushed and self._down.is_flushed

    @property
    def is_half_closed(self) -> bool:
        """Whether one side has ended and the other has not."""
        return self._up.stage is DONE or self._down.stage is DONE

    def say_first(self, header: bytes) -> None:
        """Send the instance this before anything of the client; `bytes_up` does not count it. Only before `start`."""
        self._up.say(header)

    def cut(self, reason: EndReason = EndReason.CUT) -> None:
        """Close both at once with a reset."""
        if self._phase is not ENDED:
            self._end(reason, reset=(self.client, self.instance))

    def finish(self, reason: EndReason = EndReason.CUT) -> None:
        """Close both with an ordinary end, unless something that the client has sent waits to be read."""
        if self._phase is not ENDED and not unread(self.client):
            self._end(reason)

    def move_at_next_request(self) -> None:
        """Leave the instance when the client begins its next HTTP/1.x request while the connection is quiet.

        That request is not read. The instance sees the end of the client's bytes, and what it still says is passed on
        until its end; then `on_end(MOVED)` hands the client back. Without such a request nothing changes.
        """
        if self._phase is RELAYING:
            self._phase = LOOKING
            self._up.look()

    def move_now(self) -> None:
        """Leave the instance at once if the connection is quiet; else the same as `move_at_next_request`.

        A quiet connection whose instance has ended already is finished: there is nothing to move.
        """
        self.move_at_next_request()
        if self.is_quiet() and self._down.stage is DONE:
            self.finish()
        elif (
            self._phase is LOOKING
            and self._can_move()
            and (request_waits(self.client, self._resources.buffer) or not has_news(self.client))
        ):
            self._begin_move()

    # From one process to another.

    def freeze(self) -> tuple[FrozenSession, tuple[int, ...]]:
        """Stop, whatever goes on; the session as a document, and the descriptors that go with it, which stay its own.

        Nothing is taken out of a pipe with bytes in it: the pipe itself goes over, and all of it can be taken back.
        """
        self._timer_at = self._timer.when() if self._timer is not None else None
        self._cancel_timer()
        self.is_duplicated = True
        frozen = FrozenSession(
            phase=self._phase.name,
            owed=self.owed,
            quickack=self._up.quickack,
            up=self._up.freeze(),
            down=self._down.freeze(),
            lost=None if self._lost is None else "up" if self._lost is self._up else "down",
            said=self._said,
            seen=self._seen,
            timer_at=self._timer_at,
            give_up_at=self._give_up_at,
            began_at=self.began_at,
        )
        return frozen, (self._up.fd, self._down.fd, *self._up.full_pipe, *self._down.full_pipe)

    def unfreeze(self) -> None:
        """Go on after `freeze`, or after it was thawed (relay_thaw.py)."""
        self._resources.poller.attach(self._loop)
        self._up.watch()
        self._down.watch()
        if self._timer_at is not None:
            moves = self._phase is MOVING
            act = self._instance_lingers if moves else partial(self._look_at_delivery, FIRST_DELAY)
            self._timer = self._loop.call_at(self._timer_at, act)

    def let_go(self) -> None:
        """Close our descriptors of a frozen session; no peer hears of it while another process has duplicates.

        `on_end` is not called. That `freeze` has ended all watching matters: an epoll set goes by open files, and would
        go on telling of one that lives elsewhere.
        """
        self._phase = ENDED
        for flow in (self._up, self._down):
            flow.release(closes=False)
        self._lost = None
        self.client.close()
        self.instance.close()

    # What the flows tell.

    def source_ended(self, flow: Flow, *, reset: bool) -> None:
        """Pass an end on as an end and a reset as a reset. Everything the source sent is with the sink's kernel."""
        was_dropping = flow.stage is DROPPING
        flow.stage = DONE
        if flow is self._down:
            self.owed = False  # the instance will say no more
        if was_dropping:  # the sink is lost, so there is nobody to tell
            if reset:
                self._end_lost()
            else:
                flow.watch()
        elif self._phase is MOVING and not (reset and self._down.delivered != self._said):
            self._finish_move()  # a reset of an instance that had no more to say cuts nothing short
        elif reset or self._lost is flow:  # after a failed send the kernel may show a reset as an end
            self._lose(flow)
        else:
            self._pass_end(flow)

    def source_broken(self, flow: Flow) -> None:
        """The source was reset after its end had been passed on."""
        if self._lost is None:
            self._lose(flow)
        elif self._lost is not flow:
            self._end_lost()

    def sink_lost(self, flow: Flow) -> None:
        """Drop what is on its way there. What that side had sent before is still delivered to the other."""
        if self._lost is not None:
            self._end_lost()  # nobody is left
        elif self._phase is MOVING:
            self._end(EndReason.CLIENT_RESET, reset=(self.instance,))
        else:
            with contextlib.suppress(OSError):
                flow.sink.shutdown(socket.SHUT_RDWR)  # whatever went wrong: reading from it ends after what has come
            self._lose(flow.twin)

    def begins_move(self) -> bool:
        """Whether the bytes that wait at the client's end begin a move instead of being read."""
        if not (self._can_move() and request_waits(self.client, self._resources.buffer)):
            return False
        self._begin_move()
        return True

    # Ends and resets.

    def _pass_end(self, flow: Flow) -> None:
        """Tell the sink that no more will come."""
        if flow.twin.stage is DONE and not self.is_duplicated:
            self._end(_FINISHED)  # closing says it, too, with the last descriptor
            return
        try:
            flow.sink.shutdown(socket.SHUT_WR)
        except OSError:
            self.sink_lost(flow)
            return
        if flow.twin.stage is DONE:
            self._end(_FINISHED)
        else:
            flow.watch()

    def _lose(self, flow: Flow) -> None:
        """The side that is the source of this flow is lost: deliver what it had sent, then reset the other side."""
        self._cancel_timer()
        self._phase = LOST
        if self._lost is None:
            self._lost = flow
            flow.push()
            flow.twin.drop()
        if flow.stage is DONE:
            flow.watch()
        self._seen = None
        self._look_at_delivery(FIRST_DELAY)

    def _look_at_delivery(self, delay: float) -> None:
        """Reset the side that is left once its kernel has acknowledged everything: a reset discards what is queued.

        Looks again after the delay, which doubles; gives up when nothing more was acknowledged for `reset_flush`.
        """
        assert self._lost is not None
        self._timer = None
        queued = unacknowledged(self._lost.sink)
        acknowledged = self._lost.delivered - queued
        now = self._loop.time()
        if self._seen is None or acknowledged > self._seen:
            self._give_up_at = now + self._resources.reset_flush
        self._seen = acknowledged
        if (self._lost.stage is DONE and not queued) or now >= self._give_up_at:
            self._end_lost()
        else:
            self._timer = self._loop.call_later(delay, self._look_at_delivery, min(2 * delay, LONGEST_DELAY))

    def _end_lost(self) -> None:
        """One side was lost, and the other has all that came before it, or is lost as well."""
        assert self._lost is not None
        reason = EndReason.CLIENT_RESET if self._lost is self._up else EndReason.INSTANCE_RESET
        self._end(reason, reset=(self._lost.sink,))

    def _end(self, reason: EndReason, *, reset: tuple[socket.SocketType, ...] = ()) -> None:
        """Let go of everything, then say so."""
        if self._timer is not None:
            self._cancel_timer()
        self._phase = ENDED
        moved = reason is _MOVED
        if moved:
            self._down.push()  # the next instance's first answer may follow the last one closely
        self._up.release(closes=not (moved or self.is_duplicated))
        self._down.release(closes=not self.is_duplicated)
        for end in reset:
            reset_when_closed(end)
        close(self.instance)
        if not moved:
            close(self.client)
        self._lost = None
        self._on_end(self, reason)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Moves.

    def _can_move(self) -> bool:
        """Whether the connection is quiet and neither side has ended."""
        return self.is_quiet() and self._up.stage is OPEN and self._down.stage is OPEN

    def _begin_move(self) -> None:
        """Stop reading the client, tell the instance that no more will come, and pass on what it still says."""
        self._phase = MOVING
        self._said = self._down.delivered
        self._up.hold()
        with contextlib.suppress(OSError):  # it has gone by itself; reading says so
            self.instance.shutdown(socket.SHUT_WR)
        self._seen = self._said
        self._timer = self._loop.call_later(self._resources.move_flush, self._instance_lingers)

    def _instance_lingers(self) -> None:
        """Leave an instance that was silent since the last call, if the client has asked for something new meanwhile.

        If it has not, nobody can tell an instance that ignores the end from one that pauses in the middle of an answer
        (a stream of events, a WebSocket), and the client must see a cut. One that fell silent while speaking was lost.
        """
        self._timer = None
        if self._down.delivered != self._seen or not self._down.is_flushed:
            self._seen = self._down.delivered
            self._timer = self._loop.call_later(self._resources.move_flush, self._instance_lingers)
        elif self._seen != self._said:
            self._down.stage = DONE
            self._lose(self._down)
        elif request_waits(self.client, self._resources.buffer):
            self._finish_move()
        else:
            self.cut()

    def _finish_move(self) -> None:
        """The instance has said all: hand the client back, unless it has ended meanwhile."""
        try:
            waits = bool(self.client.recv_into(self._resources.buffer, 1, socket.MSG_PEEK))
        except BlockingIOError:
            waits = True
        except OSError:
            self._end(EndReason.CLIENT_RESET)
            return
        self._end(_MOVED if waits else _FINISHED)
