"""What outlives the daemon: the pair as a value, and its JSON of format 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from clojarsd.core.codec import Unfit, decode, encode
from clojarsd.core.errors import Failed
from clojarsd.core.health import CheckRecord
from clojarsd.core.identity import ProcessIdentity
from clojarsd.core.names import Goal, Role
from clojarsd.core.settings_types import LogTo
from clojarsd.core.unit_facts import Unit
from clojarsd.core.view import LastExit
from clojarsd.core.warmup import Warmup

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class InForce:
    """The settings that a running process was launched with and keeps until its end, whatever the file says now.

    Attributes:
        notify: whether it tells by NOTIFY_SOCKET that it is ready.
        watchdog: seconds within which it was told to say that it is alive, or None.
        cgroup: whether it has a group of its own.
        sockets: the Unix sockets it listens on, by name.
    """

    host: str
    ports: Mapping[str, int]
    notify: bool = False
    watchdog: float | None = None
    log: LogTo = LogTo.FILE
    cgroup: bool = False
    sockets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SavedInstance:
    """One instance.

    Attributes:
        process: None when none was running.
        release: the file name of the release it was launched with, or None.
        restarts: launches that followed an unasked end.
        since: when the present state began (UTC).
        started_at: when its process was launched (UTC), or None.
        wanted: the goal as an operator has set it; that of the unit is another while the daemon itself ends the pair.
        goal_by: who ordered the goal, or None; and when that was (UTC).
        records: of each check, in the order of the settings; checked_at: when each was last made (UTC), or None.
        in_force: what its process was launched with, or None without one.
        checks: what the records are of.
        noticed: whether its process has said that it is ready, and status_text: what else it has said, or None.
        unready: what the latest start that was given up still lacked, in words, or None.
        stalled: that its process accepts no connections, in words, or None; stalled_since: monotonic instant.
        launched_at: monotonic instant at which its process was launched, or None.
        start_seconds: from then until its checks passed, or None; cds: with a class-data archive, or None.
        stalls, stall_seconds: how often that was so, and for how long, the present time excepted.
        warmup: what came of the warm-up of its latest process; None: there was none, or it is under way.
    """

    unit: Unit
    since: str
    process: ProcessIdentity | None = None
    release: str | None = None
    restarts: int = 0
    started_at: str | None = None
    last_exit: LastExit | None = None
    wanted: Goal = Goal.UP
    goal_by: str | None = None
    goal_at: str | None = None
    records: tuple[CheckRecord, ...] = ()
    checked_at: tuple[str | None, ...] = ()
    in_force: InForce | None = None
    checks: tuple[str, ...] = ()
    noticed: bool = False
    status_text: str | None = None
    unready: str | None = None
    stalled: str | None = None
    stalled_since: float = 0.0
    stalls: int = 0
    stall_seconds: float = 0.0
    warmup: Warmup | None = None
    launched_at: float | None = None
    start_seconds: float | None = None
    cds: bool | None = None


@dataclass(frozen=True, slots=True)
class SavedPair:
    """Everything that the next daemon must know.

    Attributes:
        boot_id: of the boot in which all monotonic instants here hold.
        generation: how many times code was executed under the number of the daemon that saved this.
        saved_at: when this was true (UTC).
        ending: whether the daemon was ending the pair: who ends then has not failed, whoever ended it.
    """

    service: str
    boot_id: str
    generation: int
    instances: Mapping[Role, SavedInstance]
    saved_at: str
    ending: bool = field(default=False, kw_only=True)
    format: int = field(default=FORMAT, kw_only=True)


def as_json(pair: SavedPair) -> dict[str, Any]:
    """The document that `from_json` reads; the format stands first, for people and other versions."""
    document: dict[str, Any] = encode(pair)
    return {"format": document.pop("format"), **document}


def from_json(document: object) -> SavedPair:
    """The pair that a document holds.

    Raises:
        Failed: it is of a format that this version does not know, or holds something else.
    """
    if not isinstance(document, dict) or "format" not in document:
        raise Failed("it holds no state of a pair")
    if document["format"] != FORMAT:
        raise Failed(f"it has format {document['format']!r}, and this version knows {FORMAT}")
    try:
        pair = decode(SavedPair, document)
    except Unfit as wrong:
        raise Failed(str(wrong)) from wrong
    for role in Role:
        if role not in pair.instances:
            raise Failed(f"instances: {role.value} is missing")
    return pair


def in_this_boot(pair: SavedPair, boot_id: str) -> SavedPair:
    """What of it still holds in that boot.

    After another boot that is what operators want, and what is counted: the goal, who ordered it and when, the
    rotation, the number of the last incarnation, the restarts and the last exit. No process is left, and no monotonic
    instant means anything, so that failures are forgotten too.
    """
    if pair.boot_id == boot_id:
        return pair
    instances = {role: _after_reboot(instance, pair.saved_at) for role, instance in pair.instances.items()}
    return replace(pair, boot_id=boot_id, instances=instances)


def essence(pair: SavedPair) -> SavedPair:
    """The pair without what changes all the time and is known again soon: when it was true, what checks saw last."""
    instances = {
        role: replace(
            instance,
            records=tuple(CheckRecord(record.health) for record in instance.records),
            checked_at=(),
        )
        for role, instance in pair.instances.items()
    }
    return replace(pair, instances=instances, saved_at="")


def _after_reboot(instance: SavedInstance, saved_at: str) -> SavedInstance:
    unit = instance.unit
    return SavedInstance(
        unit=Unit(rotation=unit.rotation, incarnation=unit.incarnation),
        since=saved_at,
        restarts=instance.restarts,
        last_exit=instance.last_exit,
        wanted=instance.wanted,
        goal_by=instance.goal_by,
        goal_at=instance.goal_at,
        stalls=instance.stalls,
        stall_seconds=instance.stall_seconds,
    )
