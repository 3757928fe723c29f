"""Durations and sizes: what is read, what is refused, and that what is written is read again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clojarsd.core.quantities import (
    DURATION_HINT,
    SIZE_HINT,
    duration_text,
    longer_than_zero,
    parse_duration,
    parse_size,
    size_text,
)

YEAR = 365 * 86400
NOT_DURATIONS: list[object] = [
    *("", "30", "30 s", "-1s", "s", "1w", "1S", "1e3s", ".5s", "1.s", "\u0663s", " 1s", "1s\n", True, None, []),
]
NOT_SIZES: list[object] = ["", "64", "64 MiB", "-1B", "MiB", True, None, {}, "1KiB1B"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("0s", 0.0), ("500ms", 0.5), ("100ms", 0.1), ("30s", 30.0), ("5m", 300.0), ("2h", 7200.0), ("7d", 604800.0)),
        *(("1m30s", 90.0), ("1d2h3m4s5ms", 93784.005), ("1.5s", 1.5), ("90s", 90.0), ("0.1s", 0.1), ("365d", YEAR)),
    ],
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        *((one, f"a duration needs a unit ({DURATION_HINT})") for one in (30, 1.5, 0)),
        *((one, f"is not a duration ({DURATION_HINT})") for one in NOT_DURATIONS),
        *(
            (one, "units go from the longest to the shortest, each once (d, h, m, s, ms)")
            for one in ("30s1m", "1s1s", "1ms1s")
        ),
        ("366d", "is too long (at most 365d)"),
        ("9" * 500 + "d", "is too long (at most 365d)"),
        ("0.5ms", "is finer than a millisecond (whole milliseconds)"),
    ],
)
def test_other_durations_are_refused_word_for_word(value: object, wrong: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        parse_duration(value)
    assert str(caught.value) == wrong


@settings(deadline=None)
@given(st.integers(0, YEAR * 1000))
def test_durations_survive_being_written(milliseconds: int) -> None:
    assert parse_duration(duration_text(milliseconds / 1000)) == milliseconds / 1000


def test_durations_are_written_short() -> None:
    assert [duration_text(one) for one in (0, 0.05, 90, 120, 3600, 86400.5)] == [
        "0s",
        "50ms",
        "1m30s",
        "2m",
        "1h",
        "1d500ms",
    ]


def test_zero_is_told_from_longer() -> None:
    assert longer_than_zero(0.001) == 0.001
    with pytest.raises(ValueError, match=r"^must be longer than zero$"):
        longer_than_zero(0.0)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("0B", 0), ("512B", 512), ("500KB", 500_000), ("64MiB", 67_108_864), ("1GiB", 1024**3), ("1.5KiB", 1536)),
        *(("1TB", 10**12), ("2TiB", 2 * 1024**4), ("3MB", 3_000_000), ("1GB", 10**9)),
    ],
)
def test_sizes_are_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        *((one, f"a size needs a unit ({SIZE_HINT})") for one in (64, 1.5)),
        *((one, f"is not a size ({SIZE_HINT})") for one in NOT_SIZES),
        ("64M", "M is not a unit of size (B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)"),
        ("64mib", "mib is not a unit of size (B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)"),
        ("9999999999TiB", "is too large (less than 8 EiB)"),
        ("0.5B", "is not a whole number of bytes"),
    ],
)
def test_other_sizes_are_refused_word_for_word(value: object, wrong: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        parse_size(value)
    assert str(caught.value) == wrong


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_sizes_survive_being_written(size: int) -> None:
    assert parse_size(size_text(size)) == size


def test_sizes_are_written_with_the_largest_unit_that_divides_them() -> None:
    assert [size_text(one) for one in (0, 1, 500_000, 64 * 1024**2, 10**12)] == ["0B", "1B", "500KB", "64MiB", "1TB"]
