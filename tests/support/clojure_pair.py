"""A daemon with a pair of the Clojure application, as demo/clojure configures it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import clojure_app
from tests.support.pair import CHECKOUT, CLOJARSCTL, Pair
from tests.support.waiting import PATIENCE


@dataclass
class ClojurePair(Pair):
    """A pair below `home`, and the git repository that it deploys from, which is this pair's own.

    Args:
        first: the release that is there before the daemon starts, as if put there by hand; None for none. Without one,
            the block begins when the daemon takes orders.
        real_builds: leave building to leiningen; else what it did once for the same sources comes from a cache.
        rewrite: changes the text of the configuration, which is that of demo/clojure otherwise.

    Attributes:
        http, nailgun: ports of the frontends.
        repository: directory of what was uploaded.
    """

    first: str | None = "1.0.0"
    real_builds: bool = False
    rewrite: Callable[[str], str] = str

    def __post_init__(self) -> None:
        super().__post_init__()
        shutil.copytree(clojure_app.repository(), self.home / "clojars-web")
        command = [sys.executable, clojure_app.MAKE_REPOSITORY, self.home, "--config"]
        subprocess.run([str(word) for word in command], check=True)
        settings = tomllib.loads(self.config.read_text())
        fronts = {name: int(front["listen"].split(":")[1]) for name, front in settings["frontends"].items()}
        self.http, self.nailgun = fronts["http"], fronts["nailgun"]
        self.repository = self.home / "repository"
        self.releases = self.home / "releases"
        text = self.config.read_text()
        if not self.real_builds:
            lein = ", ".join(f'"{word}"' for word in clojure_app.CACHED_LEIN)
            text = text.replace('["lein", ', f"[{lein}, ")
        # what the kernel is told belongs to the whole machine; steered deploys have tests in mounts of their own
        text = text.replace('mode     = "auto"', 'mode     = "relay"')
        text = text.replace('"-Xmx256m"', '"-Xmx128m", "-XX:TieredStopAtLevel=1"')
        self.config.write_text(self.rewrite(text))
        if self.first is not None:
            self.put(self.first)

    def write_config(self) -> Path:
        return self.config

    def put(self, tag: str) -> Path:
        """Bring the release of a tag in by hand, as before there was a deploy."""
        jar = clojure_app.uberjar(tag)
        shutil.copyfile(jar, self.releases / jar.name)
        (self.releases / ".new").symlink_to(jar.name)
        os.rename(self.releases / ".new", self.releases / "clojars-web-current.jar")
        return self.releases / jar.name

    def __enter__(self) -> ClojurePair:
        if self.first is not None:
            super().__enter__()
        else:
            self.begin()
        return self

    @property
    def current(self) -> str | None:
        """The name of the release that the link leads to."""
        link = self.releases / "clojars-web-current.jar"
        return os.readlink(link) if link.is_symlink() else None

    def running(self) -> dict[str, Any]:
        """The release that each instance runs, by role."""
        return {role: seen["release"] for role, seen in self.status()["instances"].items()}

    def order(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """clojarsctl with an order that may take as long as a deploy."""
        return subprocess.run(
            [str(CLOJARSCTL), "--socket", str(self.socket), *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE + clojure_app.BUILT_S,
            cwd=CHECKOUT,
            check=False,
        )
