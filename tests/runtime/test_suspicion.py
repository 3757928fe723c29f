"""An instance that does not answer connects delays those clients that find it out, and not the next ones."""

from __future__ import annotations

import pytest

from clojarsd.runtime import suspicion
from tests.runtime.test_frontend import converse
from tests.support.fronts import Front, P
from tests.support.sockets import Rig, receive_exactly, stays_silent

SOON = 0.3


def test_the_verdict_of_one_client_is_that_of_the_next(rig: Rig) -> None:
    with Front(rig, connect_timeout=SOON) as front:
        front.primary.fill()
        for said in (b"first", b"second", b"third"):
            converse(front.client(said), front.backup, said).close()
        assert front.doubts == [P]
        assert front.accepted() == (0, 3, 0)


def test_those_who_wait_for_the_same_instance_wait_no_longer_than_the_first(rig: Rig) -> None:
    with Front(rig, connect_timeout=SOON) as front:
        front.primary.fill()
        clients = [front.client(b"hello") for _ in range(20)]
        for _ in clients:
            with front.backup.accept() as end:
                assert receive_exactly(end, 5) == b"hello"
        assert front.doubts == [P]


def test_where_there_is_no_other_the_silent_one_is_tried_again(rig: Rig) -> None:
    with Front(rig, backup=False, connect_timeout=SOON) as front:
        front.primary.fill()
        client = front.client(b"hello")
        rig.until(lambda: len(front.doubts) >= 2, lambda: front.doubts)
        front.primary.drop_fillers()
        while True:
            with front.primary.accept() as end:
                if end.recv(5) == b"hello":
                    end.sendall(b"answer")
                    assert receive_exactly(client, 6) == b"answer"
                    break


def test_one_client_finds_out_when_it_answers_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspicion, "LASTS", 0.0)
    with Front(rig, connect_timeout=SOON) as front:
        front.primary.fill()
        converse(front.client(b"first"), front.backup, b"first").close()
        second = front.client(b"second")  # the one who tries
        for said in (b"third", b"fourth"):  # who do not wait for the outcome
            converse(front.client(said), front.backup, said).close()
        assert front.doubts == [P]
        converse(second, front.backup, b"second").close()
        assert front.doubts == [P, P]


def test_an_instance_that_is_eligible_anew_is_trusted_anew(rig: Rig) -> None:
    with Front(rig, connect_timeout=SOON) as front:
        front.primary.fill()
        converse(front.client(b"first"), front.backup, b"first").close()
        front.primary.drop_fillers()
        front.eligible(primary=False, backup=True)
        front.eligible(primary=True, backup=True)
        front.client(b"second")
        while True:
            with front.primary.accept() as end:
                if end.recv(6) == b"second":
                    break


def test_a_refusal_costs_no_time_and_makes_nobody_suspect(rig: Rig) -> None:
    with Front(rig) as front:
        front.primary.refuse()
        converse(front.client(b"first"), front.backup, b"first").close()
        front.primary.listen()
        converse(front.client(b"second"), front.primary, b"second").close()
        assert front.doubts == [P]
        assert stays_silent(front.client())
