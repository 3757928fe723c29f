"""The drain of one instance over the steered frontends: waits for its connections, and resets those that last too long.

Nobody but the kernel sees these connections, so it is looked again and again. Why which is waited for, and what becomes
of the others: docs/decisions/0010-drain-of-steered-connections.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import structlog

from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.errors import reason_of
from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Role
from clojarsd.runtime.drain import LOOKS_PER_IDLE_TIME
from clojarsd.runtime.steered_look import Destroyed, Looker, Seen, is_silent, may_end, owes_answer
from clojarsd.system.sock_diag import SYN_RECEIVED, Connection

log = structlog.get_logger()
T = TypeVar("T")

SECOND_LOOK = 0.05
"""Seconds between two looks that must both find nothing: what was on its way at the first is there at the second."""
LAST_PART = 0.1
LONGEST_LAST_PART = 1.0
"""Of the time, and in seconds at most: who is between two requests then is let go, before the end cuts one of them."""
SHORT_SILENCE = 0.003
"""Seconds that are silence enough then; four times that where it cannot be told whether an answer is owed."""
SHORTEST_PAUSE = 0.01


class InThread(Protocol):
    """Runs an act in the thread of the looks, and calls back on the loop, unless that is called off."""

    def __call__(self, act: Callable[[], T], then: Callable[[T | OSError], None]) -> Callable[[], None]:
        """Begin; the result calls it off."""


class SteeredDrain:
    """From `begin` until it is over or closed. Made by `SteeredConnections`; no task runs inside.

    Args:
        plans: the frontends, and after them those that are not wanted any more and may have connections.
        within: seconds that the connections may last, where that is less than the frontend's `drain`.
        when_drained: called once, when there is nothing to wait for any more.
    """

    def __init__(
        self,
        role: Role,
        plans: Iterable[FrontendPlan],
        within: float | None,
        looker: Looker,
        in_thread: InThread,
        when_drained: Callable[[], None],
    ) -> None:
        self._role = role
        self._looker = looker
        self._in_thread = in_thread
        self._when_drained: Callable[[], None] | None = when_drained
        self._loop = asyncio.get_running_loop()
        self._log = log.bind(role=role.value)
        self._looked_at = tuple(plans)
        self._plans = {plan.name: plan for plan in reversed(self._looked_at)}
        self._began_at = self._loop.time()
        self._deadlines: dict[str, float] = {}
        """Of the frontends in which connections are still waited for."""
        self._left: dict[str, Sequence[Connection]] = {}
        self._arriving: dict[str, set[int]] | None = None
        """The cookies of those that were on their way to some accept queue at the first look, by frontend."""
        self._queued: dict[str, int] = {}
        """How many of those still wait in the instance's accept queue."""
        self._looks_in_vain = 0
        self._met: set[int] = set()
        """The cookies of all that were seen open, `_seen` of those that the latest look has seen."""
        self._seen: set[int] = set()
        self._reset: set[int] = set()
        """Of those that were to be reset."""
        self._told = DrainTally()
        """What has become of those that were reset, or could not be."""
        self._is_sooner = False
        self._is_cutting = False
        self._cannot_look: str | None = None
        self._call_off: Callable[[], None] = lambda: None
        self._timer: asyncio.TimerHandle | None = None
        self._set_deadlines(within)
        self._every = max(
            min((plan.drain_idle for plan in self._plans.values()), default=0.0) / LOOKS_PER_IDLE_TIME, SHORTEST_PAUSE
        )
        self._look()

    @property
    def is_over(self) -> bool:
        """Whether nothing is waited for any more."""
        return self._when_drained is None

    def shorten(self, within: float | None, when_drained: Callable[[], None]) -> None:
        """Go on with no more time than this from now on, and call this one back instead."""
        if self._when_drained is not None:
            self._when_drained = when_drained
            self._set_deadlines(within)
            if not self._is_cutting:
                self._look()

    def close(self) -> None:
        """Leave what is open alone, and do not call back."""
        self._when_drained = None
        if not self._is_cutting:  # of which the log shall tell
            self._stop_waiting()

    def waited_until(self, frontend: str) -> float | None:
        """The loop time until which connections of the frontend are waited for; None: for none of it.

        Until two looks have found nothing there may be some.
        """
        is_unclear = self._arriving is None or self._looks_in_vain == 1
        is_waited_for = is_unclear or self._left.get(frontend) or self._queued.get(frontend)
        return self._deadlines.get(frontend) if is_waited_for and not self.is_over else None

    def tally(self) -> DrainTally:
        """What has become of its connections, as the latest look has seen it."""
        told, stay = self._told, len(self._seen - self._reset)
        known = told.silent + told.cut + told.left + stay
        return replace(told, stay=stay, ended=max(len(self._met) - known, 0))

    def _set_deadlines(self, within: float | None) -> None:
        now = self._loop.time()
        for name in list(self._deadlines or self._plans):
            longest = self._plans[name].drain
            seconds = longest if within is None else min(within, longest)
            self._is_sooner |= seconds < longest
            self._deadlines[name] = min(self._deadlines.get(name, now + seconds), now + seconds)

    def _stop_waiting(self) -> None:
        self._call_off()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Looking.

    def _look(self) -> None:
        """Look now, whatever was to come."""
        self._stop_waiting()
        self._call_off = self._in_thread(lambda: self._looker.look(self._looked_at, with_queues=True), self._looked)

    def _looked(self, seen: Seen | OSError) -> None:
        if isinstance(seen, OSError):
            if self._cannot_look is None:
                self._log.warning("steered_connections_unseen", reason=reason_of(seen))
            self._cannot_look = reason_of(seen)
            self._looks_in_vain = 0
        else:
            self._cannot_look = None
            self._judge(seen)
        now = self._loop.time()
        late = [name for name, deadline in self._deadlines.items() if deadline <= now]
        if late:
            self._cut(late)
        elif between := self._between_requests(now):
            self._is_cutting = True
            self._reset |= {one.cookie for one in between}
            self._in_thread(lambda: self._looker.destroy(between), self._let_go)
        elif self._looks_in_vain >= 2 or not self._deadlines:
            self._finish()
        else:
            is_early = now - self._began_at < SECOND_LOOK  # when most of what is open is about to end
            is_late = any(now >= self._last_part_of(name) for name in self._deadlines)
            pause = min(SECOND_LOOK, self._every) if self._looks_in_vain or is_early else self._every
            pause = SHORTEST_PAUSE if is_late else min(pause, max(self._next_last_part(now), SHORTEST_PAUSE))
            self._timer = self._loop.call_at(min(now + pause, *self._deadlines.values()), self._look)

    def _judge(self, seen: Seen) -> None:
        """Which are waited for, and whether somebody may still come."""
        if self._arriving is None:
            self._arriving = {name: {one.cookie for one in waiting} for name, waiting in seen.waiting.items()}
        self._seen = {one.cookie for name in self._plans for one in seen.open.get((name, self._role), ())}
        self._met |= self._seen
        for name in self._deadlines:
            plan = self._plans[name]
            self._left[name] = [one for one in seen.open[name, self._role] if not is_silent(one, plan.drain_idle)]
            in_queue = seen.queued.get((name, self._role), 0)
            self._queued[name] = sum(
                one.cookie in self._arriving.get(name, ()) and (one.state == SYN_RECEIVED or in_queue > 0)
                for one in seen.waiting[name]
            )
        is_in_vain = not any(self._queued[name] or self._left[name] for name in self._deadlines)
        self._looks_in_vain = self._looks_in_vain + 1 if is_in_vain else 0

    def _last_part_of(self, name: str) -> float:
        """When the last part of the frontend's time begins."""
        return self._deadlines[name] - min(LONGEST_LAST_PART, self._plans[name].drain * LAST_PART)

    def _next_last_part(self, now: float) -> float:
        """Seconds until one begins."""
        return min(self._last_part_of(name) - now for name in self._deadlines)

    def _between_requests(self, now: float) -> list[Connection]:
        """Those that would be reset soon, and to which no answer is owed at this moment, as far as can be told."""
        near = [name for name in self._deadlines if now >= self._last_part_of(name)]
        return [one for name in near for one in self._left.get(name, ()) if may_end(one, SHORT_SILENCE)]

    def _let_go(self, result: Destroyed | OSError) -> None:
        assert not isinstance(result, OSError)
        self._is_cutting = False
        count = len(result.done)
        self._told += DrainTally(silent=count)
        if count:
            self._log.info("drain_let_go", connections=count, reason="they were between two requests near the end")
        if result.trouble is not None or self._when_drained is None:
            self._wait_for_deadline()
        else:
            self._look()

    def _wait_for_deadline(self) -> None:
        """They cannot be reset: what ends the drain says so."""
        if self._when_drained is not None:
            self._timer = self._loop.call_at(min(self._deadlines.values()), self._look)

    def _finish(self) -> None:
        when_drained, self._when_drained = self._when_drained, None
        self._stop_waiting()
        self._left.clear()
        if when_drained is not None:
            when_drained()

    # Cutting.

    def _cut(self, names: list[str]) -> None:
        """The time of these frontends is over: reset what is still waited for there."""
        if self._cannot_look is not None:
            for name in names:
                self._give_up(name, None, f"cannot see them: {self._cannot_look}")
            self._cut_done()
            return
        doomed = {name: list(self._left.get(name, ())) for name in names}
        self._reset |= {one.cookie for some in doomed.values() for one in some}

        def cut() -> dict[str, Destroyed]:
            return {name: self._looker.destroy(connections) for name, connections in doomed.items()}

        def done(results: dict[str, Destroyed] | OSError) -> None:
            assert not isinstance(results, OSError)
            self._is_cutting = False
            for name, (reset, left, trouble) in results.items():
                if reset:
                    self._say_cut(name, reset)
                if trouble is not None:
                    self._give_up(name, len(left), f"cannot reset them: {trouble}")
                if self._queued.get(name):
                    self._give_up(name, self._queued[name], "they wait in its accept queue")
                self._deadlines.pop(name, None)
            self._cut_done()

        self._is_cutting = True
        self._in_thread(cut, done)

    def _say_cut(self, name: str, reset: Sequence[Connection]) -> None:
        owed, count = sum(owes_answer(one) is not False for one in reset), len(reset)
        lasted = round(self._loop.time() - self._began_at, 1)
        reason = f"open {lasted:g} s after the drain began; {owed} of them waited for an answer"
        self._log.warning("drain_cut", frontend=name, connections=count, reason=reason)
        self._told += DrainTally(cut=count, after=lasted, is_sooner=self._is_sooner)

    def _give_up(self, name: str, count: int | None, reason: str) -> None:
        """What cannot be reset, or even seen, ends with the instance."""
        self._log.warning("drain_left", frontend=name, connections=count, reason=reason)
        self._told += DrainTally(left=count or 0, trouble=reason)
        self._deadlines.pop(name, None)

    def _cut_done(self) -> None:
        if self._when_drained is None:
            return  # it was called off meanwhile
        if not self._deadlines:
            self._finish()
        else:
            self._look()
