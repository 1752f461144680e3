"""`thawline promote` and `thawline rollback`: a person decides who is champion."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flows import checkout as checkouts
from tasks import params_file, promotion
from tasks.promotion import Outcome
from tasks.records import Project

BY_PERSON = {"decided_by": "person"}  # evidence; the gate's verdict says which rules decided


def promote(
    project: Project, version: str, expected: int | None, reason: str
) -> tuple[dict[str, Any], list[str]]:
    """Make a version champion; the answer for programs, and the lines for people."""
    values = params_file.load(project.root)
    made = promotion.promote(project, values, version, BY_PERSON, expected, reason)
    return asdict(made), _lines(made)


def rollback(
    project: Project, to: int | None, reason: str, checkout: bool
) -> tuple[dict[str, Any], list[str]]:
    """Bring an earlier champion back, and when asked its code and data with it."""
    values = params_file.load(project.root)
    if checkout:
        checkouts.require_clean(project)
    made = promotion.rollback(project, values, to, reason)
    told = checkouts.restore(project, made) if checkout else []
    return {**asdict(made), "checked_out": checkout}, [*_lines(made), *_origin(made), *told]


def _lines(made: Outcome) -> list[str]:
    if made.entry is None:
        return [f"{made.model}: version {made.to_version} is champion already"]
    before = f" (before: version {made.from_version})" if made.from_version else ""
    return [
        f"{made.model}: version {made.to_version} is champion{before}",
        f"ledger: entry {made.entry}, {made.kind}",
        *made.noticed,
    ]


def _origin(made: Outcome) -> list[str]:
    """The code and data versions that belong to the champion."""
    dirty = ", with changes that were not committed" if made.dirty else ""
    commit = f"{made.commit[:12]}{dirty}" if made.commit else "none (made outside of git)"
    return [f"code: git commit {commit}", *(f"data: {p} {h}" for p, h in made.hashes.items())]
