"""The commands `clojarsctl` and `deploy-clojars`.

What monitoring and people in a hurry ask all the time, `status` and `check`, is understood here, because importing
click takes longer than all of it; everything else is left to click, in `verbs`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from clojarsd.ctl.look import check_pair, show_status
from clojarsd.ctl.session import (
    DEFAULT_SOCKET,
    EXIT_FAILED,
    EXIT_USAGE,
    SOCKET_VARIABLE,
    Session,
    give_up_answer,
    narrate,
    prepare_streams,
)

_FAST: dict[str, Callable[[Session], None]] = {"status": show_status, "check": check_pair}


def main() -> None:
    """Run `clojarsctl`."""
    prepare_streams()
    try:
        try:
            if not _run_fast(sys.argv[1:]):
                from clojarsd.ctl.verbs import run

                run()
        finally:
            sys.stdout.flush()
    except OSError as error:  # only stdout raises it: the client and `narrate` turn their own into something else
        give_up_answer(error)
        sys.exit(EXIT_FAILED)


def _run_fast(words: Sequence[str]) -> bool:
    """Whether the words were one of the frequent commands with no option but the common ones, which was then run."""
    if "_CLOJARSCTL_COMPLETE" in os.environ:
        return False
    socket, rest = os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET, list(words)
    if rest[:1] == ["--socket"] and len(rest) > 2:
        socket, rest = rest[1], rest[2:]
    verbs = [word for word in rest if word != "--json"]
    if len(verbs) != 1 or verbs[0] not in _FAST or not socket:
        return False
    _FAST[verbs[0]](Session(socket, "--json" in rest))
    return True


def deploy_main() -> None:
    """Run `deploy-clojars`."""
    prepare_streams()
    narrate("deploy-clojars: this version of clojarsd cannot deploy yet")
    sys.exit(EXIT_USAGE)
