"""The client's patience, which is tried in its own process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from clojarsd.ctl import client
from clojarsd.ctl.client import Daemon, Unreachable
from tests.support.control import open_directory


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with open_directory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "s"))
        listener.listen(0)
        yield listener


def hung(path: Path | str) -> str:
    return f"cannot reach clojarsd at {path}: no answer within 1 s; `journalctl -u clojarsd` may tell why"


@pytest.mark.slow
def test_a_daemon_that_does_not_answer(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_TIMEOUT", 1)
    with pytest.raises(Unreachable) as unreachable:
        Daemon(listener.getsockname()).get("/v1/status")
    assert str(unreachable.value) == hung(listener.getsockname())


@pytest.mark.slow
def test_a_daemon_that_does_not_even_accept(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_TIMEOUT", 1)
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(listener.getsockname())
        with pytest.raises(Unreachable) as unreachable:
            Daemon(listener.getsockname()).get("/v1/status")
    assert str(unreachable.value) == hung(listener.getsockname())
