"""How the failure of a hook's command is told."""

from __future__ import annotations

from clojarsd.core.errors import LaunchFailed
from clojarsd.core.hook import command_text, describe_failure, last_words
from clojarsd.core.names import ExitStatus, LaunchStage


def test_each_failure_is_a_sentence_about_the_whole_command() -> None:
    command = ("/bin/x", "-c", "a b")
    crash = ExitStatus(3, None)
    assert describe_failure(command, crash) == f"/bin/x -c 'a b' {crash}"
    assert describe_failure(command, crash, words="no | room") == f"/bin/x -c 'a b' {crash}: no | room"
    killed = ExitStatus(None, 9)
    assert describe_failure(command, killed) == f"/bin/x -c 'a b' {killed}"
    assert describe_failure(command, killed, 1.5, "x") == "/bin/x -c 'a b' did not end within 1s500ms: x"
    failed = LaunchFailed(LaunchStage.EXECUTE, "/bin/x: no such command")
    assert describe_failure(command, failed) == (
        "cannot run /bin/x -c 'a b': running its command: /bin/x: no such command"
    )


def test_a_long_command_is_shown_without_its_middle() -> None:
    """And one of several lines in one, without what a terminal would take for commands."""
    assert command_text(("x" * 118, "y")) == "x" * 118 + " y"
    text = command_text(("/bin/sh", "-c", "x" * 1000, "the-end"))
    assert len(text) == 120
    assert text.startswith("/bin/sh -c xxx")
    assert text.endswith("xxx the-end")
    assert text.count("…") == 1
    assert command_text(("sh", "-c", "a\nb\x1b[31m")) == "sh -c 'a b [31m'"


def test_of_the_output_the_last_lines_count() -> None:
    assert last_words("") == ""
    assert last_words("\n \n") == ""
    assert last_words("\n".join("abcdefg")) == "e | f | g"
    assert last_words("a\x1b[31m  b\t\x00c\n\n") == "a [31m b c"
    assert last_words("x" * 300) == "x" * 300
    assert last_words("x" * 1000 + "end") == "…" + "x" * 296 + "end"
