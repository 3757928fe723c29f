"""Speaks with the daemon: HTTP over its Unix socket, by hand, because http.client alone would double the start-up time.

HTTP/1.0 is all that is needed: the daemon closes the connection after its answer, so what comes until then is the body.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from io import BufferedReader
from types import TracebackType
from typing import Any, Self

ANSWER_TIMEOUT = 10
"""Seconds until the daemon must have begun to answer."""
_TIMEVAL = struct.Struct("ll")
_CREDENTIALS = struct.Struct("3i")


class Unreachable(Exception):
    """Nobody has answered, or not to the end; the text is for people."""


class Rejected(Exception):
    """The daemon has answered with an error.

    Attributes:
        kind: `usage`, `denied`, `refused` or `failed`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Daemon:
    """The daemon behind the socket at `path`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, target: str, patience: int | None = None) -> Any:
        """The JSON that the daemon has at `target`.

        Args:
            patience: seconds until it must have begun to answer, if not the usual ones.

        Raises:
            Unreachable: nobody has answered.
            Rejected: the daemon has answered with an error.
        """
        with self.stream("GET", target, patience=patience) as answer:
            return answer.whole()

    def post(self, target: str, patience: int, body: dict[str, Any] | None = None) -> Any:
        """The JSON that the daemon answers to an order with the options in `body`. Args, errors as `get` has them."""
        with self.stream("POST", target, body, patience) as answer:
            return answer.whole()

    def text(self, target: str) -> str:
        """The text that the daemon has at `target`. Raises as `get`."""
        with self.stream("GET", target) as answer:
            return answer.text()

    def stream(
        self, method: str, target: str, body: dict[str, Any] | None = None, patience: int | None = None
    ) -> Answer:
        """The answer as it comes; to be used in a `with`. Args and errors as `get` has them."""
        seconds = ANSWER_TIMEOUT if patience is None else patience
        content = json.dumps(body).encode() if body is not None else b""
        head = f"{method} {target} HTTP/1.0\r\nHost: clojarsd\r\nContent-Length: {len(content)}\r\n\r\n"
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise Unreachable(self._why(error, seconds)) from None
        try:
            # not settimeout: a connect that does not block fails at once when many are waiting
            limit = _TIMEVAL.pack(seconds, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            connection.connect(self.path)
            connection.sendall(head.encode() + content)
            return Answer(self.path, connection)
        except OSError as error:
            connection.close()
            raise Unreachable(self._why(error, seconds)) from None
        except BaseException:
            connection.close()
            raise

    def _why(self, error: OSError, seconds: int) -> str:
        cannot = f"cannot reach clojarsd at {self.path}"
        if isinstance(error, FileNotFoundError):
            return f"{cannot}: no such socket; is clojarsd.service running?"
        if isinstance(error, ConnectionRefusedError):
            return f"{cannot}: nobody listens there; is clojarsd.service running?"
        if isinstance(error, PermissionError):
            return f"{cannot}: permission denied; the socket or its directory is closed to this user"
        if isinstance(error, BlockingIOError):
            return f"{cannot}: no answer within {seconds} s; `journalctl -u clojarsd` may tell why"
        if isinstance(error, ConnectionResetError | BrokenPipeError):
            return f"{cannot}: it ended the connection without an answer; `journalctl -u clojarsd` may tell why"
        return f"{cannot}: {(error.strerror or str(error)).lower()}"


class Answer:
    """An answer that has begun."""

    def __init__(self, path: str, connection: socket.socket) -> None:
        """Read its head. Raises OSError as a socket does, and as `Daemon.get`."""
        self._path = path
        self._connection = connection
        self._stream: BufferedReader = connection.makefile("rb")
        try:
            if not connection.recv(1, socket.MSG_PEEK):  # raises when it takes too long, which a buffered read hides
                raise ConnectionResetError
            status = self._read_head()
            if status != 200:
                raise self._rejection()
        except BaseException:
            self.close()
            raise
        # from here on the daemon may take its time
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more."""
        self._stream.close()
        self._connection.close()

    def daemon_pid(self) -> int:
        """The process that listens at the socket; 0 when it is none that is seen from here."""
        credentials = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, _, _ = _CREDENTIALS.unpack(credentials)
        return int(pid)

    def whole(self) -> Any:
        """The body, which is one value."""
        try:
            return json.loads(self._stream.read())
        except (OSError, ValueError):
            raise Unreachable(f"clojarsd at {self._path} did not answer to the end") from None

    def text(self) -> str:
        """The body, which is text."""
        try:
            return self._stream.read().decode()
        except (OSError, ValueError):
            raise Unreachable(f"clojarsd at {self._path} did not answer to the end") from None

    def lines(self) -> Iterator[dict[str, Any]]:
        """The objects of a stream; the last one has `result`.

        Raises:
            Unreachable: the stream was cut short.
        """
        try:
            for line in self._stream:
                value = json.loads(line)
                yield value
                if "result" in value:
                    return
        except (ConnectionError, ValueError):
            pass  # told below, as an end that comes too early is
        raise Unreachable(f"clojarsd at {self._path} ended the connection before the end")

    def _read_head(self) -> int:
        """The status."""
        first = self._stream.readline().split(None, 2)
        if len(first) < 2 or not first[0].startswith(b"HTTP/1.") or not first[1].isdigit():
            raise self._stranger()
        while self._stream.readline().strip():
            pass
        return int(first[1])

    def _rejection(self) -> Rejected | Unreachable:
        try:
            error = json.loads(self._stream.read())["error"]
            return Rejected(error["kind"], error["message"])
        except (ValueError, KeyError, TypeError):
            return self._stranger()

    def _stranger(self) -> Unreachable:
        return Unreachable(f"cannot reach clojarsd at {self._path}: what answers there is not clojarsd")
