"""One line of the log for each connection, at its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from clojarsd.core.frozen import FrozenRecord
from clojarsd.core.names import Address, Role
from clojarsd.runtime.dial import Client
from clojarsd.system.relay import EndReason, Session


@dataclass(slots=True, eq=False)
class Record:
    """What is told of a connection that is not over. Instants are loop time.

    Attributes:
        client: its address, as the socket gives it; None: it had gone.
        came_at: when it was accepted, or None: nobody counted then.
        up, down: bytes that earlier sessions have carried.
        dialled_at: when the latest connect was begun; connect: the seconds that the one took that succeeded.
        held_at: since when it waits; held: seconds that it has waited before, or None: it never had to.
    """

    client: str | None
    came_at: float | None
    tries: int = 0
    moves: int = 0
    up: int = 0
    down: int = 0
    dialled_at: float | None = None
    connect: float | None = None
    held_at: float | None = None
    held: float | None = None

    def freeze(self) -> FrozenRecord:
        """All of it for another process, where a connect that is under way begins anew."""
        return FrozenRecord(
            self.client, self.came_at, self.tries, self.moves, self.up, self.down, self.connect, self.held_at, self.held
        )

    @classmethod
    def thaw(cls, frozen: FrozenRecord) -> Record:
        """The same in this process."""
        return cls(
            client=frozen.client, came_at=frozen.came_at, tries=frozen.tries, moves=frozen.moves, up=frozen.up,
            down=frozen.down, connect=frozen.connect, held_at=frozen.held_at, held=frozen.held,
        )  # fmt: skip


class ConnectionLog:
    """The records of one frontend's connections. While nobody listens there are none, and `is_on` says so.

    Telling it something then does nothing; for what every connection does, the caller looks first.

    Attributes:
        is_on: whether the next connection is recorded.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, log: structlog.typing.FilteringBoundLogger) -> None:
        self.is_on = False
        self._loop = loop
        self._log = log
        self._write = log.debug
        self._records: dict[Client | Session, Record] = {}

    def configure(self, wanted: bool, open_ones: Iterable[Client | Session] = ()) -> None:
        """Record from now on, or only where debug lines are wanted anyway.

        Args:
            open_ones: connections that are there already: what is known of them is recorded as well.
        """
        self.is_on = wanted or self._log.is_enabled_for(logging.DEBUG)
        self._write = self._log.info if wanted else self._log.debug
        if not self.is_on:
            self._records = {}
            return
        for one in open_ones:
            if one not in self._records:
                end = one.client if isinstance(one, Session) else one.socket
                self._records[one] = Record(_peer_of(end), None)

    def came(self, client: Client) -> None:
        """A client was accepted."""
        self._records[client] = Record(_peer_of(client.socket), self._loop.time())

    def dialling(self, client: Client) -> None:
        """A connect begins on its behalf."""
        if (record := self._records.get(client)) is not None:
            now = self._loop.time()
            record.tries += 1
            record.dialled_at = now
            if record.held_at is not None:
                record.held = (record.held or 0.0) + now - record.held_at
                record.held_at = None

    def waits(self, client: Client) -> None:
        """It has to wait from now on."""
        if (record := self._records.get(client)) is not None:
            record.held_at = self._loop.time()

    def connected(self, client: Client, session: Session) -> None:
        """It has an instance: the session goes on with its record."""
        if (record := self._records.pop(client, None)) is not None:
            if record.dialled_at is not None:
                record.connect = self._loop.time() - record.dialled_at
            self._records[session] = record

    def moved(self, session: Session, client: Client) -> None:
        """It has left its instance, and waits for another."""
        if (record := self._records.pop(session, None)) is not None:
            record.moves += 1
            record.up += session.bytes_up
            record.down += session.bytes_down
            self._records[client] = record

    def ended(self, connection: Client | Session, role: Role | None, reason: EndReason) -> None:
        """It is over; said once."""
        record = self._records.pop(connection, None)
        if record is None:
            return
        now = self._loop.time()
        up, down = record.up, record.down
        if isinstance(connection, Session):
            up += connection.bytes_up
            down += connection.bytes_down
        told: dict[str, object] = {"client": record.client, "role": role and role.value, "reason": reason.value}
        told |= {"up_bytes": up, "down_bytes": down, "tries": record.tries}
        told["lasted_s"] = None if record.came_at is None else round(now - record.came_at, 3)
        if record.connect is not None:
            told["connect_s"] = round(record.connect, 6)
        if record.held_at is not None or record.held is not None:
            waits = 0.0 if record.held_at is None else now - record.held_at
            told["held_s"] = round((record.held or 0.0) + waits, 3)
        if record.moves:
            told["moves"] = record.moves
        self._write("connection_ended", **told)

    def freeze(self, connection: Client | Session) -> FrozenRecord | None:
        """The record for another process."""
        record = self._records.get(connection)
        return record.freeze() if record is not None else None

    def thaw(self, connection: Client | Session, frozen: FrozenRecord | None) -> None:
        """Go on with the record of another process."""
        if self.is_on:
            self._records[connection] = Record.thaw(frozen) if frozen is not None else Record(None, None)

    def close(self) -> None:
        """Forget all, without a word: another process tells of them."""
        self._records = {}


def _peer_of(end: object) -> str | None:
    """Where the other side is, as text; None when it has gone."""
    try:
        peer = end.getpeername()  # type: ignore[attr-defined]
    except OSError:
        return None
    return str(Address.of_socket(peer)) if isinstance(peer, tuple) else "a Unix socket"
