"""Whose relay processes are, how many there may be, and where each is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clojarsd.system.confinement import Account
from clojarsd.system.relay_socket import make_room

MOST_WORKERS = 16
"""Relay processes of one daemon."""
SOCKET = "relay/relay.sock"
"""Below the runtime directory, in a directory that is the relay process's own, so that it need not be root there. Those
beside the first one have `relay-2.sock` and so on."""


class Owner:
    """Told which processes are ours to reap, so that nobody else does; see `system.process.Processes`.

    Attributes:
        account: whom relay processes become; None: they stay who we are.
        number: which of the relay processes it is about; the first is 1.
    """

    def __init__(
        self,
        own: Callable[[int], None] = lambda pid: None,
        disown: Callable[[int], None] = lambda pid: None,
        account: Account | None = None,
        number: int = 1,
    ) -> None:
        self.own = own
        self.disown = disown
        self.account = account
        self.number = number

    def of(self, number: int) -> Owner:
        """The same for another one of the relay processes."""
        return Owner(self.own, self.disown, self.account, number)

    def place(self, runtime_dir: Path) -> Path:
        """Where the relay process listens for supervisors."""
        first = runtime_dir / SOCKET
        return first if self.number == 1 else first.with_stem(f"{first.stem}-{self.number}")

    def code(self, digest: str) -> str:
        """What tells a relay process that is as a new one would be from others."""
        return digest if self.account is None else f"{digest}-{self.account}"

    def keep_room(self, runtime_dir: Path) -> None:
        """See to it that the relay process has a directory for its socket.

        Raises:
            OSError: it cannot be had.
        """
        make_room((runtime_dir / SOCKET).parent, self.account)


def numbers_in(runtime_dir: Path) -> set[int]:
    """Which relay processes beside the first one may be running: those that have left a socket in the directory."""
    place = runtime_dir / SOCKET
    names = (path.stem.removeprefix(f"{place.stem}-") for path in place.parent.glob(f"{place.stem}-*{place.suffix}"))
    return {int(name) for name in names if name.isdecimal() and 1 < int(name) <= MOST_WORKERS}
