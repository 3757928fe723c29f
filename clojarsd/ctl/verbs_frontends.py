"""The verbs that are about frontends; what they do is in `fronts`."""

from __future__ import annotations

import click

from clojarsd.ctl.fronts import cap_frontend, order_frontend, share_connections, show_connections, show_frontends
from clojarsd.ctl.options import json_option, seconds
from clojarsd.ctl.session import Session

frontend_argument = click.argument("frontend", metavar="FRONTEND")


@click.command()
@click.argument("frontend", required=False, metavar="[FRONTEND]")
@json_option
@click.pass_obj
def frontends(session: Session, frontend: str | None) -> None:
    """Show the ports that clients use, a line each.

    Where each listens, how it passes connections on, who serves, its limits, what is open and what was counted.
    """
    show_frontends(session, frontend)


@click.command()
@click.argument("frontend", required=False, metavar="[FRONTEND]")
@json_option
@click.pass_obj
def connections(session: Session, frontend: str | None) -> None:
    """Show who is connected to what.

    Those come first whose clients wait for an answer: they keep a drain. At most 1000 are listed.
    """
    show_connections(session, frontend)


@click.command()
@frontend_argument
@click.option(
    "--for",
    "duration",
    callback=seconds,
    metavar="TIME",
    help='How long, such as "30s"; as long as `hold` in the configuration, if not given.',
)
@json_option
@click.pass_obj
def pause(session: Session, frontend: str, duration: float | None) -> None:
    """Have new connections wait; open ones go on.

    It ends by itself, also when clojarsd has died meanwhile. Given again, it counts from now on.
    """
    order_frontend(session, "pause", frontend, {"for": duration} if duration is not None else None)


@click.command()
@frontend_argument
@json_option
@click.pass_obj
def resume(session: Session, frontend: str) -> None:
    """Let new connections wait no more."""
    order_frontend(session, "resume", frontend)


@click.command(context_settings={"ignore_unknown_options": True})  # of `-1` we say ourselves that it is no limit
@frontend_argument
@click.argument("limit", nargs=-1, required=True, metavar="[total|primary|backup] N")
@json_option
@click.pass_obj
def cap(session: Session, frontend: str, limit: tuple[str, ...]) -> None:
    """Set how many connections there may be; 0 is no limit.

    Of the frontend in all, or to one instance in it: then the others go to the other instance. Who finds no room
    waits. Holds until the configuration gives the frontend other limits, or clojarsd is stopped.
    """
    cap_frontend(session, frontend, limit)


@click.command(context_settings={"ignore_unknown_options": True})  # of `-1` we say ourselves that it is no share
@click.argument("percent", metavar="PERCENT")
@json_option
@click.pass_obj
def share(session: Session, percent: str) -> None:
    """Let a part of new connections go to the backup.

    At most 50 %, of all frontends, while both instances can serve and the primary is active: to see how a new release
    does. 0 ends it; so does the end of clojarsd.
    """
    share_connections(session, percent)


@click.command()
@click.argument("frontend", metavar="FRONTEND|all")
@json_option
@click.pass_obj
def reset(session: Session, frontend: str) -> None:
    """Count accepted connections anew.

    What is measured for /metrics is left alone.
    """
    order_frontend(session, "reset", frontend)
