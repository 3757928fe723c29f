"""The verbs that are about releases; what they do is in `deploys`."""

from __future__ import annotations

from pathlib import Path

import click

from clojarsd.ctl.deploys import begin, follow, show_releases, show_rollout
from clojarsd.ctl.options import json_option
from clojarsd.ctl.session import EXIT_USAGE, Session

_yes_option = click.option("--yes", is_flag=True, help="Ask nobody: go on to the primary when every gate has passed.")
_no_promote_option = click.option(
    "--no-promote", is_flag=True, help="Return when the backup runs it, and leave the answer to promote or abort."
)


@click.command()
@click.argument("tag", required=False, metavar="[TAG]")
@click.option("--artifact", type=click.Path(), metavar="FILE", help="Bring in this file or directory instead of a tag.")
@_yes_option
@_no_promote_option
@click.option("--skip-tests", is_flag=True, help="Build without testing.")
@click.option("--force", is_flag=True, help="Deploy although not both instances can serve, or the tag has moved.")
@json_option
@click.pass_obj
def deploy(
    session: Session,
    tag: str | None,
    artifact: str | None,
    yes: bool,
    no_promote: bool,
    skip_tests: bool,
    force: bool,
) -> None:
    """Build and bring in a release: backup first.

    The tag is checked out anew, tested, built and installed; the backup is restarted with it, checked and warmed up.
    Then somebody is asked, here at the terminal or by `clojarsctl promote` and `clojarsctl abort` anywhere, before the
    primary follows. Whatever fails brings back what was there, and no connection is refused meanwhile. Ctrl-C stops
    the watching, never the deploy.
    """
    if tag is None and artifact is None:
        session.fail(EXIT_USAGE, "usage", "a deploy needs a TAG, or --artifact FILE")
    if tag is not None and artifact is not None:
        session.fail(EXIT_USAGE, "usage", "--artifact FILE takes the place of a TAG: only one of them")
    if yes and no_promote:
        session.fail(EXIT_USAGE, "usage", "--yes asks nobody, --no-promote stops before asking: only one of them")
    options: dict[str, object] = {"yes": yes, "promote": not no_promote, "skip_tests": skip_tests, "force": force}
    if artifact is not None:
        options["artifact"] = str(Path(artifact).absolute())
    else:
        options["tag"] = tag
    begin(session, "/v1/deploys", options)


@click.command()
@json_option
@click.pass_obj
def promote(session: Session) -> None:
    """Let what waits go on to the primary.

    That is a deploy or a rollback whose backup has come up. Returns when both instances run the release and it is
    recorded as good.
    """
    begin(session, "/v1/rollout/promote", {})


@click.command()
@json_option
@click.pass_obj
def abort(session: Session) -> None:
    """Bring everything back as it was.

    A deploy or rollback can be aborted at any moment until its release is recorded as good. Returns when
    everything is as it was before.
    """
    begin(session, "/v1/rollout/abort", {})


@click.command()
@click.argument("release", required=False, metavar="[RELEASE]")
@_yes_option
@_no_promote_option
@json_option
@click.pass_obj
def rollback(session: Session, release: str | None, yes: bool, no_promote: bool) -> None:
    """Bring a former release back: backup first.

    RELEASE is the name or the tag of one that `clojarsctl releases` shows; without it the last good one before the
    current one.
    """
    options: dict[str, object] = {"yes": yes, "promote": not no_promote}
    if release is not None:
        options["release"] = release
    begin(session, "/v1/rollback", options)


@click.command()
@json_option
@click.pass_obj
def releases(session: Session) -> None:
    """Show the releases, and which instance runs which.

    Where each came from, whether it is good, who brought it in and when.
    """
    show_releases(session)


@click.command()
@click.option("-f", "--follow", "following", is_flag=True, help="Watch it to its end, from its beginning on.")
@json_option
@click.pass_obj
def rollout(session: Session, following: bool) -> None:
    """Show the deploy or rollback that is under way.

    Or how the latest has ended.
    """
    follow(session) if following else show_rollout(session)
