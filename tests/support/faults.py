"""What a fault costs the clients of a pair: the load that counts it, and the row of the table that says it."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from tests.support.pair import Clients, Failure, Pair, connection
from tests.support.waiting import PATIENCE

BULK = 256_000_000
"""Bytes of a large transfer, unless a scene says otherwise."""
PERIOD = 251
"""Byte i of the application's `/bytes` is i modulo this."""
SIP = 65536
SIP_PAUSE = 0.005
"""Seconds between two sips of a transfer that is to last."""


class CannotInject(Exception):
    """This machine or this user does not let the fault happen; says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row of the table.

    Attributes:
        failed: requests that got no whole answer, of so many that were made.
        seconds: from the fault, or from its end where that is ours to decide, until everything is as before; or None.
    """

    fault: str
    happened: str
    failed: int
    asked: int
    seconds: float | None


@dataclass(slots=True)
class Scene:
    """One fault, where it takes place, and what came of it.

    Attributes:
        bulk: bytes of a large transfer.
        mode: of the frontend `http`; `steer` and `auto` need namespaces of their own.
        outcomes: one row, when it is over.
    """

    fault: str
    home: Path
    bulk: int = BULK
    mode: str = "relay"
    outcomes: list[Outcome] = field(default_factory=list)

    def pair(self, **options: Any) -> Pair:
        """The pair to which it happens."""
        return Pair(self.home, mode=self.mode, **options)

    @property
    def is_steered(self) -> bool:
        """Whether the kernel gives the clients of `http` to the instances."""
        return self.mode != "relay"

    def tell(self, load: Load, happened: str, seconds: float | None, *, failed: int | None = None) -> None:
        """Add a row. The load has ended.

        Args:
            failed: how many of the requests were not answered that somebody should have answered; None: all of them.
        """
        failed = load.failed if failed is None else failed
        self.outcomes.append(Outcome(self.fault, happened, failed, load.answered + failed, seconds))


Act = Callable[[Scene], None]


class Faults:
    """The faults of one kind, in the order in which they are written down."""

    def __init__(self) -> None:
        self.acts: dict[str, Act] = {}

    def __call__(self, name: str) -> Callable[[Act], Act]:
        """Let the function be the scenario of the fault."""

        def add(act: Act) -> Act:
            self.acts[name] = act
            return act

        return add


class Load:
    """Clients of a pair's frontend `http`: some with a connection for each request, some that keep theirs.

    Args:
        inside: so many slow requests, of so many milliseconds, are inside the primary when the block begins.
        pause, kept_pause: seconds between two requests of a client of either kind.

    Attributes:
        fresh, kept: both kinds.
        cut: slow requests that got no whole answer; known when the block has ended.
    """

    def __init__(
        self,
        pair: Pair,
        *,
        fresh: int = 2,
        kept: int = 4,
        inside: int = 0,
        slow_ms: int = 60_000,
        pause: float = 0.02,
        kept_pause: float = 0.02,
    ) -> None:
        self._pair = pair
        self._counts = fresh, kept
        self._inside = inside
        self._slow_ms = slow_ms
        self._waiting: list[http.client.HTTPConnection] = []
        self._stack = ExitStack()
        self.fresh = Clients(pair.http, fresh, pause=pause)
        self.kept = Clients(pair.http, kept, keep_alive=True, pause=kept_pause)
        self.cut = 0

    def __enter__(self) -> Self:
        self._pair.until(is_normal)
        with ExitStack() as stack:
            for _ in range(self._inside):
                opened = stack.enter_context(connection(self._pair.http))
                opened.request("GET", f"/slow?ms={self._slow_ms}")
                self._waiting.append(opened)
            self._pair.until(lambda seen: seen["frontends"]["http"]["connections"]["primary"] == self._inside)
            stack.enter_context(self.fresh)
            stack.enter_context(self.kept)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        with self._stack:
            for opened in self._waiting if kind is None else ():
                try:
                    assert opened.getresponse().read().endswith(f" after {self._slow_ms} ms\n".encode())
                except (OSError, http.client.HTTPException):
                    self.cut += 1

    @property
    def failures(self) -> list[Failure]:
        return self.fresh.failures + self.kept.failures

    @property
    def errors(self) -> Counter[str]:
        """What went wrong, and how often."""
        return Counter(failure.error for failure in self.failures)

    @property
    def answered(self) -> int:
        """Requests that got their answer; known when the block has ended."""
        return len(self.fresh.answers) + len(self.kept.answers) + self._inside - self.cut

    @property
    def failed(self) -> int:
        """Requests that got none; known when the block has ended."""
        return len(self.failures) + self.cut

    @property
    def reopened(self) -> int:
        """Connections that were to stay and had to be made again."""
        return self.kept.connections - self._counts[1]

    def prove(self) -> None:
        """Return when each kind of client was asked and answered again, whatever was under way before."""
        for clients, count in zip((self.fresh, self.kept), self._counts, strict=True):
            clients.await_answers(count + 2)

    def assert_nothing_lost(self, *, reopened: bool = False) -> None:
        """No request failed, and no connection was even closed.

        Args:
            reopened: save those that are an instance's own, and end with it: at the end of a drain's whole time each
                that was never silent may have one request in hand.
        """
        lost = self.fresh.failures if reopened else self.failures
        assert lost == [], self.errors
        who = [failure.client for failure in self.kept.failures]
        assert len(who) == len(set(who)), self.errors
        assert (self.cut, self.reopened > 0 and not reopened) == (0, False), self.reopened

    def assert_only_inside(self, gone_at: float, refused: bool = False) -> None:
        """What failed was inside what was gone by that instant: all slow requests, and at most one of each client.

        Args:
            refused: there was nobody to connect to for a while; who was refused is not counted here.
        """
        assert self.cut == self._inside
        for clients in (self.fresh, self.kept):
            cut = [one for one in clients.failures if not (refused and "refused" in one.error)]
            who = [failure.client for failure in cut]
            assert len(who) == len(set(who)), self.errors
            if clients is self.fresh:
                assert [one for one in cut if one.began > gone_at] == [], f"all was gone at {gone_at}"

    def names_since(self, instant: float) -> set[str]:
        """The instances that have answered what was asked since then."""
        return {name for clients in (self.fresh, self.kept) for at, name in clients.asked if at > instant}


