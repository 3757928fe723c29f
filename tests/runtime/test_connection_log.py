"""Each connection leaves one line that says whose it was, who served it, what it carried and why it ended."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import structlog

from clojarsd.core.frozen import FrozenClient, FrozenConnection, FrozenRecord, from_document, to_document
from tests.runtime.test_drain import ANSWER, REQUEST, answer, drain
from tests.runtime.test_traffic_adopt import Stuck, direct
from tests.support.fronts import Front, P
from tests.support.sockets import Rig, receive_exactly, receive_to_the_end, reset

Lines = list[Mapping[str, Any]]


@pytest.fixture
def quiet() -> Iterator[Lines]:
    """What is logged from `info` on, as where nobody asks for debug lines."""
    logged: Lines = []

    def keep(_: object, method: str, line: Any) -> Any:
        logged.append({**line, "log_level": method})
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[keep], wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    yield logged
    structlog.configure(**before)


def ended(front: Front, logged: Lines, count: int = 1) -> Lines:
    """The lines about connections, once there are so many."""

    def lines() -> Lines:
        return [line for line in logged if line["event"] == "connection_ended"]

    front.rig.until(lambda: len(lines()) >= count, lambda: logged)
    assert len(lines()) == count
    return lines()


def test_a_connection_that_has_finished(rig: Rig, quiet: Lines) -> None:
    with Front(rig, access_log=True) as front:
        client = front.client(b"hello")
        address = "{}:{}".format(*client.getsockname())
        with front.primary.accept() as end:
            assert receive_exactly(end, 5) == b"hello"
            end.sendall(b"answer")
            assert receive_exactly(client, 6) == b"answer"
        client.close()
        (line,) = ended(front, quiet)
    known = {key: line[key] for key in ("frontend", "client", "role", "reason", "up_bytes", "down_bytes", "tries")}
    assert known == {
        "frontend": "line",
        "client": address,
        "role": "primary",
        "reason": "finished",
        "up_bytes": 5,
        "down_bytes": 6,
        "tries": 1,
    }
    assert line["log_level"] == "info"
    assert 0 <= line["connect_s"] <= line["lasted_s"] + 0.001 < 60
    assert "held_s" not in line
    assert "moves" not in line


@pytest.mark.parametrize(("side", "reason"), [("client", "reset by the client"), ("instance", "reset by the instance")])
def test_who_has_reset_it_is_said(rig: Rig, quiet: Lines, side: str, reason: str) -> None:
    with Front(rig, access_log=True) as front:
        client = front.client(b"x")
        end = front.primary.accept()
        assert receive_exactly(end, 1) == b"x"
        reset(client if side == "client" else end)
        assert ended(front, quiet)[0]["reason"] == reason
        end.close()


def test_time_outs_are_said(rig: Rig, quiet: Lines) -> None:
    with Front(rig, access_log=True, idle_timeout=0.1, half_closed_timeout=0.05) as front:
        front.client()
        with front.primary.accept() as end:
            assert receive_to_the_end(end) == (b"", False)
            assert ended(front, quiet)[0]["reason"] == "silent for idle_timeout"
        client = front.client(b"?")
        with front.primary.accept() as end:
            client.shutdown(socket.SHUT_WR)
            assert receive_to_the_end(client) == (b"", True)
            assert ended(front, quiet, 2)[1]["reason"] == "silent for half_closed_timeout after one side had ended"


def test_what_a_drain_has_ended_is_said(rig: Rig, quiet: Lines) -> None:
    with Front(rig, access_log=True, drain=0.3, drain_idle=0.05) as front:
        silent, waiting = front.client(), front.client(b"?")
        ends = [front.primary.accept() for _ in range(2)]
        front.until(primary=2)
        drain(front)
        assert receive_to_the_end(silent) == (b"", False)
        assert receive_to_the_end(waiting) == (b"", True)
        assert [line["reason"] for line in ended(front, quiet, 2)] == [
            "closed when it was silent, as its instance was drained",
            "cut at the end of the drain",
        ]
        for end in ends:
            end.close()


def test_a_connection_that_has_moved_is_one_and_counts_on(rig: Rig, quiet: Lines) -> None:
    with Front(rig, movable=True, access_log=True) as front:
        client = front.client(REQUEST)
        with front.primary.accept() as end:
            answer(client, end)
            drain(front)
            client.sendall(REQUEST)
            assert receive_to_the_end(end) == (b"", False)
        with front.backup.accept() as end:
            answer(client, end)
        assert receive_to_the_end(client) == (b"", False)
        client.close()
        (line,) = ended(front, quiet)
    assert (line["role"], line["moves"], line["tries"]) == ("backup", 1, 2)
    assert (line["up_bytes"], line["down_bytes"]) == (2 * len(REQUEST), 2 * len(ANSWER))


def test_how_long_it_was_held_and_how_often_it_was_tried_is_said(rig: Rig, quiet: Lines) -> None:
    with Front(rig, primary=False, backup=False, access_log=True) as front:
        client = front.client(b"x")
        front.until(held=1)
        front.primary.refuse()
        front.eligible(primary=True, backup=True)
        with front.backup.accept() as end:
            assert receive_exactly(end, 1) == b"x"
        client.close()
        (line,) = ended(front, quiet)
    assert (line["role"], line["tries"]) == ("backup", 2)
    assert line["lasted_s"] >= line["held_s"] >= 0


def test_who_was_never_served_is_said_with_the_reason(rig: Rig, quiet: Lines) -> None:
    with Front(rig, primary=False, backup=False, access_log=True, hold=0.1) as front:
        client = front.client()
        assert receive_to_the_end(client) == (b"", True)
        (line,) = ended(front, quiet)
        assert (line["role"], line["tries"], line["reason"]) == (None, 0, "turned away: nobody could serve it in time")
        assert line["held_s"] >= 0.09
    with Front(rig, primary=False, backup=False, access_log=True) as front:
        quiet.clear()
        client = front.client()
        front.until(held=1)
        client.close()
        assert ended(front, quiet)[0]["reason"] == "left by the client while it waited"
        front.client()
        front.until(held=1)
    assert [line["reason"] for line in quiet if line["event"] == "connection_ended"][1:] == ["cut by clojarsd"]


@pytest.mark.parametrize("dual", [False, True], ids=["ipv4", "dual"])
def test_who_was_taken_out_of_an_instances_queue_is_told_of_once(rig: Rig, quiet: Lines, dual: bool) -> None:
    with Front(rig, primary=False, backup=False, dual=dual, access_log=True) as front:
        stuck = Stuck(rig, front)
        with direct(stuck, b"x") as client:
            address = "{}:{}".format(*client.getsockname())
            waiting = stuck.rescued()
            stuck.stall()
            stuck.adopt(waiting)
            with front.backup.accept() as end:
                assert receive_exactly(end, 1) == b"x"
        (line,) = ended(front, quiet)
        assert (line["client"], line["role"], line["up_bytes"]) == (address, "backup", 1)
        stuck.rig.call(lambda: stuck.traffic.set_eligible(P, True))
        client, end = stuck.relayed(b"yz")
        address = "{}:{}".format(*client.getsockname())
        with client, end:
            assert receive_exactly(end, 2) == b"yz"
        front.until()
        line = ended(front, quiet, 2)[1]
        assert (line["client"], line["role"], line["up_bytes"]) == (address, "backup", 2)


def test_nothing_is_kept_or_said_unless_it_is_wanted(rig: Rig, quiet: Lines) -> None:
    with Front(rig) as front:
        client = front.client(b"x")
        with front.primary.accept() as end:
            assert receive_exactly(end, 1) == b"x"
            assert not rig.call(lambda: front.frontend._told._records)
        client.close()
        front.until()
    assert not [line for line in quiet if line["event"] == "connection_ended"]


def test_debug_lines_have_it_where_they_are_wanted_anyway(rig: Rig) -> None:
    with structlog.testing.capture_logs() as logged, Front(rig) as front:
        client = front.client(b"x")
        with front.primary.accept() as end:
            assert receive_exactly(end, 1) == b"x"
        client.close()
        (line,) = ended(front, logged)  # type: ignore[arg-type]
    assert line["log_level"] == "debug"


def test_a_reload_begins_with_those_that_are_there_and_ends_at_once(rig: Rig, quiet: Lines) -> None:
    with Front(rig) as front:
        first, second = front.client(b"x"), front.client(b"y")
        ends = [front.primary.accept() for _ in range(2)]
        for end in ends:
            receive_exactly(end, 1)
        address = "{}:{}".format(*first.getsockname())
        rig.call(lambda: front.frontend.change_plan(replace(front.plan, access_log=True)))
        first.close()
        front.until(primary=2)
        for end in ends[:1]:
            end.close()
        (line,) = ended(front, quiet)
        assert (line["client"], line["up_bytes"], line["lasted_s"]) == (address, 1, None)
        rig.call(lambda: front.frontend.change_plan(front.plan))
        second.close()
        ends[1].close()
        front.until()
    assert len([line for line in quiet if line["event"] == "connection_ended"]) == 1


def test_a_record_goes_from_process_to_process() -> None:
    record = FrozenRecord("127.0.0.1:1", 2.0, 3, 4, 5, 6, 0.7, None, 0.8)
    with_it = FrozenConnection(P, FrozenClient(True, (P,), None), None, record)
    assert from_document(json.loads(json.dumps(to_document(with_it)))) == with_it
    without = replace(with_it, record=None)
    assert len(to_document(without)) == len(to_document(with_it)) - 1
    assert from_document(to_document(without)) == without
