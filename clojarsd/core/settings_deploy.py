"""The table that says how releases are made, put in place and proved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from clojarsd.core import settings_process as processes
from clojarsd.core import settings_types as kinds
from clojarsd.core.settings_health import Table

NOTHING: Final[Mapping[str, Any]] = {}


class DeploySettings(Table):
    """Where releases come from, how one is made, where it goes, and what it must pass.

    Attributes:
        repository: empty where releases are made elsewhere, and given as files.
        work_dir: None only without a repository.
        current: the name of the link in `releases`.
        min_free: bytes.
        memory_max: bytes that a command may use, None for no limit.
        soak: seconds.
        share: percent of new connections.
    """

    repository: kinds.Text = ""
    work_dir: kinds.AbsolutePath | None = None
    releases: kinds.AbsolutePath = Field(description="the directory of the releases and of the link to the current one")
    current: kinds.FileName = "clojars-web-current.jar"
    artifact: kinds.Artifact = "target/*-standalone.jar"
    test: kinds.OptionalCommand = ("lein", "test")
    build: kinds.Command = ("lein", "uberjar")
    before_switch: kinds.Commands = ()
    after_backup: kinds.Commands = ()
    smoke: kinds.OptionalCommand = ()
    approval_timeout: kinds.Duration = 1800.0
    share: kinds.Percent = 0
    before_promote: kinds.Commands = ()
    soak: kinds.DurationOrZero = 10.0
    after_deploy: kinds.Commands = ()
    step_timeout: kinds.Duration = 1200.0
    environment: kinds.Environment = NOTHING
    memory_max: processes.MemoryMax = None
    min_free: kinds.Size = 512 * 1024**2
    keep: kinds.Kept = 5
    cds: kinds.Boolean = False

    @property
    def link(self) -> Path:
        """The link to the current release."""
        return self.releases / self.current
