"""`thawline status`: the registered model, and the run in progress or the last one."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from flows import board, view
from tasks import files, params
from tasks.records import Project


def status(project: Project) -> dict[str, Any]:
    """The state of the project as one JSON object."""
    values = params.load(project.root)
    result: dict[str, Any] = {
        "project": str(project.root),
        "model": values.register_.model,
        "running": running(project),
    }
    standing = board.read(project)
    if standing is not None:
        result["last_run"] = asdict(standing)
    with contextlib.suppress(OSError, ValueError):
        metrics = files.read_json(project.reports / "metrics.json")
        result["metrics"] = {k: v for k, v in metrics.items() if k.startswith("test.")}
    result["registry"] = _registry(project, values)
    return result


def running(project: Project) -> int | None:
    """The process of the run in progress, if there is one."""
    try:
        pid = int(Path(project.scratch / "run.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if psutil.pid_exists(pid) else None


def _registry(project: Project, values: params.Params) -> Any:
    from tasks import register

    return register.status(project, values)


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the status for a person."""
    for line in _lines(result):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if "last_run" in result:
        last = result["last_run"]
        stages = [board.StageState(**s) for s in last["stages"]]
        standing = board.Standing(**{**last, "stages": stages})
        console.print("the run in progress" if result["running"] else "the last run", style="dim")
        console.print(view.table(Project(Path(result["project"])), standing), highlight=False)
        console.print(f"log: {last['log']}", highlight=False)


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [f"project: {result['project']}", f"model: {result['model']}"]
    registry = result["registry"]
    if isinstance(registry, dict):
        lines += [f"{key}: {value}" for key, value in registry.items() if key != "model"]
    if "metrics" in result:
        accuracy = result["metrics"].get("test.accuracy")
        lines += [f"test accuracy: {accuracy:.3f}"] if accuracy is not None else []
    return lines
