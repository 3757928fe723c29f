"""The entry point of `clojarsd`."""

from __future__ import annotations

import faulthandler
import gc
import sys


def main() -> None:
    """Run the command.

    The daemon does without rich, which structlog would otherwise import for drawing tracebacks: 8 MB of memory that are
    never used. Until it is up nothing is looked through for garbage: what is imported is none, and that takes a tenth
    of its start.
    """
    gc.disable()
    sys.modules["rich"] = None  # type: ignore[assignment]  # how Python is told that a module is not to be had
    from clojarsd.commands import cli

    faulthandler.enable()  # what a watchdog ends with SIGABRT says where each of its threads stood
    cli(prog_name="clojarsd")


if __name__ == "__main__":
    main()
