"""Releases that a real JVM runs: the demo's Java application as a jar."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.pair import CHECKOUT, Pair
from tests.support.real import unavailable

JAVA_OPTIONS = ("-Xmx64m", "-XX:TieredStopAtLevel=1")


def needs_jdk() -> None:
    """Skip, or fail where real parts are asked for, without a JDK."""
    for program in ("java", "javac", "jar"):
        if shutil.which(program) is None:
            unavailable(f"there is no {program} on this machine")


def build_jar(directory: Path) -> Path:
    """The application, compiled and packed there."""
    needs_jdk()
    classes, jar = directory / "classes", directory / "app.jar"
    subprocess.run(["javac", "-d", str(classes), str(CHECKOUT / "demo" / "App.java")], check=True)
    subprocess.run(["jar", "--create", "--file", str(jar), "--main-class", "App", "-C", str(classes), "."], check=True)
    return jar


def other_java() -> str | None:
    """The `java` of another JDK than the one on PATH, or None."""
    usual = shutil.which("java")
    homes = sorted(Path("/usr/lib/jvm").glob("*/bin/java"))
    return next((str(one) for one in homes if usual and os.path.realpath(one) != os.path.realpath(usual)), None)


def pair_of_jars(
    home: Path, jar: Path, *, cds: bool = True, java: str = "java", command: tuple[str, ...] = (), app: str = ""
) -> Pair:
    """A pair of JVMs that run the current release, `1.jar`.

    Args:
        command: what is run instead of `java`; `{release}` is the jar.
    """
    releases = home / "releases"
    releases.mkdir()
    put_release(releases, jar, "1.jar")
    arguments = ("--port", "{port.http}", "--line-port", "{port.line}", "--name", "{role}")
    deploy = f"""
[deploy]
repository = "{home}/origin"
work_dir = "{home}/builds"
releases = "{releases}"
current = "current.jar"
cds = {str(cds).lower()}
soak = "0s"
keep = 0
"""
    wanted = command or (java, *JAVA_OPTIONS, "-jar", "{release}", *arguments)
    return Pair(home, command=wanted, app=app, backup_extra=deploy)


def put_release(releases: Path, jar: Path, name: str) -> None:
    """A release of that name, which the link names from now on."""
    shutil.copy(jar, releases / name)
    (releases / "next").symlink_to(name)
    (releases / "next").rename(releases / "current.jar")
