"""The helper process that accepts in an instance's place, as its owner sees it; see rescuer.py."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from clojarsd.core.errors import Failed, reason_of
from clojarsd.system.channel import pair
from clojarsd.system.instance_sockets import Listening, duplicate

RESCUER = Path(__file__).with_name("rescuer.py")
_ABOVE = 10
_CATCHABLE = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
_ROOM = socket.CMSG_SPACE(4)


class Helper:
    """One helper: it waits until `begin`, and ends by itself when nobody waits any more, or its time is over.

    Whoever makes it closes channel and pidfd, and reaps its process. One whose channel is closed before `begin` ends.
    One that has begun is not to be killed, and its channel stays open until its end: it may have a connection in hand.

    Attributes:
        pid: not reaped, and a child of ours.
        pidfd: readable when it has ended.
        channel: non-blocking; readable when `receive` has something to say.

    Raises:
        Failed: there is none; says why.
    """

    def __init__(self) -> None:
        try:
            with ExitStack() as undo:
                self.channel, theirs = pair()
                undo.callback(self.channel.close)
                with theirs:
                    self.pid = _spawn(theirs)
                undo.callback(os.waitpid, self.pid, 0)
                undo.callback(os.kill, self.pid, signal.SIGKILL)  # our own child, not reaped: the number is its own
                self.pidfd = os.pidfd_open(self.pid)
                undo.pop_all()
        except OSError as error:
            raise Failed(f"cannot start the helper that accepts: {reason_of(error)}") from error
        self.channel.setblocking(False)

    def begin(self, listeners: Sequence[Listening], seconds: float, most: int) -> None:
        """Let it accept from these, for so many seconds and so many connections at the most.

        Raises:
            Failed, OSError: none of them can be duplicated, or the helper has gone; nothing was accepted.
        """
        with ExitStack() as stack:
            copies, reasons = [], list[Exception]()
            for found in listeners:
                try:
                    copies.append(stack.enter_context(duplicate(found)))
                except (Failed, OSError) as error:
                    reasons.append(error)
            if not copies:
                raise reasons[0] if reasons else Failed("cannot accept: there is no listening socket")
            socket.send_fds(self.channel, [f"{seconds} {most}".encode()], [copy.fileno() for copy in copies])

    def receive(self) -> socket.socket | None:
        """The next connection that it has accepted, non-blocking; None: it has ended, and there are no more.

        Raises:
            BlockingIOError: nothing has come.
            OSError: this process may open no more; whoever has come waits in the channel.
        """
        os.close(os.dup(self.channel.fileno()))  # with no number free the kernel would drop who comes with the message
        try:
            said, rights, *_ = self.channel.recvmsg(16, _ROOM, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return None  # it has ended without having read what it was told
        numbers = array.array("i")
        for _, _, carried in rights:
            numbers.frombytes(carried)
        if not said or not numbers:
            return None
        client = socket.socket(fileno=numbers[0])
        client.setblocking(False)  # which the kernel knows, and Python does not
        return client


def _spawn(channel: socket.socket) -> int:
    above = fcntl.fcntl(channel.fileno(), fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", str(RESCUER)],
            {},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, above, 3),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=list(_CATCHABLE),
        )
    finally:
        os.close(above)
