from __future__ import annotations

from pathlib import Path

import pytest

from flows.project import QUIET, environment
from tasks.records import Project


def test_a_projects_processes_do_not_call_home_unless_the_user_lets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in QUIET:
        monkeypatch.delenv(name)
    assert environment(Project(tmp_path)).items() >= QUIET.items()
    monkeypatch.setenv("DO_NOT_TRACK", "false")
    assert environment(Project(tmp_path))["DO_NOT_TRACK"] == "false"
