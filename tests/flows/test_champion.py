"""`thawline promote`, `thawline rollback` and what `thawline status` shows of them."""

from __future__ import annotations

import contextvars
import io
import json
import logging
import shutil
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from dvc.repo import Repo
from prefect import Flow, flow, get_client
from prefect.client.schemas.objects import StateType
from prefect.flow_engine import run_flow
from prefect.states import Paused
from rich.console import Console

from flows import champion, changes, notice, repository, scheduled, summary
from flows.changes import Advice
from flows.new import GITIGNORE
from flows.retrain import Retrained, retrain
from flows.run import Ran
from tasks import files, params_file, promotion
from tasks.claim import TRIES, Claim
from tasks.decision import RETRAIN, SKIP, Decision
from tasks.errors import ThawlineError
from tasks.ledger import SKIPPED, WAITING
from tasks.records import Project
from tasks.register import register
from tasks.tracking import registry, store
from tests.flows.conftest import thawline
from tests.small_project import here, wait_until
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


def paused(client: Any) -> str:
    """A flow run that waits for a person, as a scheduled one does; its id."""
    state = Paused(timeout_seconds=600, reschedule=False)
    return str(client.create_flow_run(Flow(fn=lambda: None, name="waits"), state=state).id)


def test_a_move_of_the_champion_lets_all_flows_go_on_that_wait_for_an_answer(
    project: Project, at_server: None
) -> None:
    values = params_file.load(project.root)

    def ask(version: int, run: str | None) -> int:
        claim = Claim("nightly", "", "data", "params", str(project.root), run)
        made = promotion.keep(project, values, version, claim.evidence(), kind=WAITING)
        assert made.entry is not None
        return made.entry

    with get_client(sync_client=True) as client:

        def kinds(*runs: str) -> list[str]:
            states = [client.read_flow_run(UUID(run)).state for run in runs]
            return [state.type.value for state in states if state]

        runs = [paused(client) for _ in range(3)]
        asked = [ask(version, run) for version, run in zip((2, 2, 1), runs, strict=True)]
        ask(2, None)
        promotion.keep(project, values, 2, {}, kind=WAITING)  # by hand: no flow waits for it
        champion.free(project, values)
        assert kinds(*runs) == ["PAUSED"] * 3
        assert scheduled._moved_since(project, asked[0]) == ""
        champion.promote(project, "2", None, "")  # the answer to two, and closes the third
        assert kinds(*runs) == ["RUNNING"] * 3
        told = scheduled._moved_since(project, asked[2])
        assert told.startswith("The champion was moved meanwhile: promotion: champion 1 → 2, by ")
        later = paused(client)
        ask(1, later)
        champion.rollback(project, None, "", checkout=False)
        assert kinds(later) == ["RUNNING"]


def test_an_answer_to_a_paused_run_is_not_given_to_a_later_challenger(
    tmp_path: Path, at_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = judged.two_versions(tmp_path / "project")
    rules = "promote: {when_undecided: ask}\n"
    (project.root / "params.yaml").write_text(PARAMS.format(seed=2) + rules)
    (project.root / "dvc.yaml").write_text(DVC)
    judged.answer(project, gained=6, lost=2)
    asked, _ = champion.ask_gate(project, None, False, "")
    trained_project.packaged(project.root, 3)  # as another run leaves it meanwhile
    assert register(project, params_file.load(project.root)).version == 3
    judged.answer(project, gained=6, lost=2)
    monkeypatch.setattr(scheduled, "POLL_SECONDS", 1)
    monkeypatch.setattr(scheduled, "WAIT", timedelta(minutes=4))

    @flow
    def waits() -> str:
        made = Retrained("waiting", "", decision=asked)
        return scheduled._answered(project, made, logging.getLogger("test"))

    def answer(run: UUID) -> None:
        with get_client(sync_client=True) as client:
            wait_until(lambda: client.read_flow_run(run).state_type == StateType.PAUSED, 240)
            client.resume_flow_run(run)

    with get_client(sync_client=True) as client:
        run = client.create_flow_run(waits)
    here_too = contextvars.copy_context().run  # the settings that name the server
    person = threading.Thread(target=here_too, args=(answer, run.id))
    person.start()
    with pytest.raises(ThawlineError, match="nobody was asked about version 3 of 'shoes'"):
        run_flow(waits, flow_run=run)
    person.join()
    aliases = json.loads(here(project, "status", "--json").stdout)["registry"]["aliases"]
    assert aliases["champion"] == 1


def test_what_is_moved_by_hand_is_told_by_a_retraining(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Advice(1, None, Decision(SKIP, ["nothing new"], [], None))
    monkeypatch.setattr(changes, "advise", lambda *_: nothing)
    with store.connect(project.root) as client:
        registry.point(client, "shoes", "champion", 2)
    made = retrain(project, Console(quiet=True))
    assert made.outcome == "skipped"
    assert made.lines == [
        "somebody else moved the alias 'champion' of 'shoes' from version 1 to 2; that is left so"
    ]
    assert retrain(project, Console(quiet=True)).lines == []  # told once


def test_what_never_comes_to_an_end_is_given_up_and_told(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    worth_it = Advice(1, None, Decision(RETRAIN, ["much is new"], [], None))
    monkeypatch.setattr(changes, "advise", lambda *_: worth_it)

    def fail(*_: object, **__: object) -> None:
        raise ThawlineError("stage train failed")

    sent: list[Retrained] = []
    monkeypatch.setattr("flows.retrain.run", fail)
    monkeypatch.setattr(notice, "send", lambda _, __, made: sent.append(made))
    for _ in range(TRIES):
        with pytest.raises(ThawlineError, match="stage train failed"):
            retrain(project, Console(quiet=True))
    assert [(made.outcome, made.sentence) for made in sent] == [
        ("failed", "stage train failed")
    ] * TRIES
    for _ in range(2):  # for good, not for a night
        made = retrain(project, Console(quiet=True))
        assert made.outcome == "skipped" and "begun 3 times" in made.sentence
    with pytest.raises(ThawlineError, match="stage train failed"):
        retrain(project, Console(quiet=True), force=True)


HOLDS = """\
import sys
from pathlib import Path
from flows.run import held
from tasks.records import Project
with held(Project(Path("."))):
    print("held", flush=True)
    sys.stdin.readline()
    Path("params.yaml").write_text(Path("later.yaml").read_text())
"""


def test_parameters_that_change_while_a_retraining_waits_are_those_it_goes_by(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Advice(1, None, Decision(SKIP, ["nothing new"], [], None))
    monkeypatch.setattr(changes, "advise", lambda *_: nothing)
    later = (project.root / "params.yaml").read_text().replace("model: shoes", "model: boots")
    (project.root / "later.yaml").write_text(later)
    command = [sys.executable, "-c", HOLDS]
    other = subprocess.Popen(
        command, cwd=project.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None and other.stdout is not None
    assert other.stdout.readline() == "held\n"

    class Letting(io.StringIO):
        """Lets the other go on once it is told that one waits for it."""

        def write(self, text: str) -> int:
            if "waiting for it" in text:
                other.communicate("go on\n")
            return super().write(text)

    told = Letting()
    retrain(project, Console(file=told, width=1000))
    assert "waiting for it" in told.getvalue()
    values = params_file.load(project.root)
    assert values.register_.model == "boots"
    assert [entry.kind for entry in promotion.entries(project, values)] == [SKIPPED]


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
