from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks import ranking, ridge, select
from tasks.contest import Outcome
from tasks.errors import ThawlineError
from tasks.params import SelectParams
from tasks.records import Candidate, DataSummary, Embedding, Layer, Project, Selection
from tests.tasks import drawn_project

CLASSES = ["cat", "dog", "鸟"]


def project_of(root: Path, n: int = 90) -> Project:
    project = Project(root)
    targets = np.arange(n) % 3
    splits = np.where(np.arange(n) % 5 == 4, "test", "train")
    ids = [str(i) for i in range(n)]
    frame = pd.DataFrame({"target": targets, "split": splits, "id": ids, "group": ids})
    project.prepared.mkdir(parents=True)
    frame.to_parquet(project.manifest)
    DataSummary(
        problem="image_classification",
        classes=CLASSES,
        counts={"train": dict.fromkeys(CLASSES, 20), "test": dict.fromkeys(CLASSES, 6)},
        digest="",
        unreadable=[],
        exact_duplicates=[],
        near_duplicate_groups=0,
        near_duplicate_examples=0,
        conflicts=[],
        given_splits=[],
    ).write(project.summary)
    return project


def embed(project: Project, name: str, clearness: float, flops: int, width: int = 20) -> None:
    """Features of known quality, as `embed` leaves them, a shallower and useless depth included."""
    frame = pd.read_parquet(project.manifest)
    rows = np.flatnonzero(frame["split"] != "test")
    rng = np.random.default_rng(7)
    centres = clearness * rng.normal(size=(3, width))
    features = centres[frame["target"].to_numpy()[rows]] + rng.normal(size=(len(rows), width))
    folder = project.features(name)
    folder.mkdir(parents=True)
    np.save(folder / "deep.npy", features.astype(np.float32))
    np.save(folder / "shallow.npy", np.zeros((len(rows), 4), np.float32))
    np.save(folder / "rows.npy", rows)
    layers = [
        Layer("shallow", 10, 0, flops // 2, 8),
        Layer("deep", 20, 0, flops - flops // 2 - 100, 8),
        Layer("head", 5, 0, 100, 8),
    ]
    depths = {"deep": "deep.npy", "shallow": "shallow.npy"}
    record = Embedding(
        backbone=name,
        weights_sha256=f"sha of {name}",
        weights_source="source",
        licence="MIT",
        pretraining="ImageNet-1k",
        layers=layers,
        depths=depths,
        rows="rows.npy",
    )
    record.write(folder / "embedding.json")


def chosen(project: Project, backbones: list[str], **section: object) -> Selection:
    section = {"race": 0, **section}
    params = drawn_project.params(embed={"backbones": backbones}, select=section)
    select.run(project, params)
    return Selection.read(project.selection)


def test_the_clearer_features_win_at_equal_cost(tmp_path: Path) -> None:
    project = project_of(tmp_path)
    embed(project, "vague", 0.1, 1000)
    embed(project, "clear", 2.0, 1000)
    found = chosen(project, ["vague", "clear"])
    assert found.backbone == "clear"
    assert [c.rank for c in found.candidates] == [1, 2]
    best, other = found.candidates
    assert best.ridge > 0.95
    assert best.knn > 0.95
    assert other.score < 0.7
    assert (best.parameters, best.flops) == (30, 1000)
    assert found.weights_sha256 == "sha of clear"
    assert (found.examples, found.classes) == (60, 3)
    assert "clear has the best score of 2 candidates" in found.why


def test_near_duplicates_do_not_vouch_for_each_other(tmp_path: Path) -> None:
    project = project_of(tmp_path, 240)
    embed(project, "any", 0.0, 1000, width=60)
    frame = pd.read_parquet(project.manifest)
    groups = np.arange(240) // 8
    targets = np.random.default_rng(0).integers(0, 3, 30)[groups]
    frame.assign(target=targets, group=groups.astype(str)).to_parquet(project.manifest)
    rng = np.random.default_rng(1)
    features = rng.normal(size=(30, 60))[groups] + 0.01 * rng.normal(size=(240, 60))
    rows = np.load(project.features("any") / "rows.npy")
    np.save(project.features("any") / "deep.npy", features[rows].astype(np.float32))
    [found] = chosen(project, ["any"]).candidates
    assert found.ridge < 0.6
    assert found.knn < 0.6


def test_cost_counts_as_much_as_it_is_told_to(tmp_path: Path) -> None:
    project = project_of(tmp_path)
    embed(project, "small", 0.5, 1_000)
    embed(project, "large", 0.7, 1_000_000)
    free, dear = (chosen(project, ["small", "large"], cost_weight=w) for w in (0.0, 1.0))
    assert (free.backbone, dear.backbone) == ("large", "small")
    gap = free.candidates[0].score - next(c.score for c in dear.candidates if c.backbone == "large")
    assert gap == pytest.approx(1.0, abs=1e-5)  # a thousandfold compute costs cost_weight


def test_equal_scores_go_to_the_cheaper_then_to_the_first_name() -> None:
    def candidate(name: str, flops: int) -> Candidate:
        return Candidate(name, 1, flops, 0.8, 0.7, 0.0, 0)

    free = SelectParams(cost_weight=0)
    ranked = ranking.rank([candidate("c", 9), candidate("b", 5), candidate("a", 5)], free)
    assert [c.backbone for c in ranked] == ["a", "b", "c"]
    assert ranking.why(ranked, "a", True).startswith("a scores as well as b and costs no more")
    # By what is preferred: of two as large, the name decides, whatever they compute.
    small = ranking.rank(
        [candidate("a", 9), candidate("b", 5)], SelectParams(cost_weight=0, prefer="size")
    )
    assert small[0].backbone == "a"


def candidate(name: str, score: float, parameters: int = 1000, flops: int = 1000) -> Candidate:
    return Candidate(name, parameters, flops, score, score, 0.0, 0, licence="MIT")


def test_what_costs_is_what_is_preferred() -> None:
    known = [candidate("slim", 0.8, 10, 10_000), candidate("quick", 0.8, 10_000, 10)]
    known.append(candidate("best", 0.81, 10_000, 10_000))
    first = {
        prefer: ranking.rank(known, SelectParams(prefer=prefer))[0].backbone
        for prefer in ("accuracy", "speed", "size")
    }
    assert first == {"accuracy": "best", "speed": "quick", "size": "slim"}


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"max_parameters": 25}, "30 parameters, select.max_parameters is 25"),
        ({"licences": ["Apache-2.0"]}, "its licence is MIT, not one of select.licences"),
    ],
)
def test_candidates_beyond_a_limit_are_out(
    tmp_path: Path, limits: dict[str, object], told: str
) -> None:
    project = project_of(tmp_path)
    embed(project, "clear", 2.0, 1000)
    with pytest.raises(ThawlineError, match=r"no backbone is within the limits.*raise a limit"):
        chosen(project, ["clear"], **limits)
    with pytest.raises(ThawlineError, match=re.escape(told)):
        chosen(project, ["clear"], backbone="clear", **limits)


