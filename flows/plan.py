"""`thawline plan`: what would run and why, what it would cost, and how the network thaws."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from flows import dag, repository
from tasks import freeze, params_file, versions
from tasks.params import Params
from tasks.records import Project, Selection, ThawPlan, ViewPolicy

LINES = 4  # of reasons that a person is shown for one stage


def plan(project: Project, stage: str | None = None) -> dict[str, Any]:
    """The plan as one JSON object; `stage`: only it and what it needs.

    Raises `ThawlineError` when the parameters or `dvc.yaml` cannot be used, and `UnknownName`
    for a stage that there is not.
    """
    values = params_file.load(project.root)
    upgraded = versions.changes(project.root)
    with repository.opened(project) as repo:
        repository.check_params(repo, values)
        repository.check_places(repo, values)
        graph = dag.graph(repo)
        wanted = dag.upstream(dag.expand([stage], graph), graph) if stage else list(graph)
        found = dag.status(repo, project, graph, upgraded)
        missing = [*repository.missing_inputs(repo), *repository.outdated_inputs(repo)]
    stages = [_entry(s) for s in found if s.stage in wanted]
    known = [s["seconds"] for s in stages if s["would_run"] and s["seconds"] is not None]
    result = {"stages": stages, "estimated_seconds": round(sum(known), 1), "to_fetch": missing}
    return result | _thaw(project, values)


def _thaw(project: Project, params: Params) -> dict[str, Any]:
    """How the network of the last choice, with its views, would thaw by the section `freeze` as it
    is now: `thaw_plan` and `thaw_why`; empty before there is a choice.

    Of a strategy that must try, the last result. Raises `ThawlineError` for layers that there are
    not.
    """
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        selection = Selection.read(project.selection)
        if freeze.must_try(params.freeze):
            found = ThawPlan.read(project.thaw_plan)
            if found.strategy != params.freeze.strategy:
                return {}
        else:
            policy = ViewPolicy.read(project.augment / "policy.json")
            found = freeze.make(selection, params.freeze, policy)
        shown = freeze.with_new_head(found, selection.classes, params.train.head.hidden)
        return {"thaw_plan": layers(shown), "thaw_why": found.why}
    return {}


def _entry(status: dag.StageStatus) -> dict[str, Any]:
    return {
        "stage": status.stage,
        "would_run": status.would_run,
        "reasons": status.reasons,
        "seconds": status.seconds,
    }


def layers(plan: ThawPlan) -> list[dict[str, Any]]:
    """One row a layer: parameters, share of the compute, and how fast it learns in each phase."""
    total = sum(layer.flops for layer in plan.layers) or 1
    starts = {phase.name: freeze.start(plan.layers, phase) for phase in plan.phases}
    found = [
        [name for name, start in starts.items() if plan.cache and i < start]
        for i in range(len(plan.layers))
    ]
    return [
        {
            "layer": layer.name,
            "parameters": layer.parameters,
            "compute_share": layer.flops / total,
            "learning_rates": {
                phase.name: phase.learning_rates[layer.name]
                for phase in plan.phases
                if layer.name in phase.learning_rates
            },
            "cached": bool(phases),
            "cached_in": phases,  # that find the output of this layer, or of one above it, computed
            "read": plan.reading is not None and layer.name in plan.reading.layers,
        }
        for layer, phases in zip(plan.layers, found, strict=True)
    ]


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the plan for a person."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("seconds", justify="right")
    table.add_column("why")
    for stage in result["stages"]:
        runs, seconds = stage["would_run"], stage["seconds"]
        state = "[yellow]would run[/]" if runs else "[green]unchanged[/]"
        cost = f"{seconds:.0f}" if runs and seconds is not None else ""
        table.add_row(stage["stage"], state, cost, _why(stage["reasons"]))
    console.print(table, highlight=False)
    for path in result["to_fetch"]:
        console.print(f"{path} is not here; a run fetches it where DVC tracks it", highlight=False)
    if result["estimated_seconds"]:
        seconds = result["estimated_seconds"]
        console.print(f"about {seconds:.0f} s, by what these stages took last", highlight=False)
    if "thaw_plan" in result:
        console.print("\nhow the network thaws, from the input up", style="dim")
        console.print(_thaw_table(result["thaw_plan"]), highlight=False)
        console.print(f"\n{result['thaw_why']}", highlight=False, markup=False)


def _why(reasons: list[str]) -> str:
    from rich.markup import escape

    more = [f"and {len(reasons) - LINES} more"] if len(reasons) > LINES else []
    return "\n".join(escape(reason) for reason in reasons[:LINES] + more)


def _states(row: dict[str, Any], most: list[str]) -> Iterator[str]:
    """What else is known of a layer; `most`: the phases that have anything cached."""
    if row["read"]:
        yield "read"
    if row["cached"]:
        every = row["cached_in"] == most
        yield "cached" if every else f"cached in {', '.join(row['cached_in'])}"


def _thaw_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("layer", "parameters", "compute", "learning rate (× train's), by phase", ""):
        right = heading in ("parameters", "compute")
        table.add_column(heading, justify="right" if right else "left")
    for row in rows:
        rates = ", ".join(f"{phase} {rate:.3g}" for phase, rate in row["learning_rates"].items())
        table.add_row(
            row["layer"],
            f"{row['parameters']:,}",
            f"{row['compute_share']:.1%}",
            rates or "[blue]frozen[/]",
            " ".join(_states(row, rows[0]["cached_in"])),
        )
    return table
