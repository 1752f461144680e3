"""Who is champion, and when a new one is trained."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.commands.console import Json, app, err, out, print_json
from flows.project import find
from tasks.errors import ThawlineError

PANEL = "Champion"  # of --help


@app.command(rich_help_panel=PANEL)
def retrain(
    force: Annotated[
        bool, typer.Option("--force", help="Also where nothing is worth a training.")
    ] = False,
    cold: Annotated[
        bool, typer.Option("--cold", help="From the pretrained backbone, not from the champion.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring the data, decide by what changed, train, and let the gate decide who is champion.

    Imported data is brought up to its source first. Trains where `thawline changes` says so, from
    the champion's weights where some data was added and nothing else changed (retrain.start). The
    data version goes into a git branch of its own (retrain.branch), the working tree stays as it
    is. Where the gate leaves the decision to a person, the exit code is 3.

    Example: thawline retrain
    """
    from flows.retrain import retrain as retrain_project

    made = retrain_project(find(), err, force=force, cold=cold)
    if as_json:
        print_json(made.as_json())
    else:
        from flows import champion

        if "gate" not in (made.decision or {}):  # else the verdict says it
            out.print(made.sentence, highlight=False, soft_wrap=True, markup=False)
        champion.show(out, (made.decision or {}, made.lines))
    if made.outcome == "waiting":
        raise typer.Exit(3)


@app.command(rich_help_panel=PANEL)
def schedule(
    cron: Annotated[
        str | None, typer.Option(help="Five fields, in UTC; default: 0 3 * * *, every night.")
    ] = None,
    every: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Instead: every so many minutes.", min=1)
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Also when the data changes; looks so often. Not with --pool.",
            min=1,
        ),
    ] = None,
    pool: Annotated[
        str | None, typer.Option(help="Leave the runs to workers of this Prefect work pool.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the deployment; default: the registered model's.")
    ] = None,
) -> None:
    """Retrain by itself: a Prefect deployment, served here until Ctrl-C.

    What was missed while nothing served it is caught up once. Needs a Prefect server: that of
    thawline ui, or the one that PREFECT_API_URL names. With --watch alone, nothing runs by the
    clock.

    Example: thawline schedule --cron "0 3 * * 1-5"
    """
    from flows import schedule as schedules
    from tasks import params_file

    if cron is not None and every is not None:
        raise typer.BadParameter("--cron and --every are two schedules; name one")
    if pool is not None and watch is not None:
        raise typer.BadParameter(
            "--watch looks at the data from the process that serves the schedule, and --pool "
            "leaves none here; leave out --pool, or name --cron or --every in place of --watch"
        )
    project = find()
    if cron is None and every is None and watch is None:
        cron = schedules.NIGHTLY
    name = name or params_file.load(project.root).register_.model
    wanted = schedules.Schedule(name, cron, every, watch, pool)
    schedules.serve(project, wanted, out)


@app.command(rich_help_panel=PANEL)
def changes(as_json: Json = False) -> None:
    """Say what changed in the data since the champion was trained, and whether to retrain, and why.

    Brings data and features of the champion's backbone up to date, and runs nothing after.

    Example: thawline changes
    """
    from flows import changes as found

    advice = found.advise(find(), err)
    if as_json:
        print_json(advice.as_json())
        return
    for line in advice.lines():
        out.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command(rich_help_panel=PANEL)
def compare(
    a: Annotated[str, typer.Argument(help="The model in question.")],
    b: Annotated[str, typer.Argument(help="The model to beat.")],
    as_json: Json = False,
) -> None:
    """Say whether one model is better than another, on the test examples that both have judged.

    A model is an alias or a number of this project's registered model, models:/NAME@alias, the id
    of an MLflow run, a project's folder, or its predictions.parquet.

    Example: thawline compare challenger champion
    """
    from tasks import params_file
    from tasks.compare import compare as compare_models

    project = find()
    found = compare_models(project, params_file.load(project.root), a, b)
    if as_json:
        print_json(found.as_json())
        return
    for line in found.lines():
        out.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command(rich_help_panel=PANEL)
def promote(
    approve: Annotated[
        bool, typer.Option("--approve", help="Promote what the gate leaves to a person.")
    ] = False,
    version: Annotated[
        str | None,
        typer.Option(help="Do not ask the gate: number or alias of the version to promote."),
    ] = None,
    expect: Annotated[
        int | None,
        typer.Option(help="Only if this version is champion now (0: none).", min=0),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the ledger.")] = "",
    as_json: Json = False,
) -> None:
    """Let the gate judge the packaged model, and make it the champion if it says so.

    Where the gate leaves the decision to a person, nothing is changed, the exit code is 3, and
    --approve is the answer. With --version you decide alone. What was champion becomes previous.
    Refuses when somebody moved the champion meanwhile. The ledger tells who decided, and why.

    Example: thawline promote --version 3 --expect 2 --reason "better on the new camera"
    """
    from flows import champion
    from tasks.ledger import WAITING

    if version is None:
        answer = champion.ask_gate(find(), expect, approve, reason)
    elif approve:
        raise typer.BadParameter("--approve answers the gate, --version does not ask it; name one")
    else:
        answer = champion.promote(find(), version, expect, reason)
    _print_decision(answer, as_json)
    if answer[0]["kind"] == WAITING:
        raise typer.Exit(3)


@app.command(rich_help_panel=PANEL)
def rollback(
    to: Annotated[
        int | None, typer.Option(help="An earlier champion; default: the one before.", min=1)
    ] = None,
    checkout: Annotated[
        bool, typer.Option("--checkout", help="Check out its code and data too; in a clean tree.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why, for the ledger.")] = "",
    as_json: Json = False,
) -> None:
    """Make the previous model the champion again, and name the code and data that belong to it.

    Called again, it goes back one further. With --checkout, git and DVC bring back the project as
    it was when that model was made.

    Example: thawline rollback --reason "complaints since Monday"
    """
    from flows import champion

    _print_decision(champion.rollback(find(), to, reason, checkout), as_json)


def _print_decision(answer: tuple[dict[str, Any], list[str]], as_json: bool) -> None:
    if as_json:
        print_json(answer[0])
    else:
        from flows import champion

        champion.show(out, answer)


@app.command(rich_help_panel=PANEL)
def register() -> None:
    """Make sure that the packaged model is in the registry.

    Exits with 1, once and when all is done, if somebody else moved champion or challenger.

    Example: thawline register
    """
    from flows.registration import registered, require_unmoved
    from tasks import params_file

    project = find()
    values = params_file.load(project.root)
    answer = registered(project, values, err, project.root / "logs/register.log")
    if answer is None:
        raise ThawlineError(f"{project.models} holds no model yet; make one with: thawline run")
    name, aliases = values.register_.model, ", ".join(answer.aliases) or "no alias"
    out.print(f"{name} version {answer.version} ({aliases})", highlight=False)
    for note in answer.notes:
        out.print(note, highlight=False, soft_wrap=True, markup=False)
    require_unmoved(answer)