def test_the_best_within_the_limits_is_taken(tmp_path: Path) -> None:
    project = project_of(tmp_path)
    for name, clearness in (("clear", 2.0), ("vague", 0.1)):
        embed(project, name, clearness, 1000)
    path = project.features("clear") / "embedding.json"
    record = Embedding.read(path)
    layers = [replace(record.layers[0], parameters=10**6), *record.layers[1:]]
    replace(record, layers=layers).write(path)
    found = chosen(project, ["clear", "vague"], max_parameters=1000)
    assert found.backbone == "vague" and "1 beyond a limit" in found.why
    assert [c.rank for c in found.candidates] == [1, 2]
    assert found.candidates[1].ruled_out.startswith("1,000,020 parameters")


def test_a_shallower_depth_may_tell_the_classes_apart_best(tmp_path: Path) -> None:
    project = project_of(tmp_path)
    embed(project, "one", 0.1, 1000)
    folder = project.features("one")
    before = chosen(project, ["one"]).candidates[0]
    targets = pd.read_parquet(project.manifest)["target"].to_numpy()[np.load(folder / "rows.npy")]
    np.save(folder / "shallow.npy", np.eye(4, dtype=np.float32)[targets])
    found = chosen(project, ["one"]).candidates[0]
    assert found.depths == {"shallow": 1.0, "deep": before.ridge} and found.ridge == before.ridge
    assert found.score == pytest.approx((1.0 + before.knn) / 2, abs=1e-6)


