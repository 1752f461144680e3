"""Options that a command takes for a problem: the keys of its section `prepare`, with - for _.

No command names them. They are what the problem at hand has (`--problem`), and `--help` lists them
with the explanations that stand in its `params.yaml`.
"""

from __future__ import annotations

from typing import Any

import typer
from rich.table import Table
from typer.core import TyperCommand

from flows.commands.console import out
from tasks import problems
from tasks.params import PrepareParams

_KEY = "thawline.own_options"


class OwnOptions(TyperCommand):
    """A command with `--problem` that takes such options anywhere among its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises `UnknownName` for a problem that there is not."""
        from flows import new

        problem = new.problem_of(_value("--data", args) or "", _value("--problem", args))
        given = {name for parameter in self.params for name in parameter.opts}
        own = {name: key for key, name in names(problem).items() if name not in given}
        ctx.meta[_KEY] = (problem, own, *_taken(args, own))
        return super().parse_args(ctx, ctx.meta[_KEY][-1])

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        problem, own, *_ = ctx.meta[_KEY]
        table = Table.grid(padding=(0, 2))
        said = explanations(problem)
        for name, key in own.items():
            table.add_row(f"  {name}", said.get(key, ""))
        out.print(f" Options of {problem}, keys of its section prepare:", markup=False)
        out.print(table, markup=False)
        example = f"thawline {ctx.info_name} … --problem {problem} {_example(problem)}"
        out.print(f"\n Example: {example}", markup=False, highlight=False)
        others = ", ".join(name for name in problems.names() if name != problem)
        if others:
            out.print(f" With --problem NAME --help, those of {others}.\n", markup=False)


def given(context: typer.Context) -> dict[str, str]:
    """What the user gave of them: key of `prepare` → value as typed."""
    found: dict[str, str] = context.meta[_KEY][2]
    return found


def names(problem: str) -> dict[str, str]:
    """Key → option of each key of a problem's section `prepare` that is a single value or list."""
    fields = problems.load(problem).sections().prepare.model_fields
    return {k: f"--{k.replace('_', '-')}" for k in fields if k not in ("data", "split")}


def explanations(problem: str) -> dict[str, str]:
    """Key → what it means: as the schema or `params.yaml` says."""
    from flows import new

    said = new.explained(problem, "prepare")
    fields = problems.load(problem).sections().prepare.model_fields
    return said | {key: field.description for key, field in fields.items() if field.description}


def _example(problem: str) -> str:
    """An option that only this problem has, with a value that it can have."""
    fields = problems.load(problem).sections().prepare.model_fields
    own = {k: f.default for k, f in fields.items() if k not in PrepareParams.model_fields}
    texts = (f"{names(problem)[k]} {value}" for k, value in own.items() if isinstance(value, str))
    return next(texts, "")


def _value(option: str, args: list[str]) -> str | None:
    return _taken(args, {option: option})[0].get(option)


def _taken(args: list[str], own: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The values of such options, and the arguments without them.

    Raises `typer.BadParameter` where a value is missing.
    """
    found: dict[str, str] = {}
    rest: list[str] = []
    left = iter(args)
    for argument in left:
        name, separator, value = argument.partition("=")
        if name not in own:
            rest.append(argument)
            continue
        value = value if separator else next(left, "")
        if not value:
            raise typer.BadParameter(f"{name} needs a value")
        found[own[name]] = value
    return found, rest
