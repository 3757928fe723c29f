"""The verbs that are about the daemon itself; what they do is in `life`."""

from __future__ import annotations

import click

from clojarsd.ctl.life import clean_up, reload_config, show_config, stop_daemon, upgrade_daemon
from clojarsd.ctl.options import InOrder, json_option, seconds
from clojarsd.ctl.session import Session


@click.group(cls=InOrder)
def config() -> None:
    """Show the configuration, or have it read again."""


@config.command("show")
@json_option
@click.pass_obj
def show(session: Session) -> None:
    """Show the configuration that clojarsd acts by.

    That is all of it, as TOML, with its defaults. For operators only; values that may be secrets are masked.
    """
    show_config(session)


@config.command("reload")
@json_option
@click.pass_obj
def reload(session: Session) -> None:
    """Have the configuration read again, and say what has changed.

    A configuration that cannot be used is refused, and clojarsd goes on with the one it has.
    """
    reload_config(session)


@click.group(cls=InOrder)
def daemon() -> None:
    """Replace the running clojarsd, or end it."""


@daemon.command("upgrade")
@click.option(
    "--timeout",
    callback=seconds,
    metavar="TIME",
    help='How long the new one may take to answer, such as "90s"; a minute, if not given.',
)
@json_option
@click.pass_obj
def upgrade(session: Session, timeout: float | None) -> None:
    """Replace the running clojarsd by the version that is installed now.

    It is rehearsed first; when that fails, the old one stays in charge, and the exit status is 1. Instances and
    connections go on all the while. Returns when the new one answers.
    """
    upgrade_daemon(session, timeout)


@daemon.command("cleanup")
@json_option
@click.pass_obj
def cleanup(session: Session) -> None:
    """Take out of the kernel what a dead clojarsd has left.

    That is what steers connections there, which goes on after a clojarsd that was killed, until the next one takes it
    over. What a living one uses stays. Works without a daemon; for root.
    """
    clean_up(session)


@daemon.command("stop")
@json_option
@click.pass_obj
def stop(session: Session) -> None:
    """Stop both instances, then clojarsd.

    Open connections may end first. Returns when clojarsd has ended.
    """
    stop_daemon(session)
