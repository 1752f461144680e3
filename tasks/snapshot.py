"""The small files that say what a version was made from: kept with it, to bring them back.

With git's commit (the code) and DVC's cache (data and results, by hash) they are the project as it
was: `dvc.lock` and `params.yaml` are seldom committed by the time a model is registered.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import dvc_files
from tasks.params_file import PARAMS_FILE
from tasks.records import Project
from tasks.tracking import registry

if TYPE_CHECKING:
    from mlflow import MlflowClient

_FOLDER = "project"  # among the artifacts of a run
NAMES = (PARAMS_FILE, "dvc.yaml", "dvc.lock", "code.yaml", "warm_start.yaml")


def log(client: MlflowClient, project: Project, run_id: str, digest: str) -> None:
    """Log the files among the artifacts of a run, under the digest of its model."""
    for path in paths(project):
        folder = path.parent.relative_to(project.root)
        client.log_artifact(run_id, str(path), (Path(_place(digest)) / folder).as_posix())


def paths(project: Project) -> list[Path]:
    """Those that there are."""
    named = [project.root / name for name in NAMES]
    return [*filter(Path.is_file, named), *dvc_files.of_data(project.root)]


def fetch(client: MlflowClient, version: registry.Version) -> dict[str, bytes]:
    """The files of a version, by their path in the project; none where none were kept."""
    if version.run_id is None or version.digest is None:
        return {}
    place = _place(version.digest)
    if place not in (entry.path for entry in client.list_artifacts(version.run_id, _FOLDER)):
        return {}
    with tempfile.TemporaryDirectory() as temporary:
        kept = Path(client.download_artifacts(version.run_id, place, temporary))
        found = [path for path in kept.rglob("*") if path.is_file()]
        return {path.relative_to(kept).as_posix(): path.read_bytes() for path in found}


def _place(digest: str) -> str:
    return f"{_FOLDER}/{digest[:16]}"
