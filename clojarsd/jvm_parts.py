"""Makes the parts that are about the JVMs of instances, and connects them to the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from clojarsd.core.identity import RolloutMark
from clojarsd.core.settings_deploy import DeploySettings
from clojarsd.runtime.class_data import ClassData, Runner
from clojarsd.runtime.plans import Plans
from clojarsd.runtime.status import Board
from clojarsd.system.build_command import Builder
from clojarsd.system.cgroup import Groups
from clojarsd.system.process import Processes

MARK: Final = "class-data"
"""What its commands carry in place of the id of a rollout."""


def make_class_data(board: Board, plans: Callable[[], Plans], processes: Processes, groups: Groups | None) -> ClassData:
    """What makes class-data archives; its commands run as those of a deploy do, in nobody's way."""

    def runner(deploy: DeploySettings) -> Runner:
        service, world = plans().settings.service, plans().world
        log = Path(service.log_dir) / f"{MARK}.log"
        builder = Builder(
            launch=processes.launch,
            mark=RolloutMark(str(service.state_dir), MARK),
            log=log,
            world=world,
            user=service.user,
            group=service.group,
            environment={},
            groups=groups,
            memory_max=deploy.memory_max,
        )
        return builder.run

    return ClassData(board, plans, runner)
