"""What a bench needs of the machine around it: mounts of its own, descriptors, and an end with nothing left."""

from __future__ import annotations

import contextlib
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


def get_descriptors(wanted: int) -> int:
    """Let this process and its children open so many, or as many as may be; returns how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for soft_wanted, hard_wanted in ((wanted, max(wanted, hard)), (min(wanted, hard), hard)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, soft_wanted), hard_wanted))
            break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def need_descriptors(count: int) -> None:
    """The same for what cannot do with less: ends the bench then."""
    limit = get_descriptors(count)
    if limit < count:
        raise SystemExit(f"cannot have {count} descriptors: the limit is {limit}, and nobody here may raise it")
