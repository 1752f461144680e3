"""What a run ended with, for a person and for a program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from flows import stage as stages
from flows.run import Ran
from tasks import baselines, files, judgement
from tasks.records import Project

FIGURES = ("backbone", "thaw line", "test accuracy", "baseline")


def summary(project: Project, ran: Ran) -> dict[str, Any]:
    """The run as one JSON object; what the project does not have is left out."""
    result: dict[str, Any] = {
        "project": str(project.root),
        "nothing_to_do": ran.standing is None,
        "seconds": round(ran.seconds, 2),
        "stages": _stages(project, ran),
    }
    with contextlib.suppress(OSError, ValueError, KeyError):
        plan = files.read_json(project.thaw_plan)
        result |= {"backbone": plan["backbone"], "thaw_line": plan["thaw_line"]}
        result["frozen_share"] = plan["frozen_share"]
    with contextlib.suppress(OSError, ValueError):
        result["metrics"] = files.read_json(project.reports / "metrics.json")
    report = project.reports / "report.html"
    if report.is_file():
        result["report"] = str(report)
    if ran.registration is not None:
        result["registration"] = asdict(ran.registration)
        if found := judgement.current(project):
            result["gate"] = found.as_json()
    return result


def _stages(project: Project, ran: Ran) -> list[dict[str, Any]]:
    """Each stage's state in this run, its seconds now, what its work took when last done, and what
    it warned of in this run."""
    if ran.standing is None:
        return []
    return [
        {
            "stage": s.stage,
            "state": s.state,
            "seconds": s.seconds,
            "work_seconds": stages.recorded_seconds(project, s.stage),
            "warnings": stages.warned(project, s.stage) if s.state == "done" else [],
        }
        for s in ran.standing.stages
    ]


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the summary for a person; a line is never broken, so that paths can be copied."""
    for name, value in _rows(result):
        line = Text.assemble((f"{name:<15}", "dim"), value)
        console.print(line, highlight=False, soft_wrap=True)


def markdown(project: Project) -> str:
    """The figures of an up-to-date project as a table, for pages that cannot link to its files.

    The model is registered later: its digest, a tag of its version, names it here.
    """
    result = summary(project, Ran(None, None, 0.0))
    rows = [(name, value) for name, value in _rows(result) if name in FIGURES]
    with contextlib.suppress(OSError, ValueError, KeyError):
        digest = files.read_json(project.models / "digests.json")["model_digest"]
        rows.append(("model", f"`{digest}`; its version: `thawline status`"))
    if "report" in result:
        rows.append(("report", f"`{result['report']}`"))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if result["nothing_to_do"]:
        yield "stages", "nothing to do, all are up to date"
    else:
        yield "stages", _costs(result["stages"])
    for stage in result["stages"]:
        for warning in stage["warnings"]:
            yield "warning", f"{stage['stage']}: {warning}"
    if "backbone" in result:
        frozen = f"{result['frozen_share']:.0%} of the compute frozen"
        yield "backbone", result["backbone"]
        yield "thaw line", f"{result['thaw_line']} ({frozen} below it)"
    metrics = result.get("metrics", {})
    if "test.accuracy" in metrics:
        yield "test accuracy", _accuracy(metrics)
    for name, accuracy in baselines.accuracies(metrics).items():
        yield "baseline", f"{accuracy:.3f}  {baselines.called(name)}"
    if "registration" in result:
        known = result["registration"]
        aliases = ", ".join(known["aliases"]) or "no alias"
        yield "model", f"{known['model']} version {known['version']} ({aliases})"
        if known["champion"] != known["version"]:
            yield "champion", _champion(known["champion"], result.get("gate"))
        for note in known["notes"]:
            yield "", note
    if "report" in result:
        yield "report", result["report"]
    yield "seconds", f"{result['seconds']:.1f}"
    yield "past runs", "thawline ui  (the pages of MLflow and Prefect)"


def _champion(number: int | None, gate: dict[str, Any] | None) -> str:
    """Who is champion instead of the packaged model, and what to do about it."""
    stays = f"stays version {number}" if number else "none yet"
    if gate is None or gate["champion"] != number or gate["action"] == "promote":
        return f"{stays}; ask the gate: thawline promote"
    if gate["action"] == "ask":
        return f"{stays} until you answer: thawline promote --approve"
    return f"{stays}: {gate['verdict']['sentence']}"


def _accuracy(metrics: dict[str, Any]) -> str:
    low, high = metrics.get("test.accuracy_low"), metrics.get("test.accuracy_high")
    interval = f"  ({low:.3f} to {high:.3f})" if low is not None and high is not None else ""
    return f"{metrics['test.accuracy']:.3f}{interval}"


def _costs(states: list[dict[str, Any]]) -> str:
    """Such as `train 42 s · evaluate 3 s · 7 unchanged`."""
    ran = [f"{s['stage']} {s['seconds']:.0f} s" for s in states if s["state"] == "done"]
    for state in ("restored", "unchanged"):
        count = sum(s["state"] == state for s in states)
        ran += [f"{count} {state}"] if count else []
    return " · ".join(ran)
