"""The data version of a retraining, committed to a branch of its own in git.

By an index of its own and git's plumbing: the working tree, its index and the branch that is
checked out stay as they are, whatever is uncommitted there.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from tasks import snapshot
from tasks.errors import ThawlineError
from tasks.records import Project

TRIES = 50  # other commits to the branch at the same time: where one is refused, another was made
NOBODY = {"NAME": "Thawline", "EMAIL": "thawline@localhost"}  # where git knows no name


def check(project: Project, branch: str) -> None:
    """Raises `ThawlineError` for a branch that is checked out, or no name for a branch."""
    if _git(project, "rev-parse", "--verify", "--quiet", "HEAD").returncode:
        return  # no repository, or nothing committed: nothing will be recorded
    if _git(project, "check-ref-format", "--branch", branch).returncode:
        raise ThawlineError(f"retrain.branch: {branch!r} is no name for a branch in git")
    trees = _said(project, "worktree", "list", "--porcelain").splitlines()
    if f"branch refs/heads/{branch}" in trees:
        raise ThawlineError(
            f"the branch {branch!r} (retrain.branch) is checked out, so committing to it would "
            "pull the tree from under you; check out another, or name another in params.yaml"
        )


def commit(project: Project, branch: str, message: str) -> str | None:
    """Commit lock, parameters and `.dvc` files over the code of `HEAD`; returns the commit.

    The branch is made where it is missing; the former tip and `HEAD` are parents. Where nothing has
    changed, it is the tip; None where there is no repository. Raises `ThawlineError` when git
    refuses.
    """
    head = _git(project, "rev-parse", "--verify", "--quiet", "HEAD").stdout.strip()
    if not head:
        return None
    reference = f"refs/heads/{branch}"
    with tempfile.TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        _said(project, "read-tree", head, **index)
        names = [str(path.relative_to(project.root)) for path in snapshot.paths(project)]
        _said(project, "add", "--force", "--", *names, **index)
        tree = _said(project, "write-tree", **index)
    for _ in range(TRIES):
        tip = _git(project, "rev-parse", "--verify", "--quiet", reference).stdout.strip()
        if tip and _said(project, "rev-parse", f"{tip}^{{tree}}") == tree:
            return tip
        parents = list(dict.fromkeys(filter(None, [tip, head])))
        if tip and not _git(project, "merge-base", "--is-ancestor", head, tip).returncode:
            parents = [tip]
        options = [option for parent in parents for option in ("-p", parent)]
        made = _said(project, "commit-tree", tree, *options, "-m", message, **_who(project))
        moved = _git(project, "update-ref", "-m", "retrain", reference, made, tip)
        if not moved.returncode:
            return made
    raise ThawlineError(
        f"the branch {branch!r} (retrain.branch) did not take the data version in {TRIES} tries "
        f"({' '.join(moved.stderr.split())}); mend that, then run thawline retrain again: it does "
        "the rest"
    )


def _who(project: Project) -> dict[str, str]:
    """Variables that name a committer where git has none."""
    known = not _git(project, "config", "user.email").returncode
    roles = ("AUTHOR", "COMMITTER")
    return {} if known else {f"GIT_{r}_{key}": v for r in roles for key, v in NOBODY.items()}


def _said(project: Project, *arguments: str, **variables: str) -> str:
    done = _git(project, *arguments, **variables)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise ThawlineError(f"git {arguments[0]} failed in {project.root}: {said}")
    return done.stdout.strip()


def _git(project: Project, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(project.root), *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, **variables}
        )
    except OSError:
        return subprocess.CompletedProcess(command, 127, "", "git cannot be started")
