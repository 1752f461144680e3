from __future__ import annotations

import json

import pytest

from flows import plan
from tasks import params_file
from tasks.errors import ThawlineError, UnknownName
from tasks.records import Layer, Project, Selection, ViewPolicy
from tests.small_project import here


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
    shown = here(project, "plan").stdout
    assert "about 42 s" in shown and "has not run yet" in shown


def test_planning_writes_nothing(project: Project) -> None:
    before = {p for p in project.root.rglob("*") if ".dvc" not in p.parts}
    done = here(project, "plan", "--json")
    assert json.loads(done.stdout)["stages"][0]["reasons"] == ["has not run yet"]
    assert {p for p in project.root.rglob("*") if ".dvc" not in p.parts} == before


def chosen(project: Project) -> None:
    """The records that stages augment and select leave, of a network of three layers."""
    layers = [
        *(Layer("stem", 10, 0, 300, 8, 4), Layer("top", 20, 0, 88, 8, 4)),
        Layer("head", 5000, 0, 4000, 2000, 1000),  # the pretrained one, of 1000 classes
    ]
    Selection("first", "", [], "0" * 64, "", "", "", layers, examples=9, classes=3).write(
        project.selection
    )
    ViewPolicy("image_classification", 0, 4, {"image_size": 64, "resize": "pad"}, []).write(
        project.augment / "policy.json"
    )


def test_the_thaw_plan_is_shown_by_layer(project: Project) -> None:
    chosen(project)
    found = plan.plan(project)
    rows = found["thaw_plan"]
    assert [row["cached"] for row in rows] == [True, False, False]
    assert [row["parameters"] for row in rows] == [10, 20, 4 * 3 + 3]
    assert [row["compute_share"] for row in rows] == [0.75, 0.22, 0.03]
    assert rows[1]["learning_rates"] == {"last blocks": 1.0}
    shown = here(project, "plan").stdout
    assert "frozen" in shown and found["thaw_why"] in " ".join(shown.split())


def test_what_only_some_phases_find_computed_says_which(project: Project) -> None:
    chosen(project)
    gradual = ["freeze.strategy=gradual", "freeze.thaw_fraction=1", "train.epochs=8"]
    params_file.set_values(project.root, gradual)
    rows = plan.plan(project)["thaw_plan"]
    everywhere, *_, head = (row["cached_in"] for row in rows)
    assert everywhere and head == []
    top = rows[1]["cached_in"]
    assert 0 < len(top) < len(everywhere)
    shown = " ".join(here(project, "plan").stdout.split())
    assert f"cached in {', '.join(top)}" in shown


def test_the_thaw_plan_follows_the_parameters_and_says_when_nothing_can_be_kept(
    project: Project,
) -> None:
    chosen(project)
    params_file.set_values(project.root, ["freeze.strategy=all"])
    found = plan.plan(project)
    assert all(row["learning_rates"] and not row["cached"] for row in found["thaw_plan"])
    assert "nothing below the thaw line, so nothing to cache" in found["thaw_why"]
    params_file.set_values(project.root, ["freeze.strategy=pattern", "freeze.layers=[nowhere]"])
    with pytest.raises(ThawlineError, match="matches no layer; the layers are stem, top, head"):
        plan.plan(project)
    params_file.set_values(project.root, ["freeze.strategy=auto"])  # known once it has been tried
    assert "thaw_plan" not in plan.plan(project)
