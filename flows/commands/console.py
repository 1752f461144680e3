"""What all commands share: the app, the consoles, and JSON for programs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

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


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
