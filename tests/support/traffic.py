"""Traffic that goes on while something happens: pages and uploads of the Clojure application, each of them counted.

    with Traffic(http=8080, nailgun=8700, home=tmp_path) as traffic:
        ...                                  # a deploy
        traffic.go_on()                      # until each kind has succeeded some more
    assert traffic.failures == []
    assert traffic.lost_from(repository) == []

Kinds: `fresh`, a page over a new connection; `kept`, a page over one connection that pauses between two; `upload`, a
file over the nailgun port; `scp`, a file by the real programs through a private sshd.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from bench import scp
from tests.support import nailgun_client
from tests.support.clojure_app import SOURCE
from tests.support.nailgun_client import NailgunEnded
from tests.support.pair import connection, get, was_left
from tests.support.waiting import PATIENCE

PAGES = ("/version", "/", "/search?q=jar", "/health")
LARGEST_UPLOAD = 20_000
PAUSE_S = 0.02
UPLOAD_PAUSE_S = 0.05
SCP_PAUSE_S = 0.2
"""Each scp makes half a dozen processes: without a pause nobody else would have much of the processors."""
KEPT_PAUSE_S = 0.7
"""Longer than `drain_idle` of the pair: a client that never pauses for so long is waited for until `drain` is over."""


@dataclass(frozen=True)
class Failure:
    """One request or upload that did not succeed. what: page or file; began, ended: monotonic seconds."""

    kind: str
    what: str
    error: str
    began: float
    ended: float


@dataclass(frozen=True)
class Success:
    """One that did. said: what `/version` has answered, else empty."""

    kind: str
    what: str
    said: str
    began: float
    ended: float


class Traffic:
    """Clients in threads of their own, from the first line of the block to its end.

    Args:
        http: port of the pages, or None for no such clients.
        nailgun: port of the uploads, or None.
        home: an empty directory; with `ssh`, uploads come through a private sshd as well.
        uploaders: how many send files over the nailgun port at a time.

    Attributes:
        successes, failures: everything that has come to its end, in that order.
        acknowledged: the SHA-256 of each file that was acknowledged, by name.
        versions: what `/version` has answered over new connections, each run of the same answer once. One that is kept
            may lead to the instance of before for a while longer.
        counts: how many have succeeded, by kind.
        retries: how many pages over a kept connection, which was closed while the request was on its way, were asked
            for once more over a new one, as every client of HTTP does it.
    """

    def __init__(
        self, *, http: int | None, nailgun: int | None, home: Path, ssh: bool = False, uploaders: int = 2
    ) -> None:
        self._http = http
        self._nailgun = nailgun
        self._home = home
        self._ssh = ssh
        self._over = threading.Event()
        self._changed = threading.Condition()
        self._stack = ExitStack()
        self._threads: list[threading.Thread] = []
        self._uploaders = uploaders
        self._ended: Counter[str] = Counter()
        self.successes: list[Success] = []
        self.failures: list[Failure] = []
        self.acknowledged: dict[str, str] = {}
        self.versions: list[str] = []
        self.counts: Counter[str] = Counter()
        self.retries = 0

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=loop) for loop in self._loops()]
        for thread in self._threads:
            thread.start()
        try:
            self.go_on()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Let each come to its end, and start no more."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._stack.close()

    # What has been seen.

    def longest_gap(self, kind: str) -> float:
        """The longest time in seconds in which none of this kind succeeded."""
        ends = [success.ended for success in list(self.successes) if success.kind == kind]
        return max((after - before for before, after in itertools.pairwise(ends)), default=0.0)

    def slowest(self, kind: str) -> float:
        """The longest that one of this kind took, in seconds."""
        return max((one.ended - one.began for one in list(self.successes) if one.kind == kind), default=0.0)

    def lost_from(self, repository: Path) -> list[str]:
        """Names that were acknowledged and are not in the repository's directory as they were sent."""
        return [name for name, digest in sorted(self.acknowledged.items()) if _digest(repository / name) != digest]

    def go_on(self, more: int = 3) -> None:
        """Return when each kind has come to its end so many times more, whether well or not."""
        with self._changed:
            target = {kind: self._ended[kind] + more for kind in self._kinds()}
            came = self._changed.wait_for(
                lambda: all(self._ended[kind] >= count for kind, count in target.items()), PATIENCE
            )
        assert came, (self.counts, self.failures[-5:])

    def until_version(self, version: str) -> None:
        """Return when `/version` answers this."""
        with self._changed:
            came = self._changed.wait_for(lambda: self.versions[-1:] == [version], PATIENCE)
        assert came, (self.versions, self.failures[-5:])

    # The loops.

    def _kinds(self) -> set[str]:
        kinds = {"fresh", "kept"} if self._http is not None else set()
        kinds |= {"upload"} if self._nailgun is not None else set()
        return kinds | ({"scp"} if self._ssh else set())

    def _loops(self) -> list[Callable[[], None]]:
        loops: list[Callable[[], None]] = []
        if self._http is not None:
            loops += [partial(self._fresh, self._http), partial(self._kept, self._http)]
        if self._nailgun is not None:
            loops += [partial(self._send, self._nailgun, number) for number in range(self._uploaders)]
            if self._ssh:
                (home := self._home / "sshd").mkdir()
                program = {"pair": f"{SOURCE / 'receive'} {self._nailgun}"}
                loops.append(partial(self._copy, self._stack.enter_context(scp.serving(home, program))))
        return loops

    def _fresh(self, port: int) -> None:
        for page in itertools.cycle(PAGES):
            self._count("fresh", page, partial(_ask_once, port, page))
            if self._over.wait(PAUSE_S):
                return

    def _kept(self, port: int) -> None:
        with ExitStack() as stack:
            opened = stack.enter_context(connection(port))
            for page in itertools.cycle(PAGES):
                if was_left(opened):
                    opened.close()  # the next request opens it anew
                self._count("kept", page, partial(self._ask_kept, opened, page))
                if self._over.wait(KEPT_PAUSE_S):
                    return

    def _ask_kept(self, opened: http.client.HTTPConnection, page: str) -> str:
        used = opened.sock is not None
        try:
            return get(opened, page).decode()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            opened.close()
            if not used:
                raise
            self.retries += 1
            return get(opened, page).decode()
        except BaseException:
            opened.close()  # what is left of an answer is not the next one's
            raise

    def _send(self, port: int, sender: int) -> None:
        chance = random.Random(sender)
        for number in itertools.count():
            name, content = f"n{sender}-{number}.jar", chance.randbytes(chance.randrange(LARGEST_UPLOAD))
            acknowledge = partial(self._note, name, content)
            send = partial(nailgun_client.upload, port, name, content, acknowledge=acknowledge)
            self._count("upload", name, send)
            if self._over.wait(UPLOAD_PAUSE_S):
                return

    def _copy(self, sshd: scp.Sshd) -> None:
        chance = random.Random("scp")
        for number in itertools.count():
            name, content = f"scp-{number}.jar", chance.randbytes(chance.randrange(LARGEST_UPLOAD))
            (file := self._home / name).write_bytes(content)
            self._count("scp", name, partial(_copy_once, sshd, file, partial(self._note, name, content)))
            file.unlink()
            if self._over.wait(SCP_PAUSE_S):
                return

    def _note(self, name: str, content: bytes) -> None:
        self.acknowledged[name] = hashlib.sha256(content).hexdigest()

    def _count(self, kind: str, what: str, attempt: Callable[[], str | None]) -> None:
        began = time.monotonic()
        try:
            answer = attempt()
        except (OSError, http.client.HTTPException, NailgunEnded, subprocess.SubprocessError, AssertionError) as error:
            with self._changed:
                self.failures.append(Failure(kind, what, repr(error), began, time.monotonic()))
                self._ended[kind] += 1
                self._changed.notify_all()
            return
        said = (answer or "").strip() if what == "/version" else ""
        with self._changed:
            self.successes.append(Success(kind, what, said, began, time.monotonic()))
            self.counts[kind] += 1
            self._ended[kind] += 1
            if said and kind == "fresh" and self.versions[-1:] != [said]:
                self.versions.append(said)
            self._changed.notify_all()


def _ask_once(port: int, page: str) -> str:
    with connection(port) as opened:
        return get(opened, page).decode()


def _copy_once(sshd: scp.Sshd, file: Path, acknowledge: Callable[[], None]) -> None:
    """Copy by scp; fails with its words when it fails."""
    ran = subprocess.run(
        sshd.command("pair", file, "127.0.0.1:"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, f"scp ended with {ran.returncode}: {ran.stderr}"
    acknowledge()


def _digest(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
