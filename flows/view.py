"""What a person sees while stages run: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows import board as boards
from flows.board import StageState, Standing
from tasks import files
from tasks.records import Project

STYLES = {
    "waiting": "dim",
    "running": "bold cyan",
    "unchanged": "green dim",
    "restored": "green",
    "done": "green",
    "failed": "bold red",
    "stopped": "yellow",
    "not run": "dim",
}


class Show(Protocol):
    def __call__(self, standing: Standing | None) -> None: ...


@contextlib.contextmanager
def view(project: Project, console: Console) -> Iterator[Show]:
    """Yields what shows a run's standing; call it again whenever it may have changed."""
    if not console.is_terminal:
        yield _lines(console)
        return
    with Live(console=console, refresh_per_second=8, transient=False) as live:

        def show(standing: Standing | None) -> None:
            live.update(Text("starting …", "dim") if standing is None else table(project, standing))

        show(None)
        yield show


def table(project: Project, standing: Standing) -> Table:
    """Stage, state, seconds and the stage's own progress."""
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("stage", "state", "seconds", ""):
        grid.add_column(heading, justify="right" if heading == "seconds" else "left")
    for stage in standing.stages:
        state = stage.state + (f" (attempt {stage.attempt})" if stage.attempt > 1 else "")
        seconds = _seconds(stage)
        grid.add_row(
            stage.stage,
            Text(state, STYLES[stage.state]),
            "" if seconds is None else f"{seconds:.1f}",
            _progress(project, stage) if stage.state == "running" else "",
        )
    if standing.flow_run_id is None and not standing.finished:
        grid.caption = "starting Prefect …"  # its own server takes some seconds
        grid.caption_justify = "left"
    return grid


def _seconds(stage: StageState) -> float | None:
    if stage.state == "running" and stage.started is not None:
        return time.time() - stage.started
    return stage.seconds


def _progress(project: Project, stage: StageState) -> Any:
    """The stage's bar with what it does, how far it is, time left and figures."""
    try:
        report = files.read_json(boards.progress_file(project, stage.stage))
        what, done, total = str(report["what"]), int(report["done"]), max(1, int(report["total"]))
        spent = time.time() - float(report["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    bar = Table.grid(padding=(0, 1, 0, 0))
    left = f"{spent / done * (total - done):.0f} s left" if done else ""
    figures = str(report.get("figures", ""))
    bar.add_row(what, ProgressBar(total, done, width=20), f"{done}/{total}", left, figures)
    return bar


def _lines(console: Console) -> Show:
    """One line whenever a stage starts or ends."""
    seen: dict[str, tuple[str, int]] = {}

    def show(standing: Standing | None) -> None:
        for stage in standing.stages if standing else ():
            now = (stage.state, stage.attempt)
            if stage.state == "waiting" or seen.get(stage.stage) == now:
                continue
            seen[stage.stage] = now
            cost = "" if stage.seconds is None else f"  {stage.seconds:.1f} s"
            again = f" (attempt {stage.attempt})" if stage.attempt > 1 else ""
            console.print(f"{stage.stage}: {stage.state}{again}{cost}", highlight=False)

    return show


def follow(
    project: Project, console: Console, running: Callable[[], bool], begun: float
) -> Standing | None:
    """Show the run until all its stages have ended, or its process has; returns the standing."""
    with view(project, console) as show:
        while True:
            alive = running()
            standing = boards.read(project)
            if standing is not None and standing.begun < begun:
                standing = None  # of an earlier run
            show(standing)
            if not alive or (standing is not None and standing.finished):
                return standing
            time.sleep(0.1)
