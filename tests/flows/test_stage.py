from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

import pytest

from flows import stage
from tasks import files
from tasks.records import Layer, Project, Selection, ThawPlan, ViewPolicy
from tests.flows.conftest import thawline


def prepare_freeze(project: Project) -> None:
    layers = [Layer(f"block{n}", 1000, 0, 1_000_000, 64) for n in range(4)]
    layers.append(Layer("head", 10, 0, 1000, 2))
    Selection(
        backbone="first",
        why="",
        candidates=[],
        weights_sha256="0" * 64,
        weights_source="",
        licence="",
        pretraining="",
        layers=layers,
        examples=10,
        classes=2,
    ).write(project.selection)
    policy = ViewPolicy("image_classification", 0, 1, {"image_size": 32, "resize": "squash"}, [])
    policy.write(project.augment / "policy.json")


def test_a_stage_does_its_work_and_records_its_cost(project: Project) -> None:
    prepare_freeze(project)
    done = thawline(project, "stage", "freeze")
    assert done.returncode == 0, done.stderr
    assert ThawPlan.read(project.thaw_plan).backbone == "first"
    cost = json.loads((project.scratch / "stages/freeze.json").read_text())
    assert cost["stage"] == "freeze"
    assert 0 < cost["seconds"] < 60 and cost["cpu_seconds"] > 0 and cost["peak_mb"] > 1
    assert stage.recorded_seconds(project, "freeze") == cost["seconds"]


def test_what_a_stage_warns_of_is_kept_once_and_printed(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    with stage._recorded(project, "train"):
        for _ in range(2):
            logging.getLogger("tasks.any").warning("%d texts are cut", 4)
    assert stage.warned(project, "train") == ["4 texts are cut"]
    assert capsys.readouterr().err == "4 texts are cut\n" * 2
    assert not logging.getLogger("tasks").handlers
    assert stage.warned(project, "freeze") == []


def test_a_failure_is_told_to_the_flow_and_records_no_cost(project: Project) -> None:
    told = project.scratch / "told.json"
    prepare_freeze(project)
    (project.root / "params.yaml").write_text(
        (project.root / "params.yaml").read_text() + "freeze:\n  strategy: nosuch\n"
    )
    done = thawline(project, "stage", "freeze", env={stage.ERROR_FILE: str(told)})
    assert done.returncode == 1
    assert "nosuch" in done.stderr and "Traceback" not in done.stderr
    assert files.read_json(told)["message"] in done.stderr
    assert not stage.record_file(project, "freeze").exists()


def test_an_unknown_stage_names_the_nearest(project: Project) -> None:
    done = thawline(project, "stage", "frieze")
    assert done.returncode == 1
    assert "did you mean 'freeze'" in done.stderr


def test_an_item_that_is_not_listed_is_refused(project: Project) -> None:
    done = thawline(project, "stage", "embed@third")
    assert done.returncode == 1
    assert "'third'" in done.stderr and "first, second" in done.stderr
    assert "has no items" in thawline(project, "stage", "freeze@x").stderr


def test_code_of_another_version_than_recorded_does_not_run(project: Project) -> None:
    prepare_freeze(project)
    code = project.root / "code.yaml"
    code.write_text(re.sub(r"freeze: \d+", "freeze: 0", code.read_text()))
    done = thawline(project, "stage", "freeze")
    assert done.returncode == 1
    assert "`thawline run` brings it up to date" in done.stderr
    assert not project.thaw_plan.exists()


def test_threads_are_set_before_torch_is_imported(project: Project, tmp_path: Path) -> None:
    import subprocess
    import sys

    prepare_freeze(project)
    code = """
from pathlib import Path
import sys
from flows import stage
from tasks.records import Project
stage.run(Project(Path(sys.argv[1])), "freeze")
import torch
print(torch.get_num_threads())
"""
    env = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(project.root)], capture_output=True, text=True, env=env
    )
    assert done.stdout.strip() == "1", done.stderr  # threads in params.yaml; there are more cores
