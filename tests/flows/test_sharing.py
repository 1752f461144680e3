"""Two machines with one DVC remote: each is a clone with a cache of its own."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from flows import past, repository, sharing
from tasks import files
from tasks.errors import ThawlineError
from tasks.records import Project
from tests.flows.conftest import make_project
from tests.small_project import clone, commit, git

DVC = """\
stages:
  prepare:
    cmd: mkdir -p data/prepared && cp ${prepare.data} data/prepared/manifest.txt
    deps: ["${prepare.data}"]
    params: [seed]
    outs: [data/prepared]
  embed:
    matrix:
      backbone: ${embed.backbones}
    cmd: >-
      mkdir -p outputs/features/${item.backbone} &&
      echo ${item.backbone} > outputs/features/${item.backbone}/y
    deps: [data/prepared]
    outs: ["outputs/features/${item.backbone}"]
  evaluate:
    cmd: mkdir -p outputs/evaluate && echo z > outputs/evaluate/predictions.txt
    deps: [data/prepared]
    outs: [outputs/evaluate]
"""


def use_remote(project: Project, url: Path | str) -> None:
    with repository.opened(project) as repo, repo.config.edit() as config:
        config["core"]["remote"] = "store"
        config["remote"]["store"] = {"url": str(url)}


@pytest.fixture
def first(tmp_path: Path) -> Project:
    """A trained one, whose data DVC tracks, with a remote that holds nothing yet."""
    project = make_project(tmp_path / "first", dvc=DVC)
    git(project.root, "init", "--quiet")
    (project.root / ".gitignore").write_text("/models\n")
    use_remote(project, tmp_path / "remote")
    with repository.opened(project) as repo, repo.config.edit() as config:
        config["core"]["no_scm"] = False  # so that git ignores what DVC tracks
    with repository.opened(project) as repo:
        repo.add("data/raw.txt")
        repo.reproduce()
    files.write_json(project.models / "model.json", {"backbone": "second"})
    commit(project)
    return project


def test_another_machine_can_compare_with_what_was_recorded_here(
    first: Project, tmp_path: Path
) -> None:
    assert sharing.push(first) == []
    second = clone(first, tmp_path / "second")
    hashes = past.hashes((second.root / "dvc.lock").read_bytes())
    with repository.opened(second) as repo:
        assert repository.pull_inputs(repo) == ["data/raw.txt"]
        for place, name, held in (
            ("data/prepared", "manifest.txt", "hello\n"),
            ("outputs/features/second", "y", "second\n"),
            ("outputs/evaluate", "predictions.txt", "z\n"),
        ):
            assert past.file(repo, hashes[place], name, place).read_text() == held
        with pytest.raises(ThawlineError, match="not whole in DVC's cache or its remote"):
            past.file(repo, hashes["outputs/features/first"], "y", "what nobody compares with")


def test_a_remote_that_fails_is_told_and_one_in_the_project_is_not_used(
    first: Project, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder\n")
    use_remote(first, tmp_path / "file/remote")
    [told] = sharing.push(first)
    assert "the DVC remote did not take the data version (" in told
    use_remote(first, first.root / "data/remote")
    assert sharing.push(first) == [] and not (first.root / "data/remote").exists()


def record(project: Project, text: str) -> None:
    (project.root / "data/raw.txt").write_text(text)
    with repository.opened(project) as repo:
        repo.add("data/raw.txt")
        repo.push(["data/raw.txt.dvc"])
    commit(project)


def pull(project: Project) -> list[str]:
    """`git pull`, some time after the data was last brought."""
    time.sleep(0.1)
    git(project.root, "pull", "--quiet")
    with repository.opened(project) as repo:
        return repository.pull_inputs(repo)


def test_newer_data_of_git_pull_takes_the_place_of_older(first: Project, tmp_path: Path) -> None:
    sharing.push(first)
    second = clone(first, tmp_path / "second")
    raw = second.root / "data/raw.txt"
    with repository.opened(second) as repo:
        repository.pull_inputs(repo)
    record(first, "newer\n")
    assert pull(second) == ["data/raw.txt"] and raw.read_text() == "newer\n"
    assert pull(second) == []

    raw.write_text("mine\n")  # since git pull: it is what shall be used
    with repository.opened(second) as repo:
        assert repository.pull_inputs(repo) == [] and repository.outdated_inputs(repo) == {}
    record(first, "newest\n")
    with pytest.raises(ThawlineError, match=r"raw\.txt was changed without DVC.*dvc add data/raw"):
        pull(second)
    assert raw.read_text() == "mine\n"
    with repository.opened(second) as repo:
        repo.pull(["data/raw.txt.dvc"], force=True)
        assert repository.pull_inputs(repo) == []
    assert raw.read_text() == "newest\n"


def test_what_was_changed_over_data_that_is_here_is_used(first: Project) -> None:
    """As ever: a file that DVC tracks, with more in it than it was told of."""
    raw = first.root / "data/raw.txt"
    raw.write_text("more\n")
    os.utime(first.root / "data/raw.txt.dvc")
    with repository.opened(first) as repo:
        assert repository.pull_inputs(repo) == []
    assert raw.read_text() == "more\n"


def test_earlier_data_that_somebody_put_back_is_used(first: Project) -> None:
    """Though the copy has the time of then."""
    raw, kept = first.root / "data/raw.txt", first.root / "kept.txt"
    shutil.copy2(raw, kept)
    record(first, "later\n")
    time.sleep(0.1)
    raw.unlink()
    shutil.copy2(kept, raw)
    with repository.opened(first) as repo:
        assert repository.pull_inputs(repo) == []
    assert raw.read_text() == kept.read_text() != "later\n"
