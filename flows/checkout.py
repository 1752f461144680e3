"""`thawline rollback --checkout`: the code and the data that belong to a version, checked out."""

from __future__ import annotations

import subprocess

from flows import repository
from tasks import snapshot
from tasks.desk import Outcome
from tasks.errors import ThawlineError
from tasks.records import Project
from tasks.tracking import registry, store


def require_clean(project: Project) -> None:
    """Raises `ThawlineError` where a checkout would mix with work that is not committed."""
    if _git(project, "rev-parse", "HEAD").returncode:
        raise ThawlineError(
            f"{project.root} is in no git repository with a commit, so no code can be checked out; "
            "roll back without --checkout"
        )
    changed = _git(project, "status", "--porcelain", "--untracked-files=no").stdout.splitlines()
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ThawlineError(
            f"the git tree of {project.root} has changes that are not committed "
            f"({changed[0][3:]}{more}); commit or stash them, or roll back without --checkout "
            "(nothing was changed)"
        )


def restore(project: Project, outcome: Outcome) -> list[str]:
    """Check out the commit of the champion, and by DVC its data and results; what to tell.

    Files that were not committed when it was made (`params.yaml`, `dvc.lock`) come as they were.
    Raises `ThawlineError` when git or DVC has them no more; the champion stays.
    """
    what = f"version {outcome.to_version} of {outcome.model!r} is champion, but"
    assert outcome.to_version is not None
    if outcome.commit is None:
        raise ThawlineError(f"{what} was made outside of git, so its code is not known")
    with store.connect(project.root) as client:
        version = registry.get(client, outcome.model, outcome.to_version)
        kept = snapshot.fetch(client, version)
    done = _git(project, "checkout", "--quiet", "--detach", outcome.commit)
    if done.returncode:
        said = " ".join(done.stderr.split()) or "git failed"
        raise ThawlineError(
            f"{what} its commit {outcome.commit[:12]} cannot be checked out ({said}); bring it "
            f"with git fetch, then: git checkout {outcome.commit[:12]}"
        )
    for path, content in kept.items():
        file = project.root / path
        if not file.is_file() or file.read_bytes() != content:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    _bring_data(project, what)
    told = [f"git is at {outcome.commit[:12]}, detached; to go on from here: git switch -c NAME"]
    if not kept:
        told.append("no dvc.lock was kept with this version; data and results are the commit's")
    return told


def _bring_data(project: Project, what: str) -> None:
    """What the lock file names: from DVC's cache, else from its remote."""
    from dvc.exceptions import DvcException

    with repository.opened(project) as repo:
        try:
            repo.checkout()
        except DvcException:
            try:
                repo.pull()
            except DvcException as error:
                raise ThawlineError(
                    f"{what} DVC cannot bring its data and results ({repository.sentence(error)}); "
                    "give it access to the remote that has them, then: dvc pull"
                ) from error


def _git(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(project.root), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ThawlineError(f"git cannot be started: {error}") from None
