"""Registered models: versions found by the digest of what they hold, and their aliases."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import problems
from tasks.errors import ThawlineError
from tasks.tracking.runs import named
from tasks.tracking.spool import now_ms

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

DIGEST = "thawline.model_digest"
WARM_START = "thawline.warm_start"  # tag of a version whose training went on from another
REQUIREMENTS = ("mlflow", "torch", "numpy", "pandas", "safetensors")  # of any packaged model
_DESCRIPTION = 5000  # characters that MLflow's table holds


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    number: int
    digest: str | None  # None: not registered by Thawline
    run_id: str | None
    created_ms: int
    tags: dict[str, str]


def versions(client: MlflowClient, name: str) -> list[Version]:
    """All versions of a model, newest first; empty when there is no such model."""
    found: list[Version] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
        found += [_version(entry) for entry in page]
        token = page.token
        if not token:
            return sorted(found, key=lambda entry: -entry.number)


def all_versions(client: MlflowClient) -> dict[str, list[Version]]:
    """The versions of every registered model, by its name."""
    found: dict[str, list[Version]] = {}
    token = None
    while True:
        page = client.search_model_versions(max_results=1000, page_token=token)
        for entry in page:
            found.setdefault(entry.name, []).append(_version(entry))
        token = page.token
        if not token:
            return found


def get(client: MlflowClient, name: str, number: int) -> Version:
    """One version. Raises `ThawlineError` when there is none with this number."""
    from mlflow.exceptions import MlflowException

    try:
        return _version(client.get_model_version(name, str(number)))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise ThawlineError(f"the registered model {name!r} has no version {number}") from None
        raise


def aliases(client: MlflowClient, name: str) -> dict[str, int]:
    """Alias → version number; empty when there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
    return {alias: int(number) for alias, number in model.aliases.items()}


def ensure_model(client: MlflowClient, name: str, description: str) -> None:
    """Make a registered model when there is none of this name."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def point(client: MlflowClient, name: str, alias: str, number: int | None) -> None:
    """Move an alias to a version, in one call of MLflow's, or (None) remove it."""
    if number is None:
        client.delete_registered_model_alias(name, alias)
    else:
        client.set_registered_model_alias(name, alias, str(number))


def tag(client: MlflowClient, name: str, number: int, tags: dict[str, str]) -> None:
    """Write tags of a version, over those of the same names."""
    for key, value in tags.items():
        client.set_model_version_tag(name, str(number), key, value)


def add_version(
    client: MlflowClient,
    name: str,
    folder: Path,
    run_id: str,
    record: dict[str, Any],
    digest: str,
    lineage: dict[str, str],
) -> Version:
    """Log a packaged folder as a model of a run, and register it; `lineage`: tags of the version.

    The digest is written together with the version: a kill in between leaves a logged model that
    nobody refers to, never a version that is not recognised.
    """
    model_id = _log(client, folder, run_id, record, digest)
    _log_metrics(client, run_id, model_id, record)
    ensure_model(client, name, _model_description(record))
    card = (folder / "README.md").read_text(encoding="utf-8")
    made = client.create_model_version(
        name,
        source=f"models:/{model_id}",
        run_id=run_id,
        tags=named({**lineage, **_tags(record, digest)}),
        description=card if len(card) <= _DESCRIPTION else card[: _DESCRIPTION - 1] + "…",
        model_id=model_id,
    )
    return _version(made)


def local_copy(client: MlflowClient, name: str, number: int) -> Path:
    """The files of a version; those of the embedded store in place, others downloaded."""
    import mlflow

    return Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{number}")).resolve()


def load(folder: Path) -> Any:
    """The pyfunc model in a local copy."""
    import mlflow

    with _quiet():
        return mlflow.pyfunc.load_model(str(folder))


def _log(
    client: MlflowClient, folder: Path, run_id: str, record: dict[str, Any], digest: str
) -> str:
    """Log the model as code beside its files, nothing of it pickled; returns its id.

    The model is made for the run's experiment first, since MLflow would take the active one.
    """
    import mlflow
    from mlflow.entities import LoggedModelOutput

    import tasks

    package = Path(tasks.__file__).parent
    problem = problems.load(record["problem"])
    model = client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name="model",
        source_run_id=run_id,
        tags={DIGEST: digest},
        model_type=record["problem"],
    )
    with _quiet():
        mlflow.models.Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            model_id=model.model_id,
            python_model=str(problems.folder_of(record["problem"]) / "pyfunc_model.py"),
            artifacts={"model": os.path.relpath(folder)},  # MLflow writes it down
            code_paths=[str(package)],
            signature=_signature(record["classes"]),
            input_example=problem.input_example(),
            pip_requirements=_requirements(problem.REQUIREMENTS),
            metadata={DIGEST: digest, "problem": record["problem"], "run_id": run_id},
        )
    # Given the run, `log` would also copy the run's metrics of one step to the model: those of an
    # earlier model of the same run among them.
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


def _signature(classes: list[str]) -> Any:
    """In: one column, as the predictor takes it. Out: label, probability, error, p_<class>.

    The column has no name and any type, so that a plain list is as good as a DataFrame.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    outputs = [ColSpec("string", "label", required=False), ColSpec("double", "probability")]
    outputs.append(ColSpec("string", "error", required=False))
    outputs += [ColSpec("double", f"p_{name}") for name in classes]
    return ModelSignature(Schema([ColSpec(AnyType())]), Schema(outputs))


def _requirements(own: Sequence[str]) -> list[str]:
    found = []
    for name in (*REQUIREMENTS, *own):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name}=={version(name).partition('+')[0]}")
    return found


def _log_metrics(client: MlflowClient, run_id: str, model_id: str, record: dict[str, Any]) -> None:
    """The test metrics, on the run and on its model."""
    from mlflow.entities import Metric

    now = now_ms()
    metrics = [
        Metric(key, float(value), now, 0, model_id=model_id)
        for key, value in record["metrics"].items()
    ]
    if metrics:
        client.log_batch(run_id, metrics=metrics)


def _tags(record: dict[str, Any], digest: str) -> dict[str, str]:
    kept = ("test.accuracy", "test.accuracy_low", "test.accuracy_high")
    figures = {key: str(record["metrics"][key]) for key in kept if key in record["metrics"]}
    start = record.get("warm_start")
    return {
        DIGEST: digest,
        "thawline.backbone": record["backbone"],
        "thawline.data_digest": record["data"]["digest"],
        **({WARM_START: f"version {start['version']}"} if start else {}),
        **figures,
    }


def _model_description(record: dict[str, Any]) -> str:
    return record["description"] or f"{record['problem'].replace('_', ' ')}, made by Thawline"


def _version(entry: ModelVersion) -> Version:
    return Version(
        number=int(entry.version),
        digest=entry.tags.get(DIGEST),
        run_id=entry.run_id or None,
        created_ms=int(entry.creation_timestamp),
        tags=dict(entry.tags),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow's chatter off the terminal; its errors are raised anyway."""
    import warnings

    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def require(numbers: dict[str, int], name: str, alias: str) -> int:
    """The version that an alias, or a number, means.

    Raises `ThawlineError` that says which there are.
    """
    if alias.isdigit():
        return int(alias)
    if alias in numbers:
        return numbers[alias]
    there = ", ".join(f"{key} → {value}" for key, value in sorted(numbers.items())) or "none"
    other = f"name one that there is, such as {min(numbers)}" if numbers else ""
    hint = other or "train and register a model first: thawline run"
    raise ThawlineError(
        f"the registered model {name!r} has no {alias!r} (aliases: {there}); {hint}"
    )
