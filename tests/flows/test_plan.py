from __future__ import annotations

import json

import pytest

from flows import plan
from tasks.errors import UnknownName
from tasks.records import Layer, Phase, Project, Selection, ThawPlan
from tests.flows.conftest import thawline


def test_a_plan_of_one_stage_has_only_what_it_needs(project: Project) -> None:
    found = plan.plan(project, "embed@first")
    assert [s["stage"] for s in found["stages"]] == ["prepare", "embed@first"]
    assert all(s["would_run"] for s in found["stages"])
    with pytest.raises(UnknownName, match="did you mean 'train'"):
        plan.plan(project, "trian")


def test_the_cost_is_what_the_stages_to_run_took_last(project: Project) -> None:
    from flows.stage import record

    record(project, "train", seconds=40.0)
    record(project, "prepare", seconds=2.5)
    found = plan.plan(project)
    assert found["estimated_seconds"] == 42.5
    shown = thawline(project, "plan").stdout
    assert "about 42 s" in shown and "has not run yet" in shown


def test_planning_writes_nothing(project: Project) -> None:
    before = {p for p in project.root.rglob("*") if ".dvc" not in p.parts}
    done = thawline(project, "plan", "--json")
    assert json.loads(done.stdout)["stages"][0]["reasons"] == ["has not run yet"]
    assert {p for p in project.root.rglob("*") if ".dvc" not in p.parts} == before


def test_the_thaw_plan_is_shown_by_layer(project: Project) -> None:
    layers = [
        *(Layer("stem", 10, 0, 300, 8, 4), Layer("top", 20, 0, 88, 8, 4)),
        Layer("head", 5000, 0, 4000, 2000, 1000),  # the pretrained one, of 1000 classes
    ]
    Selection("first", "", [], "0" * 64, "", "", "", layers, examples=9, classes=3).write(
        project.selection
    )
    ThawPlan(
        strategy="last_blocks",
        backbone="first",
        weights_sha256="0" * 64,
        layers=layers,
        phases=[Phase("thawed", None, {"top": 0.1, "head": 1.0})],
        thaw_line="top",
        frozen_share=0.75,
        cache=True,
        cache_bytes=1,
        batch_norm="frozen",
        why="",
    ).write(project.thaw_plan)
    rows = plan.plan(project)["thaw_plan"]
    assert [row["cached"] for row in rows] == [True, False, False]
    assert [row["parameters"] for row in rows] == [10, 20, 4 * 3 + 3]
    assert [row["compute_share"] for row in rows] == [0.75, 0.22, 0.03]
    assert rows[1]["learning_rates"] == {"thawed": 0.1}
    assert "frozen" in thawline(project, "plan").stdout
