"""Progress of long work: a bar on a terminal, or a small file that the flow's view reads."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

PROGRESS_FILE = "THAWLINE_PROGRESS"  # environment variable: where the flow wants to read it
PROCESS = "LOCAL_RANK"  # environment variable: of several processes, the first shows progress


class Advance(Protocol):
    """Call it with how much more is done, and figures to show beside the bar."""

    def __call__(self, n: int = 1, **figures: Any) -> None: ...


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Show progress over `total` items; yields the function that advances it.

    >>> with progress("embedding", total=100) as advance:
    ...     advance(64)
    """
    if os.environ.get(PROCESS, "0") != "0":
        yield lambda n=1, **figures: None
    elif path := os.environ.get(PROGRESS_FILE):
        yield _file_reporter(Path(path), what, total)
    elif sys.stderr.isatty():
        with _bar() as bar:
            item = bar.add_task(what, total=total, figures="")

            def advance(n: int = 1, **figures: Any) -> None:
                bar.update(item, advance=n, figures=describe(figures))

            yield advance
    else:
        yield lambda n=1, **figures: None


def describe(figures: dict[str, Any]) -> str:
    """Figures as text, such as `loss 0.41  accuracy 0.88`."""
    shown = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
    return "  ".join(shown)


def _file_reporter(path: Path, what: str, total: int) -> Advance:
    state: dict[str, Any] = {"what": what, "done": 0, "total": total, "started": time.time()}
    written = 0.0

    def advance(n: int = 1, **figures: Any) -> None:
        nonlocal written
        state["done"] += n
        state["figures"] = describe(figures)
        now = time.monotonic()
        if now - written > 0.2 or state["done"] >= total:
            written = now
            temporary = path.with_suffix(".tmp")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_text(json.dumps(state), encoding="utf-8")
                temporary.replace(path)
            except OSError:
                pass  # a full disk must not end the work over its progress bar

    advance(0)
    return advance


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True),
    )
