"""What holds for all tests."""

from __future__ import annotations

import os
import signal

os.environ.pop("SSL_CERT_FILE", None)  # every daemon would read all these certificates when it imports aiohttp
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else the programs that tests start would ignore it, too
