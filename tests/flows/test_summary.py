from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from flows import summary
from flows.board import StageState, Standing
from flows.run import Ran
from flows.stage import record
from tasks import files
from tasks.records import Project
from tasks.register import Registration


def test_the_summary_says_what_the_run_ended_with(tmp_path: Path) -> None:
    project = Project(tmp_path)
    files.write_json(
        project.thaw_plan, {"backbone": "mobilenet_v2", "thaw_line": "b14", "frozen_share": 0.6}
    )
    metrics = {
        "test.accuracy": 0.9,
        "test.accuracy_low": 0.885,
        "test.accuracy_high": 0.913,
        "baseline.majority.accuracy": 0.1,
        "baseline.linear_probe.accuracy": 0.84,
        "baseline.linear_probe_resnet18.accuracy": 0.83,
        "baseline.counted_words.accuracy": 0.86,  # of its problem alone
    }
    files.write_json(project.reports / "metrics.json", metrics)
    (project.reports / "report.html").write_text("<p>")
    record(project, "train", seconds=41.0, warnings=["4 of 9 texts are cut"])
    record(project, "prepare", seconds=2.0, warnings=["of another run"])
    stages = [StageState("prepare", "unchanged"), StageState("train", "done", seconds=42.4)]
    note = "some points are not in MLflow yet"
    known = Registration("clothes", 3, ["challenger"], "f00", True, notes=[note], moved=[])
    ran = Ran(Standing("logs/x.log", stages=stages), known, 50.0)

    result = summary.summary(project, ran)
    assert result["stages"][1]["work_seconds"] == 41.0
    assert result["registration"]["version"] == 3

    text = io.StringIO()
    summary.show(Console(file=text, width=40), result)  # too narrow for most lines
    for part in (
        "train 42 s · 1 unchanged",
        "train: 4 of 9 texts are cut",
        "mobilenet_v2",
        "b14 (60% of the compute frozen below it)",
        "0.900  (0.885 to 0.913)",
        "0.100  always the commonest class",
        "0.840  linear head",
        "0.860  counted words",
        "clothes version 3 (challenger)",
        note,
        str(project.reports / "report.html"),
        "thawline ui",
    ):
        assert part in text.getvalue()
    assert "resnet18" not in text.getvalue()
    assert "of another run" not in text.getvalue()


def test_a_project_without_model_or_metrics_has_a_summary_too(tmp_path: Path) -> None:
    result = summary.summary(Project(tmp_path), Ran(None, None, 0.5))
    assert result["nothing_to_do"]
    text = io.StringIO()
    summary.show(Console(file=text), result)
    assert "nothing to do" in text.getvalue()
