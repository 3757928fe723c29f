"""A filter in the kernel that lets this process, and what comes of it, make some system calls no more.

It is for a process that reads what strangers send. It keeps it from what it has no use for and an intruder would: to
execute programs, to make processes, to trace others, to make name spaces and mounts, and to reach those parts of the
kernel that are known for their holes. What is refused fails with EPERM. Only on x86_64; elsewhere nothing is refused.

Source: seccomp(2), Documentation/userspace-api/seccomp_filter.rst of Linux; numbers from arch/x86/entry/syscalls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

REFUSED = {
    "execve": 59, "execveat": 322, "fork": 57, "vfork": 58,
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_getfd": 438,
    "unshare": 272, "setns": 308, "chroot": 161, "pivot_root": 155, "mount": 165, "umount2": 166,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432, "mount_setattr": 442,
    "init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320,
    "add_key": 248, "request_key": 249, "keyctl": 250, "name_to_handle_at": 303, "open_by_handle_at": 304,
    "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
}  # fmt: skip
"""Never made, by number. Threads are made with clone, which is looked into."""
CLONE = 56
CLONE3 = 435
"""Its flags are behind a pointer, where no filter can look: refused as if it were unknown, so that clone is used."""
CLONE_THREAD = 0x10000
X86_64 = 0xC000003E
X32 = 0x40000000
"""Set in the numbers of a second set of system calls that the same processor has."""

_SECCOMP = 317
_SET_MODE_FILTER = 1
_SPEC_ALLOW = 4
"""Without it Linux before 5.16 slows the whole process down, against an attack on code that runs in it for others."""
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in struct seccomp_data; of the argument, its low half."""
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM
_UNKNOWN = 0x00050000 | errno.ENOSYS


def program() -> bytes:
    """The filter, as instructions of classic BPF."""
    numbers = sorted(REFUSED.values())
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, X86_64),
        (_RETURN, 0, 0, _REFUSE),  # 32-bit calls have other numbers, and nobody here makes any
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_GREATER_EQUAL, 0, 1, X32),
        (_RETURN, 0, 0, _REFUSE),
        *((_JUMP_EQUAL, left + 4, 0, number) for left, number in zip(range(len(numbers), 0, -1), numbers, strict=True)),
        (_JUMP_EQUAL, 5, 0, CLONE3),
        (_JUMP_EQUAL, 0, 2, CLONE),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_SET, 0, 1, CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _UNKNOWN),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def filter_calls() -> bool:
    """Refuse these calls from now on, for good; whether that is so, which some machines and kernels cannot do.

    The process must have given up new privileges, see system/confinement.py.
    """
    if os.uname().machine != "x86_64" or sys.maxsize < 1 << 32:
        return False
    steps = program()
    kept = ctypes.create_string_buffer(steps, len(steps))
    filtered = struct.pack("@HP", len(steps) // 8, ctypes.addressof(kept))
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = ctypes.c_ulong(_SET_MODE_FILTER), ctypes.c_ulong(_SPEC_ALLOW), ctypes.c_char_p(filtered)
    return bool(libc.syscall(ctypes.c_long(_SECCOMP), *arguments) == 0)
