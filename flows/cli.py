"""The command line. Each command is thin; what it does has a module of its own.

Exit codes: 0; 1 for what the user can mend or must know (one sentence on stderr); 2 for wrong use;
3 where a person is to decide (promote); 130 after Ctrl-C. Heavy libraries are imported by the
commands that need them, so that `--help` is quick.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.project import begin, find
from tasks import problems
from tasks.errors import ThawlineError

app = typer.Typer(
    name="thawline",
    help="Fine-tune pretrained models as a versioned DAG.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

err = Console(stderr=True)
out = Console()


def main() -> None:
    """The console script."""
    begin()
    try:
        app(prog_name="thawline")  # wrong use: 2, Ctrl-C: 130
    except ThawlineError as error:
        if os.environ.get("THAWLINE_DEBUG") == "1":
            traceback.print_exception(error)
        sys.exit(f"thawline: {error}")  # on stderr, exit code 1
    except Exception as error:
        traceback.print_exception(error)
        kind = type(error).__name__
        sys.exit(f"thawline: an unexpected error, please report it: {kind}: {error}")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"thawline {version('thawline')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune pretrained models as a versioned DAG."""


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


@app.command()
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
        _print_json(result)
    else:
        summary.show(out, result)
    require_unmoved(ran.registration)


@app.command()
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
        _print_json(result)
    else:
        plans.show(out, result)


