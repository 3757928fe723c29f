from __future__ import annotations

import pytest

from clojarsd.core.errors import CannotSteer, reason_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(1, "Operation not permitted"), "operation not permitted"),
        (FileNotFoundError(2, "No such file or directory", "/a/File"), "no such file or directory"),
        (OSError("Odd"), "odd"),
        (CannotSteer("steering needs Linux 5.9 or later"), "steering needs Linux 5.9 or later"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
    ],
)
def test_what_the_system_says_is_told_without_numbers_and_what_we_say_as_it_is(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
