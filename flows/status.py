"""`thawline status`: the registered model, and the run in progress or the last one."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from flows import board, orphans, view
from flows.run import is_held
from flows.schedule import Schedule
from tasks import files, judgement, params_file
from tasks.params import Params
from tasks.records import Project

# what a project gathers; the prefix cache is a part of .thawline, and make clean removes it
DISK = (".dvc/cache", ".thawline", ".thawline/prefix", "mlartifacts", ".prefect", "logs")
SHOWN_FIRST = ("champion", "previous", "challenger")


def status(project: Project) -> dict[str, Any]:
    """The state of the project as one JSON object."""
    values = params_file.load(project.root)
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
    if found := judgement.read(project):
        result["gate"] = {**found.as_json(), "line": found.line()}
    if planned := Schedule.read(project):
        result["schedule"] = {**asdict(planned), "served": planned.served, "line": planned.line()}
    result["orphans"] = orphans.as_json(orphans.found(project))
    result["registry"] = _registry(project, values)
    result["disk"] = {place: files.size(project.root / place) for place in DISK}
    return result


def running(project: Project) -> int | None:
    """The process of the run in progress, if there is one."""
    try:
        pid = int(Path(project.scratch / "run.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if is_held(project) else None


def _registry(project: Project, values: Params) -> dict[str, Any]:
    from tasks import register
    from tasks.tracking import store

    database = store.database_file(project.root)
    if database is not None and not database.is_file():
        return {}  # nothing was ever registered; asking would make the database
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
    registry = result["registry"]
    count = len(registry.get("versions", []))
    lines = [f"project: {result['project']}"]
    lines.append(f"model: {result['model']}, {count} version{'' if count == 1 else 's'}")
    aliases = registry.get("aliases", {})
    for alias in [*SHOWN_FIRST, *sorted(aliases.keys() - set(SHOWN_FIRST))]:
        if alias not in aliases:
            continue
        accuracy = registry["metrics"].get(alias, {}).get("test.accuracy")
        note = "" if accuracy is None else f" (test accuracy {accuracy:.3f})"
        lines.append(f"{alias}: version {aliases[alias]}{note}")
    if "gate" in result:
        lines.append(f"gate: {result['gate']['line']}")
    if "schedule" in result:
        lines.append(f"schedule: {result['schedule']['line']}")
    if ledger := registry.get("ledger"):
        lines += _decisions(ledger)
    used = [f"{place} {count / 1e6:,.0f} MB" for place, count in result["disk"].items() if count]
    lines += [f"left behind: {o['found']}; {o['advice']}" for o in result["orphans"]]
    return [*lines, f"disk: {', '.join(used) or 'nothing yet'}"]


def _decisions(ledger: dict[str, Any]) -> list[str]:
    """The state of the ledger, and its last entries, newest first."""
    if not ledger["count"] and ledger["whole"]:
        return ["ledger: no decision yet"]
    whole = f"whole ({ledger['file']})" if ledger["whole"] else "NOT WHOLE"
    lines = [f"ledger: {ledger['count']} entries, {whole}"]
    if ledger["problem"]:
        lines.append(ledger["problem"])
    if ledger["unfinished"]:
        lines.append("the last decision is not finished yet; the next command finishes it")
    for entry in ledger["last"]:
        moved = f"{entry['from_version'] or '-'} → {entry['to_version'] or '-'}"
        reason = f": {entry['reason']}" if entry["reason"] else ""
        when = f"{entry['time'][:16].replace('T', ' ')} UTC"
        what = f"{entry['kind']}, {entry['alias']} {moved}"
        lines.append(f"  {entry['number']}  {when}  {what}, by {entry['who']}{reason}")
    return lines
