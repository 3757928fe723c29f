"""One run of clojarsctl: the daemon it speaks with, who reads what it says, and what it exits with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

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
            self.put({"error": {"kind": kind, "message": message}})
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
    """The name as one part of a path."""
    from urllib.parse import quote  # costs 3 ms, which `status` need not pay

    return quote(name, safe="")


def narrate(text: str) -> None:
    """Say something to people that is not what the command was asked for."""
    print(text, file=sys.stderr, flush=True)
