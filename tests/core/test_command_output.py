"""What a command of a rollout has written and how it has ended, in words."""

from __future__ import annotations

import pytest

from clojarsd.core import command_output as words
from clojarsd.core.errors import LaunchFailed
from clojarsd.core.identity import RolloutMark
from clojarsd.core.names import ExitStatus, LaunchStage

LEIN = ("lein", "test")


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (12.34, "12.3 s"), (59.9, "59.9 s"), (140.4, "140 s")])
def test_seconds(seconds: float, text: str) -> None:
    assert words.seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("line", "cleaned"),
    [
        ("plain", "plain"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("\x1bMup", "up"),
        ("10%\r55%\r100%", "100%"),
        ("windows\r", "windows"),
        ("a\tb", "a       b"),
        ("bell\x07 \x00end  ", "bell   end"),
        ("x" * 1001, "x" * 999 + "…"),
        ("x" * 1000, "x" * 1000),
    ],
)
def test_a_line_is_what_a_terminal_would_show_in_the_end(line: str, cleaned: str) -> None:
    assert words.clean_line(line) == cleaned


def test_a_last_line_without_its_end_counts() -> None:
    assert words.clean_lines("a\nb") == ["a", "b"]
    assert words.clean_lines("a\nb\n") == ["a", "b"]
    assert words.clean_lines("") == []


def test_last_lines_leave_out_what_says_nothing_at_the_end() -> None:
    assert words.last_lines("a\n\nb\n\n\x1b[0m\n") == ("a", "", "b")
    assert words.last_lines("\n".join(map(str, range(30))), 3) == ("27", "28", "29")
    assert words.last_lines("\n\n") == ()


def test_the_header_of_a_command() -> None:
    text = words.header("build", ("lein", "with-profile", "a b", "uberjar"), "2026-11-28 21:23:45+00:00")
    assert text == "== build: lein with-profile 'a b' uberjar (2026-11-28 21:23:45+00:00)\n"


def test_sentences() -> None:
    assert words.describe_end(LEIN, ExitStatus(1, None), 12.34) == "lein test ended with code 1 after 12.3 s"
    assert words.describe_end(LEIN, ExitStatus(None, 9), 61.0) == "lein test was killed by signal 9 after 61 s"
    assert words.describe_timeout(LEIN, 1200.0) == "lein test took longer than 20m and was ended"
    assert words.describe_flood(LEIN, 1024**2) == "lein test wrote more than 1MiB to its log and was ended"
    assert words.describe_log_failure(LEIN, "/l", "no space") == "cannot run lein test: its log /l: no space"
    assert words.describe_memory_kill(1024**3) == (
        "; the kernel has ended a process of it, since together they needed more than 1GiB of memory"
    )
    assert words.no_memory_limit(1024**3, "why") == "== memory_max = 1GiB has no effect: why"
    assert words.describe_left(()) == ""
    assert (
        words.describe_left(("process 1 (a)", "process 2 (b)")) == "; could not be ended: process 1 (a), process 2 (b)"
    )
    assert words.left_out(12) == "… 12 bytes are left out here; the log has them"


def test_a_launch_that_failed_names_its_stage_unless_that_is_the_command_itself() -> None:
    missing = LaunchFailed(LaunchStage.EXECUTE, "lein: no such command on PATH /bin")
    assert words.describe_launch_failure(LEIN, missing) == "cannot run lein test: lein: no such command on PATH /bin"
    user = LaunchFailed(LaunchStage.USER, "no user x on this machine")
    assert (
        words.describe_launch_failure(LEIN, user)
        == "cannot run lein test: becoming its user: no user x on this machine"
    )


def test_a_mark_is_read_as_it_is_written() -> None:
    mark = RolloutMark("/var/lib/with:colon", "20261128-212345")
    assert RolloutMark.parse(str(mark)) == mark
    assert [RolloutMark.parse(text) for text in ("", "none", ":id", "/dir:")] == [None] * 4
