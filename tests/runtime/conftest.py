"""Loops for tests of what runs on one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
import uvloop

from clojarsd.system.relay_loop import RelayLoop
from tests.support.sockets import Rig


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop, RelayLoop], ids=["asyncio", "uvloop", "relay"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    new_loop: Callable[[], asyncio.AbstractEventLoop] = request.param
    with Rig(new_loop, move_flush=0.2) as rig:
        yield rig
