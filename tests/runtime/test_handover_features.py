"""What a frontend does besides carrying bytes goes on in the process that takes its place."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from clojarsd.core.names import UnixAddress
from tests.runtime.test_handover import NEXT, REQUEST, Line, converse, line
from tests.support.fronts import LOOPBACK, NEVER, B, P, make_plan
from tests.support.proxy_headers import Header, receive_header
from tests.support.sockets import receive_to_the_end

__all__ = ["line"]


def told_of(client: socket.socket) -> Header:
    return Header("PROXY", "TCP4", client.getsockname()[:2], client.getpeername()[:2])


def test_who_was_being_connected_is_announced_by_the_next_process(line: Line) -> None:
    line.open(proxy_protocol=True)
    line.instances[P].fill()
    client = line.client(REQUEST)
    line.now.until(open=[1, 0, 0])
    line.hand_on()
    line.now.ask("eligible", roles=["backup"])
    end = line.accept(B)
    assert receive_header(end) == told_of(client)
    converse(client, end, REQUEST, begun=True)
    line.instances[P].drop_fillers()


def test_who_is_connected_is_not_announced_again_unless_it_moves(line: Line) -> None:
    line.open(("primary", "backup"), proxy_protocol=True, movable=True)
    client = line.client(REQUEST)
    end = line.accept()
    assert receive_header(end) == told_of(client)
    converse(client, end, REQUEST, begun=True)
    line.hand_on()
    converse(client, end)
    line.now.ask("eligible", roles=["backup"])
    line.now.ask("drain", role="primary")
    client.sendall(REQUEST)
    assert receive_to_the_end(end) == (b"", False)
    end.close()
    other = line.accept(B)
    assert receive_header(other) == told_of(client)
    converse(client, other, REQUEST, begun=True)


def test_a_held_client_is_announced_by_the_next_process(line: Line) -> None:
    line.open((), proxy_protocol=True)
    client = line.client(REQUEST)
    line.now.until(open=[0, 0, 1])
    line.hand_on()
    line.now.ask("eligible", roles=["primary"])
    end = line.accept()
    assert receive_header(end) == told_of(client)
    converse(client, end, REQUEST, begun=True)


def test_a_slow_start_goes_on_in_the_next_process(line: Line) -> None:
    line.open(("primary", "backup"), slow_start=NEVER)
    line.now.ask("eligible", roles=["backup"])
    line.now.ask("eligible", roles=["primary", "backup"])
    line.hand_on()
    clients = [line.client(REQUEST) for _ in range(2)]
    line.now.until(open=[1, 1, 0])
    converse(clients[1], line.accept(B), REQUEST, begun=True)


def test_silence_is_ended_by_the_next_process(line: Line) -> None:
    line.open(idle_timeout=0.5)
    client, end = line.connect()
    line.hand_on()
    assert receive_to_the_end(client) == (b"", False)
    assert receive_to_the_end(end) == (b"", False)


@pytest.fixture
def place() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="unix-"))
    yield directory
    shutil.rmtree(directory)


def test_a_connection_over_a_unix_socket_goes_over(line: Line, place: Path) -> None:
    path = str(place / "app.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        plan = make_plan({P: UnixAddress(path), B: line.instances[B].address})
        line.port = line.now.open(plan, ("primary",))
        client = line.client(REQUEST)
        end, _ = listener.accept()
        with end:
            converse(client, end, REQUEST, begun=True)
            line.hand_on()
            converse(client, end)
            client.shutdown(socket.SHUT_WR)
            assert receive_to_the_end(end) == (b"", False)
            end.sendall(b"rest")
        assert receive_to_the_end(client) == (b"rest", False)


def test_the_record_of_a_connection_goes_over(line: Line, capfd: pytest.CaptureFixture[str]) -> None:
    line.open(access_log=True)
    client, end = line.connect()
    address = f"{LOOPBACK}:{client.getsockname()[1]}"
    line.hand_on()
    converse(client, end)
    client.close()
    end.close()
    line.now.until(open=[0, 0, 0])
    said = capfd.readouterr().out
    lines = [text for text in said.splitlines() if "connection_ended" in text]
    assert len(lines) == 1, said
    assert f"client={address}" in lines[0]
    assert "tries=1" in lines[0]
    assert f"up_bytes={len(REQUEST) + len(NEXT)}" in lines[0]
