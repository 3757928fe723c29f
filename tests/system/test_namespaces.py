"""The namespaces that tests run in: what they have, and that they leave nothing."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from clojarsd.system.bpf_fs import is_bpf_fs
from tests.support.namespaces import BPF_FS, apart, space
from tests.support.waiting import PATIENCE

LISTENER = """
import socket
with socket.create_server(("127.0.0.1", 8080)) as one:
    print("listens", flush=True)
    while True:
        one.accept()[0].close()
"""
CLIENT = "import socket; socket.create_connection(('127.0.0.1', 8080), 30).close(); print('reached')"


def test_programs_of_a_space_meet_there_and_are_dead_when_it_ends() -> None:
    before = is_bpf_fs(BPF_FS)
    with space() as inside:
        found = inside.run("findmnt", "--noheadings", "--output=FSTYPE", str(BPF_FS)).split()
        assert set(found) == {"bpf"}, "there may be one below it, of a daemon that runs beside this"
        served = subprocess.Popen(inside.command(sys.executable, "-c", LISTENER), stdout=subprocess.PIPE, text=True)
        assert served.stdout is not None
        assert served.stdout.readline() == "listens\n"
        assert inside.run(sys.executable, "-c", CLIENT) == "reached\n"
        assert inside.run("pwd").strip() == str(Path.cwd())
        ended = os.pidfd_open(served.pid)
    assert select.select([ended], [], [], PATIENCE)[0]
    os.close(ended)
    served.wait()
    served.stdout.close()
    assert is_bpf_fs(BPF_FS) == before


def test_a_failure_apart_is_a_failure_with_its_words() -> None:
    @apart
    def fails() -> None:
        raise AssertionError("in its own words")

    with pytest.raises(AssertionError, match="in its own words"):
        fails()


def test_a_coroutine_runs_apart() -> None:
    network = os.readlink("/proc/self/ns/net")

    @apart
    async def differs() -> None:
        assert os.readlink("/proc/self/ns/net") != network

    differs()
    assert os.readlink("/proc/self/ns/net") == network
