"""From data to a packaged model, and what it says of new examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.commands import own_options
from flows.commands.console import Json, app, err, out, print_json
from flows.commands.own_options import OwnOptions
from flows.project import find
from tasks import problems
from tasks.errors import ThawlineError

PANEL = "Pipeline"  # of --help


@app.command(cls=OwnOptions, rich_help_panel=PANEL)
def new(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The project folder to make.")],
    data: Annotated[
        str, typer.Option(help="A folder of class folders, a table (manifest), a known data set.")
    ],
    problem: Annotated[
        str | None,
        typer.Option(
            help=f"What the model is for; default: the data set's, or {problems.DEFAULT}."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in the registry.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Values to start with; default: by the size of the data.")
    ] = None,
    start_from: Annotated[
        str | None, typer.Option(help="A model to start from, as in thawline start-from.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Manifest: column with the class (label).")
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(help="Manifest: column with the split (split).")
    ] = None,
    group_column: Annotated[
        str | None, typer.Option(help="Manifest: column with the group (group).")
    ] = None,
) -> None:
    """Make a project folder for your own data, or for a known data set.

    A problem has options of its own, listed below: any key of its section prepare.

    Example: thawline new flowers --data ~/pictures/flowers
    """
    from flows import new as projects

    given = {
        "label_column": label_column,
        "split_column": split_column,
        "group_column": group_column,
    }
    options = {key: value for key, value in given.items() if value is not None}
    options |= own_options.given(context)
    wanted = projects.Wanted(folder, data, problem, name, recipe, start_from, options)
    for line in projects.make(wanted):
        out.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command(rich_help_panel=PANEL)
def run(
    assignments: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Write into params.yaml first.")
    ] = [],  # noqa: B006
    since: Annotated[
        list[str], typer.Option("--from", metavar="STAGE", help="Rerun it and all that follow.")
    ] = [],  # noqa: B006
    force: Annotated[
        list[str], typer.Option("--force", metavar="STAGE", help="Rerun it, changed or not.")
    ] = [],  # noqa: B006
    recipe: Annotated[
        str | None, typer.Option(help="Write a recipe into params.yaml first; --set comes after.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring every stage up to date and register the model.

    Exits with 1, once and when all is done, if somebody else moved champion or challenger.

    Example: thawline run --set train.epochs=4
    """
    from flows import summary
    from flows.registration import require_unmoved
    from flows.run import Wish
    from flows.run import run as run_project
    from tasks import params_file, recipes

    project = find()
    if recipe:
        problem = params_file.load(project.root).problem
        assignments = [*recipes.assignments(recipe, problem), *assignments]
    ran = run_project(project, Wish(assignments, since, force), err)
    result = summary.summary(project, ran)
    if as_json:
        print_json(result)
    else:
        summary.show(out, result)
    require_unmoved(ran.registration)


@app.command(rich_help_panel=PANEL)
def plan(
    stage: Annotated[str | None, typer.Argument(help="Only this stage and what it needs.")] = None,
    as_json: Json = False,
) -> None:
    """Say what would run and why, what it would cost, and how the network would thaw.

    Example: thawline plan train
    """
    from flows import plan as plans

    result = plans.plan(find(), stage)
    if as_json:
        print_json(result)
    else:
        plans.show(out, result)


@app.command(rich_help_panel=PANEL)
def report(
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Print where the report of the last run is.

    Example: thawline report --open
    """
    from tasks.report import judged

    path = judged.page(find())
    if not path.is_file():
        raise ThawlineError(f"there is no {path} yet; make it with: thawline run")
    print(path)
    if show:
        typer.launch(path.as_uri())


@app.command(rich_help_panel=PANEL)
def predict(
    inputs: Annotated[list[Path], typer.Argument(help="Files, or folders of them.")],
    output: Annotated[Path, typer.Option("--out", help="A .parquet, .csv or .json file.")] = Path(
        "predictions.parquet"
    ),
    model: Annotated[
        str | None, typer.Option(help="Alias or number of a version; default: champion.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Classify examples with the champion of this project.

    Example: thawline predict photos/ --out predictions.parquet
    """
    from tasks import params_file
    from tasks import predict as predictions

    project = find()
    params = params_file.load(project.root)
    frame = predictions.predict(project, params, inputs, output, model)
    if as_json:
        columns = frame[[*predictions.about(frame), "label", "probability", "error"]]
        rows = json.loads(columns.to_json(orient="records"))  # missing values become null
        print_json({"file": str(output), "predictions": rows})
        return
    unreadable = int(frame["error"].notna().sum())
    note = f", {unreadable} of them unreadable" if unreadable else ""
    many = problems.load(params.problem).WORDS.many
    out.print(f"{len(frame)} {many}{note}: {output}", highlight=False, soft_wrap=True)


@app.command("start-from", rich_help_panel=PANEL)
def start_from(
    source: Annotated[
        str,
        typer.Argument(
            help="models:/NAME@champion, a project's folder (PROJECT@champion: by its registry), "
            "a packaged model, or a file or folder of weights."
        ),
    ],
    backbone: Annotated[
        str | None, typer.Option(help="File or folder of weights: the network that they are of.")
    ] = None,
) -> None:
    """Take a model's weights, and its head where it can be kept, as the start of this project.

    Example: thawline start-from ../cats-and-dogs@champion
    """
    from flows import start

    for line in start.start_from(find(), source, backbone):
        out.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command(rich_help_panel=PANEL)
def stage(name: Annotated[str, typer.Argument(help="Such as train or embed@resnet18.")]) -> None:
    """Do the work of one stage here and now; what dvc.yaml calls.

    Example: thawline stage embed@mobilenet_v2
    """
    from flows import stage as stages

    stages.run(find(), name)
