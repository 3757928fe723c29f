"""HAProxy and nginx as plain children, each with a configuration that the bench writes; in the end they are gone.

Both stand in front of one backend, or of a pair: then the second server is a `backup`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clojarsd.system.sockets import free_ports

STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
START_S = 60.0
"""How long a proxy may take until it listens, and to end; generous, since it only decides when to give up."""

HAPROXY = """
global
    nbthread 1
    maxconn 4000
    stats socket {home}/haproxy.sock mode 600 level admin
defaults
    mode tcp
    option splice-auto
    option redispatch
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen bench
    bind 127.0.0.1:{port}
{servers}
"""
NGINX = """
load_module {module};
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {home}/nginx.pid;
error_log {home}/nginx.log warn;
events {{ worker_connections 16000; }}
stream {{
    upstream bench {{
{servers}
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        proxy_pass bench;
        proxy_timeout 1h;
    }}
}}
"""


class NotThere(Exception):
    """A proxy is not installed; the text says what gets it."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that serves. control: HAProxy's socket for orders, None for others."""

    name: str
    port: int
    pid: int
    control: Path | None = None

    def order(self, words: str) -> str:
        """What HAProxy answers to an order on its socket."""
        assert self.control is not None
        with socket.socket(socket.AF_UNIX) as opened:
            opened.connect(str(self.control))
            opened.sendall(f"{words}\n".encode())
            return b"".join(iter(lambda: opened.recv(4096), b"")).decode()


def find(program: str) -> str:
    """The path of a program, also of one for administrators. Raises NotThere."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise NotThere(f"{program} is not there; `tools/setup bench` gets it")
    return found


@contextlib.contextmanager
def haproxy(home: Path, backends: Sequence[int], *, check: str | None = "", port: int | None = None) -> Iterator[Proxy]:
    """HAProxy with one thread in front of these ports. check: see `haproxy_servers`."""
    program, port = find("haproxy"), port or free_ports(1)[0]
    config = home / "haproxy.cfg"
    config.write_text(HAPROXY.format(home=home, port=port, servers=haproxy_servers(backends, check)))
    with running([program, "-db", "-f", str(config)], home / "haproxy.output", port) as pid:
        yield Proxy("haproxy", port, pid, home / "haproxy.sock")


def haproxy_servers(backends: Sequence[int], check: str | None) -> str:
    """The lines of `listen`. check, each second: a path that is asked for; "" for a connect; None for no check."""
    lines = [f"option httpchk GET {check}"] if check else []
    for name, backend in zip(("primary", "backup"), backends, strict=False):
        options = ["check inter 1s"] if check is not None else []
        options += ["backup"] if name == "backup" else []
        lines.append(" ".join(["server", name, f"127.0.0.1:{backend}", *options]))
    return "\n".join(f"    {line}" for line in lines)


@contextlib.contextmanager
def nginx(home: Path, backends: Sequence[int], *, port: int | None = None) -> Iterator[Proxy]:
    """nginx with its stream module and one worker in front of these ports."""
    program, port = find("nginx"), port or free_ports(1)[0]
    if not STREAM_MODULE.exists():
        raise NotThere("nginx has no stream module here; `tools/setup bench` gets it")
    options = ["", " backup"]
    servers = [f"        server 127.0.0.1:{one}{option};" for one, option in zip(backends, options, strict=False)]
    config = home / "nginx.conf"
    config.write_text(NGINX.format(home=home, port=port, module=STREAM_MODULE, servers="\n".join(servers)))
    command = [program, "-p", str(home), "-c", str(config), "-e", str(home / "nginx.log")]
    with running(command, home / "nginx.output", port) as pid:
        yield Proxy("nginx", port, pid)


@contextlib.contextmanager
def running(command: Sequence[str], output: Path, port: int) -> Iterator[int]:
    """A child that listens on a port of this machine; its pid. In the end it has been told to end, and has.

    It has a session of its own, as our processes and the instances have: where the kernel shares processors by session
    (sched_autogroup), it would otherwise be compared with them at the load generator's share.
    """
    with (
        output.open("wb") as said,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        ) as process,
    ):
        try:
            await_listening(port, process)
            yield process.pid
        except SystemExit:
            print(output.read_text(errors="replace"), file=sys.stderr)
            raise
        finally:
            process.terminate()
            try:
                process.wait(START_S)
            except subprocess.TimeoutExpired:
                process.kill()


def await_listening(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """Return when somebody listens on the port; end the bench when the process that is to do so has ended."""
    deadline = time.monotonic() + START_S
    while not is_listening(port):
        if process is not None and process.poll() is not None:
            raise SystemExit(f"{process.args!r} has ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit(f"nobody listens on {port} within {START_S:g} s")
        time.sleep(0.01)


def is_listening(port: int) -> bool:
    """Whether somebody listens on the port of this machine; nobody is connected to for that.

    Binding is what tells: it is refused while somebody listens, and with SO_REUSEADDR by nothing else. It stands in the
    way of nobody who sets that option too. /proc/net/tcp is no choice after a hundred thousand connections.
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return True
    return False
