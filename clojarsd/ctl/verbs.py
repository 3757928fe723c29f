"""The verbs of clojarsctl and their options; what they do is in `look` and `order`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from clojarsd.core.api import MOST_EVENTS, MOST_LINES
from clojarsd.core.quantities import parse_duration
from clojarsd.ctl.look import check_pair, show_events, show_logs, show_status, watch_status
from clojarsd.ctl.order import give_order
from clojarsd.ctl.session import DEFAULT_SOCKET, EXIT_INTERRUPTED, SOCKET_VARIABLE, Session, discard

Command = TypeVar("Command", bound=Callable[..., Any])


class InOrder(click.Group):
    """Lists its verbs in the order in which they stand in this file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the verbs."""
        return list(self.commands)


def _seconds(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """A duration such as `5m`, as seconds, which are more than none."""
    if text is None:
        return None
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(f"{text} {error}", ctx, param) from None
    if seconds == 0:
        raise click.BadParameter(f"{text} is no time at all", ctx, param)
    return seconds


def _json_after_verb(ctx: click.Context, _: click.Parameter, chosen: bool) -> None:
    session = ctx.find_object(Session)
    if chosen and session is not None:
        session.as_json = True


JSON_HELP = "Print JSON, for programs."
json_option = click.option("--json", is_flag=True, expose_value=False, callback=_json_after_verb, help=JSON_HELP)


def lines_option(most: int) -> Callable[[Command], Command]:
    """The option -n, of which the daemon gives at most so many."""
    return click.option(
        "-n", "--lines", "count", type=click.IntRange(0), metavar="N", help=f"How many of the latest, at most {most}."
    )


def role_argument(*roles: str, required: bool = True) -> Callable[[Command], Command]:
    """The argument ROLE; shells complete it to these."""
    shown = "|".join(roles)
    return click.argument(
        "role",
        required=required,
        metavar=shown if required else f"[{shown}]",
        shell_complete=lambda ctx, param, text: [role for role in roles if role.startswith(text)],
    )


no_wait_option = click.option("--no-wait", is_flag=True, help="Return at once; the order goes on.")
force_option = click.option("--force", is_flag=True, help="Restart although the other one could not take over.")
symmetric_force_option = click.option(
    "--force",
    is_flag=True,
    help="Accepted for symmetry: only a restart is ever refused for the other one's sake.",
)
timeout_option = click.option(
    "--timeout",
    callback=_seconds,
    metavar="TIME",
    help='Wait at most this long, such as "90s" or "5m"; the order goes on.',
)
follow_option = click.option("-f", "--follow", is_flag=True, help="Go on with those that come, until Ctrl-C.")


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"]})
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
@json_option
@click.pass_obj
def start(session: Session, role: str, no_wait: bool, force: bool, timeout: float | None) -> None:
    """Start an instance, and return when it is ready."""
    _order(session, "start", role, no_wait=no_wait, force=force, timeout=timeout)


@cli.command()
@role_argument("primary", "backup", "all")
@no_wait_option
@symmetric_force_option
@timeout_option
@json_option
@click.pass_obj
def stop(session: Session, role: str, no_wait: bool, force: bool, timeout: float | None) -> None:
    """Stop an instance, and return when it is down.

    Its open connections may end first.
    """
    _order(session, "stop", role, no_wait=no_wait, force=force, timeout=timeout)


@cli.command()
@role_argument("primary", "backup", "all")
@no_wait_option
@force_option
@timeout_option
@json_option
@click.pass_obj
def restart(session: Session, role: str, no_wait: bool, force: bool, timeout: float | None) -> None:
    """Restart an instance while the other one serves.

    Its open connections may end first. Refused when the other one cannot take over, unless forced. `all` restarts the
    backup, then the primary.
    """
    _order(session, "restart", role, no_wait=no_wait, force=force, timeout=timeout)


@cli.command()
@role_argument("primary", "backup")
@no_wait_option
@timeout_option
@json_option
@click.pass_obj
def drain(session: Session, role: str, no_wait: bool, timeout: float | None) -> None:
    """Take an instance out of rotation, still running.

    It gets no new connections until it is undrained, and is not stopped. Returns when its open ones have ended.
    """
    _order(session, "drain", role, no_wait=no_wait, force=False, timeout=timeout)


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


def _order(session: Session, verb: str, role: str, *, no_wait: bool, force: bool, timeout: float | None) -> None:
    give_order(session, verb, role, wait=not no_wait, force=force, timeout=timeout)


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
