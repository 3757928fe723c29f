"""When an instance uses too much memory."""

from __future__ import annotations

import pytest

from clojarsd.core.memory import MemoryRecord, count, describe_excess, may_exceed, memory_text


def test_three_samples_in_a_row_are_needed() -> None:
    record, verdicts = MemoryRecord(), []
    for used in (101, 101, 100, 101, 101, 101, 500, 1):
        record = count(record, used, 100)
        verdicts.append(record.is_excessive)
    assert verdicts == [False, False, False, False, False, True, True, False]


def test_the_exact_figure_is_wanted_only_when_it_can_matter() -> None:
    assert not may_exceed(10**12, None)
    assert not may_exceed(100, 100)
    assert may_exceed(101, 100)


def test_the_reason_names_both_figures() -> None:
    assert describe_excess(1610612736, 1073741824) == "its memory stayed above memory_max (1.5 GiB, at most 1 GiB)"


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (80 * 1024**2, "80 MiB")])
def test_sizes_for_people(size: int, text: str) -> None:
    assert memory_text(size) == text
