"""An application that accepts slowly, with a short backlog, and closes its listener or opens it again on SIGUSR1.

Every request is answered with the instance's name. Run by path, by a daemon: `command` gives its command line.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time

BACKLOG = 8
PATIENCE = 30.0
LOOK_EVERY = 0.02
"""Seconds that one accept waits, so that the listener can be closed between two."""


def command(pause: float) -> list[str]:
    """The command line; `pause`: seconds between two accepts."""
    return [sys.executable, "-S", "-E", __file__, "{port.http}", "{port.line}", str(pause), "{role}"]


class Reluctant:
    """One thread accepts; each connection has a thread that answers it."""

    def __init__(self, port: int, pause: float, name: str) -> None:
        self._port = port
        self._pause = pause
        self._answer = json.dumps({"name": name}).encode()
        self._is_closed = threading.Event()
        self._listener = self._listen()

    def toggle(self) -> None:
        """Close the listener, or open it again."""
        if self._is_closed.is_set():
            self._is_closed.clear()
        else:
            self._is_closed.set()

    def run(self) -> None:
        """Serve until killed."""
        while True:
            self._heed()
            try:
                taken, _ = self._listener.accept()
            except TimeoutError:
                continue
            threading.Thread(target=self._serve, args=(taken,), daemon=True).start()
            time.sleep(self._pause)

    def _heed(self) -> None:
        """Close the listener and wait, if that is wished, and open it again."""
        if not self._is_closed.is_set():
            return
        self._listener.close()
        while self._is_closed.is_set():
            time.sleep(LOOK_EVERY)
        self._listener = self._listen()

    def _listen(self) -> socket.socket:
        made = socket.create_server(("127.0.0.1", self._port), backlog=BACKLOG)
        made.settimeout(LOOK_EVERY)
        return made

    def _serve(self, taken: socket.socket) -> None:
        with taken:
            taken.settimeout(PATIENCE)
            head = b""
            try:
                while b"\r\n\r\n" not in head:
                    some = taken.recv(4096)
                    if not some:
                        return
                    head += some
                about = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(self._answer)
                taken.sendall(about + self._answer)
            except OSError:
                return


def main() -> None:
    """Listen on both ports, and serve the first."""
    port, line, pause, name = sys.argv[1:]
    app = Reluctant(int(port), float(pause), name)
    signal.signal(signal.SIGUSR1, lambda number, frame: app.toggle())
    with socket.create_server(("127.0.0.1", int(line))):
        app.run()


if __name__ == "__main__":
    main()
