"""The commands of docs/operations.md, run as they stand there."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest

from infra.postgres import Cluster
from infra.stack import DATABASES
from tasks.tracking import store

ROOT = Path(__file__).parents[2]


def commands(section: str) -> list[str]:
    """The shell blocks of one section: how to back up, how to restore."""
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    part = page.split(f"### {section}\n", 1)[1].split("\n### ")[0]
    return re.findall(r"^```bash\n(.*?)^```", part, re.MULTILINE | re.DOTALL)


def shell(script: str, folder: Path, **variables: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    given = {name: str(value) for name, value in variables.items()}
    environment = os.environ | given | {"PATH": path, "DVC_NO_ANALYTICS": "1"}
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, check=True
    )


def test_a_project_comes_back_from_a_bundle_and_a_remote(tmp_path: Path) -> None:
    project, backup, elsewhere = (tmp_path / name for name in ("project", "backup", "elsewhere"))
    for folder in (project, backup, elsewhere):
        folder.mkdir()
    back_up, restore = commands("A project")
    (project / "data.txt").write_text("kept")
    (project / "ledger").mkdir()
    (project / "ledger/model.jsonl").write_text("{}\n")
    begin = """git init -q && dvc init -q && dvc add -q data.txt && git add -A . ':!ledger'
git -c user.name=me -c user.email=me@example.org commit -qm begin"""
    shell(begin, project)
    shell(back_up, project, BACKUP=backup)
    shell(restore, elsewhere, BACKUP=backup)
    for name in ("data.txt", "ledger/model.jsonl"):
        assert (elsewhere / "project" / name).read_text() == (project / name).read_text()


def test_a_projects_runs_come_back_from_sqlite_into_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    old, new, backup = (tmp_path / name for name in ("old", "new", "backup"))
    for folder in (old, new, backup):
        folder.mkdir()
    back_up, restore = commands("SQLite")
    with store.connect(old) as client:
        run = client.create_run(store.experiment_id(client, old, "kept")).info.run_id
        client.log_metric(run, "accuracy", 0.5)
        (tmp_path / "file.txt").write_text("kept")
        client.log_artifact(run, str(tmp_path / "file.txt"))
    with closing(sqlite3.connect(old / "mlflow.db")) as writing:  # has not committed yet
        writing.execute("UPDATE metrics SET value = 0.9")
        shell(back_up, old, BACKUP=backup)
    shell(restore, new, BACKUP=backup)
    with store.connect(new) as client:
        assert client.get_run(run).data.metrics == {"accuracy": 0.5}
        assert Path(client.download_artifacts(run, "file.txt")).read_text() == "kept"


@contextmanager
def postgres_alone(folder: Path) -> Iterator[Cluster]:
    arguments = [sys.executable, "-m", "infra.stack", "postgres", "--folder", str(folder)]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and "psql -h" in process.stdout.readline()
        yield Cluster(folder / "postgres")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert not (folder / "postgres/data/postmaster.pid").exists()


def test_databases_and_artifacts_come_back_from_a_dump(cluster: Cluster, tmp_path: Path) -> None:
    old, new = cluster.folder.parent / "old", cluster.folder.parent / "new"
    back_up, restore = commands("PostgreSQL")

    def ask(where: Cluster, database: str, sql: str) -> object:
        with (
            closing(psycopg2.connect(where.url(database))) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else None

    (old / "artifacts").mkdir(parents=True)
    (old / "artifacts/file.txt").write_text("kept")
    with postgres_alone(old) as running:
        for name in DATABASES:
            ask(running, name, f"CREATE TABLE kept AS SELECT '{name}' AS name")
        shell(back_up, tmp_path, STACK=old, BACKUP=tmp_path)
    with postgres_alone(new) as running:
        for name in DATABASES:  # what the servers have made before the restore has to go
            ask(running, name, "CREATE TABLE kept AS SELECT 1 AS other")
        shell(restore, tmp_path, STACK=new, BACKUP=tmp_path)
        for name in DATABASES:
            assert ask(running, name, "SELECT name FROM kept") == [(name,)]
    assert (new / "artifacts/file.txt").read_text() == "kept"
