"""Orders about the JVMs of instances, as programs give them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from clojarsd.core.errors import Refused
from clojarsd.core.names import Role
from tests.support.control import Room, control_room, open_directory


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory() as path:
        yield path


@pytest.fixture
async def room(directory: Path) -> AsyncIterator[Room]:
    async with control_room(directory) as room:
        yield room


def told(room: Room) -> list[tuple[Role | None, str]]:
    return [(event.role, event.message.partition(" ")[2]) for event in room.history.recent(50)]


async def test_who_may_not_be_asked_is_told_and_noted(room: Room) -> None:
    why = "cannot make a class-data archive of backup: it is stopped; nothing was done"
    room.archives.refusal = Refused(why)
    status, answer = await room.ask("POST", "/v1/jvm/backup/cds")
    assert (status, answer) == (409, {"error": {"kind": "refused", "message": why}})
    assert told(room) == [
        (Role.BACKUP, "orders: make a class-data archive of backup"),
        (Role.BACKUP, f"to make a class-data archive of backup: {why}"),
    ]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/jvm/all/cds", None, "there is no instance all (primary, backup, clojars, clojars-backup)"),
        ("/v1/jvm/backup/cds?n=1", None, "/v1/jvm/backup/cds has no parameter n"),
        ("/v1/jvm/backup/cds", {"force": True}, "/v1/jvm/backup/cds takes no options"),
    ],
)
async def test_what_is_not_understood(room: Room, path: str, body: object, message: str) -> None:
    status, answer = await room.ask("POST", path, body)
    assert (status, answer) == (400, {"error": {"kind": "usage", "message": message}})
    assert room.archives.given == []
    assert told(room) == []


async def test_a_server_without_archives_has_no_such_path(directory: Path) -> None:
    async with control_room(directory, is_whole=False) as room:
        assert (await room.ask("POST", "/v1/jvm/backup/cds"))[0] == 404
