"""`python -m bench.scp`: uploads by real `scp -O` through a private sshd, `ng-nailgun` and a JVM's nailgun port.

ssh's forced command runs nailgun's client, which has a program in the JVM receive the file; its checksum is compared.
The client reaches the JVM directly, through the daemon's relay with `quickack`, or through HAProxy. 10 MB take seven
minutes where nothing is done about Nagle's algorithm and delayed acknowledgements: those ways get a smaller file, and
the seconds for 10 MB are what that scales to, unless `--full` is given. What a file of one byte takes is not scaled.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench import proxies, surroundings
from bench.native_programs import java_command
from bench.pairs import BenchPair, write_json
from bench.proxies import NotThere, find
from clojarsd.system.sockets import free_ports

WHOLE = 10_000_000
SMALL = 250_000
"""Bytes for the ways on which 10 MB take minutes."""
SLOW = ("direct", "haproxy")
WAYS = ("direct", "relay", "haproxy")
PRIVATE_PRIVILEGES = Path("/run/sshd")
"""sshd of root does not start without this directory."""
TIMEOUT_S = 1800.0
SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {home}/host_key
PidFile none
AuthorizedKeysFile {home}/authorized_keys
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
MaxStartups 100
"""


@dataclass(frozen=True, slots=True)
class Upload:
    """One file that came whole.

    Attributes:
        size: bytes.
        seconds: that scp took, from its start to its end.
        session: of these, what a file of one byte took in the same round: logging in, above all.
    """

    size: int
    seconds: float
    session: float

    @property
    def seconds_for_all(self) -> float:
        """What 10 MB take at this rate."""
        return self.session + (self.seconds - self.session) * WHOLE / self.size


