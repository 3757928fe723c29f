"""One way of a relayed connection: bytes from one socket to the other, fast, in order, and in bounded memory.

Plain: `recv_into` a buffer that all flows share, `send` at once. A send that falls short keeps the rest and stops
reading the source until it is flushed. A read that fills the buffer lends the flow a pipe, through which the kernel
moves the bytes without showing them to us; when the source runs dry the pipe goes back. So a flow holds 64 KiB or one
pipe at most.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Protocol

from clojarsd.core.frozen import FrozenFlow
from clojarsd.system.pipes import Pipe, PipePool
from clojarsd.system.poller import ERRORS, FORGET, READ, WRITE, Poller
from clojarsd.system.relay_phases import DONE, DROPPING, HELD, OPEN, Stage
from clojarsd.system.sockets import send_at_once

BUFFER_SIZE = 1 << 16
TURN_SIZE = 1 << 20
"""Bytes that are spliced before the others have their turn, by one flow, or together by those that have a pipe."""
SMALLEST_TURN = 1 << 17
"""Bytes of one flow in any case."""
_SPLICE_FLAGS = 1 | 2  # SPLICE_F_MOVE and SPLICE_F_NONBLOCK, which os names from Python 3.14 on


class Shared(Protocol):
    """What a flow needs of the daemon's relay resources."""

    buffer: memoryview
    pipes: PipePool
    poller: Poller


class Owner(Protocol):
    """The session of a flow: it is told how things end, and decides what then.

    Attributes:
        owed: whether the last bytes came from the client.
    """

    owed: bool

    def source_ended(self, flow: Flow, *, reset: bool) -> None:
        """Everything the source sent has been taken and delivered, and no more will come."""

    def source_broken(self, flow: Flow) -> None:
        """The source was reset after its end had been seen."""

    def sink_lost(self, flow: Flow) -> None:
        """The sink takes no more."""

    def begins_move(self) -> bool:
        """Whether the bytes that wait at the client's end begin a move instead of being read."""


