"""`thawline promote`, `thawline rollback` and what `thawline status` shows of them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows import champion, repository, summary
from flows.new import GITIGNORE
from flows.run import Ran
from tasks import files, params_file
from tasks.errors import ThawlineError
from tasks.records import Project
from tasks.register import register
from tests.flows.conftest import thawline
from tests.small_project import here
from tests.tasks import judged, trained_project

PARAMS = f"""\
threads: 1
seed: {{seed}}
prepare: {{{{data: data/shoes.parquet}}}}
embed: {{{{backbones: [{trained_project.BACKBONE}]}}}}
register: {{{{experiment: shoes, model: shoes}}}}
"""
DVC = "stages: {package: {cmd: 'true', params: [seed], outs: [models]}}\n"


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    command = ["git", *who, *arguments]
    return subprocess.run(
        command, cwd=root, check=True, capture_output=True, text=True
    ).stdout.strip()


def train(project: Project, seed: int) -> None:
    """As a run leaves it: another model, its parameters, its lock file; not yet registered."""
    (project.root / "params.yaml").write_text(PARAMS.format(seed=seed))
    shutil.rmtree(project.models, ignore_errors=True)
    trained_project.packaged(project.root, seed)
    with repository.opened(project) as repo:
        repo.commit("package", force=True)


def commit(project: Project, message: str) -> str:
    git(project.root, "add", "--all")
    git(project.root, "commit", "--quiet", "--message", message)
    return git(project.root, "rev-parse", "HEAD")


def digest(project: Project) -> str:
    return str(files.read_json(project.models / "digests.json")["model_digest"])


@pytest.fixture(scope="module")
def _two_versions(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = trained_project.with_store(tmp_path_factory.mktemp("champion") / "project")
    root = project.root
    git(root, "init", "--quiet")
    git(root, "config", "user.name", "Ada")
    Repo.init(str(root)).close()
    (root / ".gitignore").write_text(f"{GITIGNORE}/outputs/\n/reports/\n")
    (root / "dvc.yaml").write_text(DVC)
    for seed in (1, 2):
        train(project, seed)
        if seed == 1:
            commit(project, "the first model")
        register(project, params_file.load(root))
    commit(project, "the second model")
    return project


@pytest.fixture
def project(_two_versions: Project, tmp_path: Path) -> Project:
    """Version 1, champion, was made from a clean tree; 2 before its lock file was committed."""
    return Project(shutil.copytree(_two_versions.root, tmp_path / "project", symlinks=True))


def test_a_person_promotes_and_rolls_back_and_status_tells(project: Project) -> None:
    alone = ("--version", "challenger", "--expect", "1", "--reason", "sharper")
    done = here(project, "promote", *alone, "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["kind"], made["from_version"], made["to_version"]) == ("promotion", 1, 2)
    refused = here(project, "promote", "--version", "1", "--expect", "1")
    assert refused.returncode == 1
    assert "is version 2, where version 1 was expected" in refused.stderr
    assert refused.stderr.count("\n") == 1

    back = here(project, "rollback", "--reason", "complaints")
    assert back.returncode == 0, back.stderr
    assert "shoes: version 1 is champion (before: version 2)" in back.stdout
    first = git(project.root, "rev-parse", "HEAD~1")
    assert f"code: git commit {first[:12]}\n" in back.stdout
    assert "data: models " in back.stdout

    shown = json.loads(here(project, "status", "--json").stdout)
    ledger = shown["registry"]["ledger"]
    assert ledger["whole"] and ledger["count"] == 3
    newest = ledger["last"][0]
    assert (newest["kind"], newest["reason"]) == ("rollback", "complaints")
    assert newest["who"].startswith("Ada <")
    assert ledger["last"][1]["evidence"] == {"decided_by": "person"}
    assert [entry["kind"] for entry in ledger["last"]][-1] == "first champion"
    assert shown["disk"]["mlartifacts"] > 0

    copy = project.root / ledger["file"]
    copy.write_text(copy.read_text().replace("complaints", "applause"))
    text = here(project, "status").stdout
    assert "ledger: 3 entries, NOT WHOLE" in text
    assert "line 3 of" in text and "rollback, champion 2 → 1" in text


def test_a_checkout_brings_back_code_data_and_parameters(project: Project) -> None:
    second = digest(project)
    champion.promote(project, "2", None, "")
    answer, told = champion.rollback(project, None, "", checkout=True)
    assert answer["checked_out"] and "git is at" in told[-1]
    assert git(project.root, "rev-parse", "HEAD") == answer["commit"]
    assert params_file.load(project.root).seed == 1
    assert digest(project) != second
    assert git(project.root, "status", "--porcelain") == ""
    again = register(project, params_file.load(project.root))
    assert (again.version, again.created) == (1, False)

    # the lock file of the second was not committed when it was made
    answer, _ = champion.rollback(project, 2, "", checkout=True)
    assert answer["dirty"]
    assert params_file.load(project.root).seed == 2
    assert digest(project) == second


def test_a_checkout_over_work_that_is_not_committed_is_refused(project: Project) -> None:
    champion.promote(project, "2", None, "")
    (project.root / "params.yaml").write_text(PARAMS.format(seed=3))
    with pytest.raises(ThawlineError, match=r"not committed \(params.yaml\); commit or stash"):
        champion.rollback(project, None, "", checkout=True)
    assert params_file.load(project.root).seed == 3
    answer, _ = champion.rollback(project, None, "", checkout=False)  # nothing was moved above
    assert (answer["from_version"], answer["to_version"]) == (2, 1)
    shutil.rmtree(project.root / ".git")
    with pytest.raises(ThawlineError, match="in no git repository"):
        champion.rollback(project, None, "", checkout=True)


def test_what_dvc_has_no_more_is_told(project: Project) -> None:
    champion.promote(project, "2", None, "")
    shutil.rmtree(project.root / ".dvc/cache")
    with pytest.raises(ThawlineError, match="version 1 of 'shoes' is champion, but DVC cannot"):
        champion.rollback(project, None, "", checkout=True)


def test_the_gate_asks_a_person_and_the_answer_promotes(tmp_path: Path) -> None:
    project = judged.two_versions(tmp_path / "project")
    rules = "promote: {when_undecided: ask}\n"
    (project.root / "params.yaml").write_text(PARAMS.format(seed=2) + rules)
    (project.root / "dvc.yaml").write_text(DVC)
    judged.answer(project, gained=6, lost=2)
    known = register(project, params_file.load(project.root))
    line = dict(summary._rows(summary.summary(project, Ran(None, known, 0))))["champion"]
    assert line == "stays version 1; ask the gate: thawline promote"

    asked = thawline(project, "promote")
    assert asked.returncode == 3, asked.stderr
    assert asked.stdout.startswith("Undecided: about ")
    assert "same test" in asked.stdout and "skipped" in asked.stdout
    assert "shoes: version 1 stays champion" in asked.stdout
    assert "version 2 waits for you: thawline promote --approve" in asked.stdout
    line = dict(summary._rows(summary.summary(project, Ran(None, known, 0))))["champion"]
    assert line == "stays version 1 until you answer: thawline promote --approve"
    text = here(project, "status").stdout
    assert "gate: ask, version 2 against version 1: Undecided: about " in text
    assert "waiting, champion 1 → 1" in text

    done = here(project, "promote", "--approve", "--reason", "looked", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["kind"], made["to_version"]) == ("promotion", 2)
    assert made["gate"]["verdict"]["decision"] == "undecided"
    again = here(project, "promote")
    assert again.returncode == 0 and "version 2 is champion already" in again.stdout
    assert here(project, "promote", "--approve", "--version", "1").returncode == 2
