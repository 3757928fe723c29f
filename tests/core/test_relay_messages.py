"""Messages between supervisor and relay process survive JSON, and versions that know more or less."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from clojarsd.core import relay_messages as module
from clojarsd.core.codec import Unfit
from clojarsd.core.connections import ConnectionPhase, ConnectionView
from clojarsd.core.drain_tally import DrainTally
from clojarsd.core.frontend_plan import CountedFrom, FrontendPlan
from clojarsd.core.history import EventName
from clojarsd.core.names import Address, Role, UnixAddress
from clojarsd.core.relay_messages import (
    PROTOCOL,
    Adopt,
    Begin,
    BeginDrain,
    Close,
    Configure,
    Configured,
    Connections,
    Cut,
    Doubt,
    Drained,
    EndDrain,
    HandedOver,
    HandOver,
    Happened,
    Hello,
    Kept,
    ListConnections,
    Ping,
    Pong,
    Refusal,
    SetEligible,
    Snapshot,
    Standing,
    StopAccepting,
    ToRelay,
    ToSupervisor,
    Wanted,
    Welcome,
    from_relay,
    from_supervisor,
    protocol_of,
    to_relay,
    to_supervisor,
)
from clojarsd.core.relay_orders import CapFrontend, CountFrom, CountOn, PauseFrontend, ResumeFrontend, ShareFrontend
from clojarsd.core.routing import Caps
from clojarsd.core.view import FrontendView

P, B = Role.PRIMARY, Role.BACKUP
PLAN = FrontendPlan(
    name="http",
    listen=(Address("127.0.0.1", 80), Address("::", 80)),
    backends={P: Address("127.0.0.1", 8001), B: Address("127.0.0.1", 8002)},
    movable=True,
    mode_reason=None,
    quickack=False,
    connect_timeout=1.0,
    hold=30.0,
    hold_connections=512,
    drain=30.0,
    drain_idle=2.0,
    failback=5.0,
)
VIEW = FrontendView(("127.0.0.1:80",), "relay", None, B, {P: 1, B: 2, None: 3}, {P: 10, B: 20, None: 30})
CONNECTION = ConnectionView(
    "http", "relay", P, Address("::1", 4242), ConnectionPhase.OPEN, 5.5, 0.25, 100, 2000, owed=True
)
HELD = ConnectionView("http", "relay", None, None, ConnectionPhase.HELD, None, None, 0, 0, owed=True)
FROM_SUPERVISOR: list[ToRelay] = [
    Hello(PROTOCOL, "abc"),
    Configure(3, (Wanted(PLAN, 2, VIEW), Wanted(PLAN, None))),
    Begin(),
    SetEligible(P, True, 2.5),
    BeginDrain(4, B, go_on=True, within=5.0),
    EndDrain(B),
    Adopt("http", P),
    Cut(P),
    PauseFrontend("http", 2.5, "ada"),
    ResumeFrontend("http"),
    CapFrontend("http", Caps(3, 2, 1)),
    ShareFrontend("http", 0.05),
    CountFrom("http", CountedFrom({P: 1, B: 2, None: 3}, "2026-11-23T12:00:00.000Z", "ada")),
    CountOn("http", {P: 1, B: 2, None: 3}),
    StopAccepting(),
    Ping(7),
    ListConnections(8, "http"),
    HandOver(),
    Close(),
]
FROM_RELAY: list[ToSupervisor] = [
    Welcome(PROTOCOL, "abc", True, (Standing(PLAN, 2, VIEW),), {P: True, B: False}, (B,), {"http": (2.5, "ada")}),
    Refusal(PROTOCOL, "busy", 42),
    Configured(3),
    Drained(4, B),
    Drained(4, B, DrainTally(1, 2, 3, 4, 5, 30.0, is_sooner=True, left=6, trouble="no")),
    Pong(7),
    Connections(8, (CONNECTION, HELD), 3, is_last=True),
    Snapshot({"http": VIEW}),
    Happened(EventName.FAILOVER, "a sentence", B, {"frontend": "http"}, "2026-11-23T12:00:00.000Z"),
    Doubt(P),
    HandedOver(),
    Kept("a reason"),
]


def through_json(document: dict[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(json.dumps(document))
    return said


@pytest.mark.parametrize("message", FROM_SUPERVISOR, ids=lambda message: type(message).__name__)
def test_what_the_supervisor_says_arrives(message: ToRelay) -> None:
    assert from_supervisor(through_json(to_relay(message))) == message


@pytest.mark.parametrize("message", FROM_RELAY, ids=lambda message: type(message).__name__)
def test_what_the_relay_says_arrives(message: ToSupervisor) -> None:
    assert from_relay(through_json(to_supervisor(message))) == message


def test_every_message_is_among_these() -> None:
    assert {type(message).__name__ for message in FROM_SUPERVISOR} == module._TO_RELAY
    assert {type(message).__name__ for message in FROM_RELAY} == module._TO_SUPERVISOR


@pytest.mark.parametrize("message", FROM_SUPERVISOR, ids=lambda message: type(message).__name__)
def test_fields_of_a_later_version_are_ignored(message: ToRelay) -> None:
    assert from_supervisor({**to_relay(message), "later": {"x": 1}}) == message


def test_fields_that_an_earlier_version_did_not_send_have_their_defaults() -> None:
    assert from_supervisor({"class": "SetEligible", "role": "PRIMARY", "eligible": True}) == SetEligible(P, True, 0.0)
    assert from_supervisor({"class": "BeginDrain", "number": 1, "role": "BACKUP"}) == BeginDrain(1, B, False)


def test_messages_and_events_of_a_later_version_are_none() -> None:
    assert from_supervisor({"class": "Teleport"}) is None
    assert from_supervisor({}) is None
    assert from_relay({"class": "Ping", "number": 1}) is None, "it is the other side's"
    assert from_relay({"class": "Happened", "event": "LANDED_ON_MARS", "message": "x"}) is None


def test_known_messages_that_do_not_fit_are_refused_with_the_place() -> None:
    with pytest.raises(Unfit, match="role"):
        from_supervisor({"class": "Cut", "role": "TERTIARY"})
    document = to_relay(FROM_SUPERVISOR[1])
    document["frontends"][1]["plan"]["name"] = 3
    with pytest.raises(Unfit, match=r"frontends.*plan\.name"):
        from_supervisor(document)


def test_the_version_of_a_first_word_can_be_told_whatever_else_it_says() -> None:
    assert protocol_of(to_relay(Hello(PROTOCOL, "abc"))) == PROTOCOL
    assert protocol_of({"class": "Grüezi", "protocol": 99}) == 99
    assert protocol_of({"protocol": "1"}) is None
    assert protocol_of({"protocol": True}) is None
    assert protocol_of({}) is None


def test_an_ipv6_address_is_beside_ipv4_when_one_has_the_same_port() -> None:
    assert PLAN.is_beside_ipv4(Address("::", 80))
    assert not PLAN.is_beside_ipv4(Address("::", 81))


def test_a_plan_of_a_process_that_knew_tcp_alone_is_read() -> None:
    """A relay process of an earlier version stands by while its supervisor is a new one."""
    document = to_supervisor(FROM_RELAY[0])
    plan = document["frontends"][0]["plan"]
    later = ["others", "proxy_protocol", "source", "idle_timeout", "half_closed_timeout", "access_log"]
    later += ["cuts_on_down", "moves_on_up"]
    for key in later:
        del plan[key]
    for backend in plan["backends"].values():
        assert backend.pop("class") == "Address"
    assert from_relay(through_json(document)) == FROM_RELAY[0]


def test_a_plan_with_everything_arrives() -> None:
    plan = replace(
        PLAN,
        backends={P: UnixAddress("/run/a.sock"), B: Address("::1", 80)},
        others={B: (Address("127.0.0.1", 80),)},
        proxy_protocol=True,
        source="127.0.0.2",
        idle_timeout=3600.0,
        half_closed_timeout=None,
        access_log=True,
        cuts_on_down=True,
        moves_on_up=True,
    )
    message = Configure(1, (Wanted(plan, None),))
    assert from_supervisor(through_json(to_relay(message))) == message
