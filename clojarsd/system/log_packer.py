"""Packs one file with gzip: a program of its own, so that the daemon's loop and the instances come first.

Run by path with the bare interpreter (`python -I -S log_packer.py`): stdin is the file, stdout where the packed one
goes, which is flushed at the end. `done` on stderr means that it is complete; anything else is what went wrong.
"""

from __future__ import annotations

import os
import sys
import zlib

BLOCK = 1024 * 1024
LEVEL = 6
GZIP = 31
"""Window of 32 KiB, with gzip's head and check sum."""


def main() -> None:
    """Pack stdin to stdout, at the lowest priority."""
    os.nice(19)
    try:
        packer = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
        while block := os.read(0, BLOCK):
            _write(packer.compress(block))
        _write(packer.flush())
        os.fsync(1)
    except OSError as error:
        sys.exit((error.strerror or str(error)).lower())
    sys.stderr.write("done")


def _write(packed: bytes) -> None:
    while packed:
        packed = packed[os.write(1, packed) :]


if __name__ == "__main__":
    main()
