"""Which frontends are steered, why others are not, and in what order the kernel tries the instances."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from clojarsd.core.names import Address, Role
from clojarsd.core.steering import IPV4, IPV6
from clojarsd.core.steering_choice import order_of, wants_steering, why_relayed, why_some_relayed
from tests.support.fronts import make_plan

P, B = Role.PRIMARY, Role.BACKUP
PLAN = make_plan({P: Address("127.0.0.1", 8001), B: Address("127.0.0.1", 8002)})


@pytest.mark.parametrize(
    ("mode", "needs", "wants"),
    [
        ("relay", (), False),
        ("auto", (), True),
        ("steer", (), True),
        ("auto", ("quickack",), False),
        ("steer", ("quickack",), True),
    ],
)
def test_the_kernel_is_asked_for_only_where_it_could_be_used(mode: str, needs: tuple[str, ...], wants: bool) -> None:
    assert wants_steering(replace(PLAN, mode=mode, needs_relay=needs)) is wants


def test_who_asks_for_the_relay_is_told_no_reason() -> None:
    assert why_relayed(replace(PLAN, mode="relay"), "no CAP_BPF", {P: "primary is away"}) is None


def test_the_keys_that_only_the_relay_can_carry_out_are_named() -> None:
    plan = replace(PLAN, mode="auto", needs_relay=("quickack",))
    assert why_relayed(plan, None, {}) == "quickack needs the relay"
    plan = replace(plan, mode="steer", needs_relay=("quickack", "proxy_protocol"))
    assert why_relayed(plan, "no CAP_BPF", {}) == "quickack and proxy_protocol need the relay"


def test_an_address_of_one_interface_is_relayed() -> None:
    """The program sees the address alone, which another interface may have as well."""
    plan = replace(PLAN, mode="auto", listen=(Address("::1", 80), Address("fe80::1%eth0", 80)))
    reason = "[fe80::1%eth0]:80 is an address of one interface, which steering does not tell apart"
    assert why_relayed(plan, None, {}) == reason


@pytest.mark.parametrize("mode", ["auto", "steer"])
def test_the_kernel_comes_before_the_instances(mode: str) -> None:
    plan = replace(PLAN, mode=mode)
    assert why_relayed(plan, None, {}) is None
    assert why_relayed(plan, "no CAP_BPF", {P: "primary is away"}) == "no CAP_BPF"
    assert why_relayed(plan, None, {B: "backup is away", P: "primary is away"}) == "primary is away; backup is away"


def test_every_order() -> None:
    subsets = [frozenset(some) for count in range(3) for some in itertools.combinations(Role, count)]
    for active, eligible, reachable in itertools.product((None, P, B), subsets, subsets):
        order = order_of(active, eligible, {role: {IPV4} for role in reachable})
        if active is None or active not in reachable:
            assert order == ()
            continue
        assert order[0] is active
        assert order[1:] == ((active.other,) if active.other in eligible & reachable else ())


@pytest.mark.parametrize(
    ("active", "standby", "order"),
    [
        ({IPV4}, {IPV4, IPV6}, (P,)),
        ({IPV4}, {IPV6}, (P,)),
        ({IPV4, IPV6}, {IPV6}, (P, B)),
        ({IPV4, IPV6}, {IPV4, IPV6}, (P, B)),
        ({IPV4, IPV6}, set(), (P,)),
        (set(), {IPV4}, ()),
    ],
)
def test_a_standby_has_no_clients_of_a_family_that_the_active_one_does_not_take(
    active: set[int], standby: set[int], order: tuple[Role, ...]
) -> None:
    assert order_of(P, set(Role), {P: active, B: standby}) == order


def test_clients_that_are_relayed_for_their_family_are_named() -> None:
    both = {IPV4, IPV6}
    assert why_some_relayed(both, P, both) is None
    assert why_some_relayed({IPV4}, P, {IPV4}) is None
    assert why_some_relayed(both, P, {IPV4}) == "IPv6 clients are relayed: primary does not listen for them"
    assert why_some_relayed({IPV4}, B, set()) == "IPv4 clients are relayed: backup does not listen for them"
    assert why_some_relayed(both, P, set()) == "IPv4 and IPv6 clients are relayed: primary does not listen for them"
