"""Holds the page of a file in which it ends, so that what is appended there can still be read after a truncation.

A pipe keeps a page that was spliced into it, not a copy: what is written into the page later is in the pipe as well,
and a truncation takes the page from the file and leaves it to the pipe.

Source: vmsplice(2), mmap(2).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Self

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.vmsplice.restype = ctypes.c_ssize_t
_FAILED = ctypes.c_void_p(-1).value


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class LastPage:
    """The page of a file that the byte before `end` is in. Use it as a context; its methods do not wait."""

    def __init__(self, file: int, end: int) -> None:
        """Hold it.

        Raises:
            OSError: there is nothing to hold, because a page ends there, or the file system keeps no pages.
        """
        self._before = end % PAGE
        self._reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _splice(file, end - self._before, writer)
        except BaseException:
            os.close(self._reader)
            raise
        finally:
            os.close(writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._reader)

    @property
    def room(self) -> int:
        """Bytes that can be appended before the page is full."""
        return PAGE - self._before

    def appended(self) -> tuple[bytes, bool]:
        """What was written behind `end`, and whether the page is full, so that there may be more. To be called once.

        NUL bytes at its end do not count.
        """
        appended = os.read(self._reader, PAGE)[self._before :].rstrip(b"\0")
        return appended, len(appended) == self.room


def _splice(file: int, start: int, pipe: int) -> None:
    """Put the whole page that begins there into the pipe. Raises OSError."""
    place = _libc.mmap(None, PAGE, mmap.PROT_READ, mmap.MAP_SHARED, file, start)
    if place in (None, _FAILED):
        raise _error()
    try:
        if _libc.vmsplice(pipe, ctypes.byref(_Vector(place, PAGE)), ctypes.c_ulong(1), 0) != PAGE:
            raise _error()
    finally:
        _libc.munmap(place, PAGE)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
