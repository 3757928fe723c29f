"""Kills a daemon exactly where it writes to a file, with nothing in the daemon that knows of it.

The daemon is started under a filter of the kernel (seccomp) that stops it at each `pwrite` and each `fdatasync` and
asks us. Killed at a `pwrite`, it has done everything before the record and has not written that; killed at the
`fdatasync`, it has written the record and has not begun what the record announces.

Source: seccomp_unotify(2); numbers from arch/*/entry/syscalls of Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Self

NUMBERS: Final = {"x86_64": {18: "pwrite", 75: "fdatasync"}, "aarch64": {68: "pwrite", 83: "fdatasync"}}
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_PR_SET_NO_NEW_PRIVS: Final = 38
_ASK, _ALLOW = 0x7FC00000, 0x7FFF0000
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE: Final = 1
_MOST: Final = 4096


class Cutter:
    """Starts daemons under the filter, and kills one at the write that it is told; use it in a `with`.

    Args:
        counts: whether a write counts, by its path, `pwrite` or `fdatasync`, and what was to be written.

    Attributes:
        counts: that; may be changed.
        program: the command line that starts one, to which `-c FILE` is added.
        writes: what has counted since it was armed last.
    """

    def __init__(self, directory: Path, counts: Callable[[str, str, bytes], bool]) -> None:
        self._directory = directory
        self.counts = counts
        self._content: dict[str, bytes] = {}
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(directory / "cutter.sock"))
        self._server.listen()
        self._over, self._stop = os.pipe()
        self._lock = threading.Lock()
        self._at: int | None = None
        self._killed = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self.writes: list[str] = []
        self.program = [sys.executable, __file__, str(directory / "cutter.sock"), sys.executable, "-m", "clojarsd"]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stop)
        self._thread.join()
        self._server.close()
        os.close(self._over)

    def arm(self, at: int | None) -> None:
        """Kill who writes at that write, counted from 1 from now on; None: only count."""
        with self._lock:
            self._at, self.writes = at, []
            self._killed.clear()

    @property
    def has_killed(self) -> bool:
        """Whether the write came, and the process is dead."""
        return self._killed.is_set()

    def _serve(self) -> None:
        """Answer what is asked under every filter, as long as anything lives under it."""
        poller = select.poll()
        for one in (self._over, self._server):
            poller.register(one, select.POLLIN)
        listeners: set[int] = set()
        while True:
            for descriptor, events in poller.poll():
                if descriptor == self._over:
                    for listener in listeners:
                        os.close(listener)
                    return
                if descriptor == self._server.fileno():
                    listener = self._accept()
                    listeners.add(listener)
                    poller.register(listener, select.POLLIN)
                elif events & select.POLLIN:
                    self._answer(descriptor)
                else:
                    poller.unregister(descriptor)
                    listeners.discard(descriptor)
                    os.close(descriptor)

    def _accept(self) -> int:
        with self._server.accept()[0] as told:
            _, (listener,), *_ = socket.recv_fds(told, 1, 1)
            told.sendall(b"x")
            return listener

    def _answer(self, listener: int) -> None:
        asked = bytearray(80)
        try:
            fcntl.ioctl(listener, _RECEIVE, asked)
        except OSError:  # it was killed meanwhile
            return
        id, thread, _, number = struct.unpack_from("=QIIi", asked)
        descriptor, address, length = struct.unpack_from("=QQQ", asked, 32)
        with contextlib.suppress(OSError):
            self._look(thread, NUMBERS[platform.machine()][number], descriptor, address, length)
        with contextlib.suppress(OSError):
            fcntl.ioctl(listener, _SEND, struct.pack("=QqiI", id, 0, 0, _CONTINUE))

    def _look(self, thread: int, call: str, descriptor: int, address: int, length: int) -> None:
        path = os.readlink(f"/proc/{thread}/fd/{descriptor}")
        if call == "pwrite":
            with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
                memory.seek(address)
                self._content[path] = memory.read(min(length, _MOST))
        if not self.counts(path, call, self._content.get(path, b"")):
            return
        with self._lock:
            self.writes.append(f"{call} {path} {self._content.get(path, b'').decode(errors='replace')}")
            if len(self.writes) == self._at:
                os.kill(_process_of(thread), signal.SIGKILL)
                self._killed.set()


def _process_of(thread: int) -> int:
    """The process that the thread is one of."""
    lines = Path(f"/proc/{thread}/status").read_text().splitlines()
    (number,) = [line.split()[1] for line in lines if line.startswith("Tgid:")]
    return int(number)


def is_there() -> bool:
    """Whether this machine has what is needed."""
    return platform.machine() in NUMBERS


def _filter(numbers: Sequence[int]) -> bytes:
    """Ask at these system calls, allow all others."""
    load, jump, give = 0x20, 0x15, 0x06
    steps = [(load, 0, 0, 0)]
    steps += [(jump, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    steps += [(give, 0, 0, _ALLOW), (give, 0, 0, _ASK)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _run(path: str, command: Sequence[str]) -> None:
    """Put this process under the filter, hand the listener over, and become the command."""
    machine = platform.machine()
    libc = ctypes.CDLL(None, use_errno=True)
    raw = ctypes.create_string_buffer(_filter(list(NUMBERS[machine])))
    program = struct.pack("=H6xQ", len(NUMBERS[machine]) + 3, ctypes.addressof(raw))
    with socket.socket(socket.AF_UNIX) as told:
        told.connect(path)
        listener = libc.syscall(_SECCOMP[machine], _SET_MODE_FILTER, _NEW_LISTENER, program)
        if listener < 0 and ctypes.get_errno() == errno.EACCES:
            libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            listener = libc.syscall(_SECCOMP[machine], _SET_MODE_FILTER, _NEW_LISTENER, program)
        assert listener >= 0, os.strerror(ctypes.get_errno())
        socket.send_fds(told, [b"x"], [listener])
        told.recv(1)
    os.execv(command[0], [*command])


if __name__ == "__main__":
    _run(sys.argv[1], sys.argv[2:])
