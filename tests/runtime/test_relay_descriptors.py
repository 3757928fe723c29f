"""A real relay process with far fewer descriptors than clients leaves who waits in the backlog, and serves all."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from clojarsd.core.names import Role
from clojarsd.runtime.relay_link import RelayLink
from tests.support.relays import Pair, a_pair
from tests.support.waiting import until

LIMIT = 256
CLIENTS = 2000


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with a_pair(tmp_path) as pair:
        yield pair


@pytest.fixture
def few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Python is started from here on may open no more than `LIMIT` descriptors; only root could undo that."""
    limited = tmp_path / "python"
    limited.write_text(f'#!/bin/sh\nulimit -n {LIMIT}\nexec {sys.executable} "$@"\n')
    limited.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(limited))


@pytest.fixture
def room_for_clients() -> Iterator[None]:
    """Let this process play all the clients, and the instance."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.slow
@pytest.mark.usefixtures("few_descriptors", "room_for_clients")
async def test_two_thousand_clients_of_256_descriptors_are_all_served(pair: Pair) -> None:
    """Many come and do nothing; meanwhile the supervisor is answered, and one after the other everybody gets on."""
    async with pair.link() as link:
        view, pid = await pair.listening(link), link.pid
        answers: list[bytes] = []

        async def come() -> None:
            client = await pair.client(view)
            answers.append(await client.ask())
            client.close()

        async with asyncio.TaskGroup() as clients:
            silent = [await pair.client(view) for _ in range(LIMIT)]
            for _ in range(CLIENTS - LIMIT):
                clients.create_task(come())
            await until(lambda: served(link) > LIMIT // 4, "as many clients as there is room for")
            await link.configure([pair.plan(), pair.plan("two")])  # answered, with no room for one more client
            await pair.listening(link, "two")
            assert served(link) < LIMIT // 2
            assert answers == []
            for client in silent:
                assert await client.ask() == b"p"
                client.close()
        assert answers == [b"p"] * (CLIENTS - LIMIT)
        assert link.pid == pid
        await link.close()


def served(link: RelayLink) -> int:
    """How many clients the primary has."""
    return link.views["line"].view().connections[Role.PRIMARY]
