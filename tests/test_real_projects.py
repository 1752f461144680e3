"""The projects that a user meets first, whole and at their own size: minutes each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks import files
from tasks.records import Project
from tests.small_project import clone, run, succeed

ROOT = Path(__file__).parents[1]
LIMIT = 3000  # seconds, on a machine that others use too

pytestmark = [pytest.mark.long, pytest.mark.timeout(2 * LIMIT)]


def nothing_is_left_to_do(project: Project) -> None:
    assert "up to date" in succeed(project.root, "dvc", "repro")
    assert run(project)["nothing_to_do"]


def test_the_embedded_project_in_a_fresh_clone(tmp_path: Path) -> None:
    project = clone(Project(ROOT), tmp_path / "clone")
    result = run(project, limit=LIMIT)
    assert set(result["states"].values()) == {"done"}
    figures = files.read_json(project.reports / "metrics.json")
    assert figures["test.accuracy"] >= 0.88
    assert figures["test.accuracy_low"] > figures["baseline.linear_probe.accuracy"]
    assert result["registration"]["aliases"] == ["challenger", "champion"]
    nothing_is_left_to_do(project)


@pytest.mark.skipif(
    not Path("/usr/share/tuxpaint/stamps/animals").is_dir(), reason="Tux Paint is not installed"
)
def test_tux_paint_has_a_champion_clear_of_the_commonest_class(tmp_path: Path) -> None:
    succeed(tmp_path, "thawline", "new", "stamps", "--data", "tuxpaint")
    project = Project(tmp_path / "stamps")
    result = run(project, limit=LIMIT)
    figures = files.read_json(project.reports / "metrics.json")
    assert figures["test.accuracy_low"] > figures["baseline.majority.accuracy"]
    assert "champion" in result["registration"]["aliases"]
    nothing_is_left_to_do(project)
