"""The command `clojarsd` and its parts: arguments to settings to daemon; the event loop; errors as exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import click

from clojarsd.core.errors import BadSettings, ClojarsdError
from clojarsd.core.settings import Settings
from clojarsd.core.settings_features import features_not_acted_on
from clojarsd.system.logs import flush_logs, set_up_logs
from clojarsd.system.settings_file import read_settings

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
@click.pass_obj
def check(outer: Path, config: Path | None) -> None:
    """Check the configuration and start nothing: exit 0 when it can be used, 1 when not."""
    path = config or outer
    settings = _read(path)
    for sentence in features_not_acted_on(settings):
        click.echo(f"{path}: {sentence}", err=True)
    click.echo(f"{path}: good")


@cli.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=None, help="Where it keeps its files.")
def demo(directory: Path | None) -> None:
    """Run a whole pair on this machine with nothing to configure, in the foreground."""
    from clojarsd.demo import run_demo

    _exit_on_error(lambda: run_demo(directory, run))


def run(settings: Settings, config: Path, when_up: Callable[[], None] = lambda: None) -> None:
    """Run the daemon until it is told to end; `when_up` is called once orders and clients can come."""
    import uvloop

    from clojarsd.daemon import serve

    set_up_logs()
    _exit_on_error(lambda: uvloop.run(serve(settings, config, when_up)))


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