def test_what_weights_were_published_with_counts_a_third() -> None:
    def ranked(*priors: float | None) -> list[tuple[str, float]]:
        known = [
            replace(candidate(name, 0.8), ridge=measured, knn=measured, prior=prior)
            for name, measured, prior in zip("abc", (0.8, 0.82, 0.5), priors, strict=True)
        ]
        return [(c.backbone, c.score) for c in ranking.rank(known, SelectParams(cost_weight=0))]

    measured = [("b", 0.82), ("a", 0.8), ("c", 0.5)]
    assert ranked(None, None, None) == measured
    assert ranked(0.7, None, None) == measured  # one alone says nothing of the others
    # Two: half the gap that was measured to either side, the better one's to the better one.
    told = ranked(0.75, 0.71, None)
    assert [name for name, _ in told] == ["b", "a", "c"]
    assert dict(told) == pytest.approx({"a": 0.806667, "b": 0.813333, "c": 0.5}, abs=1e-5)
    assert dict(ranked(0.71, 0.71, None)) == pytest.approx(
        {"a": 0.803333, "b": 0.816667, "c": 0.5}, abs=1e-5
    )


def test_the_shortlist_is_what_scores_cannot_tell_apart() -> None:
    names = {"a": 0.9, "b": 0.89, "c": 0.88, "d": 0.86}
    ranked = ranking.rank([candidate(n, s) for n, s in names.items()], SelectParams())
    assert [c.backbone for c in ranking.shortlist(ranked, 16)] == ["a", "b", "c"]
    assert [c.backbone for c in ranking.shortlist(ranked, 2)] == ["a", "b"]
    assert ranking.shortlist(ranked, 0) == []


def test_the_race_decides_and_says_whether_the_scores_had_agreed() -> None:
    def round_of(accuracy: float) -> dict[str, object]:
        figures = {"accuracy": {"value": accuracy}, "validation_loss": 1.0}
        return {"epochs": 2, **figures, "multiply_adds": 5}

    known = [candidate(name, 0.9 - i / 100) for i, name in enumerate("abcd")]
    ranked = ranking.rank(known, SelectParams())
    rounds = {"a": [round_of(0.7)], "b": [round_of(0.75)] * 2, "c": [round_of(0.8)] * 2}
    lead = {"value": 0.1, "low": 0.05, "high": 0.15}
    found, agreement = ranking.by_race(ranked, Outcome("c", ["c", "b", "a"], rounds, lead))
    # Who did not run comes last.
    assert [(c.backbone, c.rank) for c in found] == [("c", 1), ("b", 2), ("a", 3), ("d", 4)]
    assert agreement == {
        "same_first": False, "tau": -1.0, "kept": False, "lead": lead, "multiply_adds": 25,
    }  # fmt: skip
    told = ranking.why(found, "c", True, lead)
    assert told.startswith("c has won a race of 3 close candidates, its cost counted: right on 80")
    lost = {**round_of(0.0), "validation_loss": None}
    found, _ = ranking.by_race(ranked, Outcome("c", ["c", "b"], {**rounds, "b": [lost] * 2}, lead))
    assert "after 2 epochs, b diverged" in ranking.why(found, "c", True, lead)
    # The favourite stays as the race cannot tell; that is no agreement.
    kept, agreement = ranking.by_race(ranked, Outcome("a", ["c", "b", "a"], rounds, lead))
    assert [c.backbone for c in kept] == ["a", "c", "b", "d"] and kept[0].rank == 1
    assert (agreement["same_first"], agreement["tau"], agreement["kept"]) == (False, -1.0, True)
    told = ranking.why(kept, "a", True, lead)
    assert told.startswith("a keeps its lead by score in a race of 3 close candidates")
    assert "70.0% of validation after 2 epochs, c on 80.0%, which does not tell them apart" in told


