"""The clients of one frontend that have to wait: kept, told of in the history, and let go without a stampede."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import structlog

from clojarsd.core.frontend_plan import Pause
from clojarsd.core.history import EventName
from clojarsd.runtime.dial import Client
from clojarsd.runtime.frontend_history import History
from clojarsd.runtime.hold import Hold
from clojarsd.runtime.pacer import Pacer
from clojarsd.system.poller import Poller
from clojarsd.system.relay import EndReason, Session
from clojarsd.system.sockets import close_with_reset

RELEASE_PAUSE = 0.01
"""Seconds between two looks whether more of the clients that wait may be sent on their way."""
RETRY_PAUSE = 0.1
"""Seconds until a held client is tried again with an instance that is eligible and could not be connected to."""
RELEASE_TIME = 5.0
"""Seconds that those who have waited for the end of a pause have at least to be sent on their way."""


class Waited(Protocol):
    """The frontend, as far as those who wait need it."""

    @property
    def name(self) -> str:
        """Its name."""

    def admit(self, client: Client) -> None:
        """Connect the client to an instance, or give it back to `Waiting.keep`."""

    def room(self) -> int | None:
        """How many may be connected now; None: any number."""

    def why_wait(self) -> tuple[str, str | None]:
        """Why a client has to wait, in words; and how the latest connect came to nothing, if that is why."""

    def is_connecting_waited(self) -> bool:
        """Whether a client that had to wait is being connected."""

    def waits(self, client: Client) -> None:
        """A client has to wait."""

    def has_left(self, client: Client, reason: EndReason) -> None:
        """A client that waited has gone, and its descriptor with it; and why."""

    def look_for_more(self) -> None:
        """Take clients in, if there is room again."""

    def tell(self, *, is_news: bool) -> None:
        """A number has changed; `is_news`: clients begin or cease to wait."""


class Waiting:
    """Those who wait in one frontend, which makes and closes it; no task runs inside."""

    def __init__(
        self,
        frontend: Waited,
        loop: asyncio.AbstractEventLoop,
        log: structlog.typing.FilteringBoundLogger,
        poller: Poller,
        seconds: float,
    ) -> None:
        self.history: History
        self.accepted = 0
        """How many had to wait so far."""
        self.since: float | None = None
        """Since when somebody waits without a break, or None."""
        self.pacer = Pacer(loop)
        self._frontend = frontend
        self._loop = loop
        self._log = log
        self._pause: Pause | None = None
        self._release: asyncio.TimerHandle | None = None
        self.hold = Hold(loop, poller, seconds, self._give_up)

    def __len__(self) -> int:
        return len(self.hold)

    def change_time(self, seconds: float) -> None:
        """Let those who come from here on wait so long; the others may as long as they were told."""
        self.hold.seconds = seconds

    def heed(self, pause: Pause | None) -> None:
        """Go by a pause, or by its end: nobody is given up before, and all have the time to be sent on their way."""
        before, self._pause = self._pause, pause
        if pause != before:
            self._be_patient()
            self.pacer.begin()
        self.let_go()

    def _be_patient(self) -> None:
        """Who waits is given up when nobody can serve them at the end of the pause, but not because of the pause."""
        if self._pause is not None:
            self.hold.patient_until(self._pause.until + RELEASE_TIME)
        else:
            self.hold.patient_until(self._loop.time() + RELEASE_TIME if self._frontend.room() != 0 else 0.0)

    def keep(self, client: Client) -> None:
        """Let the client wait."""
        if self.since is None and (self.hold.seconds > 0 or self._pause is not None):  # else each is turned away
            self.since = self._loop.time()
            reason, failure = self._frontend.why_wait()
            text = f"connections of frontend {self._frontend.name} wait: {reason}"
            detail: dict[str, Any] = {"connect_failed": failure} if failure is not None else {}
            self.history.record(EventName.HOLD_STARTED, text, frontend=self._frontend.name, **detail)
            self.pacer.begin()
            self._frontend.tell(is_news=True)
        if client.give_up_at is None:
            self.accepted += 1
        client.tried = ()
        self.pacer.waits_again(client)
        self._frontend.waits(client)
        self.hold.keep(client)
        self._frontend.tell(is_news=False)
        if self._release is None and self._frontend.room() != 0:  # it, or who came before, could not be connected
            self._release = self._loop.call_later(RETRY_PAUSE, self.let_go)

    def let_go(self) -> None:
        """Send those on their way who have waited longest, as many as an instance can take, and soon the next."""
        self.stand_still()
        if len(self.hold):
            limits = [most for most in (self._frontend.room(), self.pacer.allowed()) if most is not None]
            for client in self.hold.take(min(limits, default=None)):
                self.pacer.let_go(client)
                self._frontend.admit(client)
            if len(self.hold) and self._release is None and self._frontend.room() != 0:
                self._release = self._loop.call_later(RELEASE_PAUSE, self.let_go)
        self._frontend.look_for_more()

    def let_all_go(self) -> None:
        """Send everybody on their way for whom there is room, at once: soon nobody will be served any more."""
        self.stand_still()
        for client in self.hold.take(self._frontend.room()):
            self._frontend.admit(client)

    def stand_still(self) -> None:
        """Send nobody on their way until `let_go`."""
        if self._release is not None:
            self._release.cancel()
            self._release = None

    def connected(self, client: Client, session: Session) -> None:
        """A client has got its instance."""
        if client.give_up_at is not None:
            self.pacer.connected(client, session)
            self._look_whether_over()

    def _give_up(self, client: Client, reason: EndReason) -> None:
        """A held client has left, or has waited as long as it may."""
        close_with_reset(client.socket)
        self._frontend.has_left(client, reason)
        self._frontend.tell(is_news=False)
        self._look_whether_over()
        self._frontend.look_for_more()

    def _look_whether_over(self) -> None:
        """Record it when nobody waits any more, nor is being connected after having waited."""
        if self.since is not None and not len(self.hold) and not self._frontend.is_connecting_waited():
            lasted, self.since = self._loop.time() - self.since, None
            self.pacer.begin()  # which lets go of them
            text = f"no connection of frontend {self._frontend.name} waits any more, after {lasted:.3g} s"
            self.history.record(EventName.HOLD_ENDED, text, frontend=self._frontend.name, seconds=round(lasted, 3))
            self._frontend.tell(is_news=True)
