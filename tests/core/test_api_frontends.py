"""Bodies of orders about frontends, and the sentences about them."""

from __future__ import annotations

import re

import pytest

from clojarsd.core.api_frontends import (
    CapOrder,
    describe_cap,
    describe_pause,
    describe_share,
    no_such_frontend,
    parse_cap,
    parse_nothing,
    parse_pause,
    parse_share,
)
from clojarsd.core.routing import Caps


def test_a_pause_has_a_time_or_leaves_it_to_the_settings() -> None:
    assert [parse_pause(body) for body in (b"", b"{}", b'{"for": null}')] == [None] * 3
    assert [parse_pause(body) for body in (b'{"for": 30}', b'{"for": 0.5}')] == [30.0, 0.5]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"nonsense", "the body is not JSON"),
        (b"[]", 'the body is not a JSON object such as {"for": 30}'),
        (b'{"four": 1}', "four is not an option of a pause (for)"),
        (b'{"for": "30s"}', 'for is "30s", not a number of seconds (more than 0, at most 86400)'),
        (b'{"for": true}', "for is true, not a number of seconds (more than 0, at most 86400)"),
        (b'{"for": 0}', "for is 0, not a number of seconds (more than 0, at most 86400)"),
        (b'{"for": 86401}', "for is 86401, not a number of seconds (more than 0, at most 86400)"),
        (b'{"for": NaN}', "for is NaN, not a number of seconds (more than 0, at most 86400)"),
    ],
)
def test_a_pause_that_is_not_understood(body: bytes, why: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        parse_pause(body)
    assert str(caught.value) == why


def test_a_limit() -> None:
    assert parse_cap(b'{"total": 100}') == CapOrder("total", 100)
    assert parse_cap(b'{"backup": 0}').applied_to(Caps(1, 2, 3)) == Caps(1, 2, 0)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "the body names nothing, not just one of total, primary, backup"),
        (b'{"total": 1, "primary": 2}', "the body names total and primary, not just one of total, primary, backup"),
        (b'{"third": 1}', "the body names third, not just one of total, primary, backup"),
        (b'{"total": -1}', "total is -1, not a number of connections (0 to 1000000)"),
        (b'{"total": 1.5}', "total is 1.5, not a number of connections (0 to 1000000)"),
        (b'{"total": true}', "total is true, not a number of connections (0 to 1000000)"),
    ],
)
def test_a_limit_that_is_not_understood(body: bytes, why: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        parse_cap(body)
    assert str(caught.value) == why


def test_an_order_without_options() -> None:
    parse_nothing(b"")
    parse_nothing(b" {} ")
    with pytest.raises(ValueError, match="this order has no options"):
        parse_nothing(b'{"for": 1}')


def test_sentences() -> None:
    until = "2026-11-23T12:00:09.000Z"
    assert describe_pause("http", until, "ada") == "new connections of http wait until 12:00:09Z (paused by ada)"
    assert describe_cap("http", CapOrder("total", 5)) == "the connections of http are at most 5"
    assert describe_cap("http", CapOrder("backup", 0)) == "the connections of http to backup have no limit"
    assert no_such_frontend("x", ["http", "line"]) == "there is no frontend x (http, line)"
    assert no_such_frontend("x", ["http"], all_allowed=True) == "there is no frontend x (http, all)"
    assert no_such_frontend("x", []) == "there is no frontend x (none is configured)"


@pytest.mark.parametrize(("percent", "share"), [("0", 0.0), ("5", 0.05), ("2.5", 0.025), ("50", 0.5)])
def test_a_share_is_a_part_of_the_connections(percent: str, share: float) -> None:
    assert parse_share(b'{"percent": %s}' % percent.encode()) == share


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body names nothing, not just percent"),
        (b'{"percent": 5, "of": 6}', "the body names percent and of, not just percent"),
        (b'{"percent": 51}', "percent is 51, not a share (0 to 50)"),
        (b'{"percent": -1}', "percent is -1, not a share (0 to 50)"),
        (b'{"percent": true}', "percent is true, not a share (0 to 50)"),
        (b'{"percent": "5"}', 'percent is "5", not a share (0 to 50)'),
    ],
)
def test_what_is_no_share_is_said(body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        parse_share(body)


def test_a_share_in_words() -> None:
    assert describe_share(0.025) == "2.5 % of new connections go to backup while both can serve"
    assert describe_share(0.0) == "all new connections go to primary while it can serve"
