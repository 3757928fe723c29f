"""What is asked and answered about one frontend on the control socket: the bodies of orders, and their sentences."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace

from clojarsd.core.api import LONGEST_TIMEOUT, object_in
from clojarsd.core.routing import Caps
from clojarsd.core.spreading import MOST

ALL = "all"
MOST_CONNECTIONS = 1_000_000
"""The highest limit that can be set."""
MOST_PERCENT = f"0 to {MOST * 100:g}"
"""The shares that can be ordered."""
TARGETS = ("total", "primary", "backup")
"""What a limit can be for: the frontend, or one of its instances in it."""


@dataclass(frozen=True, slots=True)
class CapOrder:
    """A limit that is to be another one. `target`: one of `TARGETS`; `most`: 0 for no limit."""

    target: str
    most: int

    def applied_to(self, caps: Caps) -> Caps:
        """The limits with this one among them."""
        return replace(caps, **{self.target: self.most})


def no_such_frontend(name: str, known: Collection[str], *, all_allowed: bool = False) -> str:
    """The sentence for a frontend that is not there."""
    names = [*known, *[ALL] * all_allowed]
    return f"there is no frontend {name} ({', '.join(names) or 'none is configured'})"


def parse_pause(body: bytes) -> float | None:
    """The seconds in the body of an order to pause; None when it leaves them to the settings.

    Raises:
        ValueError: it is no such body; the message is for people.
    """
    options = object_in(body, '{"for": 30}')
    for key in options:
        if key != "for":
            raise ValueError(f"{key} is not an option of a pause (for)")
    seconds = options.get("for")
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= LONGEST_TIMEOUT:
        raise ValueError(f"for is {json.dumps(seconds)}, not a number of seconds (more than 0, at most 86400)")
    return float(seconds)


def parse_cap(body: bytes) -> CapOrder:
    """The limit in the body of an order to cap.

    Raises:
        ValueError: it is no such body; the message is for people.
    """
    options = object_in(body, '{"total": 100}')
    if len(options) != 1 or next(iter(options)) not in TARGETS:
        raise ValueError(f"the body names {' and '.join(options) or 'nothing'}, not just one of {', '.join(TARGETS)}")
    ((target, most),) = options.items()
    if isinstance(most, bool) or not isinstance(most, int) or not 0 <= most <= MOST_CONNECTIONS:
        raise ValueError(f"{target} is {json.dumps(most)}, not a number of connections (0 to {MOST_CONNECTIONS})")
    return CapOrder(target, most)


def parse_share(body: bytes) -> float:
    """The share in the body of an order to share, from 0 to 0.5.

    Raises:
        ValueError: it is no such body; the message is for people.
    """
    options = object_in(body, '{"percent": 5}')
    if list(options) != ["percent"]:
        raise ValueError(f"the body names {' and '.join(options) or 'nothing'}, not just percent")
    percent = options["percent"]
    if isinstance(percent, bool) or not isinstance(percent, int | float) or not 0 <= percent <= 100 * MOST:
        raise ValueError(f"percent is {json.dumps(percent)}, not a share ({MOST_PERCENT})")
    return percent / 100


def parse_nothing(body: bytes) -> None:
    """The body of an order without options.

    Raises:
        ValueError: it has some; the message is for people.
    """
    if object_in(body, "{}"):
        raise ValueError("this order has no options")


def describe_pause(name: str, until: str, by: str) -> str:
    """`new connections of http wait until 12:00:09Z (paused by ada)`."""
    return f"new connections of {name} wait until {until[11:19]}Z (paused by {by})"


def describe_share(share: float) -> str:
    """What becomes of new connections: `5 % of new connections go to backup while ...`, or that all go to one."""
    if not share:
        return "all new connections go to primary while it can serve"
    return f"{share * 100:g} % of new connections go to backup while both can serve"


def describe_cap(name: str, order: CapOrder) -> str:
    """`http gets at most 100 connections`, or that there is no limit."""
    whose = f"of {name}" if order.target == "total" else f"of {name} to {order.target}"
    return (
        f"the connections {whose} are at most {order.most}" if order.most else f"the connections {whose} have no limit"
    )
