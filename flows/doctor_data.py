"""`thawline doctor --data`: what some data says before there is a project for it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from flows import new
from flows.doctor import Finding
from tasks import params_file, problems
from tasks.errors import ThawlineError
from tasks.params import Params
from tasks.params import replace as changed
from tasks.records import SPLITS, DataSummary, Inspection, Project

NAMED = 5  # examples that a finding names


def examine(wanted: new.Wanted) -> list[Finding]:
    """Prepare and inspect some data in a folder that is gone afterwards; `wanted.folder` is not
    used. Data that cannot be used is a finding too."""
    with tempfile.TemporaryDirectory(prefix="thawline-") as name:
        folder = Path(name) / "data"
        try:
            new.make(replace(wanted, folder=folder))
            project, params = Project(folder), params_file.load(folder)
            return list(_findings(project, _inspected(project, params)))
        except ThawlineError as error:
            return [Finding("data", "fail", str(error), "mend it before training")]
        except OSError as error:  # such as a full disk
            advice = "set TMPDIR to a folder with room: the data is decoded there"
            return [Finding("data", "fail", f"{error.strerror} ({error.filename})", advice)]


def _inspected(project: Project, params: Params) -> Inspection:
    from tasks import augment, embed, inspect, prepare, select

    problem = problems.load(params.problem)
    backbone = problem.LOOKS_WITH
    params = changed(params, {"embed.backbones": [backbone], "select.backbone": backbone})
    problem.fetch(backbone)
    prepare.run(project, params)
    augment.run(project, params)
    embed.run(project, params, backbone)
    select.run(project, params)
    inspect.run(project, params)
    return Inspection.read(project.inspection)


def _findings(project: Project, found: Inspection) -> Iterator[Finding]:
    import pandas as pd

    from tasks import raw_examples
    from tasks.inspect import sentences

    summary = DataSummary.read(project.summary)
    counts = ", ".join(f"{sum(summary.counts[split].values()):,} {split}" for split in SPLITS)
    classes = "labels, several an example" if summary.labelling.several else "classes"
    yield Finding("data", "ok", f"{len(summary.classes)} {classes}; {counts}")
    labels = pd.read_parquet(project.manifest, columns=["label", "source"])
    for sentence in raw_examples.like_missing(labels, summary.labelling.several):
        yield Finding("missing label?", "warn", sentence, raw_examples.IF_MISSING)
    for what, notes, advice in (
        ("unreadable", summary.unreadable, "set aside"),
        ("copies", summary.exact_duplicates, "left out"),
        ("two labels", summary.conflicts, "the same content under two labels: left out"),
        (
            "near-duplicates",
            summary.details.get("near_duplicates_left_out", []),
            "left out, as they would leak between splits",
        ),
    ):
        if notes:
            yield Finding(what, "warn", f"{len(notes)}: {_sources(notes)}", advice)
    if found.certificate["holds"]:
        told = f"none between splits (certificate {found.certificate['sha256'][:12]})"
        yield Finding("leaks", "ok", told)
    lists = {"wrong labels": found.label_errors, "outliers": found.outliers}
    for sentence in sentences(found):
        leaks = sentence.startswith("Examples leak")
        yield Finding("leaks" if leaks else "look", "fail" if leaks else "warn", sentence)
    for what, examples in lists.items():
        if examples:
            yield Finding(what, "warn", _sources(examples), "the surest first")


def _sources(notes: list[dict[str, str]]) -> str:
    more = f" and {len(notes) - NAMED} more" if len(notes) > NAMED else ""

    def told(note: dict[str, str]) -> str:
        return (
            f"{note['source']} ({note['label']} → {note['likely']})"
            if "likely" in note
            else (str(note["source"]))
        )

    return ", ".join(told(note) for note in notes[:NAMED]) + more
