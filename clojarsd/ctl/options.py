"""The options and arguments that verbs of clojarsctl have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from clojarsd.core.api import LONGEST_TIMEOUT, why_no_variable
from clojarsd.core.quantities import parse_duration
from clojarsd.ctl.session import EXIT_USAGE, Session

Command = TypeVar("Command", bound=Callable[..., Any])


class InOrder(click.Group):
    """Lists its verbs in the order in which they stand in this file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the verbs."""
        return list(self.commands)


NOT_YET = frozenset({"threads"})
"""Verbs that are planned and not in this version."""


class Planned(InOrder):
    """Also answers verbs that this version does not have yet, whatever words follow them."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name, or one that says that it is not in this version."""
        return not_yet(cmd_name) if cmd_name in NOT_YET else super().get_command(ctx, cmd_name)


def not_yet(name: str) -> click.Command:
    """A verb that says that it is not in this version, whatever words follow it."""

    @click.command(
        name,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    @click.pass_context
    def answer(ctx: click.Context) -> None:
        session: Session = ctx.obj
        session.as_json |= "--json" in ctx.args
        session.fail(EXIT_USAGE, "usage", f"{name} is not in this version")

    return answer


def seconds_or_none(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """A duration such as `5m`, as seconds; `0s` is one, too."""
    return 0.0 if text is not None and _is_no_time(text) else seconds(ctx, param, text)


def _is_no_time(text: str) -> bool:
    try:
        return parse_duration(text) == 0
    except ValueError:
        return False


def seconds(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """A duration such as `5m`, as seconds, which are more than none and no more than an order may last."""
    if text is None:
        return None
    try:
        duration = parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(f"{text} {error}", ctx, param) from None
    if duration == 0:
        raise click.BadParameter(f"{text} is no time at all", ctx, param)
    if duration > LONGEST_TIMEOUT:
        raise click.BadParameter(f"{text} is too long (at most {LONGEST_TIMEOUT / 3600:g}h)", ctx, param)
    return duration


def _variables(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> dict[str, str]:
    """Words such as `LANG=C.UTF-8`, by name. No complaint shows a value, which may be a secret."""
    variables = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise click.BadParameter(f"{name} has no value (NAME=VALUE)", ctx, param)
        if why := why_no_variable(name):
            raise click.BadParameter(why, ctx, param)
        variables[name] = value
    return variables


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
    callback=seconds,
    metavar="TIME",
    help='Wait at most this long, such as "90s" or "5m"; the order goes on.',
)
within_option = click.option(
    "--within",
    callback=seconds_or_none,
    metavar="TIME",
    help='Cut what is still open after this time, such as "5s", if that is sooner; also while a drain is under way.',
)
follow_option = click.option("-f", "--follow", is_flag=True, help="Go on with those that come, until Ctrl-C.")
environment_option = click.option(
    "--env",
    "environment",
    multiple=True,
    callback=_variables,
    metavar="NAME=VALUE",
    help="Set an environment variable for this one start; may be given several times.",
)
