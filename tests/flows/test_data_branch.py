"""The data version of a retraining goes to a git branch; the working tree stays as it is."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows import data_branch
from tasks.errors import ThawlineError
from tasks.records import Project

BRANCH = "thawline/data"


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    done = subprocess.run(["git", *who, *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """In a folder of a repository; dirty: a tracked file changed, one staged, one untracked."""
    root = tmp_path / "repository" / "sub project"
    root.mkdir(parents=True)
    git(root, "init", "--quiet", "--initial-branch", "main")
    for name in ("params.yaml", "dvc.yaml", "code.py", "other.py"):
        (root / name).write_text("first\n")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "first")
    (root / "code.py").write_text("being edited\n")
    (root / "other.py").write_text("staged\n")
    git(root, "add", "other.py")
    (root / "notes.txt").write_text("mine\n")
    (root / "dvc.lock").write_text("lock 1\n")
    return Project(root)


def shown(project: Project, name: str, at: str = BRANCH) -> str:
    return git(project.root, "show", f"{at}:./{name}")


def test_a_dirty_tree_stays_and_only_the_data_version_is_committed(project: Project) -> None:
    before = git(project.root, "status", "--porcelain")
    made = data_branch.commit(project, BRANCH, "Retrained: promoted\n\nwhy")
    assert made == git(project.root, "rev-parse", BRANCH)
    assert shown(project, "dvc.lock") == "lock 1"
    assert shown(project, "code.py") == shown(project, "other.py") == "first"
    assert git(project.root, "status", "--porcelain") == before
    assert git(project.root, "branch", "--show-current") == "main"
    names = git(project.root, "ls-tree", "--name-only", BRANCH).splitlines()
    assert "notes.txt" not in names and "dvc.lock" in names
    assert git(project.root, "log", "-1", "--format=%s", BRANCH) == "Retrained: promoted"
    assert data_branch.commit(project, BRANCH, "again") == made  # nothing has changed


def test_the_branch_follows_the_code_and_keeps_its_history(project: Project) -> None:
    first = data_branch.commit(project, BRANCH, "one")
    (project.root / "dvc.lock").write_text("lock 2\n")
    second = data_branch.commit(project, BRANCH, "two")
    assert git(project.root, "rev-list", "--parents", "-1", BRANCH).split() == [second, first]
    git(project.root, "commit", "--quiet", "--all", "--message", "new code")
    third = data_branch.commit(project, BRANCH, "three")
    head = git(project.root, "rev-parse", "HEAD")
    assert git(project.root, "rev-list", "--parents", "-1", BRANCH).split() == [third, second, head]
    assert shown(project, "code.py") == "being edited"


def test_a_branch_that_is_checked_out_or_no_name_is_refused(project: Project) -> None:
    with pytest.raises(ThawlineError, match=r"'main' \(retrain.branch\) is checked out"):
        data_branch.check(project, "main")
    with pytest.raises(ThawlineError, match=r"'a\.\.b' is no name for a branch"):
        data_branch.check(project, "a..b")
    data_branch.check(project, BRANCH)


def test_without_a_repository_nothing_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("x\n")
    data_branch.check(Project(tmp_path), BRANCH)
    assert data_branch.commit(Project(tmp_path), BRANCH, "one") is None


def test_what_git_refuses_is_told_and_done_once_it_is_mended(project: Project) -> None:
    git(project.root, "branch", "thawline")  # no branch can lie below another
    with pytest.raises(ThawlineError, match=r"did not take the data version .*'refs/heads/thawli"):
        data_branch.commit(project, BRANCH, "one")
    git(project.root, "branch", "--delete", "thawline")
    assert data_branch.commit(project, BRANCH, "one") == git(project.root, "rev-parse", BRANCH)


def test_two_at_once_lose_nothing(project: Project) -> None:
    data_branch.commit(project, BRANCH, "one")

    def other(number: int) -> str | None:
        (project.root / "dvc.lock").write_text(f"lock {number}\n")
        return data_branch.commit(project, BRANCH, f"by {number}")

    with ThreadPoolExecutor(4) as pool:
        made = [commit for commit in pool.map(other, range(8)) if commit]
    history = git(project.root, "rev-list", BRANCH).splitlines()
    assert made and set(made) <= set(history)


def test_git_without_a_name_records_under_thawlines(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    data_branch.commit(project, BRANCH, "one")
    assert git(project.root, "log", "-1", "--format=%an", BRANCH) == "Thawline"
