"""Loops with relayed connections for tests of the relay."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import uvloop

from clojarsd.system.relay_loop import RelayLoop
from tests.support.sockets import NewLoop, Rig


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop, RelayLoop], ids=["asyncio", "uvloop", "relay"])
def new_loop(request: pytest.FixtureRequest) -> NewLoop:
    chosen: NewLoop = request.param
    return chosen


@pytest.fixture
def rig(new_loop: NewLoop) -> Iterator[Rig]:
    with Rig(new_loop) as rig:
        yield rig
