"""All faults by their names, in the order of the table."""

from __future__ import annotations

from tests.support import faults_of_files, faults_of_processes, faults_of_resources
from tests.support.faults import Act

FAULTS: dict[str, Act] = {
    **faults_of_processes.fault.acts,
    **faults_of_files.fault.acts,
    **faults_of_resources.fault.acts,
}
