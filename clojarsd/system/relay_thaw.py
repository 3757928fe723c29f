"""A relayed connection of another process is made anew in this one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from clojarsd.core.end_reason import EndReason
from clojarsd.core.frozen import FrozenSession
from clojarsd.system.pipes import Pipe
from clojarsd.system.relay import RelayResources, Session
from clojarsd.system.relay_phases import Phase


def thaw(
    loop: asyncio.AbstractEventLoop,
    frozen: FrozenSession,
    descriptors: Sequence[int],
    resources: RelayResources,
    *,
    on_end: Callable[[Session, EndReason], None],
) -> Session:
    """The session that was frozen elsewhere, still frozen. A part of `Session`, set apart.

    Args:
        descriptors: as `Session.freeze` gives them; the session's own from here on.
    """
    client, instance = (socket.socket(fileno=descriptor) for descriptor in descriptors[:2])
    client.setblocking(False)
    instance.setblocking(False)
    session = Session(loop, client, instance, resources, quickack=frozen.quickack, on_end=on_end)
    session.owed, session.began_at = frozen.owed, frozen.began_at or session.began_at
    session.is_duplicated = True
    session._phase = Phase[frozen.phase]
    pipes = iter(descriptors[2:])
    for flow, state in ((session._up, frozen.up), (session._down, frozen.down)):
        flow.thaw(state, Pipe(next(pipes), next(pipes)) if state.piped else None)
    if frozen.lost is not None:
        session._lost = session._up if frozen.lost == "up" else session._down
    session._said, session._seen = frozen.said, frozen.seen
    session._timer_at, session._give_up_at = frozen.timer_at, frozen.give_up_at
    return session
