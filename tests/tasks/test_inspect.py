"""Faults planted in real data are found before training; clean data raises no alarm."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tasks import augment, data_quality, embed, inspect, prepare, report, select
from tasks.errors import DataError
from tasks.params import Params
from tasks.records import Inspection, Project
from tasks.report import views
from tests.tasks import evaluated
from tests.tasks.embedded import stored_sample

EXAMPLES = 1500
FLIPPED = 45  # 3 %
BROKEN = "Bag"


def sample() -> pd.DataFrame:
    """Part of the embedded images, with columns that say nothing of them."""
    whole = pd.read_parquet(stored_sample())
    frame = whole[whole["split"] == "train"].iloc[:EXAMPLES].reset_index(drop=True)
    generator = np.random.default_rng(1)
    frame["split"] = None
    frame["site"] = generator.choice(["north", "south"], len(frame))
    frame["hour"] = generator.uniform(0, 24, len(frame))
    return frame


def inspected(root: Path, frame: pd.DataFrame, **prepared: object) -> tuple[Project, Params]:
    torch.set_num_threads(1)
    root.mkdir(exist_ok=True)
    frame.to_parquet(root / "data.parquet")
    tree = {
        "threads": 1,
        "prepare": {"data": "data.parquet", "columns": ["site", "hour"], **prepared},
        "augment": {"image_size": 96},
        "embed": {"backbones": ["mobilenet_v2"]},
    }
    project, params = Project(root), Params.model_validate(tree)
    prepare.run(project, params)
    augment.run(project, params)
    embed.run(project, params, "mobilenet_v2")
    select.run(project, params)
    inspect.run(project, params)
    return project, params


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    project, _ = inspected(tmp_path_factory.mktemp("clean"), sample())
    return Inspection.read(project.inspection)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Inspection, set[str]]:
    """Flipped labels, a class of broken pictures, a column that gives the label away."""
    frame, generator = sample(), np.random.default_rng(2)
    sound = np.flatnonzero(frame["label"] != BROKEN)
    flipped = generator.choice(sound, FLIPPED, replace=False)
    names = sorted(set(frame["label"]) - {BROKEN})
    for row in flipped:
        others = [name for name in names if name != frame.at[row, "label"]]
        frame.at[row, "label"] = str(generator.choice(others))
    for row in np.flatnonzero(frame["label"] == BROKEN):
        frame.at[row, "image"] = noise(generator)
    codes = pd.factorize(frame["label"])[0]
    frame["site"] = [f"camera {c}" for c in np.where(generator.random(len(frame)) < 0.1, 0, codes)]
    project, _ = inspected(tmp_path_factory.mktemp("faulty"), frame)
    manifest = pd.read_parquet(project.manifest)
    seen = set(manifest["source"][manifest["split"] != "test"])  # test is looked at in evaluate
    return Inspection.read(project.inspection), {f"data.parquet#{row}" for row in flipped} & seen


def noise(generator: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    pixels = generator.integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_most_wrong_labels_are_among_the_first(faulty: tuple[Inspection, set[str]]) -> None:
    found, flipped = faulty
    first = {suspect["source"] for suspect in found.label_errors[: 2 * len(flipped)]}
    assert len(flipped) > 30 and len(first & flipped) >= 0.7 * len(flipped)
    assert all(s["label"] != s["likely"] and s["confidence"] > 0 for s in found.label_errors)
    surest = [suspect["confidence"] for suspect in found.label_errors]
    assert surest == sorted(surest, reverse=True)


def test_a_broken_class_and_a_telling_column_are_named(
    faulty: tuple[Inspection, set[str]],
) -> None:
    found, _ = faulty
    assert [odd["label"] for odd in found.odd_classes] == [BROKEN]
    assert [column["column"] for column in found.telling_columns] == ["site"]
    told = " ".join(inspect.sentences(found))
    assert f"Class '{BROKEN}' is unlike the others" in told
    assert "The column 'site' alone tells the label: right on 9" in told


def test_sound_data_raises_no_alarm(clean: Inspection) -> None:
    assert clean.odd_classes == [] and clean.telling_columns == []
    assert not clean.drift["differs"] and len(clean.outliers) <= 0.01 * EXAMPLES
    assert clean.certificate["holds"]
    assert clean.balance["ratio"] < 3


def test_the_certificate_is_bound_to_the_data(tmp_path: Path, clean: Inspection) -> None:
    project, params = inspected(tmp_path / "again", sample())
    again = Inspection.read(project.inspection).certificate
    assert again == clean.certificate  # the same data, the same certificate
    assert sum(again["examples"].values()) + again["left_out"] == EXAMPLES
    assert again["near_duplicates_across_splits"] == 0
    # Somebody moves a copy of a training image into the test split.
    manifest = pd.read_parquet(project.manifest)
    first = manifest[manifest["split"] == "train"].iloc[[0]].assign(split="test", group="another")
    pd.concat([manifest, first], ignore_index=True).to_parquet(project.manifest)
    inspect.run(project, params)
    broken = Inspection.read(project.inspection)
    assert not broken.certificate["holds"] and broken.certificate["copies_across_splits"] == 1
    assert broken.certificate["sha256"] != again["sha256"]
    assert "Examples leak across splits: 1 copies" in next(iter(inspect.sentences(broken)))


def test_without_a_look_for_near_duplicates_there_is_no_certificate(tmp_path: Path) -> None:
    project, _ = inspected(tmp_path / "p", sample().iloc[:300], near_duplicates=False)
    found = Inspection.read(project.inspection)
    assert not found.certificate["holds"]
    first = next(iter(inspect.sentences(found)))
    assert first.startswith("Near-duplicates were not looked for") and "leak across" not in first


def test_all_that_is_suspected_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_of_them(says: np.ndarray, truth: np.ndarray) -> list[data_quality.Suspect]:
        rows = range(len(truth))
        return [data_quality.Suspect(row, truth[row], (truth[row] + 1) % 9, 0.5) for row in rows]

    monkeypatch.setattr(data_quality, "label_errors", all_of_them)
    project, _ = inspected(tmp_path / "p", sample().iloc[:300])
    found = Inspection.read(project.inspection)
    assert len(found.label_errors) == found.found["label_errors"] == found.examples > 200


def test_columns_are_carried_and_need_a_manifest(tmp_path: Path) -> None:
    frame = sample().iloc[:300]
    (tmp_path / "images").mkdir()
    for row, image in enumerate(frame["image"]):
        (tmp_path / f"images/{row}.png").write_bytes(image)
    table = frame.drop(columns="image").assign(path=[f"{row}.png" for row in range(len(frame))])
    table.to_csv(tmp_path / "list.csv", index=False)
    known = {"data": "list.csv", "images": "images", "columns": ["site", "hour"]}
    params = Params.model_validate({"prepare": known, "embed": {"backbones": ["mobilenet_v2"]}})
    prepare.run(Project(tmp_path), params)
    manifest = pd.read_parquet(Project(tmp_path).manifest)
    assert set(manifest["column.site"]) == {"north", "south"}
    assert manifest["column.hour"].dtype == np.float64
    for wrong, told in (
        ({**known, "columns": ["sight"]}, r"no column 'sight' \(prepare\.columns\).*'site'"),
        ({"data": "images", "columns": ["site"]}, r"prepare\.columns needs a manifest"),
    ):
        params = Params.model_validate({"prepare": wrong, "embed": {"backbones": ["mobilenet_v2"]}})
        with pytest.raises(DataError, match=told):
            prepare.run(Project(tmp_path), params)


def test_mixed_up_classes_are_odd() -> None:
    generator = np.random.default_rng(0)
    targets = np.repeat(np.arange(5), 80)
    features = (4 * np.eye(5)[targets] + generator.normal(0, 1, (400, 5))).astype(np.float32)
    mixed = np.flatnonzero(targets == 3)
    features[mixed] = features[generator.permutation(400)[: len(mixed)]]
    distances, nearest = select.neighbours(features)
    says = data_quality.left_out_probabilities(features, targets, nearest, 5)
    assert [odd.target for odd in data_quality.odd_classes(features, says, targets, distances)] == [
        3
    ]


@pytest.mark.parametrize(
    ("width", "away", "odd"),
    [(1.0, 2.5, [3]), (1.6, 2.5, []), (0.65, 1.0, [])],
    ids=["tight and apart", "apart", "tight"],
)
def test_a_class_that_is_both_tight_and_apart_is_odd(
    width: float, away: float, odd: list[int]
) -> None:
    generator = np.random.default_rng(0)
    targets = np.repeat(np.arange(5), 80)
    centres = 1 + 2 * np.eye(5, 12)
    centres[3, 3] = 1 + 2 * away
    widths = np.where(targets == 3, width, 1.0)[:, None]
    noise = 0.3 * widths * generator.normal(0, 1, (400, 12))
    features = (centres[targets] + noise).astype(np.float32)
    distances, nearest = select.neighbours(features)
    says = data_quality.left_out_probabilities(features, targets, nearest, 5)
    found = data_quality.odd_classes(features, says, targets, distances)
    assert [each.target for each in found] == odd


def test_members_of_a_group_do_not_vouch_for_each_others_wrong_label() -> None:
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 6)
    targets = groups % 3
    centres = 3 * np.eye(3, 20)[targets] + generator.normal(0, 1, (100, 20))[groups]
    features = (centres + 0.05 * generator.normal(0, 1, (600, 20))).astype(np.float32)
    wrong = np.isin(groups, [7, 40, 77])
    given = np.where(wrong, (targets + 1) % 3, targets)
    found = {}
    for known in (None, groups):
        _, nearest = select.neighbours(features, groups=known)
        says = data_quality.left_out_probabilities(features, given, nearest, 3, known)
        first = [each.row for each in data_quality.label_errors(says, given)[: wrong.sum()]]
        found[known is None] = wrong[first].mean() if first else 0.0
    assert found[False] > 0.9 and found[True] < 0.5


def test_a_column_that_tells_the_group_tells_no_label() -> None:
    groups = np.repeat(np.arange(40), 15)
    targets = np.random.default_rng(0).integers(0, 2, 40)[groups]
    columns = pd.DataFrame({"patient": groups.astype(str), "site": np.where(targets, "a", "b")})
    found = data_quality.telling_columns(columns, targets, groups, seed=0)
    assert [column.name for column in found] == ["site"]


def test_rare_classes_are_not_suspected() -> None:
    generator = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], [100, 100, 3])
    features = (3 * np.eye(3)[targets] + generator.normal(0, 1, (203, 3))).astype(np.float32)
    _, nearest = select.neighbours(features)
    says = data_quality.left_out_probabilities(features, targets, nearest, 3)
    found = data_quality.label_errors(says, targets)
    assert found and not [suspect for suspect in found if suspect.label == 2]


def test_far_examples_are_outliers_the_farthest_first() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(5, 1, (300, 20)).astype(np.float32)
    features[7], features[9] = -features[7], -features[9] + 3
    distances, _ = select.neighbours(features)
    found = data_quality.outliers(distances)
    assert set(found) == {7, 9}
    assert list(distances[found].mean(1)) == sorted(distances[found].mean(1), reverse=True)


@pytest.mark.parametrize(
    ("shift", "differs"), [(0.0, False), (0.8, True)], ids=["alike", "shifted"]
)
def test_drift_is_told_from_chance(shift: float, differs: bool) -> None:
    def shares(generator: np.random.Generator, moved: float) -> np.ndarray:
        logits = generator.normal(0, 1, (300, 4)) + np.array([0, 0, moved, 0])
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    told = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        found = data_quality.drift(shares(generator, 0), shares(generator, shift))
        told.append(found.differs)
        assert not differs or found.target == 2
    assert sum(told) >= 19 if differs else sum(told) <= 1


@pytest.fixture
def shown(tmp_path: Path) -> Callable[[], str]:
    project = evaluated.write(tmp_path / "shown", ["a", "b", "c", "d"], 200)
    manifest = pd.read_parquet(project.manifest)
    some = [
        {"id": row.id, "source": row.source, "split": row.split, "label": row.label}
        for row in manifest.head(3).itertuples()
    ]
    Inspection(
        certificate={"data": "d" * 64, "holds": True, "sha256": "c" * 64},
        examples=120,
        label_errors=[{**one, "likely": "<b>", "confidence": 0.9} for one in some],
        outliers=[{**some[0], "distance": 0.5}],
        odd_classes=[],
        telling_columns=[],
        drift={"differs": False},
        balance={"ratio": 1.0},
        found={"label_errors": 3, "outliers": 1},
    ).write(project.inspection)
    return lambda: report.render(project, evaluated.parameters())


def test_the_report_shows_what_to_look_at(shown: Callable[[], str]) -> None:
    page = shown()
    assert "3 labels of 120 examples that were looked at are probably wrong" in page
    assert page.count("rather <bdi>&lt;b&gt;</bdi>") == 3
    assert "No leak" in page and "cccccccccccc" in page
    assert "Labels that are probably wrong</summary>" in page  # all are shown


def test_the_report_says_where_more_are_listed(
    shown: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "SUSPECTS", 2)
    page = shown()
    assert page.count("rather <bdi>&lt;b&gt;</bdi>") == 2
    assert "Labels that are probably wrong: the first 2 of 3, all of which are listed" in page
