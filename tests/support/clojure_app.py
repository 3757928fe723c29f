"""The Clojure application of demo/clojure: its git repository, its releases, and a process of it.

Repository and jars are made once and kept in build/, by the digest of what they are made from, so that not every test
pays for a build. Who tests the building itself calls `lein` in a directory of its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from clojarsd.system.sockets import free_ports
from tests.support import lein_cached
from tests.support.real import unavailable
from tests.support.waiting import PATIENCE

CHECKOUT = Path(__file__).parents[2]
SOURCE = CHECKOUT / "demo" / "clojure"
MAKE_REPOSITORY = SOURCE / "make-repository"
LIBRARIES = Path("/usr/share/maven-repo")
NEEDED = ("ring/ring-jetty-adapter", "compojure/compojure", "hiccup/hiccup", "com/martiansoftware/nailgun-server")
GOOD = ("1.0.0", "1.1.0", "1.2.0")
CACHE = CHECKOUT / "build" / "clojure-app"
CACHED_LEIN = (sys.executable, str(Path(lein_cached.__file__)), str(CACHE / "lein"))
"""In place of `lein` in a configuration: what was built once comes from the cache."""
BUILT_S = 300.0
"""A build takes ten seconds on a machine that has time."""
JAVA = ("java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-Djava.security.manager=allow")


def needed() -> None:
    """Return where the application can be built; skip the test elsewhere."""
    missing = [program for program in ("git", "lein", "java") if shutil.which(program) is None]
    missing += [name for name in NEEDED if not (LIBRARIES / name).is_dir()]
    if missing:
        unavailable(f"the Clojure application needs {', '.join(missing)}")


def repository() -> Path:
    """The git repository, which nobody must change: whoever moves a tag makes one of its own."""
    needed()
    sources = (MAKE_REPOSITORY, *(SOURCE / "tags").iterdir(), *(SOURCE / "clojars-web").rglob("*"))
    digest = hashlib.sha256()
    for path in sorted(path for path in sources if path.is_file() and "target" not in path.parts):
        digest.update(f"{path.relative_to(SOURCE)}\0{os.access(path, os.X_OK)}\0".encode() + path.read_bytes())
    found = CACHE / "repositories" / digest.hexdigest()[:20]
    found.parent.mkdir(parents=True, exist_ok=True)
    with lein_cached.locked(found.with_suffix(".lock")):
        if not found.exists():
            with tempfile.TemporaryDirectory(dir=found.parent) as scratch:
                subprocess.run([sys.executable, MAKE_REPOSITORY, scratch], check=True)
                (Path(scratch) / "clojars-web").rename(found)
    return found


def uberjar(tag: str) -> Path:
    """The one artefact of a release, under the name that the build has given to it."""
    source = repository()
    with tempfile.TemporaryDirectory() as scratch:
        entry = lein_cached.cached(CACHE / "lein", check_out(source, tag, Path(scratch) / "checkout"), ["uberjar"])
    assert (entry / "status").read_text() == "0", (entry / "output").read_text()
    (found,) = (entry / "made").glob("*/*-standalone.jar")
    return found


def check_out(source: Path, tag: str, into: Path) -> Path:
    """A clone in a new directory, with the commit of the tag checked out."""
    trusted = ["git", "-c", "safe.directory=*", "-c", "advice.detachedHead=false"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    for words in (
        ["clone", "--quiet", "--no-hardlinks", "--no-checkout", f"file://{source}", str(into)],
        ["-C", str(into), "checkout", "--quiet", "--detach", f"refs/tags/{tag}"],
    ):
        subprocess.run([*trusted, *words], env=environment, check=True, capture_output=True)
    return into


def lein(directory: Path, *words: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """What leiningen says there, both its outputs in one; with a home of its own and nothing of our environment.

    prefix: of the command line, as what makes it another user or takes the network away.
    """
    home = directory.parent / "home"
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [*prefix, "lein", *words],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=BUILT_S,
        check=False,
    )


class Application:
    """One process of a release, which is alone.

    Attributes:
        http, nailgun: its ports.
        repository: where its uploads go.
    """

    def __init__(self, jar: Path, home: Path, *more: str) -> None:
        self._jar = jar
        self._log = home / "application.log"
        self.repository = home / "repository"
        self.http, self.nailgun = free_ports(2)
        self._more = more
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, and return at once."""
        words = ["--port", str(self.http), "--nailgun-port", str(self.nailgun), "--repository", str(self.repository)]
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                [*JAVA, "-jar", str(self._jar), *words, *self._more],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self

    def __enter__(self) -> Self:
        self.start()
        try:
            self.until_healthy()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def until_healthy(self) -> None:
        """Return when it is; fail when it has ended."""
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE
        while self.health() != 200:
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def health(self) -> int | None:
        """The status of `/health`, None where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/health", timeout=PATIENCE) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return None

    def page(self, path: str) -> str:
        """What it answers, with status 200."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=PATIENCE) as answer:
            return str(answer.read().decode())

    def stored(self) -> dict[str, bytes]:
        """The files that are there to be seen, by path."""
        return {
            str(path.relative_to(self.repository)): path.read_bytes()
            for path in sorted(self.repository.rglob("[!.]*"))
            if path.is_file() and ".incoming" not in path.parts
        }

    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")

    def terminate(self) -> int:
        """Ask it to end; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
