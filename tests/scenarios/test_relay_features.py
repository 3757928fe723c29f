"""A real daemon before an instance on a Unix socket and one on a port, which are told who their clients are."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pair import CHECKOUT, Pair
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow

APP = [sys.executable, "-m", "tests.support.announced_app", "{role}"]
TEXT = """
[service]
name = "demo"
user = "{user}"
group = "{group}"
runtime_dir = "{home}/run"
state_dir = "{home}/state"
log_dir = "{home}/log"
[app]
directory = "{checkout}"
[instances.primary]
command = {on_socket}
ports = {{ line = {primary} }}
sockets = {{ http = "{home}/p.sock" }}
[instances.backup]
command = {on_port}
ports = {{ http = {backup[0]}, line = {backup[1]} }}
[[checks]]
kind = "http"
port = "http"
interval = "250ms"
[frontends.http]
listen = "127.0.0.1:{http}"
port = "http"
failback = "1s"
drain_idle = "500ms"
proxy_protocol = true
access_log = true
"""


class Announced(Pair):
    """Such a pair."""

    def write_config(self) -> Path:
        self.config.write_text(
            TEXT.format(
                user=os.geteuid(),
                group=os.getegid(),
                home=self.home,
                checkout=CHECKOUT,
                on_socket=json.dumps([*APP, "{socket.http}", "{port.line}"]),
                on_port=json.dumps([*APP, "{port.http}", "{port.line}"]),
                primary=self.primary[1],
                backup=self.backup,
                http=self.http,
            )
        )
        return self.config


@pytest.fixture
def pair() -> Iterator[Announced]:
    home = Path(tempfile.mkdtemp(prefix="features-"))
    try:
        with Announced(home) as running:
            yield running
    finally:
        shutil.rmtree(home)


def ask(connection: http.client.HTTPConnection) -> str:
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


def test_a_client_is_announced_wherever_it_is_served_and_told_of_in_the_log(pair: Announced) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", pair.http, timeout=PATIENCE)
    connection.connect()
    own = f"127.0.0.1:{connection.sock.getsockname()[1]}"
    assert ask(connection) == f"primary PROXY {own}"
    assert pair.status()["frontends"]["http"]["mode_reason"] == "proxy_protocol and access_log need the relay"
    pair.ask("POST", "/v1/instances/primary/restart")
    assert ask(connection) in (f"backup PROXY {own}", f"primary PROXY {own}")
    pair.until(lambda seen: seen["frontends"]["http"]["active"] == "primary")
    pair.ask("POST", "/v1/instances/backup/restart")
    assert ask(connection) == f"primary PROXY {own}"
    connection.close()
    pair.until_true(lambda: "connection_ended" in pair.daemon_log(), "the line of the connection")
    (line,) = [line for line in pair.daemon_log().splitlines() if "connection_ended" in line]
    assert re.search(r"level=info event=connection_ended", line), line
    assert f"client={own}" in line
    assert "reason=finished" in line or 'reason="closed when' in line
    moves = int(re.search(r"moves=(\d)", line)[1])  # type: ignore[index]
    assert moves == 2
