"""What holds for all tests."""

from __future__ import annotations

import os
import signal

from clojarsd.system.sockets import given_away

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) is not None:  # each has ports of its own: nobody else tries them
    number, count = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    given_away.update(port for port in range(1 << 16) if port % count != number)
os.environ.pop("SSL_CERT_FILE", None)  # every daemon would read all these certificates when it imports aiohttp
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else the programs that tests start would ignore it, too
