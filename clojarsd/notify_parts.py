"""Makes the sockets on which instances say how they are, and what waits for their word."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

import structlog

from clojarsd.core.errors import Failed, reason_of
from clojarsd.core.names import Role
from clojarsd.core.settings import Settings
from clojarsd.runtime.configuration import Configuration
from clojarsd.runtime.instance_notify import InstanceNotify
from clojarsd.runtime.unit_runner import UnitRunner
from clojarsd.runtime.watchdog import WatchdogTimer
from clojarsd.system.identity import user_of
from clojarsd.system.notify_socket import NotifySocket
from clojarsd.system.succession import Inherited

log = structlog.get_logger()


class NotifyParts:
    """Made by `Parts`, whose stack lets go of the sockets.

    Args:
        expired: called with the role and the seconds for which its instance has not said that it lives.

    Attributes:
        listeners: the sockets, by role; none where none could be had and none is needed.
        notified: who hears them; each `run` belongs to the daemon's task group.
        leashes: who waits for the next sign of life.
    """

    def __init__(
        self,
        runners: Mapping[Role, UnitRunner],
        configuration: Configuration,
        expired: Callable[[Role, float], None],
    ) -> None:
        self._runners = runners
        self._configuration = configuration
        self.listeners: dict[Role, NotifySocket] = {}
        self.notified: dict[Role, InstanceNotify] = {}
        self.leashes = {role: WatchdogTimer(role, expired) for role in Role}

    def open(self, stack: AsyncExitStack, settings: Settings, uid: int | None, inherited: Inherited | None) -> None:
        """Make the sockets, or take those that were handed over; raises Failed where one that is needed cannot be."""
        handed = inherited.notify if inherited is not None else {}
        for role in Role:
            try:
                path = self._configuration.plans.notify_socket(role)
                listener = NotifySocket(path, uid, handed.get(role.value))
            except Failed as failed:
                if settings.instances[role].notify:
                    raise
                log.debug("no_notify_socket", role=role.value, reason=str(failed))
                continue
            self.listeners[role] = listener
            stack.callback(listener.detach)  # an instance that runs on finds the next daemon at the same path
            self.notified[role] = InstanceNotify(role, listener, self._runners[role], self.leashes[role])

    def launched(self, role: Role) -> None:
        """Let the process send: one that was adopted may run as another user than the settings say now."""
        pid, listener = self._runners[role].pid, self.listeners.get(role)
        user = user_of(pid) if pid is not None else None
        owner = self._configuration.plans.world.uid if user in (None, os.geteuid()) else user  # a launcher is still us
        if listener is not None and owner is not None:
            try:
                listener.give_to(owner)
            except OSError as error:
                log.warning("notify_socket_not_given", role=role.value, reason=reason_of(error))
