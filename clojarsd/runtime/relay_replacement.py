"""Has a new relay process take the place of one that runs, or has ended: a part of the relay link, set apart."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from clojarsd.core.errors import Failed, reason_of
from clojarsd.core.relay_messages import HandOver, Welcome
from clojarsd.runtime.relay_launch import END_TIMEOUT, RelayPeer, launch, leave_former, spawn
from clojarsd.system.channel import pair

if TYPE_CHECKING:
    from clojarsd.runtime.relay_link import RelayLink

log = structlog.get_logger()

STEADY = 10.0
"""Seconds of life after which a relay process that ends is replaced at once."""
FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
"""Seconds before the next one is made when one after the other ends; doubled each time."""
HANDOVER_TIMEOUT = 20.0
"""Seconds for a new process to start and to have everything: more than the two give each other, see handover.py."""


async def make_another(link: RelayLink) -> None:
    """Have a process with the same listening sockets, at once, or later when they end one after the other."""
    if link._loop.time() - link._made_at >= STEADY:
        link._delay = 0.0
    while True:
        await asyncio.sleep(link._delay)
        link._delay = min(max(2 * link._delay, FIRST_DELAY), LONGEST_DELAY)
        try:
            peer = await launch(link._runtime_dir, link._code, link._owner)
        except Failed as failed:
            log.error("relay_not_started", reason=str(failed), next_try_s=link._delay)
            continue
        link._is_adopted = False
        await link._take(peer)
        log.warning("relay_replaced", pid=peer.pid, reason="clients waited in the backlog meanwhile")
        return


async def replace_relay(link: RelayLink) -> None:
    """Have a new process take over listening sockets and connections.

    Raises:
        Failed: it could not; the old one stays in charge.
    """
    old = link._peer
    if old is None or not link._has_begun or link._held_back is not None:
        raise Failed("cannot replace the relay process: none is in charge at the moment")
    try:
        ours, theirs = pair()
    except OSError as error:
        reason = reason_of(error)
        raise Failed(f"cannot replace the relay process: {reason}; the old one stays in charge") from error
    try:
        new = spawn(link._runtime_dir, link._code, link._owner, theirs)
        link._kept = None
        link._tell(HandOver(), [ours.fileno()])
        link._held_back = []
    finally:
        ours.close()
        theirs.close()
    try:
        answer = await new.greet(link._code, HANDOVER_TIMEOUT)
    except BaseException:
        await _stay_with(link, old, new)
        raise
    if not isinstance(answer, Welcome):
        await _stay_with(link, old, new)
        raise Failed(f"cannot replace the relay process: {link._kept or answer}; the old one stays in charge")
    if link._is_over:
        await new.end()
        return
    held_back, link._held_back = link._held_back or [], None
    await link._adopt(new)
    link._say(held_back)
    await old.wait(END_TIMEOUT)
    await old.end()
    leave_former(link._runtime_dir, link._owner)
    log.info("relay_handed_over", pid=new.pid, old=old.pid)


async def _stay_with(link: RelayLink, old: RelayPeer, new: RelayPeer) -> None:
    """The new process has not answered, so it has nothing."""
    await new.end()
    held_back, link._held_back = link._held_back or [], None
    link._say(held_back)
    if not old.channel.is_open:
        link._lost.set()
