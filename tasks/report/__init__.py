"""The report: one self-contained page about a run, `reports/report.html`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks import files
from tasks.params import Params
from tasks.records import Project
from tasks.report import formats, views

if TYPE_CHECKING:
    from jinja2 import Template


def write(project: Project, params: Params, seconds: float | None = None) -> Path:
    """Write the report of an evaluated project; `seconds`: what evaluation has taken so far."""
    path = project.reports / "report.html"
    page = render(project, params, seconds)
    with files.atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def render(project: Project, params: Params, seconds: float | None = None) -> str:
    """The page as text: no scripts, nothing loaded from anywhere, every name escaped."""
    return template("page.html.j2").render(views.context(project, params, seconds))


def template(name: str) -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(formats.FILTERS)
    return environment.get_template(name)
