"""Whether a frontend can be steered, and which instances the kernel may try in what order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Role

RELAY_ONLY: Final = (
    *("quickack", "max_connections", "max_per_instance", "proxy_protocol"),
    *("source", "idle_timeout", "access_log"),
)
"""Keys of a frontend that ask for what only the relay can do, where the settings give them."""


def wants_steering(plan: FrontendPlan) -> bool:
    """Whether the frontend is to be steered if that is possible."""
    return plan.mode != "relay" and not (plan.mode == "auto" and plan.needs_relay)


def why_relayed(plan: FrontendPlan, no_kernel: str | None, elsewhere: Mapping[Role, str]) -> str | None:
    """Why a frontend that may be steered is relayed all the same; None: it is steered, or is not to be.

    Args:
        no_kernel: why the kernel cannot steer at all, or None.
        elsewhere: for a role whose instance is out of the kernel's reach, why.
    """
    if plan.mode == "relay":
        return None
    if plan.needs_relay:
        return f"{' and '.join(plan.needs_relay)} {'needs' if len(plan.needs_relay) == 1 else 'need'} the relay"
    if no_kernel is not None:
        return no_kernel
    return "; ".join(elsewhere[role] for role in Role if role in elsewhere) or None


def order_of(active: Role | None, eligible: Collection[Role], reachable: Collection[Role]) -> tuple[Role, ...]:
    """The roles that the kernel tries, the first first; none: every connection comes to the relay.

    An active instance whose listening socket the kernel does not have is served by the relay: if the kernel were told
    of the other one alone, it would prefer that one.

    Args:
        reachable: the roles whose listening sockets the kernel has.
    """
    if active is None or active not in reachable:
        return ()
    standby = active.other
    return (active, standby) if standby in eligible and standby in reachable else (active,)
