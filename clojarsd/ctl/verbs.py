"""The verbs of clojarsctl; what they do is in `look`, `order`, `top` and `why`."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import click

from clojarsd.core.api import MOST_EVENTS, MOST_LINES, Awaited
from clojarsd.ctl.look import check_pair, show_events, show_logs, show_status, watch_status
from clojarsd.ctl.options import (
    JSON_HELP,
    Planned,
    environment_option,
    follow_option,
    force_option,
    json_option,
    lines_option,
    no_wait_option,
    role_argument,
    seconds,
    symmetric_force_option,
    timeout_option,
    within_option,
)
from clojarsd.ctl.order import give_order, wait_until
from clojarsd.ctl.session import DEFAULT_SOCKET, EXIT_INTERRUPTED, SOCKET_VARIABLE, Session, discard
from clojarsd.ctl.verbs_daemon import config, daemon
from clojarsd.ctl.verbs_deploy import abort, deploy, promote, releases, rollback, rollout
from clojarsd.ctl.verbs_frontends import cap, connections, frontends, pause, reset, resume, share
from clojarsd.ctl.verbs_jvm import jvm


@click.group(cls=Planned, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket",
    envvar=SOCKET_VARIABLE,
    show_envvar=True,
    default=DEFAULT_SOCKET,
    show_default=True,
    metavar="PATH",
    help="Where clojarsd takes orders.",
)
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
@click.version_option(package_name="clojarsd")
@click.pass_context
def cli(ctx: click.Context, socket: str, as_json: bool) -> None:
    """Look at a pair of instances that clojarsd runs, and give it orders.

    An instance is named by its role, primary or backup, or by its own name.

    Orders return when they are carried out, and say on stderr what happens meanwhile. Ctrl-C stops the watching, never
    the order.

    Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused (nothing was done), 4 clojarsd cannot be reached.
    """
    ctx.obj = Session(socket, as_json)


@cli.command()
@click.option("--watch", is_flag=True, help="Draw it again every second; without a terminal, print it when it changes.")
@json_option
@click.pass_obj
def status(session: Session, watch: bool) -> None:
    """Show who serves, and how both instances are.

    Three facts are kept apart: the goal (what was ordered), the state (where the instance is in its life) and the
    health (what its checks say). Where an instance gets no connections, the reason stands below it.
    """
    watch_status(session) if watch else show_status(session)


@cli.command()
@click.option("--once", is_flag=True, help="Show it once; CPU is then that since each process began.")
@json_option
@click.pass_obj
def top(session: Session, once: bool) -> None:
    """Show what both instances do and use, again every second.

    CPU is in percent of one processor, since the last look; memory is the share of each process (PSS). Without a
    terminal it is shown once, as by --once; with --json alone each look is a line of its own, until interrupted.
    """
    from clojarsd.ctl.top import show_top, watch_top

    show_top(session) if once else watch_top(session)


@cli.command()
@role_argument("primary", "backup", required=False)
@json_option
@click.pass_obj
def why(session: Session, role: str | None) -> None:
    """Explain why things are as they are.

    Who serves and because of what, how each instance is and what shows it, what led here, what comes next by itself,
    and what an operator must do.
    """
    from clojarsd.ctl.why import show_why

    show_why(session, role)


@cli.command()
@json_option
@click.pass_obj
def check(session: Session) -> None:
    """Say in one line how the pair is, as a Nagios plugin.

    Exit status: 0 both can serve, 1 one can, 2 none can, 3 clojarsd cannot be asked.
    """
    check_pair(session)


@cli.command()
@role_argument("primary", "backup", "all")
@no_wait_option
@symmetric_force_option
@timeout_option
@environment_option
@json_option
@click.pass_obj
def start(
    session: Session, role: str, no_wait: bool, force: bool, timeout: float | None, environment: dict[str, str]
) -> None:
    """Start an instance, and return when it is ready.

    Variables that are given with --env are there for this one start: later ones, also those after a crash, do not have
    them. Refused with --env when the instance runs already.
    """
    _order(session, "start", role, no_wait=no_wait, force=force, timeout=timeout, environment=environment)


@cli.command()
@role_argument("primary", "backup", "all")
@no_wait_option
@symmetric_force_option
@within_option
@timeout_option
@json_option
@click.pass_obj
def stop(session: Session, role: str, no_wait: bool, force: bool, timeout: float | None, within: float | None) -> None:
    """Stop an instance, and return when it is down.

    Its open connections may end first.
    """
    _order(session, "stop", role, no_wait=no_wait, force=force, timeout=timeout, within=within)


@cli.command()
@role_argument("primary", "backup", "all")
@no_wait_option
@force_option
@within_option
@timeout_option
@environment_option
@json_option
@click.pass_obj
def restart(
    session: Session,
    role: str,
    no_wait: bool,
    force: bool,
    timeout: float | None,
    within: float | None,
    environment: dict[str, str],
) -> None:
    """Restart an instance while the other one serves.

    Its open connections may end first. Refused when the other one cannot take over, unless forced. `all` restarts the
    backup, then the primary. Variables that are given with --env are there for this one start.
    """
    _order(
        session, "restart", role, no_wait=no_wait, force=force, timeout=timeout, environment=environment, within=within
    )


@cli.command()
@role_argument("primary", "backup", "all")
@no_wait_option
@symmetric_force_option
@timeout_option
@json_option
@click.pass_obj
def reload(session: Session, role: str, no_wait: bool, force: bool, timeout: float | None) -> None:
    """Send an instance its reload signal.

    Returns when it is sent: what the instance makes of it shows in its checks and in its log. A Java program that does
    not expect SIGHUP ends by it; `reload_signal` in the configuration names another one.
    """
    _order(session, "reload", role, no_wait=no_wait, force=force, timeout=timeout)


@cli.command()
@role_argument("primary", "backup")
@no_wait_option
@within_option
@timeout_option
@json_option
@click.pass_obj
def drain(session: Session, role: str, no_wait: bool, timeout: float | None, within: float | None) -> None:
    """Take an instance out of rotation, still running.

    It gets no new connections until it is undrained, and is not stopped. Returns when its open ones have ended.
    """
    _order(session, "drain", role, no_wait=no_wait, force=False, timeout=timeout, within=within)


@cli.command()
@role_argument("primary", "backup")
@no_wait_option
@timeout_option
@json_option
@click.pass_obj
def undrain(session: Session, role: str, no_wait: bool, timeout: float | None) -> None:
    """Bring an instance back into rotation."""
    _order(session, "undrain", role, no_wait=no_wait, force=False, timeout=timeout)


@cli.command()
@role_argument("primary", "backup", "all")
@click.option(
    "--for",
    "awaited",
    type=click.Choice([one.value for one in Awaited]),
    required=True,
    help="ready: proved able to serve; eligible: may get connections; stopped: at rest; down: without a process.",
)
@click.option("--timeout", callback=seconds, metavar="TIME", help='Wait at most this long, such as "90s" or "5m".')
@json_option
@click.pass_obj
def wait(session: Session, role: str, awaited: str, timeout: float | None) -> None:
    """Wait until an instance is as it should be.

    Nothing is ordered. With `all`, both have to be so at once. Exit status 1 when the time is over.
    """
    wait_until(session, role, awaited, timeout)


@cli.command()
@role_argument("primary", "backup", required=False)
@lines_option(MOST_LINES)
@follow_option
@json_option
@click.pass_obj
def logs(session: Session, role: str | None, count: int | None, follow: bool) -> None:
    """Show the latest lines of an instance's log, or of both.

    That is 100 lines of each, unless -n says otherwise.
    """
    show_logs(session, role, count, follow=follow)


@cli.command()
@lines_option(MOST_EVENTS)
@follow_option
@json_option
@click.pass_obj
def events(session: Session, count: int | None, follow: bool) -> None:
    """Show what happened, and who asked for it.

    That is the latest 50 events, unless -n says otherwise. They are kept for 90 days, in events.sqlite.
    """
    show_events(session, count, follow=follow)


for verb in (deploy, promote, abort, rollback, releases, rollout):
    cli.add_command(verb)
for verb in (frontends, connections, pause, resume, cap, share, reset):
    cli.add_command(verb)
cli.add_command(jvm)
cli.add_command(config)
cli.add_command(daemon)


def _order(
    session: Session,
    verb: str,
    role: str,
    *,
    no_wait: bool,
    force: bool,
    timeout: float | None,
    environment: Mapping[str, str] | None = None,
    within: float | None = None,
) -> None:
    give_order(
        session, verb, role, wait=not no_wait, force=force, timeout=timeout, environment=environment, within=within
    )


def run() -> None:
    """Run the verb that the command line names, and end with its exit code even if stderr takes no complaint."""
    try:
        sys.exit(cli(prog_name="clojarsctl", standalone_mode=False))
    except click.ClickException as error:
        try:
            error.show()
        except OSError:
            discard(sys.stderr)
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(EXIT_INTERRUPTED)
