"""A real daemon whose frontends cut connections of an instance that is down, and bring those of the backup home."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pair import Pair, connection, get
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow


class Switching(Pair):
    """Such a pair."""

    def write_config(self) -> Path:
        super().write_config()
        wanted = 'on_down = "cut"\non_up = "move"\n'
        self.config.write_text(self.config.read_text().replace("drain_idle", f"{wanted}drain_idle"))
        return self.config


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Switching(tmp_path) as running:
        yield running


def who(opened: http.client.HTTPConnection) -> str:
    name: str = json.loads(get(opened, "/who"))["name"]
    return name


@contextlib.contextmanager
def line(pair: Pair) -> Iterator[socket.socket]:
    """A connection of the frontend `line`, answered by whoever has got it."""
    with socket.create_connection(("127.0.0.1", pair.line), PATIENCE) as client:
        client.sendall(b"hello\n")
        assert client.recv(100)
        yield client


def test_a_client_that_is_stuck_in_a_frozen_primary_is_cut_and_comes_home_afterwards(pair: Pair) -> None:
    pair.until_active("primary")
    frozen = pair.pid("primary")
    with connection(pair.http) as stuck, connection(pair.http) as after:
        assert who(stuck) == "primary"
        stuck.request("GET", "/slow?ms=60000")  # not answered before it has stopped
        os.kill(frozen, signal.SIGSTOP)
        try:
            with pytest.raises(ConnectionResetError):
                stuck.getresponse()
            pair.until_active("backup")
            assert who(after) == "backup"
            own = after.sock.getsockname()
            with line(pair) as silent:
                pair.until(lambda seen: seen["frontends"]["line"]["connections"]["backup"] == 1)
                os.kill(frozen, signal.SIGCONT)
                pair.until_active("primary")
                assert silent.recv(100) == b""
        finally:
            os.kill(frozen, signal.SIGCONT)
        assert who(after) == "primary"
        assert after.sock.getsockname() == own
    pair.until(lambda seen: not any(seen["frontends"]["line"]["connections"].values()))
    assert "down_cut" in pair.daemon_log()


def test_an_order_to_leave_cuts_no_connection(pair: Pair) -> None:
    pair.until_active("primary")
    with connection(pair.http) as slow:
        slow.request("GET", "/slow?ms=1500")
        pair.until(lambda seen: seen["frontends"]["http"]["connections"]["primary"] == 1)
        pair.done("restart", "primary")
        assert slow.getresponse().status == 200
    assert "down_cut" not in pair.daemon_log()
