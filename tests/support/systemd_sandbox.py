"""A real systemd, booted as PID 1 of throw-away namespaces over a copy-on-write view of this machine.

Nothing of the machine outside is changed, see systemd_sandbox.sh; the network is a private loopback. Needs root, and
Debian's systemd, util-linux and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.support.inside import Inside

BOOT_S = 60.0
"""How long the boot may take; half a second is usual."""
SYSTEMD = Path("/usr/lib/systemd/systemd")
STEPS = Path(__file__).with_suffix(".sh")
NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")


def missing_for_sandbox() -> str | None:
    """Why no sandbox can be booted here, or None when one can."""
    if os.geteuid() != 0:
        return "not root"
    if not SYSTEMD.exists():
        return "Debian's systemd is not installed"
    lacking = [name for name in ("unshare", "nsenter", "ip", "pivot_root") if shutil.which(name) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    if _cgroup2_mount() is None:
        return "no cgroup2 hierarchy is mounted"
    tried = subprocess.run(["unshare", *NAMESPACES, "--fork", "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else None


class Sandbox(Inside):
    """A running one. Made by `boot`, which also ends it."""

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs `arguments` inside, as root."""
        # entering the mount namespace makes its root the working directory; --wd=/ would leave it in the machine's
        return ["nsenter", "--target", str(self.pid), *NAMESPACES, "--", *arguments]


@contextlib.contextmanager
def boot(directory: Path, units: Mapping[str, str], shared: Sequence[Path] = ()) -> Iterator[Sandbox]:
    """A sandbox whose boot is complete; when the block is left all its processes, mounts and cgroups are gone.

    Args:
        directory: an empty one, which may go into a Unix socket's address.
        units: the files for /etc/systemd/system, text by relative name (`x.service`, `x.service.d/test.conf`).
        shared: directories that must be visible inside; those on the root file system are anyway.
    """
    work, unit_files, notify = (directory / name for name in ("work", "units", "notify"))
    for path in (work, unit_files, notify):
        path.mkdir()
    for name, text in units.items():
        (unit_files / name).parent.mkdir(parents=True, exist_ok=True)
        (unit_files / name).write_text(text)
    elsewhere = [str(path) for path in shared if path.stat().st_dev != Path("/").stat().st_dev]
    with (
        _cgroup() as cgroup,
        _notify_socket(notify / "notify") as listener,
        (directory / "boot.log").open("w+b") as log,
    ):
        # the shell enters the cgroup first: the new cgroup namespace starts where its maker is
        enter = 'echo $$ > "$0/cgroup.procs"; exec "$@"'
        steps = ["bash", str(STEPS), str(work), str(unit_files), str(notify), *elsewhere]
        outer = subprocess.Popen(
            ["sh", "-ec", enter, str(cgroup), "unshare", *NAMESPACES, "--fork", "--kill-child", *steps],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        )
        try:
            pid = _wait_for_boot(outer, listener)
            if pid is None:
                log.seek(0)
                raise AssertionError(f"systemd did not boot:\n{log.read().decode(errors='replace')}")
            sandbox = Sandbox(pid)
            # it goes on to tell of its jobs, and would wait for ever for room in a queue that nobody reads
            listener.close()
            yield sandbox
        finally:
            # its child, PID 1 of the sandbox, dies with it and takes all others along
            outer.kill()
            outer.wait()
            _await_empty(cgroup)


def _wait_for_boot(outer: subprocess.Popen[bytes], listener: socket.socket) -> int | None:
    """The pid, as seen here, of the systemd that has said READY=1; None when it ended or took longer than BOOT_S."""
    deadline = time.monotonic() + BOOT_S
    ended = os.pidfd_open(outer.pid)
    try:
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([listener.fileno(), ended], [], [], left)
            if listener.fileno() in readable:
                text, ancillary, _, _ = listener.recvmsg(4096, socket.CMSG_SPACE(struct.calcsize("3i")))
                if b"READY=1" in text.splitlines():
                    pid: int = struct.unpack("3i", ancillary[0][2])[0]
                    return pid
            elif ended in readable:
                return None
    finally:
        os.close(ended)
    return None


@contextlib.contextmanager
def _notify_socket(path: Path) -> Iterator[socket.socket]:
    """Where systemd will say that it is up; the kernel adds who said it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        # bound by way of its directory: the whole path may be longer than an address can be
        directory = os.open(path.parent, os.O_PATH)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        yield listener


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    """A new cgroup below our own, removed afterwards with all that systemd made in it."""
    own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    mount = _cgroup2_mount()
    assert mount is not None
    path = mount / own.removeprefix("0::").lstrip("/") / f"clojarsd-sandbox-{secrets.token_hex(6)}"
    path.mkdir()
    try:
        yield path
    finally:
        for directory, _, _ in os.walk(path, topdown=False):
            Path(directory).rmdir()


def _cgroup2_mount() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            return Path(mount.split()[4])
    return None


def _await_empty(cgroup: Path) -> None:
    """Return when no process is left in the cgroup: the kernel reaps a namespace a moment after its PID 1."""
    (cgroup / "cgroup.kill").write_text("1")
    events = (cgroup / "cgroup.events").open()
    with events, contextlib.closing(select.epoll()) as poller:
        poller.register(events, select.EPOLLPRI)
        deadline = time.monotonic() + BOOT_S
        while "populated 1" in events.read():
            left = deadline - time.monotonic()
            assert left > 0, f"processes are left in {cgroup}"
            poller.poll(left)
            events.seek(0)
