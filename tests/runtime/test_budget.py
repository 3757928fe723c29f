"""Clients never use up the descriptors that control, checks and launches need."""

from __future__ import annotations

import structlog

from clojarsd.runtime.budget import Budget


def test_there_is_room_for_half_as_many_clients_as_descriptors() -> None:
    budget = Budget(6)
    for _ in range(3):
        assert budget.room()
        budget.take()
    assert not budget.room()


def test_who_waits_is_called_when_there_is_room_again() -> None:
    called: list[str] = []
    budget = Budget(4)
    budget.when_room(lambda: called.append("one"))
    budget.when_room(lambda: called.append("other"))
    budget.take()
    budget.give_back()
    assert called == []
    budget.take()
    budget.take()
    assert not budget.room()
    budget.give_back()
    assert called == ["one", "other"]
    assert budget.room()


def test_who_waits_is_called_when_others_need_less() -> None:
    called: list[str] = []
    budget = Budget(6)
    budget.when_room(lambda: called.append("one"))
    budget.keep_free(2)
    budget.keep_free(4)
    assert called == [], "nobody was without room"
    budget.take()
    assert not budget.room()
    budget.keep_free(2)
    assert called == ["one"]
    budget.keep_free(0)
    assert called == ["one"]


def test_an_episode_is_said_once() -> None:
    budget = Budget(40)
    with structlog.testing.capture_logs() as logs:
        for _ in range(20):
            budget.take()
        for _ in range(5):
            assert not budget.room()
            budget.give_back()
            budget.take()
        for _ in range(3):
            budget.give_back()
    assert [line["event"] for line in logs] == ["clients_at_limit", "clients_below_limit"]


def test_the_smallest_limit_still_lets_one_client_in() -> None:
    assert Budget(-100).room()


def test_descriptors_for_others_are_not_for_clients() -> None:
    budget = Budget(6)
    budget.keep_free(4)
    budget.take()
    assert not budget.room()
    budget.keep_free(2)
    assert budget.room()


def test_who_does_not_wait_any_more_is_not_called() -> None:
    called: list[str] = []
    budget = Budget(2)
    look = called.append
    budget.when_room(lambda: look("other"))

    def gone() -> None:
        look("gone")

    budget.when_room(gone)
    budget.forget(gone)
    budget.forget(gone)
    budget.take()
    assert not budget.room()
    budget.give_back()
    assert called == ["other"]
