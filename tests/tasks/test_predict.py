"""Predicting with the registered champion: files, folders, formats, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from tasks.errors import DataError, ThawlineError
from tasks.predict import predict, unreadable
from tasks.problems.image_classification.asking import asked
from tasks.records import Project
from tasks.register import register
from tests.tasks import trained_project

torch.set_num_threads(1)
PARAMS = trained_project.params()


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = trained_project.with_store(tmp_path_factory.mktemp("project")).root
    project = trained_project.packaged(root)
    register(project, PARAMS)
    return project


def test_a_folder_is_predicted_and_what_cannot_be_read_is_named(
    project: Project, tmp_path: Path
) -> None:
    good, other, bad = trained_project.pictures(tmp_path / "pictures")
    (tmp_path / "pictures/notes.txt").write_text("no image")
    out = tmp_path / "out/predictions.parquet"
    frame = predict(project, PARAMS, [tmp_path / "pictures"], out)
    shares = [f"p_{name}" for name in trained_project.CLASSES]
    assert list(frame) == ["path", "label", "probability", "error", *shares]
    assert frame["path"].tolist() == [str(good), str(bad), str(other)]
    assert frame["label"].notna().tolist() == [True, False, True]
    assert frame[shares].sum(axis=1).tolist() == pytest.approx([1, 0, 1])
    assert unreadable(frame)[0].startswith(f"{bad}: ")
    read = pd.read_parquet(out)
    pd.testing.assert_frame_equal(read[shares], frame[shares])
    assert read["label"].dropna().tolist() == frame["label"].dropna().tolist()
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_the_suffix_names_the_format(project: Project, tmp_path: Path, suffix: str) -> None:
    paths = trained_project.pictures(tmp_path)[:2]
    out = tmp_path / f"predictions{suffix}"
    frame = predict(project, PARAMS, paths, out)
    read = pd.read_csv(out) if suffix == ".csv" else pd.read_json(out)
    assert read["path"].tolist() == [str(path) for path in paths]
    assert read["p_帽子"].tolist() == pytest.approx(frame["p_帽子"].tolist(), abs=1e-6)
    assert "帽子" in out.read_text(encoding="utf-8")


def test_nothing_is_written_when_nothing_can_be_read(project: Project, tmp_path: Path) -> None:
    bad = trained_project.pictures(tmp_path)[2]
    with pytest.raises(DataError, match=r"none of the images can be read; the first: .*broken"):
        predict(project, PARAMS, [bad], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_a_wrong_suffix_and_missing_images_are_refused(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ThawlineError, match=r"must end in \.parquet, \.csv, \.json"):
        predict(project, PARAMS, [tmp_path], tmp_path / "out.xlsx")
    with pytest.raises(DataError, match="no images to predict"):
        asked([tmp_path])
    with pytest.raises(DataError, match=r"nowhere\.png does not exist"):
        asked([tmp_path / "nowhere.png"])


def test_versions_are_named_by_alias_or_number(project: Project, tmp_path: Path) -> None:
    [path, *_] = trained_project.pictures(tmp_path)
    champion = predict(project, PARAMS, [path], None)
    for name in ("1", "challenger"):
        pd.testing.assert_frame_equal(predict(project, PARAMS, [path], None, name), champion)
    with pytest.raises(ThawlineError, match="has no version 7"):
        predict(project, PARAMS, [path], None, "7")
    with pytest.raises(ThawlineError, match=r"has no 'best' \(aliases: challenger → 1, champion"):
        predict(project, PARAMS, [path], None, "best")


def test_without_a_champion_it_says_what_to_do(tmp_path: Path) -> None:
    project = trained_project.with_store(tmp_path)
    paths = trained_project.pictures(tmp_path / "pictures")
    with pytest.raises(ThawlineError, match=r"no 'champion' .*thawline run"):
        predict(project, PARAMS, paths, None)


def test_a_model_changed_in_the_registry_is_not_used(project: Project, tmp_path: Path) -> None:
    paths = trained_project.pictures(tmp_path)
    [weights] = (project.root / "mlartifacts").rglob("model.safetensors")
    data = weights.read_bytes()
    try:
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ThawlineError, match="not the file that was packaged"):
            predict(project, PARAMS, paths, None)
    finally:
        weights.write_bytes(data)
