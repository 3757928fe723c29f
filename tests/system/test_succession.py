"""Other code in this process's place: what it is handed, what a rehearsal finds out, and the replacement itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clojarsd.core.errors import Failed
from clojarsd.system import succession
from clojarsd.system.succession import VARIABLE, Inherited, program, rehearse
from tests.support.pair import CHECKOUT
from tests.support.waiting import PATIENCE


@pytest.fixture
def descriptors() -> Iterator[list[int]]:
    """Four open descriptors that children inherit."""
    found = [os.open(os.devnull, os.O_RDWR) for _ in range(4)]
    for one in found:
        os.set_inheritable(one, True)
    yield found
    for one in found:
        os.close(one)


def handed(descriptors: list[int], **changes: object) -> dict[str, object]:
    """What the code before has written down."""
    control, lock, primary, backup = descriptors
    told = {
        "control": control,
        "lock": lock,
        "notify": {"primary": primary, "backup": backup},
        "generation": 3,
        "version": "0.9",
        "by": "ann",
    }
    return {**told, **changes}


# What is handed over.


def test_what_was_handed_over_is_taken_once_and_goes_to_no_child(descriptors: list[int]) -> None:
    environment = {VARIABLE: json.dumps(handed(descriptors)), "PATH": "/bin"}
    inherited = Inherited.take(environment)
    control, lock, primary, backup = descriptors
    assert inherited == Inherited(control, lock, {"primary": primary, "backup": backup}, 3, "0.9", "ann", None)
    assert inherited.descriptors() == descriptors
    assert environment == {"PATH": "/bin"}
    assert not any(os.get_inheritable(one) for one in descriptors)
    assert Inherited.take(environment) is None


def test_a_process_that_replaces_none_is_handed_nothing() -> None:
    assert Inherited.take({}) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "missing 6 required positional arguments"),
        ("{}", "missing 6 required positional arguments"),
        ("7", "not iterable"),
    ],
)
def test_what_cannot_be_understood_is_one_sentence(text: str, reason: str) -> None:
    environment = {VARIABLE: text}
    with pytest.raises(Failed) as caught:
        Inherited.take(environment)
    assert str(caught.value).startswith(f"cannot take over: {VARIABLE} cannot be used: ")
    assert reason in str(caught.value)
    assert environment == {}, "no child is to find it"


def test_what_a_later_version_hands_over_besides_is_ignored(descriptors: list[int]) -> None:
    """So that an upgrade can be undone by another one."""
    inherited = Inherited.take({VARIABLE: json.dumps(handed(descriptors, colour="green"))})
    assert inherited is not None
    assert inherited.descriptors() == descriptors


def test_a_descriptor_that_is_not_open_is_one_sentence(descriptors: list[int]) -> None:
    closed = os.dup(descriptors[0])
    os.close(closed)
    with pytest.raises(Failed, match="Bad file descriptor"):
        Inherited.take({VARIABLE: json.dumps(handed(descriptors, lock=closed))})


@pytest.mark.parametrize("wrong", [{"notify": 7}, {"control": "three"}, {"notify": None}])
def test_a_value_of_another_kind_is_one_sentence(descriptors: list[int], wrong: dict[str, object]) -> None:
    with pytest.raises(Failed, match="cannot take over"):
        Inherited.take({VARIABLE: json.dumps(handed(descriptors, **wrong))})


# What this process was started as.

SHOW = "from clojarsd.system.succession import program; import json; print(json.dumps(program()))"


def shown(*command: str | Path, cwd: Path = CHECKOUT) -> list[str]:
    output = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=True)
    found = json.loads(output.stdout)
    assert isinstance(found, list)
    return found


def test_the_program_is_what_stood_before_the_arguments(tmp_path: Path) -> None:
    python = sys.executable
    script = tmp_path / "clojarsd-here"
    script.write_text(SHOW)
    (tmp_path / "shown.py").write_text(SHOW)
    assert shown(python, "-c", SHOW, "-c", "x.toml") == [python, "-c", SHOW]
    assert shown(python, "-X", "dev", "-P", script, "demo", "--dir", "x") == [python, "-X", "dev", "-P", str(script)]
    assert shown(python, "-m", "shown", "-c", "x.toml", cwd=tmp_path) == [python, "-m", "shown"]
    assert shown(python, script) == [python, str(script)]


def test_this_very_process_has_a_program() -> None:
    assert program()[0] == sys.executable


# Rehearsals.


class Owner:
    """Remembers whose children are not to be reaped by others."""

    def __init__(self) -> None:
        self.owned: list[int] = []
        self.disowned: list[int] = []


async def rehearsed(tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch, timeout: float = PATIENCE) -> str:
    """What comes of the rehearsal of a program with this text."""
    script = tmp_path / "code.py"
    script.write_text(textwrap.dedent(code))
    monkeypatch.setattr(succession, "program", lambda: [sys.executable, str(script)])
    owner = Owner()
    try:
        return await rehearse(Path("a.toml"), Path("b.json"), owner.owned.append, owner.disowned.append, timeout)
    finally:
        assert owner.owned == owner.disowned
        [pid] = owner.owned
        assert not psutil.pid_exists(pid), "the child has ended, and was reaped"


async def failure(tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch, timeout: float = PATIENCE) -> str:
    with pytest.raises(Failed) as caught:
        await rehearsed(tmp_path, code, monkeypatch, timeout)
    return str(caught.value)


async def test_good_code_says_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = 'import sys; print("x: good"); print("can take over: 2.0"); assert sys.argv[1:] == {}'
    arguments = ["check", "--config", "a.toml", "--take-over", "b.json"]
    assert await rehearsed(tmp_path, code.format(arguments), monkeypatch) == "2.0"


async def test_what_is_said_besides_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import os, sys
        sys.stderr.write("a.toml: deploy has no effect yet\\n")
        print("can take over: 2.0", flush=True)
        os.write(2, b"Exception ignored in: <x>\\n")
    """
    assert await rehearsed(tmp_path, code, monkeypatch) == "2.0"


