"""Comparing models: pairs of predictions, what can be told from them, and where they come from."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks import compare, metrics, package, paired
from tasks.errors import DataError, ThawlineError
from tasks.paired import Comparison
from tasks.records import Project
from tasks.register import register
from tests.tasks import trained_project

PARAMS = trained_project.params()


def predictions(folder: Path, right: np.ndarray, **columns: object) -> str:
    """A file of predictions, right where said."""
    folder.mkdir(exist_ok=True)
    count = len(right)
    ids = [f"{i:06d}" for i in range(count)]
    labels = np.array(["cat", "dog"], dtype=object)[np.arange(count) % 2]
    predicted = np.where(right, labels, "bird")
    frame = pd.DataFrame({"id": ids, "group": ids, "label": labels, "predicted": predicted})
    path = folder / f"{len(list(folder.iterdir()))}.parquet"
    frame.assign(**columns).to_parquet(path)
    return str(path)


def answers(generator: np.random.Generator, count: int, gap: float) -> tuple[np.ndarray, ...]:
    """Right answers of two models on the same examples, 90 % and `gap` more; one in ten differs."""
    chance = generator.random(count)
    common, other = chance < 0.85, chance > 0.95
    only_a = ~common & ~other & (generator.random(count) < 0.5 + gap / 0.2)
    return common | only_a, common | (~common & ~other & ~only_a)


def of(project: Project, a: str, b: str) -> compare.Compared:
    return compare.compare(project, PARAMS, a, b)


def test_a_third_of_a_point_on_a_thousand_examples_is_not_called_real(tmp_path: Path) -> None:
    first, second = np.arange(1000) >= 100, np.arange(1000) >= 100
    first[:20], second[20:37] = True, True  # 20 against 17: 0.3 points
    a, b = predictions(tmp_path / "p", first), predictions(tmp_path / "p", second)
    found = of(Project(tmp_path), a, b)
    assert found.comparison.difference.value == pytest.approx(0.003)
    assert found.comparison.verdict == "not distinguishable"
    assert "not distinguishable on 1,000 examples: +0.30 points" in found.sentence
    assert found.needed is not None and 20_000 < found.needed < 50_000
    assert re.search(r"about \d\d,000 examples would decide", found.sentence)


def test_three_points_on_ten_thousand_examples_are_called(tmp_path: Path) -> None:
    right = answers(np.random.default_rng(0), 10_000, 0.03)
    a, b = (predictions(tmp_path / "p", each) for each in right)
    found = of(Project(tmp_path), a, b)
    assert found.comparison.verdict == "better" and found.needed is None
    assert " is better than " in found.sentence
    assert of(Project(tmp_path), b, a).comparison.verdict == "worse"


def test_the_examples_asked_for_decide_as_often_as_stated() -> None:
    generator = np.random.default_rng(1)
    judged = Comparison(metrics.Interval(0.01, 0, 0), 60, 40, 0.06, "not distinguishable")
    needed = compare.examples_needed(judged, 2000, 0.95)
    assert needed is not None
    decided = []
    for _ in range(300):  # with as many, such models differ by McNemar's test four times in five
        only_a, only_b, _ = generator.multinomial(needed, [0.03, 0.02, 0.95])
        model = np.repeat([1, 0, 1], [only_a, only_b, needed - only_a - only_b])
        baseline = np.repeat([0, 1, 1], [only_a, only_b, needed - only_a - only_b])
        found = paired.compare(np.ones_like(model), model, baseline, np.arange(needed), 0.95)
        decided.append(found.p_value < 0.05)
    assert 0.73 < np.mean(decided) < 0.87


def test_near_duplicates_are_no_separate_evidence(tmp_path: Path) -> None:
    first, second = np.ones(1000, np.bool_), np.arange(1000) >= 10
    apart = [predictions(tmp_path / "p", each) for each in (first, second)]
    assert of(Project(tmp_path), *apart).comparison.verdict == "better"
    group = ["one"] * 10 + [f"{i}" for i in range(990)]
    together = [predictions(tmp_path / "p", each, group=group) for each in (first, second)]
    assert of(Project(tmp_path), *together).comparison.verdict == "not distinguishable"


def test_examples_in_groups_are_asked_for_in_as_many_as_they_are_worth(tmp_path: Path) -> None:
    # Each group of ten is answered alike: a thousand examples say what a hundred would.
    groups = np.arange(1000) // 10
    first, second = (groups >= 10) | (groups < 6), (groups >= 10) | (groups >= 6)
    columns = {"apart": {}, "together": {"group": [f"g{i}" for i in groups]}}
    needed = {}
    for name, more in columns.items():
        paths = [predictions(tmp_path / "p", each, **more) for each in (first, second)]
        found = of(Project(tmp_path), *paths)
        assert name == "apart" or found.comparison.verdict == "not distinguishable"
        judged = replace(found.comparison, verdict="not distinguishable")
        needed[name] = found.needed or compare.examples_needed(judged, 1000, 0.95) or 0
    assert needed["together"] == pytest.approx(10 * needed["apart"], rel=0.05)


def test_only_shared_examples_count(tmp_path: Path) -> None:
    a = predictions(tmp_path / "p", np.ones(30, np.bool_))
    b = predictions(tmp_path / "p", np.ones(20, np.bool_))
    found = of(Project(tmp_path), a, b)
    assert (found.examples, found.left_out) == (20, 10)
    assert "they are right equally often" in found.sentence
    assert "10 more were judged by one of them" in "".join(found.lines())


def test_content_under_two_labels_is_left_out(tmp_path: Path) -> None:
    ids = ["same", "same", *(f"{i}" for i in range(18))]
    a = predictions(tmp_path / "p", np.ones(20, np.bool_), id=ids)
    assert of(Project(tmp_path), a, a).examples == 18


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    project, right = Project(tmp_path), np.ones(4, np.bool_)
    a = predictions(tmp_path / "p", right)
    with pytest.raises(DataError, match="different examples; none is shared"):
        of(project, a, predictions(tmp_path / "p", right, id=list("wxyz")))
    with pytest.raises(DataError, match=r"different labels \(4 of 4 .* --from evaluate"):
        of(project, a, predictions(tmp_path / "p", right, label="bird"))
    with pytest.raises(DataError, match=r"nosuch\.parquet holds no predictions"):
        of(project, a, str(tmp_path / "nosuch.parquet"))
    (tmp_path / "broken.parquet").write_text("nothing")
    with pytest.raises(DataError, match=r"broken\.parquet holds no predictions"):
        of(project, a, str(tmp_path / "broken.parquet"))
    with pytest.raises(ThawlineError, match="no registered model yet"):
        of(project, a, "champion")


def test_versions_runs_and_folders_are_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = trained_project.with_store(tmp_path / "shoes").root
    project = trained_project.packaged(root)
    register(project, PARAMS)
    trained_project.make(root, seed=1)
    package.run(project, PARAMS)
    second = register(project, PARAMS)
    found = of(project, "challenger", "champion")
    assert (found.a, found.b) == ("shoes version 2 (challenger)", "shoes version 1 (champion)")
    assert found.examples == 300 and found.accuracy_a.value == pytest.approx(0.93, abs=0.03)
    for name in ("2", "models:/shoes@challenger", "models:/shoes/2", second.run_id, str(root)):
        same = of(project, name, "champion")
        assert same.comparison == found.comparison
    with pytest.raises(ThawlineError, match=r"has no 'nobody' \(aliases: challenger → 2"):
        of(project, "nobody", "champion")
    with pytest.raises(ThawlineError, match="no version 9"):
        of(project, "9", "champion")
    with pytest.raises(ThawlineError, match=f"no run {'0' * 32}"):
        of(project, "0" * 32, "champion")
    with pytest.raises(ThawlineError, match="came without its test predictions"):
        (project.evaluate / "predictions.parquet").unlink()
        shutil.rmtree(project.root / "mlartifacts")
        of(project, "challenger", "champion")
