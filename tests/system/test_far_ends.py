"""Whose the other end of a connection is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from clojarsd.system.far_ends import far_ends_of

CONNECT = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); sys.stdin.read()"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "dual"])
def test_each_is_found_in_the_process_that_has_it(family: socket.AddressFamily) -> None:
    dual = family == socket.AF_INET6
    with socket.create_server(("::" if dual else "127.0.0.1", 0), family=family, dualstack_ipv6=dual) as listener:
        port = listener.getsockname()[1]
        ours = socket.create_connection(("127.0.0.1", port))
        of_ours, _ = listener.accept()
        child = subprocess.Popen([sys.executable, "-c", CONNECT, str(port)], stdin=subprocess.PIPE)
        of_child, _ = listener.accept()
        try:
            ends = [of_ours, of_child]
            assert far_ends_of(ends, [os.getpid(), child.pid]) == {of_ours: os.getpid(), of_child: child.pid}
            assert far_ends_of(ends, [child.pid]) == {of_child: child.pid}
            ours.close()
            assert far_ends_of(ends, [os.getpid()]) == {}
        finally:
            child.communicate()
            for end in (ours, of_ours, of_child):
                end.close()


def test_one_that_is_closed_is_nobodys() -> None:
    end = socket.socket()
    end.close()
    assert far_ends_of([end], [os.getpid()]) == {}
