"""Finds what a build has made: exactly one file or directory, inside the checkout."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from clojarsd.core.command_output import clean_line
from clojarsd.core.errors import Failed, reason_of

MOST_NAMED: Final = 5


def find_artifact(checkout: Path, pattern: str) -> Path:
    """The one file or directory in the checkout that matches; without links in its path. For a thread.

    Call it as the service user (`acting_as`): links are followed to see where they lead.

    Args:
        pattern: below the checkout, as in a shell; `**` stands for any directories.

    Raises:
        Failed: none matches, or several do; or it leads out of the checkout, contains a link that leads out of it, or
            is empty.
    """
    try:
        found = sorted(glob.glob(pattern, root_dir=checkout, recursive=True, include_hidden=False))
        if not found:
            raise Failed(f"no artifact: nothing matches {pattern}; {_what_is_there(checkout, pattern)}")
        if len(found) > 1:
            raise Failed(f"no artifact: {pattern} must match one file, and matches {len(found)}: {_named(found)}")
        return _inside(checkout.resolve(), found[0])
    except OSError as error:
        raise Failed(f"no artifact: {error.filename}: {reason_of(error)}") from error


def _inside(checkout: Path, name: str) -> Path:
    try:
        real = (checkout / name).resolve(strict=True)
    except FileNotFoundError:
        raise Failed(f"no artifact: {name} is a link that leads nowhere") from None
    if not real.is_relative_to(checkout) or real == checkout:
        raise Failed(f"no artifact: {name} leads out of the checkout, to {real}")
    if real.is_file():
        if real.stat().st_size == 0:
            raise Failed(f"no artifact: {name} is empty")
    elif not real.is_dir():
        raise Failed(f"no artifact: {name} is neither a file nor a directory")
    else:
        _look_through(real, name)
    return real


def _look_through(real: Path, name: str) -> None:
    """See that a directory is one that can be copied: with files, and with links to what is in it alone."""
    has_file = False
    for inside, directories, files in os.walk(real, onerror=_raise):
        has_file = has_file or bool(files)
        for entry in (*directories, *files):
            path = Path(inside, entry)
            if path.is_symlink() and not path.resolve().is_relative_to(real):
                raise Failed(f"no artifact: {name}: {path.relative_to(real)} is a link that leads out of it")
    if not has_file:
        raise Failed(f"no artifact: {name} is a directory without a file")


def _raise(error: OSError) -> None:
    raise error


def _what_is_there(checkout: Path, pattern: str) -> str:
    """What is in the directory that the pattern looks into, or in the last one on the way that exists."""
    missing, looked = None, checkout
    for part in pattern.split("/")[:-1]:
        if glob.has_magic(part):
            break
        if not (looked / part).is_dir():
            missing = part
            break
        looked = looked / part
    where = "the checkout" if looked == checkout else str(looked.relative_to(checkout))
    absent = f"there is no directory {missing}; " if missing is not None else ""
    names = sorted(name for name in os.listdir(looked) if not name.startswith("."))
    return f"{absent}{where} contains {_named(names)}" if names else f"{absent}{where} is empty"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(clean_line, names[:MOST_NAMED])) + more
