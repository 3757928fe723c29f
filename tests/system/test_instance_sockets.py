"""Finding an instance's listening sockets, with real processes that listen in every way there is."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest

from clojarsd.core.errors import Failed
from clojarsd.core.names import Address
from clojarsd.system.instance_sockets import Listening, duplicate, find_listening
from clojarsd.system.kinship import members
from tests.support.real import unavailable

HOLDER = """
import os, socket, sys
made, port = [], 0
for family, host, only_ipv6 in eval(sys.argv[1]):
    one = socket.socket(family)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
    one.bind((host, port))
    one.listen(7)
    port = one.getsockname()[1]
    made.append(one)
print(port, flush=True)
sys.stdin.read()
"""
IPV4, IPV6 = int(socket.AF_INET), int(socket.AF_INET6)
Bound = Sequence[tuple[int, str, bool]]


@contextmanager
def running(command: Sequence[str], **how: object) -> Iterator[tuple[int, int]]:
    """A process of a session of its own that tells its port; its number and the port."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **how,  # type: ignore[call-overload]
    ) as process:
        try:
            assert process.stdout is not None
            yield process.pid, int(process.stdout.readline())
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def holder(bound: Bound) -> list[str]:
    """The command of a process that listens so."""
    return [sys.executable, "-I", "-S", "-c", HOLDER, repr(list(bound))]


@pytest.mark.parametrize(
    ("bound", "seen"),
    [
        ([(IPV6, "::", False)], [("::", True, True)]),
        ([(IPV6, "::", True)], [("::", False, True)]),
        ([(IPV4, "0.0.0.0", False)], [("0.0.0.0", True, False)]),
        ([(IPV4, "127.0.0.1", False)], [("127.0.0.1", True, False)]),
        ([(IPV6, "::1", False)], [("::1", False, True)]),
        ([(IPV6, "::ffff:127.0.0.1", False)], [("127.0.0.1", True, False)]),
        ([(IPV4, "127.0.0.1", False), (IPV6, "::1", True)], [("127.0.0.1", True, False), ("::1", False, True)]),
        ([(IPV4, "0.0.0.0", False), (IPV6, "::", True)], [("0.0.0.0", True, False), ("::", False, True)]),
    ],
    ids=["dual", "IPv6 only", "IPv4", "IPv4 loopback", "IPv6 loopback", "mapped", "loopback pair", "pair"],
)
def test_a_listener_is_found_with_what_it_takes(bound: Bound, seen: list[tuple[str, bool, bool]]) -> None:
    with running(holder(bound)) as (pid, port):
        found = find_listening([pid], port)
        assert {(one.address, one.takes_ipv4, one.takes_ipv6) for one in found} == {
            (Address(host, port), ipv4, ipv6) for host, ipv4, ipv6 in seen
        }
        for one in found:
            with duplicate(one) as copy:
                assert copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
                assert os.fstat(copy.fileno()).st_ino == one.inode
                assert os.get_inheritable(copy.fileno()) is False


def test_taking_a_duplicate_leaves_the_socket_as_it_is() -> None:
    with running(holder([(IPV4, "127.0.0.1", False)])) as (pid, port):
        (found,) = find_listening([pid], port)
        with open(f"/proc/{pid}/fdinfo/{found.descriptor}") as information:
            before = information.read()
        duplicate(found).close()
        with open(f"/proc/{pid}/fdinfo/{found.descriptor}") as information:
            assert information.read() == before


def test_nobody_who_listens_is_an_empty_list() -> None:
    with running(holder([(IPV4, "127.0.0.1", False)])) as (pid, port):
        assert find_listening([pid], port + 1 if port < 65535 else port - 1) == []
        assert find_listening([os.getpid()], port) == []
    assert find_listening([pid], port) == []  # it has ended
    assert find_listening([], port) == []


def test_one_that_only_a_child_of_the_shell_has_is_found_among_all_of_the_instance() -> None:
    shell = ["/bin/sh", "-c", '"$@"; true', "sh", *holder([(IPV6, "::", False)])]
    with running(shell) as (pid, port):
        assert find_listening([pid], port) == []
        family = members(pid)
        assert family[0] == pid
        assert len(family) == 2
        (found,) = find_listening(family, port)
        assert found.pid == family[1]


def test_a_socket_that_two_processes_have_stands_once() -> None:
    program = HOLDER.replace("sys.stdin.read()", "os.fork()\nsys.stdin.read()")
    with running([sys.executable, "-I", "-S", "-c", program, repr([(IPV4, "127.0.0.1", False)])]) as (pid, port):
        assert [one.pid for one in find_listening([*members(pid), pid], port)] == [pid]


def test_an_instance_of_another_user_is_found_by_root() -> None:
    if os.geteuid() != 0:
        unavailable("needs root, who may look at another user's processes")
    nobody = pwd.getpwnam("nobody").pw_uid
    with running(["/usr/bin/python3", *holder([(IPV4, "127.0.0.1", False)])[1:]], user=nobody, cwd="/") as (pid, port):
        (found,) = find_listening([pid], port)
        duplicate(found).close()


def test_an_instance_in_another_network_is_told() -> None:
    if os.geteuid() != 0:
        unavailable("needs root, who may make network namespaces")
    with (
        running(["unshare", "-n", *holder([(IPV4, "0.0.0.0", False)])]) as (pid, port),
        pytest.raises(Failed, match=rf"^process {pid} is in another network namespace$"),
    ):
        find_listening([pid], port)


def test_descriptors_that_may_not_be_seen_are_told() -> None:
    if os.geteuid() != 0:
        unavailable("needs root, to become a user who may not look")
    with running(holder([(IPV4, "127.0.0.1", False)])) as (pid, port):
        asks = (
            "import os, sys\n"
            "from clojarsd.core.errors import Failed\n"
            "from clojarsd.system.instance_sockets import find_listening\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "try: find_listening([int(sys.argv[1])], int(sys.argv[2]))\n"
            "except Failed as failed: print(failed)\n"
        )
        told = subprocess.run(
            [sys.executable, "-c", asks, str(pid), str(port)], capture_output=True, text=True, check=True
        ).stdout
        assert told == f"cannot look at the descriptors of process {pid}: permission denied\n"


def test_a_descriptor_that_is_another_file_by_now_is_no_duplicate() -> None:
    with running(holder([(IPV4, "127.0.0.1", False), (IPV6, "::1", True)])) as (pid, port):
        one, other = find_listening([pid], port)
        mistaken = replace(one, descriptor=other.descriptor)
        descriptors = len(os.listdir("/proc/self/fd"))
        with pytest.raises(
            Failed, match=rf"^descriptor {other.descriptor} of process {pid} is not socket {one.inode} "
        ):
            duplicate(mistaken)
        assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_process_that_has_ended_has_no_duplicate() -> None:
    with running(holder([(IPV4, "127.0.0.1", False)])) as (pid, port):
        (found,) = find_listening([pid], port)
    with pytest.raises(ProcessLookupError):
        duplicate(found)


def test_a_listener_is_known_again_by_its_inode() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mine:
        port = mine.getsockname()[1]
        (found,) = find_listening([os.getpid()], port)
        assert found == Listening(
            os.getpid(),
            mine.fileno(),
            os.fstat(mine.fileno()).st_ino,
            Address("127.0.0.1", port),
            takes_ipv4=True,
            takes_ipv6=False,
        )
