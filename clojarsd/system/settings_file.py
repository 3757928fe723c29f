"""Reads the configuration file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from clojarsd.core.errors import BadSettings
from clojarsd.core.settings import Settings, parse_settings

_LARGEST: Final = 1024**2
"""Bytes. No configuration comes near this; what does is some other file."""


def read_settings(path: Path) -> Settings:
    """The settings in the file `path`, which may also be a pipe.

    Raises:
        BadSettings: the file cannot be read, or is not a valid configuration; with every problem found.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise BadSettings([f"{path}: no such file (clojarsd -c FILE names another)"]) from None
    except OSError as error:
        raise BadSettings([f"{path}: cannot be read: {os.strerror(error.errno or 0).lower()}"]) from error
    if len(content) > _LARGEST:
        raise BadSettings([f"{path}: is too large for a configuration (at most 1MiB)"])
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadSettings([f"{path}: line {line}: byte 0x{content[error.start]:02x} is not UTF-8 text"]) from None
    return parse_settings(text, str(path))
