"""Whether a frontend can be steered, and which instances the kernel may try in what order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from clojarsd.core.frontend_plan import FrontendPlan
from clojarsd.core.names import Role
from clojarsd.core.steering import IPV4, IPV6

RELAY_ONLY: Final = (
    *("quickack", "max_connections", "max_per_instance", "proxy_protocol"),
    *("source", "idle_timeout", "access_log", "slow_start"),
)
"""Keys of a frontend that ask for what only the relay can do, where the settings give them."""
_NAMES: Final = {IPV4: "IPv4", IPV6: "IPv6"}


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
    if (address := next((one for one in plan.listen if "%" in one.host), None)) is not None:
        return f"{address} is an address of one interface, which steering does not tell apart"
    if no_kernel is not None:
        return no_kernel
    return "; ".join(elsewhere[role] for role in Role if role in elsewhere) or None


def decide(plan: FrontendPlan, no_kernel: str | None, elsewhere: Mapping[Role, str]) -> FrontendPlan:
    """The plan with whether it is steered, and why not; the rest is as for `why_relayed`."""
    reason = why_relayed(plan, no_kernel, elsewhere)
    return replace(plan, mode_reason=reason, is_steered=wants_steering(plan) and reason is None)


def order_of(
    active: Role | None, eligible: Collection[Role], takes: Mapping[Role, Collection[int]]
) -> tuple[Role, ...]:
    """The roles that the kernel tries, the first first; none: every connection comes to the relay.

    An active instance whose listening socket the kernel does not have is served by the relay: if the kernel were told
    of the other one alone, it would prefer that one. So it would for clients of a family that only the other one takes.

    Args:
        takes: which of the families of the frontend's clients reach a listening socket of a role that the kernel has.
    """
    if active is None or not takes.get(active):
        return ()
    standby = active.other
    has_standby = standby in eligible and takes.get(standby) and set(takes[standby]) <= set(takes[active])
    return (active, standby) if has_standby else (active,)


def why_some_relayed(families: Collection[int], active: Role, takes: Collection[int]) -> str | None:
    """Why clients of a steered frontend are relayed, all or those of one family; None: the active instance gets each.

    Args:
        families: of the frontend's clients.
        takes: those of them that reach a listening socket of the active instance.
    """
    missing = sorted(set(families) - set(takes))
    if not missing:
        return None
    names = " and ".join(_NAMES[one] for one in missing)
    return f"{names} clients are relayed: {active.value} does not listen for them"