class Transfer:
    """A download through the frontend that goes on slowly until `finish`, which checks every byte of it."""

    def __init__(self, port: int, length: int) -> None:
        self._port = port
        self._length = length
        self._read = 0
        self._digest = hashlib.sha256()
        self._hurry = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._download)

    def __enter__(self) -> Self:
        self._thread.start()
        self.goes_on()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._hurry.set()
        self._thread.join()

    def goes_on(self) -> None:
        """Return when more has come."""
        before, deadline = self._read, time.monotonic() + PATIENCE
        while self._read <= before:
            assert self._error is None, self._error
            assert time.monotonic() < deadline, f"nothing comes after {before} bytes"
            time.sleep(0.005)

    def finish(self) -> None:
        """Take the rest; all of it is as it should be."""
        assert self._read < self._length, "it has ended before it was wanted"
        self._hurry.set()
        self._thread.join()
        assert self._error is None, self._error
        assert self._read == self._length
        assert self._digest.hexdigest() == expected_digest(self._length)

    def _download(self) -> None:
        try:
            with connection(self._port) as opened:
                opened.request("GET", f"/bytes?n={self._length}")
                answer = opened.getresponse()
                while block := answer.read(SIP if not self._hurry.is_set() else 16 * SIP):
                    self._digest.update(block)
                    self._read += len(block)
                    self._hurry.wait(SIP_PAUSE)
        except BaseException as error:  # told by whoever waits for us
            self._error = error


def expected_digest(length: int) -> str:
    """The SHA-256 of the application's `/bytes?n=LENGTH`."""
    block = bytes(range(PERIOD)) * 4096
    digest = hashlib.sha256()
    for _ in range(length // len(block)):
        digest.update(block)
    digest.update(block[: length % len(block)])
    return digest.hexdigest()


def is_normal(seen: dict[str, Any]) -> bool:
    """Whether both instances can serve, and new connections of every frontend go to the primary."""
    return all(one["eligible"] for one in seen["instances"].values()) and all(
        one["active"] == "primary" for one in seen["frontends"].values()
    )


def until_normal(pair: Pair, since: float, more: Callable[[dict[str, Any]], object] = lambda seen: True) -> float:
    """Seconds since the instant at which everything is as it was before the fault."""
    wanted = "relay" if pair.mode == "relay" else "steer"
    pair.until(lambda seen: is_normal(seen) and seen["frontends"]["http"]["mode"] == wanted and more(seen))
    return time.monotonic() - since


def pids(pair: Pair) -> dict[str, int]:
    """The processes of both instances and of the relay."""
    seen = pair.status()
    found = {role: instance["pid"] for role, instance in seen["instances"].items()}
    return {**found, "relay": seen["daemon"]["relay_pid"]}


def kill(*pids: int) -> float:
    """Kill processes as nobody should; the instant at which everything that they had open was closed."""
    with ExitStack() as stack:
        pidfds = [os.pidfd_open(pid) for pid in pids]
        for pidfd in pidfds:
            stack.callback(os.close, pidfd)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pid, pidfd in zip(pids, pidfds, strict=True):
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            assert poller.poll(PATIENCE * 1000), f"process {pid} outlived SIGKILL"
    return time.monotonic()


def said(pair: Pair, *words: str) -> list[str]:
    """The lines of the daemon's and the relay process's log that hold all of these."""
    return [line for line in pair.daemon_log().splitlines() if all(word in line for word in words)]


def until_said(pair: Pair, *words: str, times: int = 1) -> None:
    """Return when so many lines of the log hold all of these."""
    pair.until_true(lambda: len(said(pair, *words)) >= times, f"{times} x {words}", pair.daemon_log)


def happened(pair: Pair) -> list[str]:
    """The names of all events, oldest first."""
    return [event["event"] for event in pair.events()]


def state(pair: Pair) -> Any:
    """The document in the state file."""
    return json.loads((pair.home / "state" / "state.json").read_text())


def still_runs(process: psutil.Process) -> bool:
    """Whether that very process runs; an ended one that nobody has reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def table(outcomes: Iterable[Outcome]) -> str:
    """The outcomes for people, one to a line."""
    rows = [("fault", "what happened", "failed", "of", "s to normal")]
    for one in outcomes:
        seconds = f"{one.seconds:.2f}" if one.seconds is not None else "-"
        rows.append((one.fault, one.happened, str(one.failed), str(one.asked), seconds))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        texts = [text.ljust(width) for text, width in zip(row[:2], widths, strict=False)]
        numbers = [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(texts + numbers))
    return "\n".join(lines)
