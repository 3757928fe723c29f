"""Lets one thread act on files as another user does, while the rest of the daemon stays root.

What root does in a directory that belongs to somebody else can be led astray by a link in it. With the file-system
identity of its owner the kernel itself refuses what the owner may not do. Of the process's threads only the one that
asks is changed, which is why setgroups is a raw system call: the C library's changes them all.

Source: setfsuid(2), setgroups(2) ("C library/kernel differences"), capabilities(7) on what the kernel takes away from a
thread whose file-system user is not 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pwd
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from clojarsd.core.errors import Failed
from clojarsd.system.world import account_of

_GENERIC: Final = {"setfsuid": 151, "setfsgid": 152, "setgroups": 159}
"""The numbers of the system calls on machines that came after they were made uniform."""
_NUMBERS: Final = {
    "x86_64": {"setfsuid": 122, "setfsgid": 123, "setgroups": 116},
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
}
_NOBODY_AT_ALL: Final = ctypes.c_long(-1)

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Actor:
    """Whom files are touched as, by number; `groups` are all supplementary ones."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def actor_of(user: str, group: str | None = None) -> Actor | None:
    """Whom the daemon acts as in what belongs to the user; None: it is that user, or not root, and stays who it is.

    Args:
        group: name or number of the main group; None, or one that is not there: the user's own.

    Raises:
        Failed: there is no such user.
    """
    account = account_of(user, group)
    if account is None:
        return None
    try:
        groups = tuple(os.getgrouplist(pwd.getpwuid(account.uid).pw_name, account.gid))
    except KeyError:
        groups = (account.gid,)
    return Actor(account.uid, account.gid, groups)


@contextlib.contextmanager
def acting_as(actor: Actor | None) -> Iterator[None]:
    """Within the block the calling thread opens, makes and removes files as the actor, and as nobody else.

    For a thread without an event loop, so that the block cannot be left in the middle by an await. What it does to
    other processes is still done as root.

    Args:
        actor: None, or who this process is already: nothing changes.

    Raises:
        Failed: this process may not act as somebody else; nothing was changed.
    """
    assert not _has_loop(), "an await in the block would let other tasks act as this user"
    if actor is None or actor.uid == os.geteuid():
        yield
        return
    numbers = _NUMBERS.get(os.uname().machine)
    if numbers is None:
        raise Failed(f"cannot act as user {actor.uid}: how that is done on {os.uname().machine} is not known")
    before = os.getgroups()
    try:
        _set_groups(numbers, actor.groups)
    except OSError as error:
        raise Failed(f"cannot act as user {actor.uid}: this is neither that user nor root: {error.strerror}") from error
    try:
        with _set(numbers["setfsgid"], actor.gid), _set(numbers["setfsuid"], actor.uid):
            yield
    finally:
        _set_groups(numbers, before)  # was allowed a moment ago


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _set_groups(numbers: dict[str, int], groups: Sequence[int]) -> None:
    """Give this thread alone those supplementary groups. Raises OSError."""
    array = (ctypes.c_uint32 * len(groups))(*groups)
    if _libc.syscall(ctypes.c_long(numbers["setgroups"]), ctypes.c_long(len(groups)), array) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number).lower())


@contextlib.contextmanager
def _set(number: int, wished: int) -> Iterator[None]:
    """Be that file-system user or group in the block. These calls report no failure, so what they did is looked at."""

    def change(to: int) -> int:
        """What it was before."""
        before: int = _libc.syscall(ctypes.c_long(number), ctypes.c_long(to))
        return before

    before = change(wished)
    try:
        if _libc.syscall(ctypes.c_long(number), _NOBODY_AT_ALL) != wished:
            raise Failed(f"cannot act as user or group {wished}: the kernel does not allow it")
        yield
    finally:
        change(before)
        assert _libc.syscall(ctypes.c_long(number), _NOBODY_AT_ALL) == before, "this thread is somebody else for ever"
