"""`thawline changes`, and files of earlier versions from DVC's cache or remote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from flows import changes, past, repository
from tasks.decision import RETRAIN
from tasks.errors import ThawlineError
from tasks.records import Project
from tasks.register import register
from tests.flows.conftest import make_project
from tests.small_project import here
from tests.tasks import trained_project

DVC = """\
stages:
  prepare:
    cmd: mkdir -p out/folder && cp ${prepare.data} out/folder/table.txt
    deps: ["${prepare.data}"]
    params: [seed]
    outs: [out/folder]
"""


@pytest.fixture
def two_versions(tmp_path: Path) -> tuple[Project, str]:
    """A project that has gone on to other data, its remote, and the hash of the first version."""
    project = make_project(tmp_path / "project", dvc=DVC)
    with repository.opened(project) as repo:
        with repo.config.edit() as config:
            config["remote"]["store"] = {"url": str(tmp_path / "remote")}
            config["core"]["remote"] = "store"
        repo.reproduce()
        repo.push()
        first = past.hashes((project.root / "dvc.lock").read_bytes())["out/folder"]
        (project.root / "data/raw.txt").write_text("later\n")
        repo.reproduce()
    return project, first


def read(project: Project, digest: str, name: str = "table.txt") -> str:
    with repository.opened(project) as repo:
        return past.file(repo, digest, name, "the data of version 1").read_text()


def cache(project: Project) -> Path:
    return project.root / ".dvc/cache/files/md5"


def test_an_earlier_file_comes_from_the_cache_and_the_tree_stays(
    two_versions: tuple[Project, str],
) -> None:
    project, first = two_versions
    assert read(project, first) == "hello\n"
    assert (project.root / "out/folder/table.txt").read_text() == "later\n"


def test_what_the_cache_has_no_more_comes_from_the_remote(
    two_versions: tuple[Project, str],
) -> None:
    project, first = two_versions
    shutil.rmtree(cache(project))
    assert read(project, first) == "hello\n"
    assert (project.root / "out/folder/table.txt").read_text() == "later\n"


def test_what_is_nowhere_is_one_clear_sentence(
    two_versions: tuple[Project, str], tmp_path: Path
) -> None:
    project, first = two_versions
    shutil.rmtree(cache(project))
    shutil.rmtree(tmp_path / "remote")
    with pytest.raises(ThawlineError, match=r"the data of version 1 .* DVC's cache or its remote"):
        read(project, first)
    assert not list(cache(project).rglob("*.*"))  # nothing half fetched


def test_a_damaged_or_foreign_folder_is_refused(two_versions: tuple[Project, str]) -> None:
    project, first = two_versions
    with pytest.raises(ThawlineError, match=r"holds no manifest\.parquet"):
        read(project, first, "manifest.parquet")
    listed = json.loads((cache(project) / first[:2] / first[2:]).read_text())
    kept = cache(project) / listed[0]["md5"][:2] / listed[0]["md5"][2:]
    kept.chmod(0o644)
    kept.write_text("jello\n")
    with pytest.raises(ThawlineError, match="it differs from what was written"):
        read(project, first)


def test_without_a_champion_it_says_so_and_runs_nothing(project: Project) -> None:
    done = here(project, "changes")
    assert done.returncode == 0, done.stderr
    assert "has no champion yet" in done.stdout
    assert not (project.root / "mlflow.db").exists() and not (project.root / "out").exists()
    told = json.loads(here(project, "changes", "--json").stdout)
    assert told["champion"] is None and told["decision"]["verdict"] == RETRAIN


def test_a_champion_of_unknown_data_is_told(tmp_path: Path) -> None:
    project = trained_project.with_store(tmp_path / "project")
    trained_project.packaged(project.root)
    params = trained_project.params()
    assert register(project, params) is not None
    found = past.champion(project, params)
    assert found is not None and found.number == 1
    assert found.backbone == trained_project.BACKBONE
    with pytest.raises(ThawlineError, match=r"the data of version 1, the champion, is not known"):
        changes.since(project, params, found)


def test_an_import_is_brought_up_to_its_source(tmp_path: Path) -> None:
    project, source = make_project(tmp_path / "project", dvc=DVC), tmp_path / "source.txt"
    source.write_text("first\n")
    (project.root / "data/raw.txt").unlink()
    with repository.opened(project) as repo:
        repo.imp_url(str(source), out="data/raw.txt")
        assert repository.update_imports(repo) == []
    source.write_text("second\n")
    with repository.opened(project) as repo:
        assert repository.update_imports(repo) == ["data/raw.txt"]
        assert (project.root / "data/raw.txt").read_text() == "second\n"
        assert repository.update_imports(repo) == []
    source.unlink()
    with (
        repository.opened(project) as repo,
        pytest.raises(ThawlineError, match=r"data/raw\.txt cannot be brought up to its source"),
    ):
        repository.update_imports(repo)


def test_data_is_brought_up_to_date_where_there_is_no_champion(project: Project) -> None:
    params = trained_project.params()
    changes.prepare(project, params, Console(quiet=True))
    assert (project.root / "out/prepared.txt").read_text() == "HELLO\n"
    assert not (project.root / "out/features").exists()
    (project.root / "data/raw.txt").write_text("later\n")
    changes.prepare(project, params, Console(quiet=True))
    assert (project.root / "out/prepared.txt").read_text() == "LATER\n"
