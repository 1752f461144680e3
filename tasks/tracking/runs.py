"""What MLflow is told of a run: parameters, tags, data set; and finding that run again."""

from __future__ import annotations

import json
import os
import posixpath
import re
import subprocess
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from tasks import dvc_files, params_file
from tasks import params as parameters
from tasks.errors import ParamsError
from tasks.records import DataSummary, Project, Tuning
from tasks.redaction import redact
from tasks.tracking.spool import Child, Header

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_KEY = "thawline.run_key"
PARENT = "mlflow.parentRunId"
RESTORED = "thawline.restored"
COMMIT, DIRTY, DVC = "mlflow.source.git.commit", "thawline.git_dirty", "dvc."  # the last: a prefix
FLOW_RUN_ID = "THAWLINE_FLOW_RUN_ID"  # environment variable: the Prefect flow run around us

_LONGEST = 6000  # characters of a parameter that MLflow takes
_LONGEST_NAME = 250
_REFUSED = re.compile(r"[^/\w.\- :]")  # characters that MLflow takes in no name
_PARAMS_A_BATCH = 100


def header(
    project: Project, params: parameters.Params, name: str, tags: dict[str, str] | None = None
) -> Header:
    """The header of a new run's spool, from the project as it is now; `tags` are added."""
    return Header(
        experiment=params.register_.experiment,
        name=name,
        params={key: redact(value) for key, value in flat_params(params).items()},
        tags={k: redact(v) for k, v in {**lineage(project.root), **(tags or {})}.items()},
        dataset=_dataset(project, params),
        children=trials(Tuning.read(project.tuning)) if project.tuning.is_file() else [],
    )


def flat_params(params: parameters.Params) -> dict[str, str]:
    """Parameters by key path, as text: `{"train.epochs": "8", …}`.

    A mapping whose keys the user makes up is one value, as JSON: a glob is no name for MLflow.
    """
    flat = {}
    for path in parameters.key_paths(params.problem):
        value = parameters.get(params, path)
        if not isinstance(value, BaseModel):
            flat[path] = _short(_text(value))
    return flat


def named(values: dict[str, str]) -> dict[str, str]:
    """Parameters or tags under names that MLflow takes: `_` for brackets and the like."""
    return {
        posixpath.normpath(_REFUSED.sub("_", key))[:_LONGEST_NAME]: value
        for key, value in values.items()
    }


def lineage(root: Path) -> dict[str, str]:
    """Tags that tell where a training comes from: versions, git, the flow run, what it reads.

    Not what follows training: until all is done, `dvc.lock` has another model there.
    """
    tags = {"thawline.version": version("thawline"), "mlflow.source.name": "thawline"}
    tags |= _commit(root) | _dvc_tags(root, _read_by_training(root))
    if flow_run := os.environ.get(FLOW_RUN_ID):
        tags["prefect.flow_run_id"] = flow_run
    return tags


def model_lineage(project: Project) -> dict[str, str]:
    """Tags that tell where the packaged model comes from: git, its training, what that read."""
    root = project.root
    made = [str(folder.relative_to(root)) for folder in (project.train, project.models)]
    return _commit(root) | _dvc_tags(root, [*_read_by_training(root), *made])


def _commit(root: Path) -> dict[str, str]:
    commit = git(root, "rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = git(root, "status", "--porcelain", "--untracked-files=no")
    return {
        COMMIT: commit,
        DIRTY: "true" if dirty else "false",
    }


def _dvc_tags(root: Path, wanted: list[str]) -> dict[str, str]:
    """Hashes of what the `.dvc` files of the data track, and of the `wanted` in `dvc.lock`.

    An output counts when it is wanted, holds what is wanted, or lies in a folder that is.
    """
    digests = {
        (file.parent.relative_to(root) / path).as_posix(): md5
        for file in dvc_files.of_data(root)
        for path, md5 in _outs(file)
    }
    for path, md5 in _outs(root / "dvc.lock"):
        if any(_overlap(path, other) for other in wanted):
            digests[path] = md5
    return {f"{DVC}{path}": md5 for path, md5 in digests.items()}


def _read_by_training(root: Path) -> list[str]:
    """The dependencies of stage train, as `dvc.yaml` names them."""
    train = _stages(root / "dvc.yaml").get("train", {})
    return [dep for dep in train.get("deps", []) if isinstance(dep, str)]


def _outs(file: Path) -> list[tuple[str, str]]:
    """Path and hash of each output in a lock or a `.dvc` file."""
    outs = (out for stage in _stages(file).values() for out in stage.get("outs", []))
    return [(str(out["path"]), str(out["md5"])) for out in outs if out.get("md5")]


def _stages(file: Path) -> dict[str, Any]:
    """The stages in a file of DVC's; none when it is missing or broken, which DVC itself tells."""
    try:
        content = params_file.parse(file.read_bytes(), str(file))
    except (OSError, ParamsError):
        return {}
    stages = content.get("stages", {"": content}) if isinstance(content, dict) else None
    return stages or {}


def _overlap(one: str, other: str) -> bool:
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)


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
        tags=named({**header.tags, RUN_KEY: run_key}),
        run_name=header.name,
    )
    describe(client, run.info.run_id, header)
    return run


def create_children(client: MlflowClient, run_id: str, header: Header) -> None:
    """Create the runs below a run that its store lacks; safe to repeat after a kill in the middle.

    What is known of one goes over in one batch; of runs themselves, MLflow takes no batches.
    """
    from mlflow.entities import Metric, Param

    if not header.children:
        return
    experiment, when = client.get_run(run_id).info.experiment_id, header.created_ms
    there = {run.info.run_name: run for run in _below(client, experiment, run_id)}
    for child in header.children:
        run = there.get(child["name"]) or client.create_run(
            experiment, when, named({**child["tags"], PARENT: run_id}), child["name"]
        )
        if run.info.status == "RUNNING":
            client.log_batch(
                run.info.run_id,
                metrics=[Metric(key, value, when, 0) for key, value in child["metrics"].items()],
                params=[Param(key, value) for key, value in named(child["params"]).items()],
            )
            client.set_terminated(run.info.run_id, child["status"], when)


def _below(client: MlflowClient, experiment: str, run_id: str) -> list[Run]:
    found, token = [], None
    while True:
        page = client.search_runs(
            [experiment], f"tags.`{PARENT}` = '{run_id}'", max_results=1000, page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found


def trials(tuning: Tuning) -> list[Child]:
    """The trials of a search, as runs below that of the training."""
    return [
        Child(
            name=f"trial {trial['number']}",
            params={key: _short(_text(value)) for key, value in trial["values"].items()},
            metrics={f"validation_loss.{at}": loss for at, loss in trial["losses"].items()},
            tags={"thawline.beyond": trial["beyond"]} if trial["beyond"] else {},
            status="KILLED" if trial["pruned"] else "FINISHED",
        )
        for trial in (tuning.trials if tuning.study else [])
    ]


def describe(client: MlflowClient, run_id: str, header: Header) -> None:
    """Log a header's parameters and data set; logging them again changes nothing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    entries = [Param(key, value) for key, value in named(header.params).items()]
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


def _json(value: Any) -> str:
    def section(inner: BaseModel) -> dict[str, Any]:
        return inner.model_dump(by_alias=True, exclude_defaults=True)  # as the user wrote it

    return json.dumps(value, ensure_ascii=False, default=section)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def git(root: Path, *arguments: str) -> str | None:
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
