"""Sockets are found by the descriptors of processes."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

from clojarsd.system.socket_owners import sockets_of
from tests.support.sockets import open_descriptors
from tests.support.talkers import talking


def test_the_sockets_of_a_process_are_found_and_nothing_else() -> None:
    reader, writer = os.pipe()
    with socket.socket() as one, socket.socket(socket.AF_INET6) as other:
        found = sockets_of([os.getpid()])
        assert {os.fstat(one.fileno()).st_ino, os.fstat(other.fileno()).st_ino} <= found
        assert os.fstat(reader).st_ino not in found
    os.close(reader)
    os.close(writer)
    assert os.getpid() not in sockets_of([os.getpid()])


def test_those_of_several_processes_are_together_and_one_that_has_ended_has_none() -> None:
    with talking() as one, talking() as other:
        both = sockets_of([one.pid, other.pid])
        assert both == sockets_of([one.pid]) | sockets_of([other.pid])
        assert sockets_of([one.pid]) != sockets_of([other.pid])
        pid = one.pid
    assert sockets_of([pid]) == set()


def test_no_descriptor_stays_open() -> None:
    before = open_descriptors()
    sockets_of([os.getpid(), 2**22 - 1])
    assert open_descriptors() == before


def test_a_process_that_is_not_ours_to_see_is_an_error() -> None:
    child = os.fork()
    if not child:
        outcome = 1
        try:
            os.setresuid(65534, 65534, 65534)
            sockets_of([os.getppid()])
        except PermissionError:
            outcome = 0
        finally:
            os._exit(outcome)
    assert os.waitpid(child, 0)[1] == 0


def test_thousands_are_found() -> None:
    with ExitStack() as stack:
        made = [stack.enter_context(socket.socket()) for _ in range(500)]
        inodes = {os.fstat(one.fileno()).st_ino for one in made}
        assert inodes <= sockets_of([os.getpid()])
