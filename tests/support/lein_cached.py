"""`lein_cached.py CACHE WORD...`: what `lein WORD...` does in the working directory, once for the same sources.

The second time its output, its exit status and the jars that it made come from the cache, in a tenth of a second where
leiningen takes ten. Failures are remembered too: sources that do not compile never do. Only for tests that are about
something else than the build. Nobody needs anything but Python to run it, and where the cache may not be written to,
leiningen runs each time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

MADE = ("target", "out")
"""Where the releases of the application leave what they make."""


def main() -> None:
    """Run as a program."""
    directory = Path.cwd()
    entry = cached(Path(sys.argv[1]), directory, sys.argv[2:])
    sys.stdout.buffer.write((entry / "output").read_bytes())
    sys.stdout.buffer.flush()
    for made in (entry / "made").iterdir():
        (directory / made.name).mkdir(exist_ok=True)
        for jar in made.iterdir():
            shutil.copyfile(jar, directory / made.name / jar.name)
    sys.exit(int((entry / "status").read_text()))


def cached(cache: Path, directory: Path, words: Sequence[str]) -> Path:
    """The entry for these sources and words, which is made if need be.

    It has `output`, `status`, and in `made` the directories with the jars.
    """
    cache.mkdir(parents=True, exist_ok=True)
    entry = cache / key_of(directory, words)
    with locked(entry.with_suffix(".lock")):
        if not entry.exists():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                fill(Path(scratch) / "entry", directory, words)
                (Path(scratch) / "entry").rename(entry)
    return entry


def fill(entry: Path, directory: Path, words: Sequence[str]) -> None:
    """Run leiningen on a copy of the sources, and write down what became of it."""
    sources, home = entry.with_name("sources"), entry.with_name("home")
    shutil.copytree(directory, sources, ignore=shutil.ignore_patterns(".git", *MADE))
    home.mkdir()
    ran = subprocess.run(
        ["lein", *words],
        cwd=sources,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    (entry / "made").mkdir(parents=True)
    (entry / "output").write_bytes(ran.stdout)
    (entry / "status").write_text(str(ran.returncode))
    for name in MADE:
        (entry / "made" / name).mkdir()
        for jar in (sources / name).glob("*.jar"):
            jar.rename(entry / "made" / name / jar.name)


def key_of(directory: Path, words: Sequence[str]) -> str:
    """A name for these sources and words."""
    digest = hashlib.sha256("\0".join(words).encode())
    for path in sorted(directory.rglob("*")):
        within = path.relative_to(directory)
        if path.is_file() and within.parts[0] not in (".git", *MADE):
            content = path.read_bytes()
            digest.update(f"\0{within}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:20]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else makes the same meanwhile."""
    with path.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main()
