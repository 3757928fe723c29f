"""How long this daemon lives, and what comes after it: its end with the pair, or another code in its place."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Mapping
from typing import NoReturn

import structlog

from clojarsd.core.errors import ClojarsdError, Failed, Refused
from clojarsd.core.history import EventName
from clojarsd.core.names import Role
from clojarsd.runtime.orders import Orders
from clojarsd.runtime.unit_parts import History
from clojarsd.runtime.unit_runner import UnitRunner
from clojarsd.runtime.work import Work
from clojarsd.system.succession import hold_signals_back

log = structlog.get_logger()

KEEP_TIMEOUT = 10.0


class End(enum.Enum):
    """How a daemon ends."""

    STOP = "the pair is stopped first"
    UPGRADE = "the pair runs on, and other code takes over"


class Life:
    """Takes the orders about the daemon itself; `run` belongs to its task group and holds a rehearsal under way.

    Args:
        version: of this code.
        rehearse: gives the version of the code that would take over; raises Failed.
        kept: returns when everything that the next daemon must know is safe on the disk; raises Failed.
        hold_signals: lets signals wait for the code that comes.
    """

    def __init__(
        self,
        version: str,
        orders: Orders,
        runners: Mapping[Role, UnitRunner],
        rehearse: Callable[[], Awaitable[str]],
        kept: Callable[[], Awaitable[None]],
        history: History,
        hold_signals: Callable[[], None] = hold_signals_back,
    ) -> None:
        self._version = version
        self._orders = orders
        self._runners = runners
        self._rehearse = rehearse
        self._kept = kept
        self._history = history
        self._hold_signals = hold_signals
        self._group: asyncio.TaskGroup
        self._ended = asyncio.Event()
        self._is_upgrading = False
        self._upgrade_work: Work | None = None
        self._upgrader = ""
        self._is_stopped = False
        self._stops: list[Work] = []
        self.end: End | None = None
        self.by = ""
        self.rollout_under_way: Callable[[], str | None] = lambda: None
        """Says which rollout could not be taken up by other code just now; set by the owner."""

    async def run(self) -> NoReturn:
        """Carry orders out until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            while True:
                await asyncio.Event().wait()

    async def ended(self) -> End:
        """How it ends, as soon as it is to end."""
        await self._ended.wait()
        assert self.end is not None
        return self.end

    def stop(self, by: str) -> Work:
        """End the pair and then the daemon; the work ends with the pair.

        Raises:
            Refused: other code is taking over.
        """
        if self.end is End.UPGRADE:
            raise Refused("cannot stop: clojarsd is being upgraded; the one that comes can be stopped")
        work = Work()
        work.note(None, "the primary is stopped, then the backup, then clojarsd")
        self._stops.append(work)
        self._finish(End.STOP, by)
        if self._is_stopped:
            self.stopped()
        return work

    def stopped(self) -> None:
        """The pair is stopped."""
        self._is_stopped = True
        while self._stops:
            self._stops.pop().finish("primary and backup are stopped; clojarsd ends")

    def upgrade(self, by: str) -> Work:
        """Let the code that is installed now take over, if it can; the work ends well just before that.

        Raises:
            Refused: something is under way that the new code could not go on with; nothing was done.
        """
        if why := self._why_not_now():
            raise Refused(f"cannot upgrade: {why}; clojarsd {self._version} goes on")
        self._is_upgrading = True
        work = self._upgrade_work = Work()
        self._upgrader = by
        self._group.create_task(self._upgrade(work, by))
        return work

    def _why_not_now(self) -> str | None:
        if self.end is not None or self._is_upgrading:
            return "clojarsd is ending" if self.end is End.STOP else "an upgrade is under way"
        if (orders := self._orders.under_way) is not None:
            return f"an order is under way: {orders}"
        if (rollout := self.rollout_under_way()) is not None:
            return f"a rollout is under way: {rollout}"
        for role, runner in self._runners.items():
            if (hook := runner.unit.hook) is not None:
                return f"{hook.value} of {role.value} runs"
        return None

    async def _upgrade(self, work: Work, by: str) -> None:
        log.info("upgrade_begun", by=by, version=self._version)
        work.note(None, "the new code reads the configuration and the state, and touches nothing")
        try:
            async with asyncio.timeout(KEEP_TIMEOUT):
                await self._kept()
            version = await self._rehearse()
            if why := self._why_not_after():
                raise Failed(why)
        except TimeoutError:
            self._give_up(work, Failed(f"the state is not on the disk within {KEEP_TIMEOUT:g} s"))
        except ClojarsdError as error:
            self._give_up(work, error)
        else:
            work.note(None, f"clojarsd {version} takes over from {self._version}")
            log.info("upgrade_goes_on", version=version)
            work.finish(f"clojarsd {version} takes over from {self._version}")
            self._finish(End.UPGRADE, by)
        finally:
            self._is_upgrading = False

    def _why_not_after(self) -> str | None:
        """What has begun during the rehearsal."""
        self._is_upgrading = False
        return self._why_not_now()

    def _give_up(self, work: Work, why: ClojarsdError) -> None:
        if work is not self._upgrade_work:
            return  # a stop has come first, and that was told
        self._upgrade_work = None
        log.warning("upgrade_failed", reason=str(why))
        text = f"cannot upgrade: {why}; clojarsd {self._version} stays in charge"
        self._history.record(EventName.ORDER, text, None, self._upgrader, failed=str(why))
        work.fail(Failed(text))

    def _finish(self, end: End, by: str) -> None:
        if self.end is None:
            self.end, self.by = end, by
            if end is End.UPGRADE:
                self._hold_signals()
            elif self._upgrade_work is not None:  # who watches must not wait for a successor
                self._give_up(self._upgrade_work, Failed("clojarsd is ending"))
            self._orders.refuse("clojarsd is stopping" if end is End.STOP else "clojarsd is being upgraded")
            self._ended.set()
