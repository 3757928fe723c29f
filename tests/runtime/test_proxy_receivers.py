"""HAProxy and nginx understand the headers, and tell clients who they are."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clojarsd.core.names import Address, UnixAddress
from clojarsd.system.probe import Prober
from clojarsd.system.sockets import free_ports
from tests.support.fronts import B, Front, P
from tests.support.real import unavailable
from tests.support.sockets import DEADLINE_S, Rig
from tests.system.test_probe import Asked

pytestmark = [pytest.mark.slow, pytest.mark.real]

HAPROXY = """
global
    maxconn 100
defaults
    mode http
    timeout client 30s
    timeout server 30s
    timeout connect 5s
frontend receiver
    bind 127.0.0.1:{port} accept-proxy
    bind {path} accept-proxy
    http-request return status 200 content-type text/plain lf-string "%ci %cp %[dst] %[dst_port]"
"""
NGINX = """
daemon off;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 100; }}
http {{
    access_log off;
    client_body_temp_path {dir};
    proxy_temp_path {dir};
    fastcgi_temp_path {dir};
    uwsgi_temp_path {dir};
    scgi_temp_path {dir};
    server {{
        listen 127.0.0.1:{port} proxy_protocol;
        listen unix:{path} proxy_protocol;
        return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port";
    }}
}}
"""
COMMANDS: dict[str, tuple[str, Callable[[str], list[str]]]] = {
    "haproxy": (HAPROXY, lambda file: ["haproxy", "-db", "-f", file]),
    "nginx": (NGINX, lambda file: ["nginx", "-c", file]),
}


class Receiver:
    """One of them, running."""

    def __init__(self, name: str, directory: Path) -> None:
        (self.port,) = free_ports(1)
        self.path = str(directory / "r.sock")
        text, command = COMMANDS[name]
        file = directory / "configuration"
        file.write_text(text.format(port=self.port, path=self.path, dir=directory))
        self.process = subprocess.Popen(command(str(file)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(params=sorted(COMMANDS))
def receiver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    if shutil.which(request.param) is None:
        unavailable(f"there is no {request.param} on this machine")
    directory = Path(tmp_path_factory.mktemp("p"))
    receiver = Receiver(request.param, directory)
    try:
        asyncio.run(_listens(receiver))
        yield receiver
    finally:
        receiver.process.terminate()
        receiver.process.wait(DEADLINE_S)


async def _listens(receiver: Receiver) -> None:
    """Wait until it answers checks, which are nobody's."""
    async with Prober() as prober, asyncio.timeout(DEADLINE_S):
        for address in (Address("127.0.0.1", receiver.port), UnixAddress(receiver.path)):
            for _ in range(int(DEADLINE_S / 0.02)):  # it tells nobody when it is there
                result = await prober.http(Asked(), address, announced=True)
                if result.passed:
                    break
                await asyncio.sleep(0.02)
            assert result.passed, result.text
        assert not (await prober.http(Asked(), Address("127.0.0.1", receiver.port))).passed, "it wants to be told"


def ask(client: socket.socket) -> list[str]:
    """What the receiver tells the client of itself."""
    connection = http.client.HTTPConnection("x")
    connection.sock = client
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert answer.status == 200
    return answer.read().decode().split()


def before(front: Front, address: Address | UnixAddress) -> None:
    front.plan = replace(front.plan, backends={P: address, B: front.backup.address})
    front.rig.call(lambda: front.frontend.change_plan(front.plan))


@pytest.mark.parametrize("by_unix", [False, True], ids=["TCP", "Unix socket"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "127.0.0.1 mapped"])
def test_they_see_the_client(rig: Rig, receiver: Receiver, host: str, by_unix: bool) -> None:
    listen = Address("127.0.0.1" if host == "127.0.0.1" else "::", 0)
    host = host.removesuffix(" mapped")
    with Front(rig, proxy_protocol=True, listen=(listen,)) as front:
        before(front, UnixAddress(receiver.path) if by_unix else Address("127.0.0.1", receiver.port))
        with contextlib.closing(socket.create_connection((host, front.address.port), DEADLINE_S)) as client:
            own, port = client.getsockname()[:2]
            assert ask(client) == [own, str(port), host, str(front.address.port)]
        front.until()
