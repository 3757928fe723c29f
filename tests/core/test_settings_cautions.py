"""What a configuration is told that may be right, and may not."""

from __future__ import annotations

import pytest

from clojarsd.core.settings import parse_settings
from clojarsd.core.settings_check import cautions
from tests.core.test_settings_problems import document


def told(app: dict[str, str], primary: dict[str, str] | None = None) -> tuple[str, ...]:
    return cautions(parse_settings(document(app=app, instances__primary=primary or {}), "x.toml"))


def test_a_notify_socket_must_be_within_reach_of_the_root_directory() -> None:
    assert told({"notify": "true", "chroot": '"/srv/jail"'}, {"chroot": '"/"'}) == (
        "instances.backup.notify: NOTIFY_SOCKET is in /run/clojarsd, which the instance can reach only if that is"
        " mounted at /srv/jail/run/clojarsd too; without it READY=1 cannot come, and no start succeeds",
    )
    assert len(told({"notify": "true", "chroot": '"/srv/jail"'})) == 2


@pytest.mark.parametrize(
    "app", [{}, {"notify": "true"}, {"chroot": '"/srv/jail"'}, {"notify": "true", "chroot": '"/"'}]
)
def test_nothing_is_said_where_one_of_them_is_missing(app: dict[str, str]) -> None:
    assert told(app) == ()
