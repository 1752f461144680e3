from __future__ import annotations

import io
import time
from pathlib import Path

from rich.console import Console

from flows import board, view
from flows.board import Board, StageState, Standing
from tasks import files
from tasks.records import Project


def test_the_table_shows_state_seconds_and_the_stages_own_bar(tmp_path: Path) -> None:
    project = Project(tmp_path)
    report = {"what": "training", "done": 30, "total": 120, "figures": "loss 0.41"}
    files.write_json(board.progress_file(project, "train"), {**report, "started": time.time() - 10})
    stages = [
        StageState("prepare", "done", seconds=3.24),
        StageState("train", "running", started=time.time() - 12, attempt=2),
        StageState("evaluate"),
    ]
    text = io.StringIO()
    console = Console(file=text, width=140, force_terminal=False)
    console.print(view.table(project, Standing("logs/x.log", stages=stages, flow_run_id="1")))
    lines = text.getvalue().splitlines()
    assert lines[1].split() == ["prepare", "done", "3.2"]
    for part in ("running (attempt 2)", "12.", "training", "30/120", "30 s left", "loss 0.41"):
        assert part in lines[2]
    assert lines[3].split() == ["evaluate", "waiting"]


def test_without_a_terminal_each_change_is_one_line(tmp_path: Path) -> None:
    project = Project(tmp_path)
    text = io.StringIO()
    stages = [StageState("prepare"), StageState("train")]
    changing = Board(project, Standing("logs/x.log", stages=stages))
    with view.view(project, Console(file=text)) as show:
        show(changing.standing)
        changing.start("prepare")
        show(changing.standing)
        show(changing.standing)
        changing.end("prepare", "done")
        changing.finish()
        show(board.read(project))
    assert text.getvalue().splitlines() == [
        "prepare: running",
        "prepare: done  0.0 s",
        "train: not run",
    ]
