"""Who is at the other end of a Unix socket."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from clojarsd.system.peer import Peer, group_names, peer_of, user_name
from tests.support.control import open_directory
from tests.support.real import root_only

CONNECT = """
import os, socket, sys
path, uid, gid, *groups = sys.argv[1:]
os.setgroups([int(group) for group in groups])
os.setgid(int(gid))
os.setuid(int(uid))
client = socket.socket(socket.AF_UNIX)
client.connect(path)
client.recv(1)
"""
"""A process that becomes somebody else, connects, and stays until it is disconnected."""


def test_a_peer_is_known_by_process_user_and_groups() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        seen = peer_of(ours.fileno())
    assert seen == Peer(os.getpid(), os.getuid(), frozenset({os.getgid(), *os.getgroups()}))


def peer_as(directory: Path, uid: int, gid: int, groups: Sequence[int]) -> Peer:
    """The peer that a process of that user and those groups is seen as."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "s"))
        os.chmod(directory / "s", 0o666)
        listener.listen()
        listener.settimeout(30)
        arguments = [str(directory / "s"), str(uid), str(gid), *map(str, groups)]
        child = subprocess.Popen([sys.executable, "-c", CONNECT, *arguments])
        try:
            connection, _ = listener.accept()
            with connection:
                seen = peer_of(connection.fileno())
        finally:
            child.wait(30)
    assert seen.pid == child.pid
    return seen


@pytest.fixture
def short_path() -> Iterator[Path]:
    with open_directory() as path:
        yield path


@root_only
def test_another_user(short_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    seen = peer_as(short_path, nobody.pw_uid, nobody.pw_gid, [grp.getgrnam("adm").gr_gid])
    assert user_name(seen.uid) == "nobody"
    assert seen.gids == {nobody.pw_gid, grp.getgrnam("adm").gr_gid}
    assert "adm" in group_names(seen.gids)


@root_only
def test_a_user_in_more_groups_than_fit_at_first(short_path: Path) -> None:
    groups = range(70_000, 71_000)
    assert peer_as(short_path, 65_000, 65_000, groups).gids == {65_000, *groups}


def test_what_is_no_connection_has_no_peer() -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match="Socket operation on non-socket"):
            peer_of(read)
    finally:
        os.close(read)
        os.close(write)


def test_numbers_without_a_name() -> None:
    assert user_name(0) == "root"
    assert user_name(3_999_999_999) == "3999999999"
    assert group_names([0, 3_999_999_999]) == {"root"}
