"""The report of a model that the gate has judged: the page of `evaluate`, and the gate's section.

A page of its own, since `report.html` is an output of DVC's, written before a model is packaged.
"""

from __future__ import annotations

from pathlib import Path

from tasks import files, judgement
from tasks.records import Project

BEFORE = '<section id="figures">'  # the section after the headline
STYLES = {"passed": "proof", "failed": "failure", "undecided": "", "skipped": "muted"}


def page(project: Project) -> Path:
    """Where the report is: with the gate's section, written anew, once this model was judged."""
    path = project.reports / "report.html"
    found = judgement.current(project)
    if found is None or not path.is_file():
        return path
    from tasks.report import template

    section = template("gate.html.j2").render(found=found, styles=STYLES)
    source = path.read_text(encoding="utf-8").replace(BEFORE, f"{section}{BEFORE}", 1)
    with files.atomic(project.reports / "gate.html") as temporary:
        temporary.write_text(source, encoding="utf-8")
    return project.reports / "gate.html"
