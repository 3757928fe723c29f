"""The history on disk: it survives what files have to survive."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
import structlog

from clojarsd.core.errors import Failed
from clojarsd.core.history import EventName, PastEvent
from clojarsd.core.names import Role
from clojarsd.system.event_store import EventStore


def event(number: int, at: str = "2026-11-23T12:00:00.000Z", message: str = "x") -> PastEvent:
    return PastEvent(number, at, EventName.ORDER, Role.PRIMARY, "ann", message, {"verb": "stop", "roles": ["primary"]})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "events.sqlite"


def test_events_come_back_as_they_were(path: Path) -> None:
    store = EventStore(path)
    assert store.last_id() == 0
    assert store.last(5) == ()
    bare = PastEvent(3, "2026-11-23T12:00:00.000Z", EventName.FAILOVER, None, None, 'a "b"\nc ü')
    store.write([event(1), event(2), bare])
    store.close()
    again = EventStore(path)
    assert again.last(2) == (event(2), bare)
    assert again.last_id() == 3
    again.close()
    again.close()


def test_writing_an_event_twice_changes_nothing(path: Path) -> None:
    store = EventStore(path)
    store.write([event(1, message="first")])
    store.write([event(1, message="again"), event(2)])
    assert [seen.message for seen in store.last(5)] == ["first", "x"]
    store.close()


def test_old_events_are_forgotten_but_for_the_latest(path: Path) -> None:
    store = EventStore(path)
    store.write([event(1, "2026-01-01T00:00:00.000Z"), event(2, "2026-06-01T00:00:00.000Z"), event(3)])
    store.prune("2026-03-01T00:00:00.000Z")
    assert [seen.id for seen in store.last(5)] == [2, 3]
    store.prune("2027-01-01T00:00:00.000Z")
    assert [seen.id for seen in store.last(5)] == [3]
    store.close()


def test_others_can_read_while_it_is_written(path: Path) -> None:
    store = EventStore(path)
    store.write([event(1)])
    reader = sqlite3.connect(path)
    assert reader.execute("SELECT event, role, by FROM events").fetchall() == [("order", "primary", "ann")]
    reader.close()
    store.close()


def test_a_broken_file_is_set_aside_and_a_new_one_begun(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database, and long enough to be looked at" * 100)
    store = EventStore(path)
    with structlog.testing.capture_logs() as logged, pytest.raises(Failed) as failed:
        store.last_id()
    (aside,) = path.parent.iterdir()
    assert aside.name.startswith("events.sqlite.broken-")
    assert str(failed.value) == (
        f"cannot read the history {path}: file is not a database; it was set aside as {aside.name}"
    )
    assert logged == [{"event": "history_set_aside", "log_level": "warning", "path": str(path), "aside": str(aside)}]
    store.write([event(1)])
    assert store.last(5) == (event(1),)
    store.close()


def test_a_file_that_breaks_in_the_middle_is_set_aside_with_its_log(path: Path) -> None:
    store = EventStore(path)
    store.write([event(number, message="x" * 500) for number in range(1, 400)])
    store.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 60000)
    with structlog.testing.capture_logs() as logged, pytest.raises(Failed, match="it was set aside as"):
        store.write([event(number) for number in range(400, 800)])
    assert [line["event"] for line in logged] == ["history_set_aside"]
    assert not path.exists()
    assert not Path(f"{path}-wal").exists()
    store.write([event(801)])
    assert store.last_id() == 801
    store.close()


def test_a_file_that_was_removed_is_made_again(path: Path) -> None:
    store = EventStore(path)
    store.write([event(1)])
    path.unlink()
    store.write([event(2)])
    store.close()
    again = EventStore(path)
    assert [seen.id for seen in again.last(5)] == [2]
    again.close()


def test_a_directory_that_cannot_be_made_and_then_can(path: Path) -> None:
    path.parent.write_text("in the way")
    store = EventStore(path)
    with pytest.raises(Failed, match=f"^cannot write the history {path}: "):
        store.write([event(1)])
    path.parent.unlink()
    store.write([event(1)])
    assert store.last_id() == 1
    store.close()


def test_a_file_of_a_later_version_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version = 2")
    later.close()
    store = EventStore(path)
    with pytest.raises(Failed) as failed:
        store.write([event(1)])
    assert str(failed.value) == f"cannot use the history {path}: it has format 2, and this version knows 1"
    assert [entry.name for entry in path.parent.iterdir()] == ["events.sqlite"]


def test_an_event_that_only_a_later_version_knows_is_left_out(path: Path) -> None:
    store = EventStore(path)
    store.write([event(1), event(2)])
    other = sqlite3.connect(path)
    other.execute("UPDATE events SET event = 'daemon-dreamt' WHERE id = 2")
    other.commit()
    other.close()
    assert [seen.id for seen in store.last(5)] == [1]
    assert store.last_id() == 2
    store.close()


def test_a_full_disk_loses_nothing_that_was_written(path: Path) -> None:
    store = EventStore(path)
    store.write([event(1)])
    assert store._connection is not None
    store._connection.execute("PRAGMA max_page_count = 6")
    with pytest.raises(Failed) as failed:
        store.write([event(number, message="x" * 4000) for number in range(2, 50)])
    assert str(failed.value) == f"cannot write the history {path}: database or disk is full"
    assert store.last(5) == (event(1),)
    store.write([event(2)])
    assert store.last_id() == 2
    store.close()


@pytest.mark.parametrize("umask", [0, 0o077])
def test_it_is_for_the_owner_and_the_group(path: Path, umask: int) -> None:
    before = os.umask(umask)
    store = EventStore(path)
    try:
        store.write([event(1)])
        modes = {entry.name: oct(entry.stat().st_mode & 0o777) for entry in path.parent.iterdir()}
        assert modes == {f"events.sqlite{suffix}": "0o640" for suffix in ("", "-wal", "-shm")}
    finally:
        os.umask(before)
        store.close()


def test_files_that_others_could_read_are_for_them_no_more(path: Path) -> None:
    crashed, store = EventStore(path), EventStore(path)
    crashed.write([event(1)])
    for entry in path.parent.iterdir():
        entry.chmod(0o644)
    try:
        assert store.last_id() == 1
        assert [entry.stat().st_mode & 0o777 for entry in path.parent.iterdir()] == [0o640] * 3
    finally:
        store.close()
        crashed.close()