class Flow:
    """One way of a session. The session makes it and sets `twin`; `watch` starts it, `release` ends it.

    Attributes:
        twin: the other way.
        delivered: bytes that the sink's socket has taken.
        quickack: whether what is read is acknowledged at once.
    """

    __slots__ = (
        "_buffer",
        "_detour",
        "_from_client",
        "_is_prompt",
        "_looks",
        "_pending",
        "_pipe",
        "_piped",
        "_session",
        "_shared",
        "delivered",
        "fd",
        "quickack",
        "sink",
        "source",
        "stage",
        "twin",
        "watched",
    )

    twin: Flow

    def __init__(
        self,
        session: Owner,
        source: socket.SocketType,
        sink: socket.SocketType,
        shared: Shared,
        *,
        from_client: bool,
        quickack: bool,
    ) -> None:
        self.source = source
        self.sink = sink
        self.fd = source.fileno()
        self.watched = FORGET
        self.stage: Stage = OPEN
        self.delivered = 0
        self._session = session
        self._shared = shared
        self._from_client = from_client
        self.quickack = quickack
        self._buffer = shared.buffer
        self._is_prompt = False
        """Whether the sink's kernel sends without waiting. The first bytes never wait: there are none before them."""
        self._pending = b""
        self._pipe: Pipe | None = None
        self._piped = 0
        self._detour: Callable[[], None] | None = None
        """How the source is read if not the plain way."""
        self._looks = False
        """Whether the session is asked, before anything is read the plain way, if it begins a move."""

    @property
    def is_flushed(self) -> bool:
        """Whether the sink has taken all that was read."""
        return not (self._pending or self._piped)

    def watch(self) -> None:
        """Watch the source's descriptor for what it is needed for now, in either direction."""
        twin, stage = self.twin, self.stage
        wanted = FORGET
        if (stage is OPEN or stage is DROPPING) and not (self._pending or self._piped):
            wanted = READ
        if twin._pending or twin._piped:
            wanted |= WRITE
        elif stage is DONE:
            wanted = ERRORS
        self._shared.poller.watch(self, wanted)

    def look(self) -> None:
        """From now on ask the session, before anything is read, whether it begins a move."""
        self._looks = True
        if self._detour is None:
            self._detour = self._read_looking

    def say(self, first: bytes) -> None:
        """Send this, which does not count as delivered, before anything of the source. Only before that is read."""
        self.push()
        try:
            sent = self.sink.send(first)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._session.sink_lost(self)
            return
        self._pending = first[sent:]
        self.delivered -= len(self._pending)

    def hold(self) -> None:
        """Leave what comes in the kernel's queue from now on."""
        self.stage = HELD
        self.watch()

    def drop(self) -> None:
        """Forget what is on its way: the sink is lost. The source is still read, so that it is not stuck in a send."""
        self._pending = b""
        self._give_pipe_back()
        if self.stage is not DONE:
            self.stage = DROPPING
            self._detour = self._read_dropping
        self.watch()
        self.twin.watch()

    def release(self, *, closes: bool) -> None:
        """End it: nothing is watched or held any more, and the descriptors may be closed. Only counting is left of it.

        Lets go of twin and session, so that no collector is needed to free them.

        Args:
            closes: whether the source is closed next, and no other process has a duplicate of it.
        """
        if self._pipe is not None:
            self._give_pipe_back()
        self._detour = None
        if closes:
            self._shared.poller.closes(self)
        else:
            self._shared.poller.watch(self, FORGET)
        del self.twin, self._session

    def freeze(self) -> FrozenFlow:
        """Watch nothing until the next `watch`, and the flow as a document. `full_pipe` goes with it."""
        self._shared.poller.watch(self, FORGET)
        return FrozenFlow(self.stage.name, self.delivered, self._looks, self._pending, self._piped)

    @property
    def full_pipe(self) -> tuple[int, ...]:
        """The descriptors of the pipe if there are bytes in it, the read end first; else nothing."""
        return (self._pipe.read_fd, self._pipe.write_fd) if self._pipe is not None and self._piped else ()

    def thaw(self, frozen: FrozenFlow, pipe: Pipe | None) -> None:
        """Become what another one was, without watching yet; the pipe, which holds `frozen.piped` bytes, is its own."""
        self.stage = Stage[frozen.stage]
        self.delivered = frozen.delivered
        self._pending = frozen.pending
        self._looks = frozen.looks
        if self.stage is DROPPING:
            self._detour = self._read_dropping
        elif pipe is not None:
            self._shared.pipes.adopt(pipe)
            self._pipe, self._piped = pipe, frozen.piped
            self.push()
            self._detour = self._read_splicing
        elif self._looks:
            self._detour = self._read_looking

    def readable(self, flags: int = 0) -> None:
        """Carry what the source has, at most a buffer or a turn's worth of it.

        Args:
            flags: for the send.
        """
        if self._detour is not None:
            self._detour()
            return
        buffer = self._buffer
        try:
            count = self.source.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError:
            self._session.source_ended(self, reset=True)
            return
        if not count:
            self._session.source_ended(self, reset=False)
            return
        if self.quickack:
            self._acknowledge()
        self._session.owed = self._from_client
        if self.delivered and not self._is_prompt:
            self.push()
        try:
            sent = self.sink.send(buffer[:count], flags)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._session.sink_lost(self)
            return
        self.delivered += sent
        if sent != count:
            self._pending = bytes(buffer[sent:count])
            self._wait_for_sink()
        elif count == BUFFER_SIZE:
            self._pipe = self._shared.pipes.lend()
            if self._pipe is not None:
                self.push()
                self._detour = self._read_splicing
                self._read_splicing()

    def ending(self) -> None:
        """Carry what the source has, and its end in the same packet: mostly both are there by now."""
        if self._detour is not None:
            self._detour()
            return
        self.readable(socket.MSG_MORE)
        if self.watched & READ and self._detour is None:
            self.readable()
            if self.watched & READ and self._detour is None:  # not the end yet
                self.push()

    def acknowledge_handshake(self) -> None:
        """Have the sink's kernel end the handshake now, if it waits for first bytes to do it with."""
        with contextlib.suppress(OSError):  # it has been reset meanwhile; the next read says so
            self.sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def push(self) -> None:
        """Have the sink's kernel send what it keeps back for more to come, and keep nothing back from now on."""
        send_at_once(self.sink)  # if it is lost, whoever uses it next is told
        self._is_prompt = True

    def writable(self) -> None:
        """The source's descriptor, which is the twin's sink, has room again."""
        self.twin.flush()

    def broken(self) -> None:
        """The source was reset while it was watched for that alone."""
        self._session.source_broken(self)

    def flush(self) -> None:
        """Send what is left over; when all is gone, read on."""
        if self._piped:
            if not self._drain():
                return
            if self._looks:
                self._give_pipe_back()  # what comes next may be a request that begins a move
        else:
            if not self._is_prompt:
                self.push()
            try:
                sent = self.sink.send(self._pending)
            except BlockingIOError:
                return
            except OSError:
                self._session.sink_lost(self)
                return
            self.delivered += sent
            self._pending = self._pending[sent:]
            if self._pending:
                return
        self.watch()
        self.twin.watch()

    def _read_looking(self) -> None:
        """Read the plain way, unless what waits begins a move."""
        if self._session.begins_move():
            return
        self._detour = None
        self.readable()
        if self._detour is None and self.stage is OPEN:
            self._detour = self._read_looking

    def _read_dropping(self) -> None:
        """Read for nobody."""
        try:
            count = self.source.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            self._session.source_ended(self, reset=True)
            return
        if not count:
            self._session.source_ended(self, reset=False)

    def _read_splicing(self) -> None:
        """Move bytes through the pipe until the source runs dry, the sink is full or the turn is over."""
        assert self._pipe is not None
        left = max(TURN_SIZE // self._shared.pipes.lent, SMALLEST_TURN)
        while left > 0:
            try:
                count = os.splice(self.fd, self._pipe.write_fd, left, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                self._give_pipe_back()
                return
            except OSError:
                self._give_pipe_back()
                self._session.source_ended(self, reset=True)
                return
            if not count:
                self._give_pipe_back()
                self._session.source_ended(self, reset=False)
                return
            if self.quickack:
                self._acknowledge()
            self._session.owed = self._from_client
            left -= count
            self._piped = count
            if not self._drain():
                if self.stage is OPEN and self._piped:
                    self._wait_for_sink()
                return
        if self._looks:
            self._give_pipe_back()

    def _drain(self) -> bool:
        """Send what is in the pipe. False: the sink is full for now, or lost, which the session then knows."""
        assert self._pipe is not None
        sink_fd, pipe_fd = self.twin.fd, self._pipe.read_fd
        while self._piped:
            try:
                sent = os.splice(pipe_fd, sink_fd, self._piped, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                return False
            except OSError:
                self._session.sink_lost(self)
                return False
            self._piped -= sent
            self.delivered += sent
        return True

    def _wait_for_sink(self) -> None:
        """Stop reading until the sink has taken the rest."""
        self.watch()
        self.twin.watch()

    def _acknowledge(self) -> None:
        """Have the kernel acknowledge at once: a sender that waits for it before its next write (Nagle) goes on."""
        with contextlib.suppress(OSError):  # it has been reset meanwhile; the next read says so
            self.source.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _give_pipe_back(self) -> None:
        """Be without a pipe, and read the plain way."""
        if self._pipe is not None:
            self._shared.pipes.take_back(self._pipe, left=self._piped)
            self._pipe = None
            self._piped = 0
            self._detour = self._read_looking if self._looks else None