async def test_the_real_code_can_take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a state that this version has written, under a configuration that it knows."""
    from importlib.metadata import version

    from clojarsd.core.saved import as_json
    from tests.support.saved import a_pair

    config, state = CHECKOUT / "etc" / "clojarsd.toml", tmp_path / "state.json"
    monkeypatch.setattr(succession, "program", lambda: [sys.executable, "-m", "clojarsd"])
    state.write_text('{"format": 99}')
    with pytest.raises(Failed) as refused:
        await rehearse(config, state, lambda pid: None, lambda pid: None)
    assert "it has format 99, and this version knows 1" in str(refused.value)
    state.write_text(json.dumps(as_json(a_pair())))
    before = state.stat()
    assert await rehearse(config, state, lambda pid: None, lambda pid: None) == version("clojarsd")
    after = state.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "nothing is touched"
    with pytest.raises(Failed) as caught:
        await rehearse(tmp_path / "x.toml", state, lambda pid: None, lambda pid: None)
    assert str(caught.value) == (
        f"the new code cannot take over: {tmp_path}/x.toml: no such file (clojarsd -c FILE names another)"
    )


async def test_code_that_cannot_be_imported_is_told_by_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await failure(tmp_path, "import no_such_module", monkeypatch) == (
        "the new code cannot take over: ModuleNotFoundError: No module named 'no_such_module'"
    )


async def test_all_problems_of_a_configuration_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = 'import sys; print("a: bad", file=sys.stderr); print("b: worse", file=sys.stderr); sys.exit(1)'
    assert await failure(tmp_path, code, monkeypatch) == "the new code cannot take over: a: bad; b: worse"


async def test_code_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its exit status."""
    assert await failure(tmp_path, "", monkeypatch) == "the new code cannot take over: it said nothing"


@pytest.mark.parametrize("code", ["import time; time.sleep(600)", 'while True: print("x" * 1000)'])
async def test_code_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Also if it talks all the while, of which only the last is kept."""
    assert await failure(tmp_path, code, monkeypatch, 0.3) == (
        "the new code has not said within 0.3 s that it can take over"
    )


async def test_a_rehearsal_runs_the_code_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the execution will."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "my_version.py").write_text('VERSION = "3.1"')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    code = 'import my_version; print(f"can take over: {my_version.VERSION}")'
    assert await rehearsed(tmp_path, code, monkeypatch) == "3.1"


async def test_an_interpreter_that_is_gone_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(succession, "program", lambda: ["/absent/python"])
    with pytest.raises(Failed) as caught:
        await rehearse(Path("x"), Path("y"), lambda pid: None, lambda pid: None)
    assert str(caught.value) == "/absent/python: no such file or directory"


# The replacement itself.

REPLACED = """
import json, os, signal, sys, threading
from pathlib import Path
from clojarsd.system.succession import Inherited, execute, hold_signals_back, let_signals_in

inherited = Inherited.take()
told = []
if inherited is None:
    os.environ["KEPT"] = "yes"
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: told.append(number))
    reader, writer = os.pipe()
    other, hidden = os.dup(writer), os.open(os.devnull, os.O_RDONLY)
    os.write(writer, b"from before")
    hold_signals_back()
    os.kill(os.getpid(), signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as a loop does that closes
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    handed = Inherited(reader, writer, {"primary": other}, 2, "1.0", "ann", str(hidden))
    execute(Path("next.toml"), handed, {"NOTIFY_SOCKET": "/run/x"}, [signal.SIGTERM])
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: told.append(number))
assert told == []
let_signals_in()
print(json.dumps({
    "pid": os.getpid(),
    "argv": sys.argv[1:],
    "read": os.read(inherited.control, 100).decode(),
    "generation": inherited.generation,
    "inheritable": [os.get_inheritable(one) for one in inherited.descriptors()],
    "hidden": os.path.exists(f"/proc/self/fd/{inherited.directory}"),
    "signals": sorted(told),
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "environment": {key: os.environ.get(key) for key in ("KEPT", "NOTIFY_SOCKET", "CLOJARSD_INHERITED")},
}))
"""


def test_the_code_that_comes_has_what_it_is_to_have_and_nothing_else(tmp_path: Path) -> None:
    """The same process: the named descriptors, the signals that came meanwhile, its arguments and its environment."""
    script = tmp_path / "replaced.py"
    script.write_text(REPLACED)
    child = subprocess.Popen(
        [sys.executable, str(script), "demo", "--dir", "x"], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    output, _ = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0
    assert json.loads(output) == {
        "pid": child.pid,
        "argv": ["--config", "next.toml"],
        "read": "from before",
        "generation": 2,
        "inheritable": [False, False, False],
        "hidden": False,
        "signals": [signal.SIGHUP, signal.SIGTERM],
        "blocked": [],
        "environment": {"KEPT": "yes", "NOTIFY_SOCKET": "/run/x", "CLOJARSD_INHERITED": None},
    }