@app.command()
def stage(name: Annotated[str, typer.Argument(help="Such as train or embed@resnet18.")]) -> None:
    """Do the work of one stage here and now; what dvc.yaml calls.

    Example: thawline stage embed@mobilenet_v2
    """
    from flows import stage as stages

    stages.run(find(), name)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def new(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The project folder to make.")],
    data: Annotated[
        str, typer.Option(help="A folder of class folders, a CSV or Parquet manifest, a data set.")
    ],
    problem: Annotated[str, typer.Option(help="What the model is for.")] = problems.DEFAULT,
    name: Annotated[str | None, typer.Option(help="Name of the model in the registry.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Values to start with; default: by the size of the data.")
    ] = None,
    start_from: Annotated[
        str | None, typer.Option(help="A model to start from, as in thawline start-from.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Manifest: the folder that its paths start from.")
    ] = None,
    path_column: Annotated[
        str | None, typer.Option(help="Manifest: column with the file (path).")
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

    A problem may have options of its own: any key of the section prepare, with - for _.

    Example: thawline new flowers --data ~/pictures/flowers
    """
    from flows import new as projects

    given = {
        "images": images,
        "path_column": path_column,
        "label_column": label_column,
        "split_column": split_column,
        "group_column": group_column,
    }
    options = {key: value for key, value in given.items() if value is not None}
    options |= projects.own_options(context.args)
    wanted = projects.Wanted(folder, data, problem, name, recipe, start_from, options)
    for line in projects.make(wanted):
        out.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command("start-from")
def start_from(
    source: Annotated[
        str,
        typer.Argument(
            help="models:/NAME@champion, a project's folder (PROJECT@champion: by its registry), "
            "a packaged model, or a file of weights."
        ),
    ],
    backbone: Annotated[
        str | None, typer.Option(help="File of weights: the network that they are of.")
    ] = None,
) -> None:
    """Take a model's weights, and its head where it can be kept, as the start of this project.

    Example: thawline start-from ../cats-and-dogs@champion
    """
    from flows import start

    for line in start.start_from(find(), source, backbone):
        out.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command()
def doctor(
    data: Annotated[
        str | None,
        typer.Option(help="Look at this data instead, as in thawline new; needs no project."),
    ] = None,
    label_column: Annotated[str, typer.Option(help="Manifest: column with the class.")] = "label",
    problem: Annotated[str, typer.Option(help="Data: what the model is for.")] = problems.DEFAULT,
    as_json: Json = False,
) -> None:
    """Check versions, device, disk, data and stores, and say what to do.

    Example: thawline doctor --data ~/pictures/flowers
    """
    from flows import doctor as checks

    if data is None:
        findings = checks.examine()
    else:
        from flows import doctor_data
        from flows.new import Wanted

        options = {"label_column": label_column}
        findings = doctor_data.examine(Wanted(Path(), data, problem, options=options))
    if as_json:
        _print_json(checks.as_json(findings))
    else:
        checks.show(out, findings)
    if any(f.verdict == "fail" for f in findings):
        raise typer.Exit(1)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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
        _print_json(answer[0])
    else:
        from flows import champion

        champion.show(out, answer)


@app.command()
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
        _print_json({"file": str(output), "predictions": rows})
        return
    unreadable = int(frame["error"].notna().sum())
    note = f", {unreadable} of them unreadable" if unreadable else ""
    many = problems.load(params.problem).WORDS.many
    out.print(f"{len(frame)} {many}{note}: {output}", highlight=False, soft_wrap=True)


@app.command()
def status(as_json: Json = False) -> None:
    """Show the champion, the last decisions, the disk used, and the run in progress or the last.

    Example: thawline status --json
    """
    from flows import status as standing

    result = standing.status(find())
    if as_json:
        _print_json(result)
    else:
        standing.show(out, result)


@app.command()
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
        _print_json(found.as_json())
        return
    for line in found.lines():
        out.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command()
def changes(as_json: Json = False) -> None:
    """Say what changed in the data since the champion was trained, and whether to retrain, and why.

    Brings data and features of the champion's backbone up to date, and runs nothing after.

    Example: thawline changes
    """
    from flows import changes as found

    advice = found.advise(find(), err)
    if as_json:
        _print_json(advice.as_json())
        return
    for line in advice.lines():
        out.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command()
def retrain(
    force: Annotated[
        bool, typer.Option("--force", help="Also where nothing is worth a training.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring the data, decide by what changed, train, and let the gate decide who is champion.

    Imported data is brought up to its source first. Trains where `thawline changes` says so; the
    data version goes into a git branch of its own (retrain.branch), the working tree stays as it
    is. Where the gate leaves the decision to a person, the exit code is 3.

    Example: thawline retrain
    """
    from flows.retrain import retrain as retrain_project

    made = retrain_project(find(), err, force=force)
    if as_json:
        _print_json(made.as_json())
    else:
        from flows import champion

        if "gate" not in (made.decision or {}):  # else the verdict says it
            out.print(made.sentence, highlight=False, soft_wrap=True, markup=False)
        champion.show(out, (made.decision or {}, made.lines))
    if made.outcome == "waiting":
        raise typer.Exit(3)


@app.command()
def schedule(
    cron: Annotated[
        str | None, typer.Option(help="Five fields, in UTC; default: 0 3 * * *, every night.")
    ] = None,
    every: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Instead: every so many minutes.", min=1)
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Also when the data changes; looks so often.", min=1),
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
    project = find()
    if cron is None and every is None and watch is None:
        cron = schedules.NIGHTLY
    name = name or params_file.load(project.root).register_.model
    wanted = schedules.Schedule(name, cron, every, watch, pool)
    schedules.serve(project, wanted, out)


@app.command()
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
        _print_json(offer.as_json(project.root, deleted))
    elif not dry_run and offer.items:
        out.print("deleted" if deleted else "nothing was deleted")


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="A data set; none: list them.")] = None,
) -> None:
    """Bring a known data set into data/ of the project (or of this folder), or list them.

    It comes from its system package's folder, else by download; else you are told what to install.

    Example: thawline data fashion_mnist
    """
    from tasks import catalogue

    if name is None:
        known = catalogue.known_data()
        _list({key: f"{entry.title} ({entry.licence})" for key, entry in known.items()})
        return
    try:
        root = find().root
    except ThawlineError:
        root = Path.cwd()
    print(catalogue.fetch_data(name, root))


@app.command()
def weights(
    names: Annotated[list[str] | None, typer.Argument(help="Backbones; none: list them.")] = None,
    problem: Annotated[str, typer.Option(help="What the backbones are for.")] = problems.DEFAULT,
) -> None:
    """Fetch weights of backbones ahead of time, or list those known by checksum.

    Example: thawline weights mobilenet_v2
    """
    from tasks import catalogue

    if not names:
        known = catalogue.known_weights()
        _list({key: f"{entry.title} ({entry.licence})" for key, entry in known.items()})
    if names:
        for name in names:
            print(problems.load(problem).fetch(name))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe; none: list them.")] = None,
) -> None:
    """Show what a recipe writes into params.yaml (thawline run --recipe NAME), or list them.

    Example: thawline recipes long
    """
    from tasks import recipes as known

    if name is None:
        _list({each: known.purpose(each) for each in known.names()})
    else:
        print(known.text(name), end="")


def _list(entries: dict[str, str]) -> None:
    for name, text in entries.items():
        out.print(f"{name}: {text}", highlight=False, soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
