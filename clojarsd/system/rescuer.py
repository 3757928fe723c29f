"""Accepts, in place of a process that does not, who waits in its accept queue, and hands each one on at once.

Run as a file, `python -I -S rescuer.py`, by `system/rescuing.py` and nobody else, with a SOCK_SEQPACKET socket as
descriptor 3. It gets one message, `SECONDS MOST` with duplicates of listening sockets, and sends each connection that
it has accepted, in a message of its own; its end is the end of the channel. It ends by itself, so nobody has to kill
it, which could lose the one connection between the two system calls.

Nothing of the listening sockets is changed: their flags are those of their owner. So accepting may block, when the
owner has come first; a timer ends that. As little as can be is imported: clients wait.
"""

import _signal  # type: ignore[import-not-found]  # what `signal` is made of, without enum
import _socket
import ctypes
import errno
import select
import sys
import time

CHANNEL = 3
RETRY = 0.01
"""Seconds after which an accept that waits is given up: the owner has taken the connection."""
_ROOM = _socket.CMSG_SPACE(64 * 4)
_OVER = frozenset({errno.EINVAL, errno.EBADF, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def main() -> None:
    """Rescue who waits, for some seconds at the most."""
    for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
        _signal.signal(number, _signal.SIG_IGN)
    channel = _socket.socket(fileno=CHANNEL)
    said, rights, *_ = channel.recvmsg(64, _ROOM, _socket.MSG_CMSG_CLOEXEC)
    if not said:
        return  # it was not needed
    seconds, most = said.split()
    _signal.signal(_signal.SIGALRM, lambda number, frame: None)  # a handler, so that system calls are interrupted
    _signal.setitimer(_signal.ITIMER_REAL, RETRY, RETRY)
    listeners = [number for _, _, numbers in rights for number in memoryview(numbers).cast("i")]
    try:
        _rescue(channel, listeners, time.monotonic() + float(seconds), int(most))
    except BrokenPipeError:
        return  # whom we rescue for has gone


def _rescue(channel: _socket.socket, listeners: list[int], deadline: float, most: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
    poll = select.poll()
    for listener in listeners:
        poll.register(listener, select.POLLIN)
    while most > 0 and time.monotonic() < deadline:
        waiting = poll.poll(0)
        if not waiting:
            return
        for listener, _ in waiting:
            accepted = libc.accept4(listener, None, None, flags)
            if accepted >= 0:
                most -= 1
                _hand_on(channel, accepted)
            elif ctypes.get_errno() in _OVER:
                poll.unregister(listener)


def _hand_on(channel: _socket.socket, accepted: int) -> None:
    """Send it; the timer may interrupt that, which Python begins again by itself."""
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, accepted.to_bytes(4, sys.byteorder))]
    channel.sendmsg([b"+"], rights)
    _socket.close(accepted)


if __name__ == "__main__":
    main()
