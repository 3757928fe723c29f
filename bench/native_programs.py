"""The programs of the benches that are in C: clients and a server as slow as Python would be what is measured.

They are compiled into `build/bench` when they are not there or are older than their source.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).with_name("native")
BUILT = Path(__file__).parents[1] / "build" / "bench"
NAILGUN = Path("/usr/share/java/nailgun-server.jar")
LOAD_TIMEOUT_S = 3600.0


def compiled(name: str) -> Path:
    """The program made of `native/NAME.c`. Ends the bench where there is no compiler."""
    program, sources = BUILT / name, (SOURCES / f"{name}.c", SOURCES / "common.h")
    if program.exists() and all(source.stat().st_mtime < program.stat().st_mtime for source in sources):
        return program
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit(f"cannot compile {sources[0]}: there is no cc; `tools/setup bench` gets one")
    BUILT.mkdir(parents=True, exist_ok=True)
    fresh = program.with_name(f"{name}.{os.getpid()}")
    made = subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-pthread", "-o", str(fresh), str(sources[0])],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise SystemExit(f"cannot compile {sources[0]}:\n{made.stderr}")
    fresh.replace(program)
    return program


def java_command(*words: str, nailgun: bool = False) -> list[str]:
    """What runs `java/BenchInstance.java` with these options. Ends the bench where there is no JDK or no nailgun."""
    source, classes = SOURCES.with_name("java") / "BenchInstance.java", BUILT / "java"
    made = classes / "BenchInstance.class"
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        if shutil.which("javac") is None or not NAILGUN.exists():
            raise SystemExit(f"cannot compile {source}: no javac, or no {NAILGUN}; `tools/setup bench` gets both")
        subprocess.run(["javac", "-cp", str(NAILGUN), "-d", str(classes), str(source)], check=True)
    path = f"{classes}:{NAILGUN}" if nailgun else str(classes)
    return ["java", "-Xmx128m", "-cp", path, "BenchInstance", *words]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one run of `native/load.c` has seen.

    Attributes:
        done: requests answered, or bytes carried.
        failed: requests without their whole answer.
        seconds: that it took.
        cpu: seconds of CPU that the client itself took.
        p50, p99: seconds from a question to its answer; 0 for bulk.
    """

    done: int
    failed: int
    seconds: float
    cpu: float
    p50: float = 0.0
    p99: float = 0.0

    @property
    def rate(self) -> float:
        """Requests or bytes a second."""
        return self.done / self.seconds


def load(port: int, *words: object) -> Loaded:
    """Put a load on a port of this machine and return when it is over."""
    command = [str(compiled("load")), str(port), *map(str, words)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_TIMEOUT_S, check=False)
    if shown.returncode:
        raise SystemExit(f"{' '.join(command)}: {shown.stderr.strip()}")
    return Loaded(**json.loads(shown.stdout))


def sound_load(port: int, *words: object) -> Loaded:
    """The same; ends the bench if any request has failed: its figures would say nothing."""
    seen = load(port, *words)
    if seen.failed:
        raise SystemExit(f"{seen.failed} requests on port {port} failed ({' '.join(map(str, words))})")
    return seen
