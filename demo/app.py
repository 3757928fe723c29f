"""The demo's web application in Python: an HTTP port, a line port, and faults on request.

It does what `App.java` does, for machines without a JDK and for tests that start many processes:
`python3 app.py --port 8001 --line-port 8101 --name primary`. `README.md` lists the URLs. Only modules that load
quickly are imported at the top, and no package from outside the standard library: it answers 40 ms after its launch.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import os
import signal
import socket
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader
    from typing import NoReturn

PERIOD = 251
"""Byte i of `/bytes` is i modulo this. A prime: a lost or repeated block of any usual size changes what follows."""
PATTERN = bytes(range(PERIOD)) * 4177
"""About 1 MiB, from which `/bytes` is sent."""
LONGEST_LINE = 65536
STDOUT, STDERR = 1, 2
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}

HELP = """\
GET  /                       this page
GET  /health                 200 ok, or 503 after /fault/unhealthy
GET  /who                    name and pid as JSON
GET  /slow?ms=N              answers after N ms
GET  /bytes?n=N[&chunk=N]    N bytes, byte i is i modulo 251
GET  /stream?n=N&ms=N        n chunks, one each ms milliseconds
POST /upload                 length and SHA-256 of the body as JSON
faults, by POST or GET:
/fault/slow?ms=N             every later request and line takes N ms longer
/fault/hang[?s=N]            requests and lines block, /health too, for N seconds or for ever
/fault/deadlock              two threads block each other for ever, one holding what /health needs
/fault/leak[?mb=N]           keeps N MB more; without mb: until the memory is used up
/fault/exit[?code=N]         ends the process at once
/fault/unhealthy             /health answers 503
/fault/healthy               /health answers 200 again
/fault/ignore-term           lives on after SIGTERM and goes on serving
/fault/logspam[?lines=N]     writes N lines to its log
/fault/child[?s=N]           starts a child that holds the log open and outlives it, for N seconds
/fault/none                  takes all faults back, except a deadlock
"""


class BadRequest(Exception):
    """What the client sent cannot be answered; its text says why, for the client."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Request:
    """One HTTP request: its head as values, its body still to be read from `reader`."""

    def __init__(self, head: bytes, headers: dict[str, str], reader: BufferedReader) -> None:
        try:
            self.method, target, version = head.decode("ascii").split()
        except ValueError:
            raise BadRequest(f"{head!r} is not a request line") from None
        self.path, _, query = target.partition("?")
        self._query = dict(part.partition("=")[::2] for part in query.split("&") if part)
        self._headers = headers
        self._reader = reader
        self._body: Iterator[bytes] | None = None
        self.is_http_11 = version != "HTTP/1.0"
        wish = headers.get("connection", "").lower()
        self.keep_alive = wish != "close" if self.is_http_11 else wish == "keep-alive"
        self.expects_continue = headers.get("expect", "").lower() == "100-continue"

    def number(self, key: str, default: int | None = None) -> int:
        """The whole number, 0 or more, that the query has under `key`.

        Raises:
            BadRequest: it is not a number, or it is missing and there is no default.
        """
        text = self._query.get(key)
        if text is None and default is not None:
            return default
        if text is None or not (text.isascii() and text.isdigit()):
            raise BadRequest(f"{self.path} needs {key}=N, a whole number of 0 or more")
        return int(text)

    def has(self, key: str) -> bool:
        """Whether the query names `key`."""
        return key in self._query

    def body(self) -> Iterator[bytes]:
        """The blocks of the body; whoever asks again gets those not yet taken."""
        if self._body is None:
            if "chunked" in self._headers.get("transfer-encoding", "").lower():
                self._body = self._chunks()
            else:
                length = self._headers.get("content-length", "0")
                if not (length.isascii() and length.isdigit()):
                    raise BadRequest(f"{length} is not a content length")
                self._body = self._exactly(int(length))
        return self._body

    def _exactly(self, length: int) -> Iterator[bytes]:
        while length:
            block = self._reader.read(min(length, 1 << 18))
            if not block:
                raise ConnectionError("the body ended early")
            length -= len(block)
            yield block

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self._reader.readline(LONGEST_LINE).partition(b";")[0], 16):
            yield from self._exactly(size)
            self._reader.readline(LONGEST_LINE)
        while self._reader.readline(LONGEST_LINE).strip():
            pass  # trailers


