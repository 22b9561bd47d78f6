"""The project file and the chain that it describes: ``init``, ``run``, ``status``, and what it says for every verb.

ccdiff.yaml -> options and folders of each stage (``verbs``) -> keys and receipts (``stages``) -> ``status``, ``run``
"""

from typing import TYPE_CHECKING

from ..lazy import offered

if TYPE_CHECKING:
    from .file import Project, ProjectFile, read_project
    from .init import init_project
    from .place import PROJECT_FILE, project_path
    from .run import run_project
    from .stages import STAGES, State, recorded, states_of
    from .status import status_of
    from .verbs import fill
else:
    __getattr__ = offered(
        __name__, file="Project ProjectFile read_project", init="init_project", place="PROJECT_FILE project_path", run="run_project",
        stages="STAGES State recorded states_of", status="status_of", verbs="fill",
    )  # fmt: skip

__all__ = [
    "PROJECT_FILE", "STAGES", "Project", "ProjectFile", "State", "fill", "init_project", "project_path", "read_project", "recorded",
    "run_project", "states_of", "status_of",
]  # fmt: skip
