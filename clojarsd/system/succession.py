"""The daemon's own replacement: what this process was started as, rehearsed by a child and then executed in place."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NoReturn, Self

from clojarsd.core.errors import Failed, reason_of
from clojarsd.system.capabilities import lower_ambient, raise_ambient
from clojarsd.system.program import Program

VARIABLE = "CLOJARSD_INHERITED"
CAN_TAKE_OVER = "can take over: "
"""How the last line of a rehearsal begins that went well; the version follows."""
REHEARSAL_TIMEOUT = 60.0
MOST_TOLD = 2000
"""Characters of a rehearsal's output that are told when it went wrong."""
_TRACEBACK = "Traceback (most recent call last)"
HELD_BACK = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2})
"""Signals that wait from just before the execution until the new code can take them."""


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a daemon hands to the code that takes its place under the same process number.

    Attributes:
        control, lock: descriptors of the listening control socket and of its lock.
        notify: those of the sockets on which instances say how they are, by role.
        generation: how many executions there were under this number, with the one to come.
        version: of the code before, and `by`: who ordered the upgrade.
        directory: a temporary directory that goes with the daemon's end, or None.
    """

    control: int
    lock: int
    notify: Mapping[str, int]
    generation: int
    version: str
    by: str
    directory: str | None = None

    @classmethod
    def take(cls, environment: MutableMapping[str, str] = os.environ) -> Self | None:
        """What this process was handed by the one before, if it was: taken out of the environment.

        What a later version has handed over besides is ignored.

        Raises:
            Failed: it cannot be used.
        """
        text = environment.pop(VARIABLE, None)
        if text is None:
            return None
        try:
            handed = json.loads(text)
            inherited = cls(**{field.name: handed[field.name] for field in fields(cls) if field.name in handed})
            for descriptor in inherited.descriptors():
                os.set_inheritable(descriptor, False)
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise Failed(f"cannot take over: {VARIABLE} cannot be used: {error}") from error
        return inherited

    def descriptors(self) -> list[int]:
        """All that are handed over."""
        return [self.control, self.lock, *self.notify.values()]


def program() -> list[str]:
    """The words before the arguments with which this process was started: interpreter and program."""
    words = sys.orig_argv[: len(sys.orig_argv) - (len(sys.argv) - 1)]
    return [sys.executable, *words[1:]]


async def rehearse(
    config: Path,
    state: Path,
    own: Callable[[int], None],
    disown: Callable[[int], None],
    timeout: float = REHEARSAL_TIMEOUT,
) -> str:
    """The version of the code that is installed now, if a child that runs it can read what it would take over.

    The child has the environment that the code will have, since that decides which code it is (PYTHONPATH).

    Args:
        own, disown: told which child is not to be reaped by others.
        timeout: seconds that it may take.

    Raises:
        Failed: it cannot; says why.
    """
    command = [*program(), "check", "--config", str(config), "--take-over", str(state)]
    try:
        child = Program(command, environment=os.environ, with_errors=True)
    except OSError as error:
        raise Failed(f"{command[0]}: {reason_of(error)}") from error
    own(child.pid)
    try:
        async with child:
            output = await _read(child, timeout)
    finally:
        disown(child.pid)
    lines = output.strip().splitlines()
    for line in reversed(lines):
        if line.startswith(CAN_TAKE_OVER):
            return line.removeprefix(CAN_TAKE_OVER)
    raise Failed(f"the new code cannot take over: {_told(lines)}")


async def _read(child: Program, timeout: float) -> str:
    output = b""
    try:
        async with asyncio.timeout(timeout):
            while more := await child.read():
                output = (output + more)[-MOST_TOLD * 4 :]
    except TimeoutError:
        raise Failed(f"the new code has not said within {timeout:g} s that it can take over") from None
    return output.decode(errors="replace")


def _told(lines: Sequence[str]) -> str:
    """What a rehearsal that went wrong has said, as one line; of a traceback the error itself."""
    if not lines:
        return "it said nothing"
    if any(line.startswith(_TRACEBACK) for line in lines):
        return lines[-1][:MOST_TOLD]
    return "; ".join(lines)[-MOST_TOLD:]


def execute(
    config: Path,
    inherited: Inherited,
    environment: Mapping[str, str],
    signals: Collection[signal.Signals],
    capabilities: Collection[int] = (),
) -> NoReturn:
    """Become the code that is installed now, under the same process number.

    Args:
        environment: variables of the service manager, which only the daemon itself may have.
        signals: what has come since the decision; the new code gets it.
        capabilities: what `lower_ambient` has kept from children, and the new code must have.

    Raises:
        OSError: it cannot be executed; this process is what it was.
    """
    for descriptor in inherited.descriptors():
        os.set_inheritable(descriptor, True)
    hold_signals_back()
    for number in signals:
        os.kill(os.getpid(), number)
    command = [*program(), "--config", str(config)]
    variables = {**os.environ, **environment, VARIABLE: json.dumps(asdict(inherited))}
    try:
        raise_ambient(capabilities)
        os.execve(command[0], command, variables)
    finally:
        lower_ambient(capabilities)


def hold_signals_back() -> None:
    """Let signals wait for the new code: to be called while there still are handlers, and again by `execute`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)


def let_signals_in() -> None:
    """Take the signals that were held back: to be called when there are handlers for them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
