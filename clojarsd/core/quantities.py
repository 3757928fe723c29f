"""Durations and sizes as people write them: `"1m30s"` is 90.0 seconds, `"64MiB"` is 67108864 bytes.

Both are text with a unit: a bare number is refused, because it leaves the reader to guess. Two spellings of one length
are one value, and `duration_text` and `size_text` give back a text that is read as the same value.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

_MILLISECONDS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_LONGEST_DAYS: Final = 365
_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|[dhms]))+")
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[dhms])")
DURATION_HINT: Final = 'text with a unit, such as "500ms", "30s", "5m", "1m30s", "2h", "7d"'

_BYTES: Final = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}
_LARGEST: Final = 2**63 - 1
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]+)")
SIZE_HINT: Final = 'text with a unit, such as "512B", "500KB", "64MiB", "1GiB"'


def parse_duration(text: object) -> float:
    """Seconds, at least 0 and exact to the millisecond.

    Units go from the longest to the shortest, each at most once: d, h, m, s, ms.

    Raises:
        ValueError: not such a text, finer than a millisecond, or longer than 365 days; the message is for people.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        raise ValueError(f"a duration needs a unit ({DURATION_HINT})")
    if not isinstance(text, str) or _DURATION.fullmatch(text) is None:
        raise ValueError(f"is not a duration ({DURATION_HINT})")
    parts = _DURATION_PART.findall(text)
    units = [list(_MILLISECONDS).index(unit) for _, unit in parts]
    if units != sorted(set(units)):
        raise ValueError("units go from the longest to the shortest, each once (d, h, m, s, ms)")
    total = sum((Decimal(number) * _MILLISECONDS[unit] for number, unit in parts), start=Decimal(0))
    if total > _LONGEST_DAYS * _MILLISECONDS["d"]:
        raise ValueError(f"is too long (at most {_LONGEST_DAYS}d)")
    if total != total.to_integral_value():
        raise ValueError("is finer than a millisecond (whole milliseconds)")
    return float(total / 1000)


def longer_than_zero(seconds: float) -> float:
    """`seconds`, if more than 0. Raises ValueError otherwise; the message is for people."""
    if seconds <= 0:
        raise ValueError("must be longer than zero")
    return seconds


def duration_text(seconds: float) -> str:
    """The shortest text that `parse_duration` reads as `seconds`, which is rounded to the millisecond: `1m30s`."""
    left = round(seconds * 1000)
    text = ""
    for unit, length in _MILLISECONDS.items():
        count, left = divmod(left, length)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def parse_size(text: object) -> int:
    """Bytes, at least 0. KB, MB, GB, TB count in thousands; KiB, MiB, GiB, TiB in 1024s.

    Raises:
        ValueError: not such a text, not a whole number of bytes, or 8 EiB and more; the message is for people.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        raise ValueError(f"a size needs a unit ({SIZE_HINT})")
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"is not a size ({SIZE_HINT})")
    number, unit = match.groups()
    if unit not in _BYTES:
        raise ValueError(f"{unit} is not a unit of size ({', '.join(_BYTES)})")
    total = Decimal(number) * _BYTES[unit]
    if total > _LARGEST:
        raise ValueError("is too large (less than 8 EiB)")
    if total != total.to_integral_value():
        raise ValueError("is not a whole number of bytes")
    return int(total)


def size_text(size: int) -> str:
    """The text with the largest unit that divides `size` bytes: `64MiB`, `500KB`, `12B`."""
    fitting = [(length, unit) for unit, length in _BYTES.items() if size and size % length == 0]
    length, unit = max(fitting, default=(1, "B"))
    return f"{size // length}{unit}"
