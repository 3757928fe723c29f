"""The command `clojarsd` and its parts: arguments to settings to daemon; the event loop; errors as exit codes."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import click

from clojarsd.core.errors import BadSettings, ClojarsdError, Failed
from clojarsd.core.settings import Settings
from clojarsd.core.settings_check import cautions
from clojarsd.core.settings_features import features_not_acted_on
from clojarsd.core.view import FrontendView
from clojarsd.system.capabilities import lower_ambient
from clojarsd.system.logs import flush_logs, set_up_logs
from clojarsd.system.settings_file import read_settings
from clojarsd.system.state_file import StateFile
from clojarsd.system.succession import CAN_TAKE_OVER, Inherited, execute, hold_signals_back
from clojarsd.system.threads import executor
from clojarsd.system.world import foreign_sources, missing_accounts

DEFAULT_THREADS = 6
"""For what may block for a moment: files, names of users and hosts."""
DEFAULT_CONFIG = Path("/etc/clojarsd.toml")


@click.group(invoke_without_command=True)
@click.option("-c", "--config", type=click.Path(path_type=Path), default=DEFAULT_CONFIG, show_default=True)
@click.version_option(version("clojarsd"))
@click.pass_context
def cli(context: click.Context, config: Path) -> None:
    """Keep a pair of JVM instances alive behind one port, in the foreground, until SIGTERM or SIGINT.

    Orders are given with clojarsctl.
    """
    if context.invoked_subcommand is None:
        run(_read(config), config)
    else:
        context.obj = config


@cli.command()
@click.option("-c", "--config", type=click.Path(path_type=Path), default=None)
@click.option(
    "--take-over",
    "state",
    type=click.Path(path_type=Path),
    default=None,
    metavar="STATE",
    help="Check as well whether this version could take over from the daemon with this state file; touch nothing.",
)
@click.pass_obj
def check(outer: Path, config: Path | None, state: Path | None) -> None:
    """Check the configuration and start nothing: exit 0 when it can be used, 1 when not."""
    path = config or outer
    settings = _read(path)
    if state is not None:
        _exit_on_error(lambda: _check_state(state))
    about_machine = (*missing_accounts(settings), *foreign_sources(settings))
    for sentence in (*features_not_acted_on(settings), *cautions(settings), *about_machine):
        click.echo(f"{path}: {sentence}", err=True)
    click.echo(f"{path}: good")
    if state is not None:
        click.echo(f"{CAN_TAKE_OVER}{version('clojarsd')}")


def _check_state(state: Path) -> None:
    """Load all that a daemon is made of, and read the state; raises Failed."""
    import clojarsd.daemon
    import clojarsd.relay_process

    assert clojarsd.daemon is not clojarsd.relay_process
    StateFile(state).read()


@cli.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=None, help="Where it keeps its files.")
def demo(directory: Path | None) -> None:
    """Run a whole pair on this machine with nothing to configure, in the foreground."""
    from clojarsd.demo import run_demo

    _exit_on_error(lambda: run_demo(directory, run))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def cleanup(as_json: bool) -> None:
    """Take out of the kernel what dead daemons have left there; what a living one uses stays."""
    from clojarsd.system.steering import cleanup

    def act() -> None:
        removed = cleanup()
        if as_json:
            click.echo(json.dumps({"result": "done", "removed": removed}))
        else:
            nothing = "no dead clojarsd has left anything in the kernel"
            click.echo(f"removed what was left of {', '.join(removed)}" if removed else nothing)

    _exit_on_error(act)


def run(
    settings: Settings,
    config: Path,
    when_up: Callable[[Mapping[str, FrontendView]], None] = lambda frontends: None,
    directory: Path | None = None,
) -> None:
    """Run the daemon until it is told to end, or until other code takes its place.

    Args:
        when_up: called with the frontends once orders and clients can come.
        directory: a temporary directory that is removed at the end.
    """
    _exit_on_error(lambda: _run(settings, config, when_up, directory))


def _run(
    settings: Settings,
    config: Path,
    when_up: Callable[[Mapping[str, FrontendView]], None],
    directory: Path | None,
) -> None:
    import uvloop

    from clojarsd.daemon import Successor, serve

    gc.freeze()  # what was imported stays, and no collection need look at it
    capabilities = lower_ambient()  # before there is a thread or a child that would have them
    hold_signals_back()  # until there are handlers, and from all threads that begin before
    inherited = Inherited.take()
    temporary = str(directory) if directory is not None else inherited.directory if inherited is not None else None
    set_up_logs()

    async def live() -> Successor | None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(executor("clojarsd", DEFAULT_THREADS))
        # The loop's own threads begin with its first lookup, and hold back for ever what is held back then.
        await loop.getnameinfo(("127.0.0.1", 0), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
        return await serve(settings, config, when_up, inherited, temporary)

    successor = uvloop.run(live())
    if successor is not None:
        flush_logs(1.0)
        try:
            execute(config, successor.inherited, successor.environment, successor.signals, capabilities)
        except OSError as error:
            raise Failed(f"cannot execute the new code: {error}; the pair runs on, start clojarsd again") from error
    if temporary is not None:
        shutil.rmtree(temporary, ignore_errors=True)


def _exit_on_error(act: Callable[[], None]) -> None:
    try:
        act()
    except ClojarsdError as error:
        flush_logs(1.0)  # what was logged comes first
        click.echo(f"clojarsd: {error}", err=True)
        sys.exit(1)


def _read(config: Path) -> Settings:
    try:
        return read_settings(config)
    except BadSettings as bad:
        click.echo(str(bad), err=True)
        sys.exit(1)
