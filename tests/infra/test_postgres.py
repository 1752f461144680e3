from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil
import psycopg2
import pytest

from infra import postgres
from infra.postgres import Cluster
from tasks.errors import ThawlineError
from tests.tasks import test_search


def ask(cluster: Cluster, database: str, *statements: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(cluster.url(database))
    try:
        with connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def postmaster(cluster: Cluster) -> psutil.Process:
    return psutil.Process(int((cluster.data / "postmaster.pid").read_text().split()[0]))


def test_a_cluster_keeps_its_data_and_listens_on_no_port(cluster: Cluster) -> None:
    with cluster.started(("one", "two")):
        ask(cluster, "one", "CREATE TABLE kept (x int)", "INSERT INTO kept VALUES (7)")
        process = postmaster(cluster)
        assert [c for c in process.net_connections("inet") if c.status == "LISTEN"] == []
        assert process.uids().real != 0
        assert cluster.folder.stat().st_mode & 0o077 == 0  # its socket is nobody else's
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    with cluster.started(("one", "two", "three")):
        assert ask(cluster, "one", "SELECT x FROM kept") == [(7,)]
        ask(cluster, "three", "SELECT 1")


def test_a_cluster_that_a_kill_left_running_is_taken_over(cluster: Cluster) -> None:
    with cluster.started(("one",)):
        left = postmaster(cluster)
        with Cluster(cluster.folder).started(("one",)):
            assert postmaster(cluster).pid != left.pid
            ask(cluster, "one", "SELECT 1")


def test_a_cluster_that_a_kill_left_half_made_is_made_anew(cluster: Cluster) -> None:
    with cluster.started(()):
        pass
    cluster.data.rename(cluster.folder / "data.new")
    (cluster.folder / "data.new/PG_VERSION").unlink()
    with cluster.started(("one",)):
        ask(cluster, "one", "SELECT 1")


def test_a_cluster_that_cannot_start_says_where_the_reason_stands(cluster: Cluster) -> None:
    with cluster.started(()):
        pass
    (cluster.data / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(ThawlineError, match=rf"pg_ctl failed; see {cluster.log}"):
        cluster.started(()).__enter__()
    assert "9.6" in cluster.log.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root lets another user run PostgreSQL")
def test_tuning_workers_share_a_study_in_it_and_take_up_what_a_killed_one_left(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "study.journal"
    with cluster.started(("study",)):
        url = cluster.url("study")
        trials, _ = test_search.run(
            file, test_search.suicidal, trials=6, workers=2, threads=1, storage=url
        )
        assert Path("killed").exists() and len(trials) == 6
        [(rows,)] = ask(cluster, "study", "SELECT count(*) FROM trials")
        assert rows == 6 + 1  # that of the killed worker is there, and was tried again
        again, _ = test_search.run(file, test_search.dying, trials=6, workers=2, storage=url)
    assert again == trials and not file.exists()


def test_a_folder_that_postgresqls_user_cannot_enter_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(ThawlineError, match=r"cannot be entered by .*make stack STACK="):
        Cluster(tmp_path / "postgres").started(()).__enter__()


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ThawlineError, match="too long a path"):
        Cluster(tmp_path / ("x" * 100)).started(()).__enter__()


def test_without_postgresql_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgres, "DEBIAN", tmp_path)
    with pytest.raises(ThawlineError, match="apt-get install postgresql"):
        postgres.find("initdb")
    for version in ("9.6", "15", "17"):  # by number, not by letter
        program = tmp_path / version / "bin/initdb"
        program.parent.mkdir(parents=True)
        shutil.copy("/bin/true", program)
    assert postgres.find("initdb") == str(tmp_path / "17/bin/initdb")
