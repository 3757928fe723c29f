"""The last words of a process in its log."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clojarsd.system import last_words as module
from clojarsd.system.last_words import LastWords, LogPlace, place_in, words_since
from tests.support.waiting import until


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "primary.log"


@pytest.fixture
async def no_thread_is_left() -> AsyncIterator[None]:
    yield
    await until(lambda: not any(thread.name == "last-words" for thread in threading.enumerate()))


def write(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def test_only_what_was_written_after_the_place_counts(log: Path) -> None:
    write(log, "of the one before\n")
    place = place_in(str(log))
    assert words_since(place) == ""
    write(log, "\n".join("abcde"))
    assert words_since(place) == "c | d | e"
    write(log, "\n" + "x" * 1000 + "end\n")
    words = words_since(place)
    assert len(words) == 300
    assert words.startswith("…xxx")
    assert words.endswith("xxxend")


def test_of_much_the_end_is_read(log: Path) -> None:
    place = place_in(str(log))
    write(log, "early\n" * 100_000 + "é" * 5000)
    assert words_since(place).endswith("éé")


def test_a_log_that_was_not_there_counts_from_its_beginning(log: Path) -> None:
    place = place_in(str(log))
    assert place == LogPlace(str(log), None, 0)
    assert words_since(place) == ""
    write(log, "first\n")
    assert words_since(place) == "first"


def test_another_file_at_its_place_counts_from_its_beginning(log: Path) -> None:
    """However long it is: it was begun after the place."""
    write(log, "one\n")
    place = place_in(str(log))
    log.rename(log.with_name("moved"))
    write(log, "new and longer\n")
    assert words_since(place) == "new and longer"


def test_of_a_log_that_has_become_shorter_the_end_counts(log: Path) -> None:
    write(log, "x" * 10_000)
    place = place_in(str(log))
    log.write_text("after\n")
    assert words_since(place) == "after"


def test_what_is_no_plain_file_is_not_read(log: Path, tmp_path: Path) -> None:
    """The directory may be the instances' user's, and we may read what that user may not."""
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    place = place_in(str(log))
    log.symlink_to(secret)
    assert words_since(place) == ""
    log.unlink()
    os.mkfifo(log)
    assert words_since(place) == ""
    assert words_since(place_in(str(tmp_path))) == ""


@pytest.mark.usefixtures("no_thread_is_left")
async def test_they_are_told_once_and_not_at_once(log: Path) -> None:
    place, told = place_in(str(log)), list[str]()
    write(log, "bad option\n")
    LastWords(place, told.append)
    assert told == []
    await until(lambda: told)
    assert told == ["bad option"]


@pytest.mark.usefixtures("no_thread_is_left")
async def test_a_disk_that_hangs_holds_nothing_up(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on, told = threading.Event(), list[str]()

    def hang(place: LogPlace) -> str:
        going_on.wait()
        return "too late"

    monkeypatch.setattr(module, "words_since", hang)
    monkeypatch.setattr(module, "READ_TIMEOUT", 0.01)
    LastWords(place_in(str(log)), told.append)
    await until(lambda: told)
    going_on.set()
    await until(lambda: not any(thread.name == "last-words" for thread in threading.enumerate()))
    assert told == [""]


@pytest.mark.usefixtures("no_thread_is_left")
async def test_cancelled_they_are_not_told(log: Path) -> None:
    told = list[str]()
    LastWords(place_in(str(log)), told.append).cancel()
    await until(lambda: not any(thread.name == "last-words" for thread in threading.enumerate()))
    ended = list[str]()
    LastWords(place_in(str(log)), ended.append)
    await until(lambda: ended)
    assert told == []
