"""Asks a running JVM something, as jcmd(1) does, with nothing of a JDK installed.

A HotSpot JVM that finds the file `.attach_pidN` when it gets SIGQUIT listens on the socket `.java_pidN` beside it, both
in /tmp as it sees it. Each connection carries one command; the answer ends with the connection.

Source: the protocol of HotSpot's attach listener (src/hotspot/os/posix/attachListener_posix.cpp) as its users see it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from clojarsd.core.errors import Failed, reason_of
from clojarsd.system.acting_as import Actor, acting_as

MOST_ANSWERED: Final = 64 * 1024**2
"""Bytes."""
LISTENS_WITHIN: Final = 10.0
"""Seconds until a JVM that was asked to listen must; one that collects garbage takes its time."""
_ONE_LOOK: Final = 0.01
_SIGQUIT_CAUGHT: Final = 1 << (signal.SIGQUIT - 1)


def ask_jvm(pid: int, command: str, timeout: float) -> str:
    """What the JVM answers to a diagnostic command such as `VM.version`. Blocks; for a thread without an event loop.

    Nothing is sent to a process that would die of it, and nothing is believed of another process than that one.

    Args:
        timeout: seconds for all of it.

    Raises:
        Failed: it cannot be asked, or answers that it cannot do that.
    """
    deadline = time.monotonic() + timeout
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        raise Failed(f"process {pid} cannot be asked: {reason_of(error)}") from error
    try:
        with _listening(pid, process, min(deadline, time.monotonic() + LISTENS_WITHIN)) as line:
            answer = _exchange(line, command, deadline)
    except OSError as error:
        late = isinstance(error, TimeoutError)
        why = f"it has not answered {command} within {timeout:g} s" if late else reason_of(error)
        raise Failed(f"the JVM (process {pid}) cannot be asked: {why}") from error
    finally:
        os.close(process)
    status, _, text = answer.partition("\n")
    if status != "0":
        raise Failed(f"the JVM (process {pid}) cannot carry out {command}: {_first_line(text) or f'error {status}'}")
    return text


@contextlib.contextmanager
def _listening(pid: int, process: int, deadline: float) -> Iterator[socket.socket]:
    """A connection to the JVM; raises OSError or Failed."""
    status = _status_of(pid)
    inner = status["NSpid"].split()[-1] if "NSpid" in status else str(pid)
    owner = Actor(int(status["Uid"].split()[1]), int(status["Gid"].split()[1]))
    directory = _directory_of(pid)
    path = directory / f".java_pid{inner}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(max(deadline - time.monotonic(), _ONE_LOOK))
        if not _connects(line, path):
            if not int(status["SigCgt"], 16) & _SIGQUIT_CAUGHT:
                raise Failed(f"process {pid} does not heed SIGQUIT: it is no JVM, has only begun, or was given -Xrs")
            with acting_as(owner):
                _have_it_listen(pid, process, directory / f".attach_pid{inner}", line, path, deadline)
        peer, _, _ = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if peer != pid:
            raise Failed(f"{path} belongs to process {peer}, not to {pid}")
        yield line


def _connects(line: socket.socket, path: Path) -> bool:
    """Whether somebody listens there; what an earlier process has left there refuses."""
    try:
        line.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def _directory_of(pid: int) -> Path:
    """The JVM's /tmp, as we see it."""
    inside = Path(f"/proc/{pid}/root/tmp")
    try:
        inside.stat()
    except PermissionError:  # another user's, or one that may not be traced: then it is hoped to be ours
        return Path("/tmp")
    return inside


def _have_it_listen(pid: int, process: int, wish: Path, line: socket.socket, path: Path, deadline: float) -> None:
    """Connect to the JVM as soon as it listens. Raises Failed or OSError."""
    with contextlib.suppress(FileExistsError):  # somebody else asks at the same moment
        os.close(os.open(wish, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    try:
        signal.pidfd_send_signal(process, signal.SIGQUIT)
        while not _connects(line, path):
            if select.select([process], [], [], _ONE_LOOK)[0]:  # nothing tells when the socket is there
                raise Failed(f"the JVM (process {pid}) has ended")
            if time.monotonic() > deadline:
                raise Failed(
                    f"the JVM (process {pid}) lets nobody ask it anything: it was given -XX:+DisableAttachMechanism,"
                    " or stands still"
                )
    finally:
        with contextlib.suppress(FileNotFoundError):
            wish.unlink()


def _exchange(line: socket.socket, command: str, deadline: float) -> str:
    """The whole answer. Raises TimeoutError or another OSError."""
    line.sendall(b"".join(f"{word}\0".encode() for word in ("1", "jcmd", command, "", "")))
    answer = bytearray()
    while len(answer) <= MOST_ANSWERED:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        line.settimeout(left)
        if not (chunk := line.recv(65536)):
            return answer.decode(errors="replace")
        answer += chunk
    raise OSError(f"its answer is longer than {MOST_ANSWERED} bytes")


def _status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
