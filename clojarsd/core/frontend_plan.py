"""What a frontend is made of: decided by the supervisor, carried out by the relay process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from clojarsd.core.names import Address, Backend, Role
from clojarsd.core.routing import Caps, Failback


@dataclass(frozen=True, slots=True)
class Pause:
    """An operator's wish that new connections wait. `until`: monotonic seconds; `by`: whose wish."""

    until: float
    by: str


@dataclass(frozen=True, slots=True)
class CountedFrom:
    """What was counted when an operator wished to begin anew. `accepted`: as `FrontendView.accepted_total`; at: UTC."""

    accepted: Mapping[Role | None, int]
    at: str
    by: str


@dataclass(frozen=True, slots=True)
class FrontendPlan:
    """What a frontend is made of.

    Attributes:
        backends: where each instance answers, with numeric hosts; others: where it is tried next if it does not answer
            there, in this order, because its host has more addresses.
        movable: whether the protocol is HTTP, so that an open connection can change sides between two requests.
        mode: what the settings ask for: `auto`, `steer` or `relay`.
        mode_reason: why it relays though the settings ask for more, or None.
        needs_relay: the keys of the settings that only the relay can carry out.
        is_steered: whether the kernel gives new connections to the instances, and only others come to the relay.
        connect_timeout, hold, drain, drain_idle, failback, failback_max: seconds, as the settings say.
        max_connections, max_per_instance: as the settings say; 0: no limit.
        proxy_protocol: whether an instance is told first who its client is.
        source: the numeric host of ours that connects to instances come from; None: whichever fits.
        idle_timeout: seconds of silence after which a connection is ended; half_closed_timeout: the same for one of
            which one side has ended. None: never.
        cuts_on_down: whether open connections are reset when their instance is down and the other one can serve.
        slow_start: seconds in which the primary gets more and more of its connections back; 0: all at once.
        moves_on_up: whether the backup's open connections are brought home when new ones go to the primary again.
        access_log: whether each connection is told in the log at its end.
    """

    name: str
    listen: tuple[Address, ...]
    backends: Mapping[Role, Backend]
    movable: bool
    mode_reason: str | None
    quickack: bool
    connect_timeout: float
    hold: float
    hold_connections: int
    drain: float
    drain_idle: float
    failback: float
    mode: str = "relay"
    needs_relay: tuple[str, ...] = ()
    is_steered: bool = False
    failback_max: float = 0.0
    max_connections: int = 0
    max_per_instance: int = 0
    others: Mapping[Role, tuple[Address, ...]] = field(default_factory=dict)
    proxy_protocol: bool = False
    source: str | None = None
    idle_timeout: float | None = None
    half_closed_timeout: float | None = None
    access_log: bool = False
    cuts_on_down: bool = False
    moves_on_up: bool = False
    slow_start: float = 0.0

    @property
    def when_home(self) -> Failback:
        """When the primary gets its connections back."""
        return Failback(self.failback, self.failback_max)

    @property
    def caps(self) -> Caps:
        """How many connections there may be."""
        return Caps(self.max_connections, self.max_per_instance, self.max_per_instance)

    def relayed(self, reason: str) -> FrontendPlan:
        """The plan with the relay instead of the kernel, if the kernel was to steer; and why."""
        return replace(self, is_steered=False, mode_reason=reason) if self.is_steered else self

    def is_beside_ipv4(self, address: Address) -> bool:
        """Whether an IPv4 address of this frontend has the same port, which an IPv6 socket must then leave alone."""
        return any(":" not in other.host for other in self.listen if other.port == address.port)
