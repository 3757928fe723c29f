"""Gives up for good what a process may do beyond its work.

Nothing of it comes back by executing another program either. To be called before there are threads: the kernel keeps
capabilities for each of them. It takes ctypes, which is 0.2 MB of memory.

Source: prctl(2), capabilities(7), PR_SET_NO_NEW_PRIVS in Documentation/userspace-api/no_new_privs.rst of Linux.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from typing import Self

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_MOST_CAPABILITIES = 64
_VERSION_3 = 0x20080522
"""Of the capability sets: two words for each of effective, permitted and inheritable."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a process becomes, by number. It gets no supplementary groups."""

    uid: int
    gid: int

    @classmethod
    def read(cls, text: str) -> Self:
        """From what `str` makes of one. Raises ValueError."""
        uid, gid = map(int, text.split(":"))
        return cls(uid, gid)

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


def confine(account: Account | None) -> None:
    """Become the account, if one is given, keep no capability, and get none ever again.

    With an account the process is closed to others of the same user from then on: they cannot trace it, read its
    memory or take its descriptors, and its files in /proc are root's.

    Raises:
        OSError: the kernel refuses; how much is given up by then is not known, so the process should end.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def control(*words: int) -> None:
        _check(libc.prctl(*(ctypes.c_ulong(word) for word in (*words, *[0] * (5 - len(words))))))

    control(_PR_SET_NO_NEW_PRIVS, 1)
    if account is not None:
        for capability in range(_MOST_CAPABILITIES):
            if libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0):
                break  # this kernel has no more
        os.setgroups([])
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    control(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _check(libc.capset(struct.pack("=Ii", _VERSION_3, 0), bytes(24)))
    if account is not None:
        control(_PR_SET_DUMPABLE, 0)  # as the kernel does it when users change, unless fs.suid_dumpable says otherwise


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
