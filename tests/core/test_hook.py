"""How the failure of a hook's command is told."""

from __future__ import annotations

from clojarsd.core.errors import LaunchFailed
from clojarsd.core.hook import describe_failure, last_words
from clojarsd.core.names import ExitStatus, LaunchStage


def test_each_failure_is_a_sentence() -> None:
    command = ("/bin/x", "--secret", "y")
    assert describe_failure(command, ExitStatus(3, None)) == "/bin/x exited with 3"
    assert describe_failure(command, ExitStatus(3, None), output="no\nroom\n") == "/bin/x exited with 3: no | room"
    assert describe_failure(command, ExitStatus(None, 9)) == "/bin/x was killed by signal 9"
    assert describe_failure(command, ExitStatus(None, 9), 1.5, "x") == "/bin/x did not end within 1s500ms: x"
    failed = LaunchFailed(LaunchStage.EXECUTE, "/bin/x: no such command")
    assert describe_failure(command, failed) == "cannot run /bin/x: running its command: /bin/x: no such command"


def test_of_the_output_the_last_lines_count() -> None:
    assert last_words("") == ""
    assert last_words("\n \n") == ""
    assert last_words("\n".join("abcdefg")) == "c | d | e | f | g"
    assert last_words("a\x1b[31m  b\t\x00c\n\n") == "a [31m b c"
    assert len(last_words("x" * 1000)) == 500
    assert last_words("x" * 1000 + "end").endswith("xend")
