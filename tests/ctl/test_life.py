"""What is known of the daemon's end from outside."""

from __future__ import annotations

import asyncio
import os
import subprocess

import pytest

from clojarsd.ctl import life
from clojarsd.ctl.session import Session
from tests.support.control import control_room, open_directory


def test_without_a_descriptor_of_its_process_the_daemon_has_ended_when_nobody_answers() -> None:
    assert life._has_ended(Session("/nowhere", False), None)


def test_a_process_that_lives_on_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "END_TIMEOUT", 0.01)
    with subprocess.Popen(["sleep", "1000"]) as process:
        descriptor = os.pidfd_open(process.pid)
        try:
            assert not life._has_ended(Session("/nowhere", False), descriptor)
            process.kill()
            monkeypatch.setattr(life, "END_TIMEOUT", 30.0)
            assert life._has_ended(Session("/nowhere", False), descriptor)
        finally:
            os.close(descriptor)
            process.kill()


async def test_a_daemon_that_answers_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "END_TIMEOUT", 0.01)
    with open_directory() as directory:
        async with control_room(directory) as room:
            assert not await asyncio.to_thread(life._has_ended, Session(str(room.path), False), None)