class Connection:
    """One HTTP client: requests come out, answers go in. Its thread opens, uses and closes it."""

    def __init__(self, sock: socket.socket, reader: BufferedReader) -> None:
        self._sock = sock
        self._reader = reader

    def next_request(self) -> Request | None:
        """The next request of a keep-alive connection, or None when the client has sent its last."""
        head = self._reader.readline(LONGEST_LINE)
        if head == b"\r\n":  # an empty line before a request is allowed
            head = self._reader.readline(LONGEST_LINE)
        if not head.endswith(b"\n"):
            return None
        headers: dict[str, str] = {}
        while line := self._reader.readline(LONGEST_LINE).strip():
            key, _, value = line.decode("latin-1").partition(":")
            headers[key.lower()] = value.strip()
        request = Request(head, headers, self._reader)
        if request.expects_continue:
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return request

    def begin(self, request: Request, status: int, kind: str, length: int | None, body: bytes = b"") -> None:
        """Send the head of an answer, and `body` in the same packet. A length of None announces chunks."""
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {kind}\r\n"
        if length is not None:
            head += f"Content-Length: {length}\r\n"
        elif request.is_http_11:
            head += "Transfer-Encoding: chunked\r\n"
        else:
            request.keep_alive = False  # the end of the connection ends the body
        head += f"Connection: {'keep-alive' if request.keep_alive else 'close'}\r\n\r\n"
        self._sock.sendall(head.encode() + (b"" if request.method == "HEAD" else body))

    def answer(self, request: Request, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        """Send a whole answer."""
        body = text.encode()
        self.begin(request, status, kind, len(body), body)

    def send(self, block: bytes | memoryview) -> None:
        """Send a part of a body whose head has been sent."""
        self._sock.sendall(block)


class App:
    """One instance of the application: its name, its faults, and what it answers.

    Made by `main`, lives as long as the process. Each connection has a thread of its own.
    """

    def __init__(self, name: str, heap: int = 256) -> None:
        self.name = name
        self._started_at = time.monotonic()
        self._served = 0
        self._heap = heap
        self._slow_ms = 0
        self._unhealthy = False
        self._deadlocked = False
        self._ignores_term = False
        self._leaked: list[bytes] = []
        self._gate = threading.Event()  # closed while the application hangs
        self._gate.set()
        self._hang_end: threading.Timer | None = None
        self._health_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._routes: dict[str, Callable[[Request, Connection], None]] = {
            "/": self._page,
            "/health": self._health,
            "/who": self._who,
            "/slow": self._slow,
            "/bytes": self._bytes,
            "/stream": self._stream,
            "/upload": self._upload,
        }
        self._faults: dict[str, Callable[[Request], str]] = {
            "/fault/slow": self._be_slow,
            "/fault/hang": self._hang,
            "/fault/deadlock": self._deadlock,
            "/fault/leak": self._leak,
            "/fault/exit": self._exit,
            "/fault/unhealthy": self._be_unhealthy,
            "/fault/healthy": self._be_healthy,
            "/fault/ignore-term": self._ignore_term,
            "/fault/logspam": self._logspam,
            "/fault/child": self._start_child,
            "/fault/none": self._reset,
        }

    def serve_http(self, sock: socket.socket) -> None:
        """Answer one HTTP client until it has sent its last request, then close."""
        with sock.makefile("rb") as reader:
            connection = Connection(sock, reader)
            try:
                while (request := connection.next_request()) is not None:
                    try:
                        self._respond(request, connection)
                    except BadRequest as error:
                        connection.answer(request, error.status, f"{error}\n")
                    for _ in request.body():
                        pass  # what the answer did not need
                    if not request.keep_alive:
                        return
            except BadRequest as error:  # and where its body begins is anybody's guess
                connection.send(f"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n{error}\n".encode())

    def serve_lines(self, sock: socket.socket) -> None:
        """Answer each line with `NAME PID: line` until `quit` or the client's end of data, then close."""
        prefix = f"{self.name} {os.getpid()}: ".encode()
        with sock.makefile("rb") as reader:
            for line in reader:
                text = line.rstrip(b"\r\n")
                if text == b"quit":
                    return
                self._wait_turn()
                sock.sendall(prefix + text + b"\n")

    def health(self) -> tuple[int, str]:
        """Status and text of `/health`."""
        with self._health_lock:
            return (503, "unhealthy\n") if self._unhealthy else (200, "ok\n")

    def end_by(self, signum: int) -> None:
        """End as a JVM does: with status 128 + signal, unless told to ignore the request."""
        if not self._ignores_term:
            os._exit(128 + signum)

    def _respond(self, request: Request, connection: Connection) -> None:
        with self._count_lock:
            self._served += 1
        if request.path != "/fault/none":
            self._wait_turn(is_fault=request.path in self._faults)
        if route := self._routes.get(request.path):
            route(request, connection)
        elif fault := self._faults.get(request.path):
            connection.answer(request, 200, fault(request) + "\n")
        else:
            raise BadRequest(f"there is no {request.path}", 404)

    def _wait_turn(self, is_fault: bool = False) -> None:
        self._gate.wait()
        if self._slow_ms and not is_fault:
            time.sleep(self._slow_ms / 1000)

    def _page(self, request: Request, connection: Connection) -> None:
        up = time.monotonic() - self._started_at
        head = f"{self.name}, pid {os.getpid()}, up {up:.0f} s, {self._served} requests served\n"
        connection.answer(request, 200, f"{head}faults now: {', '.join(self._present()) or 'none'}\n\n{HELP}")

    def _present(self) -> list[str]:
        """The faults that are there now, in words."""
        found = {
            f"slow by {self._slow_ms} ms": self._slow_ms,
            "deadlock": self._deadlocked,
            f"leak of {len(self._leaked)} MB": self._leaked,
            "unhealthy": self._unhealthy,
            "ignores SIGTERM": self._ignores_term,
        }
        return [text for text, is_there in found.items() if is_there]

    def _health(self, request: Request, connection: Connection) -> None:
        connection.answer(request, *self.health())

    def _who(self, request: Request, connection: Connection) -> None:
        connection.answer(request, 200, as_json({"name": self.name, "pid": os.getpid()}), "application/json")

    def _slow(self, request: Request, connection: Connection) -> None:
        delay = request.number("ms")
        time.sleep(delay / 1000)
        connection.answer(request, 200, f"{self.name} {os.getpid()} after {delay} ms\n")

    def _bytes(self, request: Request, connection: Connection) -> None:
        length = request.number("n")
        chunk = min(max(request.number("chunk", len(PATTERN)), 1), len(PATTERN) - PERIOD)
        connection.begin(request, 200, "application/octet-stream", length)
        pattern = memoryview(PATTERN)
        sent = length if request.method == "HEAD" else 0
        while sent < length:
            start = sent % PERIOD
            size = min(chunk, length - sent)
            connection.send(pattern[start : start + size])
            sent += size

    def _stream(self, request: Request, connection: Connection) -> None:
        count, pause = request.number("n", 10), request.number("ms", 100)
        connection.begin(request, 200, "text/plain; charset=utf-8", None)
        if request.method == "HEAD":
            return
        for number in range(count):
            time.sleep(pause / 1000)
            text = f"{self.name} {os.getpid()} chunk {number}\n".encode()
            connection.send(b"%x\r\n%b\r\n" % (len(text), text) if request.is_http_11 else text)
        if request.is_http_11:
            connection.send(b"0\r\n\r\n")

    def _upload(self, request: Request, connection: Connection) -> None:
        if request.method not in ("POST", "PUT"):
            raise BadRequest("/upload takes POST or PUT", 405)
        import hashlib  # here: it costs 3 ms, which most launches never need

        digest, length = hashlib.sha256(), 0
        for block in request.body():
            digest.update(block)
            length += len(block)
        connection.answer(request, 200, as_json({"length": length, "sha256": digest.hexdigest()}), "application/json")

    def _be_slow(self, request: Request) -> str:
        self._slow_ms = request.number("ms")
        return f"every request and line takes {self._slow_ms} ms longer"

    def _hang(self, request: Request) -> str:
        seconds = request.number("s", 0)
        self._gate.clear()
        if seconds:
            self._hang_end = threading.Timer(seconds, self._gate.set)
            self._hang_end.daemon = True
            self._hang_end.start()
        return f"hangs for {seconds} s" if seconds else "hangs for ever"

    def _deadlock(self, request: Request) -> str:
        if self._deadlocked:
            return "deadlock: is there already"
        self._deadlocked = True
        other = threading.Lock()
        both = threading.Barrier(3)

        def embrace(first: threading.Lock, second: threading.Lock) -> None:
            with first:
                both.wait()
                with second:
                    pass

        for locks in ((self._health_lock, other), (other, self._health_lock)):
            threading.Thread(target=embrace, args=locks, name="deadlock", daemon=True).start()
        both.wait()
        return "deadlock: two threads block each other, /health waits for one of them"

    def _leak(self, request: Request) -> str:
        left = request.number("mb") if request.has("mb") else self._heap + 1
        for _ in range(left):
            if len(self._leaked) >= self._heap:
                say(f"out of memory: {self._heap} MB are kept", STDERR)
                os._exit(3)  # as a JVM does with -XX:+ExitOnOutOfMemoryError
            self._leaked.append(b"x" * (1 << 20))
        return f"keeps {len(self._leaked)} MB"

    def _exit(self, request: Request) -> str:
        os._exit(request.number("code", 1) & 0xFF)

    def _be_unhealthy(self, request: Request) -> str:
        self._unhealthy = True
        return "/health answers 503"

    def _be_healthy(self, request: Request) -> str:
        self._unhealthy = False
        return "/health answers 200"

    def _ignore_term(self, request: Request) -> str:
        self._ignores_term = True
        return "SIGTERM, SIGINT and SIGHUP no longer end it"

    def _logspam(self, request: Request) -> str:
        lines = request.number("lines", 1000)
        for number in range(1, lines + 1):
            say(f"spam {number} of {lines}: {'x' * 60}")
        return f"wrote {lines} lines"

    def _start_child(self, request: Request) -> str:
        child = os.posix_spawnp("sleep", ["sleep", str(request.number("s", 600))], os.environ)
        threading.Thread(target=os.waitpid, args=(child, 0), daemon=True).start()
        return f"child {child} holds the log open"

    def _reset(self, request: Request) -> str:
        self._slow_ms = 0
        self._unhealthy = self._ignores_term = False
        self._leaked.clear()
        if self._hang_end is not None:
            self._hang_end.cancel()
        self._gate.set()
        return f"what is left: {', '.join(self._present()) or 'no fault'}"


class Acceptors:
    """Threads that accept from one listener; each serves the connection it accepted.

    One of them always waits in accept: whoever takes a connection while nobody else waits starts the next.
    """

    SPARE = 16
    """So many may wait; more of them end after their connection."""

    def __init__(self, listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        self._listener = listener
        self._serve = serve
        self._lock = threading.Lock()
        self._waiting = 0

    def start_one(self) -> None:
        """Let one more thread wait in accept."""
        with self._lock:
            self._waiting += 1
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    continue  # a client that left before it was accepted
                say(f"cannot accept a connection: {error.strerror}", STDERR)
                time.sleep(0.1)  # descriptors come back when a client leaves, and nothing tells us
                continue
            with self._lock:
                self._waiting -= 1
                nobody_waits = not self._waiting
            if nobody_waits:
                self.start_one()
            with sock:
                try:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._serve(sock)
                except (OSError, ValueError, BadRequest) as error:
                    if not isinstance(error, ConnectionError):
                        say(f"dropped a connection: {error}", STDERR)
            with self._lock:
                if self._waiting >= self.SPARE:
                    return
                self._waiting += 1


def as_json(fields: dict[str, int | str]) -> str:
    """The fields as one line of JSON."""
    import json  # here: it costs 3 ms, which most launches never need

    return json.dumps(fields, separators=(",", ":")) + "\n"


def say(text: str, descriptor: int = STDOUT) -> None:
    """Write one line; a log that is gone or full must not stop the application."""
    try:
        os.write(descriptor, f"{text}\n".encode())
    except OSError:
        return


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; ends the process with status 1 and one line when the port cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        sys.exit(f"cannot listen on {host}:{port}: {reason.lower()}")


def port_number(text: str) -> int:
    """A port from the command line; 0 lets the system choose."""
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port (0 to 65535)")
    return int(text)


def options() -> argparse.ArgumentParser:
    """The command line that both ports need."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=port_number, default=8001, help="HTTP")
    parser.add_argument("--line-port", type=port_number, default=8101, help="the line protocol")
    parser.add_argument("--host", default="127.0.0.1", help="numeric address to listen on")
    parser.add_argument("--name", default="app", help="what it calls itself in its answers")
    parser.add_argument("--heap", type=int, default=256, metavar="MB", help="/fault/leak ends it with 3 beyond this")
    return parser


def end_on_signals(app: App) -> None:
    """Let the signals that end a JVM ask `app.end_by`, and SIGQUIT write a dump of all threads to stdout."""
    faulthandler.register(signal.SIGQUIT, file=STDOUT)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # what we were told to ignore stays ignored
            signal.signal(signum, lambda number, _: app.end_by(number))


def serve(app: App, host: str, port: int, line_port: int, is_ready: Callable[[], None] = lambda: None) -> NoReturn:
    """Listen on both ports, say `ready` on stdout, call `is_ready`, and serve until a signal ends the process."""
    threading.stack_size(512 * 1024)
    woken, wake = os.pipe()  # a signal that comes just before the main thread waits would be lost without it
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    http, lines = listen(host, port), listen(host, line_port)
    Acceptors(http, app.serve_http).start_one()
    Acceptors(lines, app.serve_lines).start_one()
    ports = f"http={host}:{http.getsockname()[1]} line={host}:{lines.getsockname()[1]}"
    say(f"ready name={app.name} pid={os.getpid()} {ports}")
    is_ready()
    while True:
        os.read(woken, 1024)


def main() -> NoReturn:
    """Run the application that the command line describes."""
    args = options().parse_args()
    app = App(args.name, args.heap)
    end_on_signals(app)
    serve(app, args.host, args.port, args.line_port)


if __name__ == "__main__":
    main()
