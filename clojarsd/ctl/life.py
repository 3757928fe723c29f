"""Sees the daemon out: what replaces it or ends it is told by the one that goes, and then looked at from outside."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from clojarsd.ctl.client import Answer, Rejected, Unreachable
from clojarsd.ctl.render import clean, step_text
from clojarsd.ctl.session import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_UNREACHABLE, Session, narrate, offer

UPGRADE_TIMEOUT = 60.0
"""Seconds from the execution of the new code until it answers."""
END_TIMEOUT = 60.0
"""Seconds from the last word of the daemon until its process is gone."""
RELOAD_TIMEOUT = 60
"""Seconds that a reload of the configuration may take."""
LOOKED_EVERY = 0.05
"""Seconds between two looks at what cannot be waited for."""
SEE = "clojarsctl status"


def show_config(session: Session) -> None:
    """The configuration that the daemon acts by."""
    with session.outcome():
        if session.as_json:
            print(json.dumps(session.daemon.get("/v1/config"), indent=2))
        else:
            print(session.daemon.text("/v1/config?format=toml").rstrip("\n"))


def reload_config(session: Session) -> None:
    """Let the daemon read its configuration again, and tell what has changed."""
    with session.outcome(interrupted=f"stopped watching; the reload goes on: {SEE}"):
        answer = session.daemon.post("/v1/config/reload", patience=RELOAD_TIMEOUT)
    if session.as_json:
        offer(json.dumps(answer))
    else:
        offer("\n".join(clean(sentence) for sentence in answer["changes"] or [answer["message"]]))


def stop_daemon(session: Session) -> None:
    """End the pair and the daemon; return when its process is gone."""
    with session.outcome(interrupted=f"stopped; whether the order was taken is not known: {SEE}"):
        answer = session.daemon.stream("POST", "/v1/daemon/stop")
    with _watching(session, "stopped watching; clojarsd goes on to end"), answer, _descriptor(answer) as process:
        last = _hear_out(session, answer)
        if not _has_ended(session, process):
            session.fail(
                EXIT_FAILED, "failed", f"clojarsd is still there, {END_TIMEOUT:g} s after its last word: {SEE}"
            )
    if last is None:
        last = {"result": "done", "message": "clojarsd has ended, without a word whether both instances had"}
    _conclude(session, last)


def upgrade_daemon(session: Session, timeout: float | None) -> None:
    """Replace the daemon by the code that is installed now; return when the new one answers.

    Args:
        timeout: seconds until it must, from the execution on; None for the usual ones.
    """
    with session.outcome(interrupted=f"stopped; whether the order was taken is not known: {SEE}"):
        before = session.daemon.get("/v1/status")["daemon"]
        answer = session.daemon.stream("POST", "/v1/daemon/upgrade")
    with _watching(session, f"stopped watching; the upgrade goes on: {SEE}"):
        with answer:
            heard = _hear_out(session, answer)
        after = _successor(session, before, UPGRADE_TIMEOUT if timeout is None else timeout)
    if heard is None and after["pid"] != before["pid"]:
        message = f"clojarsd {before['version']} ended before it was replaced; {_named(after)} was started after it"
        session.fail(EXIT_FAILED, "failed", message)
    _conclude(session, {"result": "done", "message": _replaced(before, after), "before": before, "after": after})


def clean_up(session: Session) -> NoReturn:
    """Become the program that takes out of the kernel what dead daemons have left: no daemon could be asked."""
    command = [sys.executable, "-P", "-m", "clojarsd", "cleanup", *["--json"] * session.as_json]
    sys.stdout.flush()
    os.execv(sys.executable, command)


@contextmanager
def _watching(session: Session, interrupted: str) -> Iterator[None]:
    """Ctrl-C ends the watching, and says that it ends nothing else."""
    try:
        yield
    except KeyboardInterrupt:
        narrate(interrupted)
        sys.exit(EXIT_INTERRUPTED)


def _hear_out(session: Session, answer: Answer) -> dict[str, Any] | None:
    """The last line of the stream, when it was a good one; None when the daemon ended before it. Steps are told."""
    try:
        for line in answer.lines():
            if "result" not in line:
                narrate(step_text(line["step"]))
                if session.as_json:
                    offer(json.dumps(line))
            elif line["result"] == "failed":
                session.fail(EXIT_FAILED, line["error"]["kind"], clean(line["error"]["message"]))
            else:
                return line
    except Unreachable:
        pass  # what has become of it is looked at next
    return None


def _conclude(session: Session, last: dict[str, Any]) -> None:
    offer(json.dumps(last) if session.as_json else clean(last["message"]))


@contextmanager
def _descriptor(answer: Answer) -> Iterator[int | None]:
    """A descriptor of the daemon's process, made while it surely lives; None where it cannot be seen from here."""
    descriptor: int | None
    try:
        descriptor = os.pidfd_open(answer.daemon_pid())
    except OSError:  # in another PID namespace, or gone already
        descriptor = None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _has_ended(session: Session, process: int | None) -> bool:
    """Whether the daemon has ended, waiting for it as long as it may take."""
    if process is not None:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return bool(poll.poll(END_TIMEOUT * 1000))
    give_up_at = time.monotonic() + END_TIMEOUT
    while time.monotonic() < give_up_at:
        try:
            session.daemon.get("/v1/check")
        except Unreachable:
            return True
        except Rejected:
            pass  # so there is somebody
        time.sleep(LOOKED_EVERY)
    return False


def _successor(session: Session, before: dict[str, Any], timeout: float) -> dict[str, Any]:
    """What the daemon that follows says of itself; who connects while it begins waits in its socket's queue."""
    give_up_at = time.monotonic() + timeout
    while True:
        left = give_up_at - time.monotonic()
        trouble: Exception | None = None
        try:
            after: dict[str, Any] = session.daemon.get("/v1/status", patience=max(1, round(left)))["daemon"]
            if _identity(after) != _identity(before):
                return after
        except (Unreachable, Rejected) as error:
            trouble = error
        if time.monotonic() >= give_up_at:
            if trouble is not None:
                session.fail(EXIT_UNREACHABLE, "unreachable", f"the new clojarsd does not answer: {trouble}")
            message = f"cannot say that clojarsd was replaced: {_named(before)} still answers after {timeout:g} s"
            session.fail(EXIT_FAILED, "failed", message)
        time.sleep(LOOKED_EVERY)


def _identity(daemon: dict[str, Any]) -> tuple[Any, ...]:
    return daemon["pid"], daemon["started_at"], daemon.get("generation")


def _named(daemon: dict[str, Any]) -> str:
    return f"clojarsd {daemon['version']} (process {daemon['pid']})"


def _replaced(before: dict[str, Any], after: dict[str, Any]) -> str:
    if after["pid"] != before["pid"]:
        return f"clojarsd {before['version']} ended while it was replaced; {_named(after)} was started after it"
    if after["version"] == before["version"]:
        return f"{_named(after)} was replaced by the same version"
    return f"clojarsd {before['version']} was replaced by {after['version']} (process {after['pid']})"
