"""Mount and network namespaces of their own for what pins BPF objects, listens on fixed ports, or mounts.

`apart` runs a test in a child process that has them, `run_apart` any function; `space` keeps them open for programs,
such as a whole daemon and its clients. In all, `lo` is up, a BPF file system is at /sys/fs/bpf (unless not wanted), and
nothing is left when they end. Needs root.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import functools
import inspect
import os
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

from tests.support.inside import Inside
from tests.support.real import unavailable

BPF_FS: Final = Path("/sys/fs/bpf")
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWNET: Final = 0x40000000
_MS_PRIVATE_EVERYWHERE: Final = 1 << 18 | 0x4000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_MS_RDONLY: Final = 1
_PR_SET_KEEPCAPS: Final = 8
_CAPABILITIES_VERSION_3: Final = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


def apart(test: Callable[..., Any] | None = None, *, bpf_fs: bool = True) -> Callable[..., Any]:
    """The test, run in a child process with namespaces of its own; `@apart` or `@apart(bpf_fs=False)`.

    Fixtures come from the parent. Coroutine functions run on a loop of their own. A failure comes back as text.
    """
    if test is None:
        return functools.partial(apart, bpf_fs=bpf_fs)

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        run_apart(functools.partial(test, *arguments, **named), bpf_fs=bpf_fs)

    run.__dict__.pop("__wrapped__", None)  # pytest-asyncio must not take the child's coroutine for ours
    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]  # pytest reads it for the fixtures
    return run


def run_apart(function: Callable[[], Any], *, bpf_fs: bool = True) -> None:
    """Run the function in a child with namespaces of its own; if it fails, AssertionError has its traceback."""
    if os.geteuid() != 0:
        unavailable("namespaces cannot be made: not root")

    def run() -> Any:
        enter_new(bpf_fs=bpf_fs)
        return function()

    in_child(run)


def in_child(*functions: Callable[[], Any]) -> None:
    """Run the function in a child, in the same namespaces, or several at once; AssertionError has their tracebacks."""
    sys.stdout.flush()
    sys.stderr.flush()
    started: list[tuple[int, int]] = []
    for function in functions:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _be_child(function, writing)
        os.close(writing)
        started.append((pid, reading))
    failed: list[str] = []
    for pid, reading in started:
        with os.fdopen(reading, "rb") as said:
            text = said.read().decode(errors="replace")
        _, status = os.waitpid(pid, 0)
        if status != 0:
            failed.append(f"the child ended with {os.waitstatus_to_exitcode(status)}:\n{text}")
    assert not failed, "\n".join(failed)


def _be_child(function: Callable[[], Any], writing: int) -> NoReturn:
    status = 1
    try:
        outcome = function()
        if inspect.isawaitable(outcome):
            with asyncio.Runner() as runner:
                runner.run(_awaited(outcome))
        status = 0
    except BaseException:
        os.write(writing, traceback.format_exc().encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


async def _awaited(outcome: Any) -> Any:
    return await outcome


@contextlib.contextmanager
def another_process(act: Callable[[], object]) -> Iterator[int]:
    """A process that has done it, and lives on with what it got until it is killed with the block; its number."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kept = act()
            os.write(writing, b"done")
            signal.pause()
            del kept
        finally:
            os._exit(1)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb", buffering=0) as said:
            assert said.read(4) == b"done"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def enter_new(*, bpf_fs: bool = True) -> None:
    """Put this process, which must have one thread, into new namespaces."""
    new_namespaces(_CLONE_NEWNS | _CLONE_NEWNET)
    _check(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_PRIVATE_EVERYWHERE), None))
    if bpf_fs:
        mount(BPF_FS, "bpf")
    set_lo_up()


def new_network() -> None:
    """Put this process into one more network namespace, with `lo` up."""
    new_namespaces(_CLONE_NEWNET)
    set_lo_up()


def new_namespaces(flags: int) -> None:
    _check(_libc.unshare(flags))


def become(user: int, *capabilities: int) -> None:
    """Make this process that user, without groups, with these capabilities alone; as setpriv does, without an exec."""
    _check(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    bits = sum(1 << capability for capability in capabilities)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITIES_VERSION_3, 0))
    _check(_libc.capset(header, struct.pack("=6I", low, low, low, high, high, high)))


def mount(path: Path, kind: str, *, read_only: bool = False) -> None:
    flags = ctypes.c_ulong(_MS_RDONLY if read_only else 0)
    _check(_libc.mount(kind.encode(), os.fsencode(path), kind.encode(), flags, None))


def unmount(path: Path) -> None:
    _check(_libc.umount2(os.fsencode(path), 0))


def set_lo_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        name = b"lo".ljust(16, b"\0")
        (flags,) = struct.unpack_from("h", fcntl.ioctl(asked, _SIOCGIFFLAGS, name + bytes(24)), 16)
        fcntl.ioctl(asked, _SIOCSIFFLAGS, name + struct.pack("h22x", flags | _IFF_UP))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Space(Inside):
    """Namespaces that stay open, with process numbers of their own: what still runs in them at the end is killed."""

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs `arguments` inside, as root, in the working directory of whoever calls."""
        names = ("--mount", "--net", "--pid")
        return ["nsenter", "--target", str(self.pid), *names, f"--wdns={os.getcwd()}", "--", *arguments]


@contextlib.contextmanager
def space(*, bpf_fs: bool = True) -> Iterator[Space]:
    """A space for programs; all that run in it are dead when the block is left, and its mounts and pins are gone."""
    if os.geteuid() != 0:
        unavailable("namespaces cannot be made: not root")
    steps = ["ip link set lo up", "echo up", "read -r _"]
    if bpf_fs:
        steps.insert(0, f"mount -t bpf bpf {BPF_FS}")
    outer = subprocess.Popen(
        [
            "unshare",
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-ec",
            "; ".join(steps),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        start_new_session=True,
    )
    assert outer.stdin is not None
    assert outer.stdout is not None
    try:
        assert outer.stdout.readline() == b"up\n", "the namespaces could not be made"
        (inner,) = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        yield Space(int(inner))
    finally:
        outer.kill()  # its child, which is their PID 1, dies with it and takes all others along
        outer.wait()
        outer.stdin.close()
        outer.stdout.close()
