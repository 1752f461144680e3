"""Where a project is, and the environment in which its processes run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tasks import redaction
from tasks.errors import ThawlineError
from tasks.params_file import PARAMS_FILE
from tasks.records import Project

DVC_FILE = "dvc.yaml"

QUIET = {
    # Telemetry of all three tools off. MLflow takes only the word `true`.
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
}


def begin() -> None:
    """What each of our processes does first: telemetry off, secrets held back from what it prints.

    Before MLflow and Prefect are imported, which read their variables then.
    """
    redaction.install()
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def find(start: Path | None = None) -> Project:
    """The project that holds a folder (default: the working one): it or the nearest above it.

    Raises `ThawlineError` when there is none.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / PARAMS_FILE).is_file() and (folder / DVC_FILE).is_file():
            return Project(folder)
    raise ThawlineError(
        f"{start} is not in a Thawline project (no {PARAMS_FILE} beside a {DVC_FILE} here or "
        "above); go to a project folder or make one with: thawline new DIR --data PATH"
    )


def environment(project: Project) -> dict[str, str]:
    """The environment of a project's processes; what the user has set wins."""
    bin_folder = str(Path(sys.executable).parent)
    paths = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if bin_folder not in paths:  # `cmd: thawline …` must be found without an activated venv
        paths.insert(0, bin_folder)
    ours = {
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if "PREFECT_API_URL" not in os.environ:
        ours["PREFECT_HOME"] = str(project.root / ".prefect")
    return ours | QUIET | dict(os.environ) | {"PATH": os.pathsep.join(paths)}
