"""What MLflow is told of a run: parameters, tags, data set; and finding that run again."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import params as parameters
from tasks import params_file
from tasks.errors import ParamsError
from tasks.records import DataSummary, Project
from tasks.tracking.spool import Header

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_KEY = "thawline.run_key"
RESTORED = "thawline.restored"
FLOW_RUN_ID = "THAWLINE_FLOW_RUN_ID"  # environment variable: the Prefect flow run around us

_LONGEST = 6000  # characters of a parameter that MLflow takes
_PARAMS_A_BATCH = 100


def header(
    project: Project, params: parameters.Params, name: str, tags: dict[str, str] | None = None
) -> Header:
    """The header of a new run's spool, from the project as it is now; `tags` are added."""
    return Header(
        experiment=params.register_.experiment,
        name=name,
        params=flat_params(params),
        tags={**lineage(project.root), **(tags or {})},
        dataset=_dataset(project, params),
    )


def flat_params(params: parameters.Params) -> dict[str, str]:
    """Parameters by key path, as text: `{"train.epochs": "8", …}`."""
    flat: dict[str, str] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[prefix] = text[:_LONGEST]

    add("", params.model_dump(by_alias=True))
    return flat


def lineage(root: Path) -> dict[str, str]:
    """Tags that tell where a run came from: versions, git, DVC, the flow run."""
    tags = {"thawline.version": version("thawline"), "mlflow.source.name": "thawline"}
    if commit := _git(root, "rev-parse", "HEAD"):
        tags["mlflow.source.git.commit"] = commit
        dirty = _git(root, "status", "--porcelain", "--untracked-files=no")
        tags["thawline.git_dirty"] = "true" if dirty else "false"
    tags.update({f"dvc.{path}": digest for path, digest in dvc_digests(root).items()})
    if flow_run := os.environ.get(FLOW_RUN_ID):
        tags["prefect.flow_run_id"] = flow_run
    return tags


def dvc_digests(root: Path) -> dict[str, str]:
    """Path → hash of all outputs in `dvc.lock`, and of files tracked by a `.dvc` file beside data.

    An unreadable lock is nobody's mistake here; it gives no digests.
    """
    digests: dict[str, str] = {}
    locks = [root / "dvc.lock", *sorted((root / "data").glob("*.dvc"))]
    for lock in (path for path in locks if path.is_file()):
        try:
            content = params_file.parse(lock.read_bytes(), str(lock)) or {}
        except ParamsError:
            continue
        stages = content.get("stages", {"": content}).values()
        for out in (out for stage in stages for out in stage.get("outs", [])):
            if digest := out.get("md5"):
                prefix = "" if lock.name == "dvc.lock" else "data/"
                digests[f"{prefix}{out['path']}"] = str(digest)
    return digests


def find(client: MlflowClient, experiment: str, run_key: str) -> Run | None:
    """The newest active run of an experiment with this run key; real runs before restored ones."""
    found = client.search_runs(
        [experiment], f"tags.`{RUN_KEY}` = '{run_key}'", order_by=["attributes.start_time DESC"]
    )
    return min(found, key=lambda run: RESTORED in run.data.tags, default=None)


def by_id(client: MlflowClient, run_id: str | None, run_key: str) -> Run | None:
    """The run with this id, when it is there, active and really that run."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    active = run.info.lifecycle_stage == "active"
    return run if active and run.data.tags.get(RUN_KEY) == run_key else None


def create(client: MlflowClient, experiment: str, run_key: str, header: Header) -> Run:
    """Create a run with all that its header says; safe to repeat after a kill in the middle."""
    run = find(client, experiment, run_key) or client.create_run(
        experiment,
        start_time=header.created_ms,
        tags={**header.tags, RUN_KEY: run_key},
        run_name=header.name,
    )
    describe(client, run.info.run_id, header)
    return run


def describe(client: MlflowClient, run_id: str, header: Header) -> None:
    """Log a header's parameters and data set; logging them again changes nothing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    entries = [Param(key, value) for key, value in header.params.items()]
    for start in range(0, len(entries), _PARAMS_A_BATCH):
        client.log_batch(run_id, params=entries[start : start + _PARAMS_A_BATCH])
    if header.dataset:
        dataset = Dataset(
            name=header.dataset["name"],
            digest=header.dataset["digest"][:36],
            source_type="local",
            source=json.dumps({"uri": header.dataset["source"]}),
            profile=json.dumps({"digest": header.dataset["digest"]}),
        )
        tag = InputTag("mlflow.data.context", "training")
        client.log_inputs(run_id, [DatasetInput(dataset, [tag])])


def _dataset(project: Project, params: parameters.Params) -> dict[str, str] | None:
    if not project.summary.is_file():
        return None
    name = Path(params.prepare.data).stem
    digest = DataSummary.read(project.summary).digest
    return {"name": name, "digest": digest, "source": params.prepare.data}


def _git(root: Path, *arguments: str) -> str | None:
    """The output of a git command; None without git or outside a repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
