"""All faults by their names, in the order of the table."""

from __future__ import annotations

import json
from dataclasses import asdict

from tests.support import faults_of_files, faults_of_processes, faults_of_resources, faults_of_steering
from tests.support.faults import Act, CannotInject, Outcome, Scene
from tests.support.namespaces import run_apart

FAULTS: dict[str, Act] = {
    **faults_of_processes.fault.acts,
    **faults_of_files.fault.acts,
    **faults_of_resources.fault.acts,
}

STEERED: dict[str, Act] = {
    **{name: act for name, act in FAULTS.items() if name not in faults_of_steering.MEANINGLESS},
    **faults_of_steering.fault.acts,
}
"""Those that happen to a pair that is steered."""


def play(scene: Scene) -> None:
    """Let it happen; to a steered pair in namespaces of its own. Raises CannotInject."""
    if not scene.is_steered:
        FAULTS[scene.fault](scene)
        return
    told = scene.home / "told.json"

    def act() -> None:
        try:
            STEERED[scene.fault](scene)
        except CannotInject as reason:
            told.write_text(json.dumps(str(reason)))
        else:
            told.write_text(json.dumps([asdict(outcome) for outcome in scene.outcomes]))

    run_apart(act)
    rows = json.loads(told.read_text())
    if isinstance(rows, str):
        raise CannotInject(rows)
    scene.outcomes += [Outcome(**{**row, "fault": f"{row['fault']}, steered"}) for row in rows]
