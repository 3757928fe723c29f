"""What has failed is tried again later each time, and at once after it has held."""

from __future__ import annotations

from clojarsd.runtime.retry import Retry


def pauses(retry: Retry, failures: int, now: float) -> list[int]:
    """Seconds after each of so many failures, one as soon as it may be, until it may be tried again."""
    found = []
    for _ in range(failures):
        retry.put_off(now)
        pause = next(seconds for seconds in (1, 2, 4, 5) if retry.is_due(now + seconds))
        assert not retry.is_due(now + pause - 0.1)
        found.append(pause)
        now += pause
    return found


def test_it_may_be_tried_at_once() -> None:
    assert Retry(1.0, 5.0).is_due(0.0)


def test_the_pause_doubles_up_to_the_longest_and_begins_anew_after_it_has_held() -> None:
    retry = Retry(1.0, 5.0)
    assert pauses(retry, 5, 100.0) == [1, 2, 4, 5, 5]
    assert pauses(retry, 1, 130.0) == [1]
    assert pauses(retry, 1, 135.9) == [2], "it had not held for long enough"
