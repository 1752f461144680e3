"""Where MLflow keeps what it is told: the user's tracking server, or files of the project."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import ThawlineError
from tasks.records import Project
from tasks.redaction import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"

# MLflow's own defaults retry one call for 247 s when a server is down; we retry by ourselves.
_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_PRINT_MODEL_URLS_ON_CREATION": "false",
}


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or the project's own SQLite file."""
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    return _sqlite_uri(root.resolve() / DATABASE)


def is_embedded() -> bool:
    """Whether the store is the project's own files."""
    return not os.environ.get("MLFLOW_TRACKING_URI")


@contextlib.contextmanager
def as_embedded() -> Iterator[None]:
    """Take the project's own files for the store, also where the user names a server."""
    given = os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        yield
    finally:
        if given is not None:
            os.environ["MLFLOW_TRACKING_URI"] = given


def store_name(root: Path) -> str:
    """A name of the store that survives a move of the folder and holds no password."""
    if is_embedded():
        return "embedded"
    parts = urllib.parse.urlsplit(tracking_uri(root))
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


def database_file(root: Path) -> Path | None:
    """The SQLite file behind the store, if it is one."""
    uri = tracking_uri(root)
    if not uri.startswith("sqlite:///"):
        return None
    return root / uri.removeprefix("sqlite:///").partition("?")[0]


def stamp(root: Path) -> str | None:
    """What changes whenever the SQLite store is written to; None when that cannot be known."""
    database = database_file(root)
    if database is None or not database.is_file():
        return None
    parts = [database, database.with_name(f"{database.name}-wal")]
    stats = [path.stat() for path in parts if path.exists()]
    return hashlib.sha256(repr([(s.st_mtime_ns, s.st_size) for s in stats]).encode()).hexdigest()


@contextlib.contextmanager
def connect(root: Path) -> Iterator[MlflowClient]:
    """A client of the project's store, made first when there is none.

    Within, the working folder is the project's root, because the artifacts of the embedded store
    have relative locations. Raises `ThawlineError` when a tracking server does not answer.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    uri = tracking_uri(root)
    _require_answer(uri, root)
    with contextlib.chdir(root) if Path.cwd() != root.resolve() else contextlib.nullcontext():
        if database_file(root) is not None:
            _create_database(root)
        with _used_by_mlflow(uri), _refusals_as_ours(root):
            yield mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: MlflowClient, root: Path, name: str) -> str:
    """The id of an experiment, made when missing; a deleted one is an error."""
    from filelock import FileLock
    from mlflow.exceptions import MlflowException

    with FileLock(_lock(root)):
        found = client.get_experiment_by_name(name)
        if found is None:
            location = ARTIFACTS if is_embedded() else None
            try:
                client.create_experiment(name, artifact_location=location)
            except MlflowException as error:  # another machine was first
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = client.get_experiment_by_name(name)
        if found.lifecycle_stage != "active":
            raise ThawlineError(
                f"the MLflow experiment {name!r} was deleted; restore it with: mlflow experiments "
                f"restore -x {found.experiment_id}, or name another in register.experiment"
            )
        if is_embedded() and found.artifact_location == str(root.resolve() / ARTIFACTS):
            _make_relative(root / DATABASE, found.experiment_id)
    return str(found.experiment_id)


@contextlib.contextmanager
def _used_by_mlflow(uri: str) -> Iterator[None]:
    """Make `uri` MLflow's own for a while, since parts of it know no other than the global one.

    MLflow writes it to MLFLOW_TRACKING_URI too, where we would take it for the user's wish.
    """
    import mlflow

    given = os.environ.get("MLFLOW_TRACKING_URI")
    before = mlflow.get_tracking_uri() if mlflow.tracking.is_tracking_uri_set() else ""

    def use(value: str) -> None:
        mlflow.set_tracking_uri(value)
        if given is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = given

    use(uri)
    try:
        yield
    finally:
        use(before)


def _sqlite_uri(path: Path) -> str:
    # Not percent-encoded: SQLAlchemy takes the path as it stands.
    return f"sqlite:///{path}"


def _lock(root: Path) -> Path:
    path = Project(root).scratch / "mlflow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _create_database(root: Path) -> None:
    """Make the SQLite schema once, beside its place, so that nobody ever sees half of it."""
    from filelock import FileLock

    database = database_file(root)
    assert database is not None
    if database.exists():
        return
    with FileLock(_lock(root)):
        if database.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        fresh = database.with_name(f".{database.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.parent.mkdir(parents=True, exist_ok=True)
        SqlAlchemyStore(_sqlite_uri(fresh.resolve()), ARTIFACTS).engine.dispose()
        if is_embedded():
            _make_relative(fresh, "0")  # MLflow's default experiment
        fresh.replace(database)


def _make_relative(database: Path, experiment: str) -> None:
    """MLflow makes every local artifact location absolute, which a moved folder would not survive.

    Runs and models take theirs from the experiment's, and a relative one is read from the working
    folder; MLflow offers no call to write it, so this row is written by hand.
    """
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
            (f"{ARTIFACTS}/{experiment}", int(experiment)),
        )


def _require_answer(uri: str, root: Path) -> None:
    """Ask a tracking server whether it lives, before MLflow's long silent retries do."""
    if not uri.startswith(("http://", "https://")):
        return
    import requests

    try:
        insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
        requests.get(f"{uri.rstrip('/')}/health", timeout=10, verify=not insecure)
    except requests.RequestException as error:
        raise ThawlineError(
            f"the MLflow server at {store_name(root)} does not answer "
            f"({type(error).__name__}); nothing is lost: what it has to know is kept in "
            f"{Project(root).scratch.name}/spool and models/. "
            "Start it, or unset MLFLOW_TRACKING_URI, then: thawline register"
        ) from None


@contextlib.contextmanager
def _refusals_as_ours(root: Path) -> Iterator[None]:
    """What a store refuses is for the user to mend: say so in one line."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        raise ThawlineError(f"MLflow ({store_name(root)}): {error_text(error)}") from error


def error_text(error: BaseException) -> str:
    """One line for an error of MLflow, without secrets."""
    text: Any = str(error).strip().splitlines() or [type(error).__name__]
    return redact(str(text[0]))[:300]
