"""The project file and the chain that it describes: ``init``, ``run``, ``status``, and what it says for every verb.

ccdiff.yaml -> options and folders of each stage (``verbs``) -> keys and receipts (``stages``) -> ``status``, ``run``
"""

from .file import Project, ProjectFile, read_project
from .init import init_project
from .place import PROJECT_FILE, project_path
from .run import run_project
from .stages import STAGES, State, recorded, states_of
from .status import status_of
from .verbs import fill

__all__ = [
    "PROJECT_FILE", "STAGES", "Project", "ProjectFile", "State", "fill", "init_project", "project_path", "read_project", "recorded",
    "run_project", "states_of", "status_of",
]  # fmt: skip
