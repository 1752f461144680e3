"""The gate and the registry together: what it says of two versions, and what is done about it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tasks import challenge, compare, judgement, promotion
from tasks.desk import Outcome
from tasks.errors import ThawlineError
from tasks.judgement import Judgement
from tasks.ledger import Entry, Ledger
from tasks.params import Params
from tasks.params import replace as changed
from tasks.promotion import NOBODY
from tasks.records import Project
from tasks.register import register
from tasks.report.judged import BEFORE, page
from tasks.tracking import registry, store
from tests.tasks import judged, trained_project
from tests.tasks.rivals import aliases

torch.set_num_threads(1)


def params(**rules: Any) -> Params:
    return changed(trained_project.params(), {f"promote.{k}": v for k, v in rules.items()})


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def _two_versions(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return judged.two_versions(tmp_path_factory.mktemp("judged"))


@pytest.fixture
def project(_two_versions: Project, tmp_path: Path) -> Project:
    return Project(shutil.copytree(_two_versions.root, tmp_path / "project", symlinks=True))


def entries(project: Project) -> list[Entry]:
    with store.connect(project.root) as client:
        return Ledger(client, project, "shoes").read()


def asked(project: Project, settings: Params) -> Judgement:
    found = challenge.judge(project, settings)
    assert found is not None
    return found


def test_a_better_challenger_is_promoted_and_the_verdict_kept(project: Project) -> None:
    judged.answer(project, gained=60, lost=10)
    report = project.reports / "report.html"
    report.write_text(f"<main>{BEFORE}</section></main>")
    made = challenge.decide(project, params(), asked(project, params()))
    assert (made.kind, made.from_version, made.to_version) == ("promotion", 1, 2)
    assert aliases(project) == {"champion": 2, "previous": 1, "challenger": 2}

    found = judgement.current(project)
    assert found is not None and found.verdict.decision == "promote"
    assert (found.challenger, found.champion, found.action) == (2, 1, "promote")
    assert found.verdict.rule("better").numbers["only_challenger_right"] == 60
    evidence = entries(project)[-1].evidence
    assert evidence == {"decided_by": "gate", "verdict": found.verdict.as_json()}
    with store.connect(project.root) as client:
        first, second = (registry.get(client, "shoes", number) for number in (1, 2))
    assert second.tags.items() >= found.verdict.tags().items()
    assert (found.verdict.challenger, found.verdict.champion) == (second.digest, first.digest)

    shown = page(project)
    assert shown.name == "gate.html" and report.read_text().count("Gate") == 0
    assert "Version 2 before the gate, against the champion, version 1" in shown.read_text()
    assert found.verdict.sentence in shown.read_text()
    assert challenge.judge(project, params()) is None  # it is champion
    trained_project.packaged(project.root, 3)
    assert page(project) == report  # of another model


def test_a_worse_one_is_kept_out_and_approval_does_not_help(project: Project) -> None:
    judged.answer(project, gained=10, lost=60)
    found = asked(project, params(when_undecided="ask", approve=True))
    made = challenge.decide(project, params(), found)
    assert (made.kind, made.to_version) == ("kept", 1)
    assert aliases(project) == {"champion": 1, "challenger": 2}
    last = entries(project)[-1]
    assert (last.evidence["challenger"], last.evidence["decided_by"]) == (2, "gate")
    assert last.evidence["verdict"]["decision"] == "keep"
    with pytest.raises(ThawlineError, match=r"^Keep the champion\. .*thawline promote --version 2"):
        challenge.decide(project, params(), found, approved=True)
    assert entries(project)[-1] == last


def test_an_undecided_one_goes_as_the_parameters_say(project: Project) -> None:
    judged.answer(project, gained=6, lost=2)
    found = asked(project, params(when_undecided="ask"))
    assert found.verdict.decision == "undecided"

    def decided(rule: str) -> Outcome:
        action = found.verdict.action(params(when_undecided=rule).promote)
        return challenge.decide(project, params(), replace(found, action=action))

    assert decided("keep").kind == "kept"
    assert challenge.decide(project, params(), found).kind == "waiting"
    assert aliases(project) == {"champion": 1, "challenger": 2}
    made = challenge.decide(project, params(), found, approved=True, reason="looked at them")
    assert (made.kind, made.to_version) == ("promotion", 2)
    last = entries(project)[-1]
    assert (last.evidence["decided_by"], last.reason) == ("person", "looked at them")
    assert last.evidence["verdict"]["decision"] == "undecided"
    # what was only recorded is nothing to go back to
    assert promotion.rollback(project, params()).to_version == 1
    assert decided("promote_if_not_worse").to_version == 2


def test_what_was_rolled_back_from_needs_a_person(project: Project) -> None:
    judged.answer(project, gained=60, lost=10)
    promotion.promote(project, params(), "2", {})
    promotion.rollback(project, params())
    found = asked(project, params())
    assert (found.verdict.decision, found.action) == ("promote", "ask")
    assert challenge.decide(project, params(), found).to_version == 1
    assert entries(project)[-1].reason == "version 2 was rolled back from, so a person decides"


@pytest.mark.parametrize("left", [1, None])
@pytest.mark.parametrize("recorded", [False, True])
def test_what_was_taken_down_by_hand_needs_a_person(
    project: Project, left: int | None, recorded: bool
) -> None:
    judged.answer(project, gained=60, lost=10)
    promotion.promote(project, params(), "2", {})
    with store.connect(project.root) as client:
        registry.point(client, "shoes", "champion", left)
    if recorded:
        register(project, params())
    found = asked(project, params())
    assert (found.champion, found.verdict.decision, found.action) == (left, "promote", "ask")
    assert challenge.decide(project, params(), found).kind == "waiting"
    assert aliases(project).get("champion") == left
    assert entries(project)[-1].reason == "version 2 was taken down by hand, so a person decides"
    assert "moved by hand" in [entry.kind for entry in entries(project)]

    another_challenger(project)  # is judged as usual
    judged.answer(project, gained=60, lost=10)
    assert challenge.decide(project, params(), asked(project, params())).to_version == 3


def test_an_approval_counts_for_the_version_that_was_asked_about(project: Project) -> None:
    judged.answer(project, gained=6, lost=2)
    rules = params(when_undecided="ask")
    found = asked(project, rules)
    with pytest.raises(ThawlineError, match="nobody was asked about version 2 of 'shoes' against"):
        challenge.decide(project, rules, found, approved=True)
    question = challenge.decide(project, rules, found).entry
    another_challenger(project)
    judged.answer(project, gained=6, lost=2)
    other = asked(project, rules)
    before = entries(project)
    for entry in (question, None):
        with pytest.raises(ThawlineError, match=r"version 3 .* promote that one: .* 2 --rea"):
            challenge.decide(project, rules, other, approved=True, asked=entry)
    assert entries(project) == before and aliases(project)["champion"] == 1
    challenge.decide(project, rules, other)  # somebody is asked about this one too
    with pytest.raises(ThawlineError, match="nobody was asked about version 3 of 'shoes'"):
        challenge.decide(project, rules, other, approved=True, asked=question)
    made = challenge.decide(project, rules, found, approved=True, asked=question)
    assert (made.kind, made.to_version) == ("promotion", 2)

    promotion.rollback(project, rules)  # closes what was asked before
    with pytest.raises(ThawlineError, match="nobody was asked about version 2 of 'shoes'"):
        challenge.decide(project, rules, found, approved=True, asked=question)


def test_an_approval_counts_for_the_verdict_that_was_asked_about(project: Project) -> None:
    judged.answer(project, gained=60, lost=10)
    rules = params(approve=True)
    challenge.decide(project, rules, asked(project, rules))
    judged.answer(project, gained=6, lost=2)
    now = asked(project, params(when_undecided="ask"))
    with pytest.raises(ThawlineError, match=r"says something else .* entry 2\).*: Undecided: .*"):
        challenge.decide(project, rules, now, approved=True)
    assert aliases(project)["champion"] == 1
    challenge.decide(project, rules, now)
    assert challenge.decide(project, rules, now, approved=True).to_version == 2


def another_challenger(project: Project) -> None:
    """Version 3, trained since."""
    trained_project.packaged(project.root, 3)
    assert register(project, params()).version == 3


def test_a_champion_moved_meanwhile_is_respected(project: Project) -> None:
    judged.answer(project, gained=60, lost=10)
    found = asked(project, params())
    with store.connect(project.root) as client:
        client.create_model_version("shoes", "models/3")
    promotion.promote(project, params(), "3", {})
    before = entries(project)
    for late in (found, replace(found, action="ask")):
        with pytest.raises(ThawlineError, match="is version 3, where version 1 was expected"):
            challenge.decide(project, params(), late)
    assert entries(project) == before and aliases(project)["champion"] == 3
    with pytest.raises(ThawlineError, match="is version 3, where version 1 was expected"):
        challenge.judge(project, params(), expected=1)


def test_a_challenger_that_is_not_the_packaged_model_is_refused(project: Project) -> None:
    trained_project.packaged(project.root, 3)
    with pytest.raises(ThawlineError, match=r"challenger \(version 2 of 'shoes'\) is not the mode"):
        challenge.judge(project, params())
    assert judgement.read(project) is None


def test_without_a_champion_the_commonest_class_is_to_beat(project: Project) -> None:
    judged.answer(project, gained=0, lost=0)
    with store.connect(project.root) as client:
        registry.point(client, "shoes", "champion", None)
    found = challenge.judge(project, params(), expected=NOBODY)
    assert found is not None and found.champion is None
    assert "against the commonest class" in found.verdict.sentence
    made = challenge.decide(project, params(), found)
    assert (made.kind, made.from_version, made.to_version) == ("promotion", None, 2)


def test_folds_that_both_were_registered_with_are_compared(project: Project) -> None:
    judged.answer(project, gained=6, lost=2)
    assert compare.folds(project, params(), 1) is None
    ids = [f"{i}" for i in range(3000)]
    frame = pd.DataFrame({"id": ids, "group": ids, "label": "bag", "predicted": "bag"})
    project.repeat.mkdir(parents=True)
    folds = frame.assign(fold=[i % 5 for i in range(3000)])
    folds.to_parquet(project.repeat / "predictions.parquet")
    frame.loc[:299, "predicted"] = "帽子"
    judged.log(project, 1, frame, compare.FOLDS)
    found = asked(project, params())
    assert found.verdict.decision == "promote"
    assert "3,000 cross-validated ones" in found.verdict.sentence