@dataclass(frozen=True, slots=True)
class Sshd:
    """A private sshd. Each way has a key of its own, whose command leads that way."""

    home: Path
    port: int

    def command(self, way: str, *words: str | Path) -> list[str]:
        """The command line of scp by that way; `127.0.0.1:NAME` among the words is a place over there."""
        options = {
            "IdentityFile": self.home / way,
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": self.home / "known_hosts",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        settings = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return [find("scp"), "-F", "none", "-O", "-q", "-P", str(self.port), *settings, *map(str, words)]

    def upload(self, way: str, file: Path, name: str) -> float:
        """Seconds that scp takes to upload the file under that name. Ends the bench when scp fails."""
        command = self.command(way, file, f"127.0.0.1:{name}")
        began = time.monotonic()
        shown = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if shown.returncode:
            said = (self.home / "sshd.output").read_text(errors="replace")
            raise SystemExit(f"scp by way of {way} ended with {shown.returncode}: {shown.stderr}\n{said}")
        return time.monotonic() - began


def main() -> None:
    surroundings.begin()
    arguments = parse(sys.argv[1:])
    sizes = {way: WHOLE if arguments.full or way not in SLOW else arguments.small for way in arguments.ways}
    if arguments.size is not None:
        sizes = dict.fromkeys(arguments.ways, arguments.size)
    try:
        uploads = measure(sizes, arguments.rounds)
    except NotThere as reason:
        raise SystemExit(f"cannot measure uploads: {reason}") from None
    picture = summary(uploads)
    print(table(picture))
    write_json(arguments.json, picture)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.scp", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="10 MB by every way: seven minutes for each slow one")
    parser.add_argument("--small", type=int, default=SMALL, help="bytes by the slow ways, without --full")
    parser.add_argument("--size", type=int, help="bytes by every way, instead")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", type=Path, default=Path("build/scp.json"))
    return parser.parse_args(words)


def measure(sizes: Mapping[str, int], rounds: int) -> dict[str, list[Upload]]:
    """By way, the uploads that came whole: one for each round."""
    uploads: dict[str, list[Upload]] = {way: [] for way in sizes}
    chance = random.Random(1)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clojarsd-bench-")))
        (store := home / "store").mkdir()
        ports = opened(home, store, list(sizes), stack)
        client = find("ng-nailgun")
        programs = {
            way: f"exec {client} --nailgun-server 127.0.0.1 --nailgun-port {port} BenchInstance"
            for way, port in ports.items()
        }
        sshd = stack.enter_context(serving(home, programs))
        for number in range(rounds):
            for way in sizes if number % 2 == 0 else reversed(list(sizes)):
                print(f"round {number + 1} of {rounds}: {way}: {sizes[way]:,} bytes", file=sys.stderr)
                session, seconds = (uploaded(sshd, way, chance.randbytes(size), store) for size in (1, sizes[way]))
                uploads[way].append(Upload(sizes[way], seconds, session))
    return uploads


def uploaded(sshd: Sshd, way: str, content: bytes, store: Path) -> float:
    """Seconds that the upload of this content took. Ends the bench when something else came."""
    (file := sshd.home / "upload.jar").write_bytes(content)
    seconds = sshd.upload(way, file, file.name)
    received = (store / file.name).read_bytes()
    if hashlib.sha256(received).digest() != hashlib.sha256(content).digest():
        raise SystemExit(f"{way}: {len(received):,} of {len(content):,} bytes came, or others")
    (store / file.name).unlink()
    return seconds


def opened(home: Path, store: Path, ways: list[str], stack: ExitStack) -> dict[str, int]:
    """The port that each way begins at; all lead to the nailgun port of the pair's primary."""
    words = ["--http", "{port.http}", "--nailgun", "{port.nailgun}", "--role", "{role}", "--store", str(store)]
    (own := home / "daemon").mkdir()
    pair = BenchPair(
        own,
        command=java_command(*words, nailgun=True),
        check_path="/health",
        second_port="nailgun",
        front_port="nailgun",
        frontend_more="quickack = true",
    )
    stack.enter_context(pair).until_ready()
    nailgun = pair.primary[1]
    proxies.await_listening(nailgun)
    found = {"direct": nailgun, "relay": pair.front("relay")}
    if "haproxy" in ways:
        found["haproxy"] = stack.enter_context(proxies.haproxy(home, [nailgun], check=None)).port
    return {way: found[way] for way in ways}


@contextmanager
def serving(home: Path, programs: Mapping[str, str]) -> Iterator[Sshd]:
    """A private sshd; a session with the key of a way runs the program of that way, a line for the shell."""
    (port,), keygen = free_ports(1), find("ssh-keygen")
    lines = []
    for name in ("host_key", *programs):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
        if name in programs:
            lines.append(f'restrict,command="{programs[name]}" {(home / f"{name}.pub").read_text()}')
    (home / "authorized_keys").write_text("".join(lines))
    (home / "sshd_config").write_text(SSHD.format(home=home, port=port))
    command_line = [find("sshd"), "-D", "-e", "-f", str(home / "sshd_config")]
    with privileges(), proxies.running(command_line, home / "sshd.output", port):
        yield Sshd(home, port)


@contextmanager
def privileges() -> Iterator[None]:
    """The directory that sshd of root asks for at every login; it goes again where it was not there.

    Others that run at the same time may need it as well, so each holds a lock on it.
    """
    if os.geteuid():
        yield
        return
    held, made = hold_privileges()
    try:
        yield
    finally:
        if made:
            with suppress(OSError):  # somebody else holds it
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                PRIVATE_PRIVILEGES.rmdir()
        os.close(held)


def hold_privileges() -> tuple[int, bool]:
    """A descriptor of the directory that has a lock on it, and whether we have made it."""
    made = False
    while True:
        with suppress(FileExistsError):
            PRIVATE_PRIVILEGES.mkdir(mode=0o755)
            made = True
        with suppress(FileNotFoundError):  # who has held it has just left
            held = os.open(PRIVATE_PRIVILEGES, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(held, fcntl.LOCK_SH)
            if os.fstat(held).st_nlink:
                return held, made
            os.close(held)


def summary(uploads: Mapping[str, list[Upload]]) -> dict[str, object]:
    ways = {
        way: {
            "bytes": one[0].size,
            "seconds": [upload.seconds for upload in one],
            "session_seconds": [upload.session for upload in one],
            "median_seconds_for_10_mb": statistics.median(upload.seconds_for_all for upload in one),
            "scaled": one[0].size != WHOLE,
        }
        for way, one in uploads.items()
    }
    return {"version": 1, "ways": ways}


def table(picture: Mapping[str, object]) -> str:
    ways = picture["ways"]
    assert isinstance(ways, dict)
    lines = [f"{'scp -O of 10 MB':<20}{'seconds':>12}{'kB/s':>12}{'uploaded':>14}{'took':>10}{'1 byte':>10}"]
    for way, one in ways.items():
        seconds = one["median_seconds_for_10_mb"]
        line = f"{way:<20}{seconds:>12.2f}{WHOLE / 1000 / seconds:>12.1f}"
        line += f"{one['bytes']:>14,}"
        line += "".join(f"{statistics.median(one[key]):>10.2f}" for key in ("seconds", "session_seconds"))
        lines.append(line + ("  scaled to 10 MB" if one["scaled"] else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