def test_one_candidate_is_enough_and_what_is_left_of_others_goes(tmp_path: Path) -> None:
    project = project_of(tmp_path)
    embed(project, "only", 1.0, 1000)
    project.features("removed").mkdir()
    (project.features("removed") / "embedding.json").write_text("half a file")
    (project.features("only").parent / ".gitignore").write_text("/only\n")  # DVC's
    found = chosen(project, ["only"])
    assert {p.name for p in project.features("only").parent.iterdir()} == {"only", ".gitignore"}
    assert found.backbone == "only"
    assert "only candidate" in found.why


def test_a_backbone_that_the_user_sets_is_taken_and_ranked(tmp_path: Path) -> None:
    project = project_of(tmp_path)
    embed(project, "vague", 0.1, 1000)
    embed(project, "clear", 2.0, 1000)
    found = chosen(project, ["vague", "clear"], backbone="vague")
    assert found.backbone == "vague"
    assert found.weights_sha256 == "sha of vague"
    assert found.why.startswith("vague is set by select.backbone")
    assert found.why.endswith("number 2 of 2.")


def test_neighbours_leave_the_example_itself_out() -> None:
    targets = np.array([0, 1] * 10)
    pairs = np.repeat(
        np.eye(10, dtype=np.float32), 2, axis=0
    )  # each one's twin has the other class
    assert select.knn_accuracy(pairs, targets) < 0.5
    grouped = np.eye(2, dtype=np.float32)[targets] + 0.01
    assert select.knn_accuracy(grouped * np.arange(1, 21)[:, None].astype("f4"), targets) == 1.0


def test_near_duplicates_do_not_vote_for_each_other() -> None:
    generator = np.random.default_rng(0)
    one_each = generator.normal(size=(30, 16)).astype(np.float32)  # no class is told
    features = np.repeat(one_each, 8, axis=0) + 1e-3 * generator.normal(size=(240, 16))
    features, groups = features.astype(np.float32), np.repeat(np.arange(30), 8)
    targets = groups % 3
    assert select.knn_accuracy(features, targets) > 0.9
    assert select.knn_accuracy(features, targets, groups) < 0.5
    alone = np.arange(240)
    assert select.knn_accuracy(features, targets, alone) == select.knn_accuracy(features, targets)
    assert 0 <= select.knn_accuracy(features, targets, np.zeros(240, np.int64)) <= 1


@pytest.mark.parametrize("targets", [[0, 0, 0, 1, 2], [0, 1, 0, 1, 1]])
def test_a_class_of_one_and_two_classes_work(targets: list[int]) -> None:
    features = np.eye(5, dtype=np.float32)
    assert 0 <= ridge.fit(features, np.array(targets), 3).accuracy <= 1
    assert 0 <= select.knn_accuracy(features, np.array(targets)) <= 1


def test_constant_features_score_badly_but_score() -> None:
    features, targets = np.ones((30, 4), np.float32), np.arange(30) % 3
    assert 0 <= ridge.fit(features, targets, 3).accuracy < 0.6
    assert 0 <= select.knn_accuracy(features, targets) < 0.8


def test_large_data_is_drawn_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "MAX_EXAMPLES", 40)
    project = project_of(tmp_path, n=300)
    embed(project, "some", 0.5, 1000)
    embedding = Embedding.read(project.features("some") / "embedding.json")
    first, again, other = (select._candidate(project, embedding, seed) for seed in (0, 0, 1))
    assert first == again and first != other
    folder = project.features("some")
    rows = select.drawn(240, 0)
    assert len(rows) == 40 and list(rows) == sorted(set(rows))
    targets = pd.read_parquet(project.manifest)["target"].to_numpy()[np.load(folder / "rows.npy")]
    drawn = ridge.fit(np.load(folder / "deep.npy")[rows], targets[rows], 3)
    assert first.ridge == round(drawn.accuracy, 6)


def test_the_record_repeats_byte_for_byte(tmp_path: Path) -> None:
    project = project_of(tmp_path)
    embed(project, "a", 0.5, 1000)
    embed(project, "b", 0.4, 2000)
    chosen(project, ["a", "b"])
    first = project.selection.read_bytes()
    chosen(project, ["b", "a"])
    assert project.selection.read_bytes() == first
