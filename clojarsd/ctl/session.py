"""One run of clojarsctl: the daemon it speaks with, who reads what it says, and what it exits with."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from clojarsd.ctl.client import Daemon, Rejected, Unreachable

DEFAULT_SOCKET = "/run/clojarsd/control.sock"
SOCKET_VARIABLE = "CLOJARSD_SOCKET"
EXIT_FAILED, EXIT_USAGE, EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_INTERRUPTED = 1, 2, 3, 4, 130
_EXITS = {"usage": EXIT_USAGE, "denied": EXIT_REFUSED, "refused": EXIT_REFUSED}


class Session:
    """What the options before and after the verb say.

    Attributes:
        as_json: a program reads stdout.
    """

    def __init__(self, socket: str, as_json: bool) -> None:
        self.daemon = Daemon(socket)
        self.as_json = as_json

    @contextmanager
    def outcome(self, interrupted: str | None = None) -> Iterator[None]:
        """What is done inside ends the command with a sentence and the right code when it does not succeed.

        Args:
            interrupted: what to say after Ctrl-C, or None for nothing.
        """
        try:
            yield
        except Unreachable as error:
            self.fail(EXIT_UNREACHABLE, "unreachable", str(error))
        except Rejected as error:
            self.fail(_EXITS.get(error.kind, EXIT_FAILED), error.kind, str(error))
        except KeyboardInterrupt:
            if interrupted is not None:
                narrate(interrupted)
            sys.exit(EXIT_INTERRUPTED)

    def fail(self, code: int, kind: str, message: str) -> NoReturn:
        """End with the message on stderr; a program gets it on stdout too."""
        if self.as_json:
            offer(json.dumps({"error": {"kind": kind, "message": message}}))
        narrate(message)
        sys.exit(code)

    def put(self, value: Any) -> None:
        """Give a program a value, as one line."""
        print(json.dumps(value), flush=True)

    def follow(self, target: str) -> Iterator[dict[str, Any]]:
        """The objects of a stream, without its last line; one that says that it failed ends the command."""
        with self.daemon.stream("GET", target) as answer:
            for value in answer.lines():
                if "result" not in value:
                    yield value
                elif value["result"] == "failed":
                    raise Rejected(value["error"]["kind"], value["error"]["message"])


def quoted(name: str) -> str:
    """The name of an instance or a frontend as one part of a path.

    Raises:
        Rejected: none can have this name.
    """
    from urllib.parse import quote  # costs 3 ms, which `status` need not pay

    try:
        return quote(name, safe="")
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode(errors="backslashreplace")
        raise Rejected("usage", f"the instance name {shown} is not valid UTF-8") from None


def prepare_streams() -> None:
    """Let what is written to stdout or stderr be lost where they are closed (`>&-`): Python has None there."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def offer(text: str) -> bool:
    """Say on stdout what the command goes on without; whether it could be written."""
    try:
        print(text, flush=True)
    except OSError as error:
        give_up_answer(error)
        return False
    return True


def give_up_answer(error: OSError) -> None:
    """Write no more to stdout, and say why, unless whoever read it has seen enough."""
    discard(sys.stdout)
    if not isinstance(error, BrokenPipeError):
        narrate(f"cannot write the answer: {(error.strerror or str(error)).lower()}")


def narrate(text: str) -> None:
    """Say something to people that is not what the command was asked for; it is lost if stderr does not take it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Lose what the stream still holds and all that comes; otherwise Python tries again when it ends, and complains."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
