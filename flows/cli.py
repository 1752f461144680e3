"""The command line: `thawline`, with the commands of `flows/commands`.

Exit codes: 0; 1 for what the user can mend or must know (one sentence on stderr); 2 for wrong use;
3 where a person is to decide (promote, retrain); 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from typing import Annotated

import typer

from flows.commands.console import app
from flows.project import begin
from tasks.errors import ThawlineError

__all__ = ["app", "main"]

for group in ("pipeline", "lifecycle", "operations", "library"):  # the order of --help
    import_module(f"flows.commands.{group}")


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


if __name__ == "__main__":
    main()
