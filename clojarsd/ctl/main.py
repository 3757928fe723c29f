"""The commands `clojarsctl` and `deploy-clojars`.

What monitoring and people in a hurry ask all the time, `status`, `check` and `why`, is understood here, because
importing click takes longer than all of it; everything else is left to click, in `verbs`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from clojarsd.ctl.look import check_pair, show_status
from clojarsd.ctl.session import (
    DEFAULT_SOCKET,
    EXIT_FAILED,
    SOCKET_VARIABLE,
    Session,
    give_up_answer,
    prepare_streams,
)


def _explain(session: Session, role: str | None = None) -> None:
    from clojarsd.ctl.why import show_why

    show_why(session, role)


_FAST: dict[str, Callable[..., None]] = {"status": show_status, "check": check_pair, "why": _explain}
_ARGUMENTS = {"why": 1}
"""The most arguments that each takes, where it takes any."""


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
    verb, *arguments = [word for word in rest if word != "--json"] or [""]
    is_plain = len(arguments) <= _ARGUMENTS.get(verb, 0) and not any(word[:1] in ("", "-") for word in arguments)
    if verb not in _FAST or not is_plain or not socket:
        return False
    _FAST[verb](Session(socket, "--json" in rest), *arguments)
    return True


def deploy_main() -> None:
    """Run `deploy-clojars`: the same as `clojarsctl deploy`."""
    sys.argv[1:1] = ["deploy"]
    main()
