"""The verbs that are about the JVM of an instance."""

from __future__ import annotations

import click

from clojarsd.ctl.options import InOrder, json_option, not_yet, role_argument
from clojarsd.ctl.order import make_archive
from clojarsd.ctl.session import EXIT_USAGE, Session


class _Jvm(InOrder):
    """Also answers what this version does not have yet: `jvm [ROLE]`, which shows heap and collections."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name, or one that says what is not in this version."""
        return super().get_command(ctx, cmd_name) or not_yet("jvm")


@click.group(cls=_Jvm, invoke_without_command=True)
@click.pass_context
def jvm(ctx: click.Context) -> None:
    """Make a class-data archive, for faster starts."""
    if ctx.invoked_subcommand is None:
        session: Session = ctx.obj
        session.fail(EXIT_USAGE, "usage", "jvm is not in this version; `clojarsctl jvm cds ROLE` is")


@jvm.command("cds")
@role_argument("primary", "backup")
@json_option
@click.pass_obj
def cds(session: Session, role: str) -> None:
    """Make a class-data archive of the release that an instance runs.

    With it a JVM starts faster: it holds the classes that the instance has loaded, ready for use. Best made of one that
    has served for a while. Starts use it while deploy.cds is true. The instance serves on meanwhile.
    """
    make_archive(session, role)
