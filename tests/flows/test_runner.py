from __future__ import annotations

from pathlib import Path

import pytest

from flows import board
from flows.runner import Request, Runner
from tasks.errors import ThawlineError
from tests.flows.conftest import make_project
from tests.small_project import processes_in, wait_until

SLOW = """\
stages:
  slow:
    cmd: "sleep 300; true"
    deps: [data/raw.txt]
    outs: [out/slow.txt]
"""


def test_a_stage_that_takes_longer_than_its_limit_is_ended(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", SLOW)
    (project.root / "logs").mkdir()
    runner = Runner(project, Request(graph={"slow": []}, log="logs/run.log"))
    with pytest.raises(ThawlineError, match="stage 'slow' took longer than its limit"):
        runner.run("slow", limit=3.6)
    wait_until(lambda: not list(processes_in(project)), 10)
    standing = board.read(project)
    assert standing is not None
    (state,) = standing.of("failed")
    assert state.message is not None and "longer than its limit" in state.message
