"""How things stand, and what keeps them in order."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands import own_options
from flows.commands.console import Json, app, out, print_json
from flows.commands.own_options import OwnOptions
from flows.project import find
from tasks.errors import ThawlineError

PANEL = "Operations"  # of --help


@app.command(rich_help_panel=PANEL)
def status(as_json: Json = False) -> None:
    """Show the champion, the last decisions, the disk used, and the run in progress or the last.

    Example: thawline status --json
    """
    from flows import status as standing

    result = standing.status(find())
    if as_json:
        print_json(result)
    else:
        standing.show(out, result)


@app.command(rich_help_panel=PANEL)
def ui(
    host: Annotated[str, typer.Option(help="Loopback only: the pages have no login.")] = (
        "127.0.0.1"
    ),
    prefect_port: Annotated[int, typer.Option(help="0: the first free one from 4200.")] = 0,
    mlflow_port: Annotated[int, typer.Option(help="0: the first free one from 5000.")] = 0,
) -> None:
    """Show past runs: the pages of Prefect and MLflow, until Ctrl-C.

    Example: thawline ui
    """
    from flows import ui as pages

    pages.serve(find(), host, prefect_port, mlflow_port, out)


@app.command(cls=OwnOptions, rich_help_panel=PANEL)
def doctor(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Option(help="Look at this data instead, as in thawline new; needs no project."),
    ] = None,
    label_column: Annotated[str, typer.Option(help="Manifest: column with the class.")] = "label",
    problem: Annotated[
        str | None, typer.Option(help="Data: what the model is for, as in thawline new.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check versions, device, disk, data and stores, and say what to do.

    With --data, a problem has options of its own, listed below, as in thawline new.

    Example: thawline doctor --data ~/pictures/flowers
    """
    from flows import doctor as checks

    if data is None:
        findings = checks.examine()
    else:
        from flows import doctor_data
        from flows.new import Wanted

        options = {"label_column": label_column} | own_options.given(context)
        findings = doctor_data.examine(Wanted(Path(), data, problem, options=options))
    if as_json:
        print_json(checks.as_json(findings))
    else:
        checks.show(out, findings)
    if any(f.verdict == "fail" for f in findings):
        raise typer.Exit(1)


@app.command(rich_help_panel=PANEL)
def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go; delete nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    commits: Annotated[
        str, typer.Option(metavar="N|all", help="Of each branch and tag, keep the last N alone.")
    ] = "all",
    as_json: Json = False,
) -> None:
    """Delete what nothing needs: of DVC's cache, of scratch, and logs older than a month.

    Kept is all that the project, its git commits, a registered version or the ledger names. When
    one of these cannot be read, nothing is deleted.

    Example: thawline gc --dry-run
    """
    from flows import gc as garbage

    if commits != "all" and not (commits.isdecimal() and int(commits)):
        raise typer.BadParameter("--commits takes a number from 1, or all")
    project = find()
    if not (dry_run or yes) and (as_json or not sys.stdin.isatty()):
        raise ThawlineError(
            "nobody is there to ask; look first with: thawline gc --dry-run, then: thawline gc "
            "--yes (nothing was deleted)"
        )
    with garbage.offered(project, None if commits == "all" else int(commits)) as offer:
        if not as_json:
            garbage.show(out, offer)
        agreed = yes or (bool(offer.items) and not dry_run and typer.confirm("Delete it?"))
        deleted = agreed and not dry_run and bool(offer.items)
        if deleted:
            garbage.delete(offer)
    if as_json:
        print_json(offer.as_json(project.root, deleted))
    elif not dry_run and offer.items:
        out.print("deleted" if deleted else "nothing was deleted")
