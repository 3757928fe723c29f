"""What a bench needs of the machine around it: mounts of its own, descriptors, and an end with nothing left."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from pathlib import Path
from typing import NoReturn

BPF_ROOT = Path("/sys/fs/bpf")
_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000


def begin() -> None:
    """To be called first: an end by signal unwinds like any other, so that every child and file goes with the bench.

    As root, mounts are the bench's own from now on, and a file system for BPF objects is among them: what steering
    leaves there goes with the last process of the bench.
    """
    signal.signal(signal.SIGTERM, _end)
    if os.geteuid() == 0:
        _own_mounts()


def _end(*_: object) -> NoReturn:
    raise SystemExit("ended by a signal")


def _own_mounts() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "cannot have mounts of its own")
    _mount(libc, b"none", b"/", None, _MS_REC | _MS_PRIVATE)
    if BPF_ROOT.is_dir():
        _mount(libc, b"bpf", os.fsencode(BPF_ROOT), b"bpf", 0)


def _mount(libc: ctypes.CDLL, what: bytes, where: bytes, kind: bytes | None, flags: int) -> None:
    if libc.mount(what, where, kind, ctypes.c_ulong(flags), None):
        raise OSError(ctypes.get_errno(), f"cannot mount {where.decode()}")


def need_descriptors(count: int) -> None:
    """Let this process and its children open so many. Ends the bench where that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(count, hard)))
    except (ValueError, OSError):
        text = f"cannot have {count} descriptors: the limit is {hard}; try fewer connections, or root"
        raise SystemExit(text) from None
