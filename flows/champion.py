"""`thawline promote` and `thawline rollback`: the gate or a person decides who is champion."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows import checkout as checkouts
from flows import notice, past
from tasks import ledger, params_file, promotion
from tasks.claim import KEY
from tasks.desk import Outcome
from tasks.errors import ThawlineError
from tasks.judgement import Judgement
from tasks.ledger import CHAMPION, KEPT, WAITING
from tasks.params import Params
from tasks.records import Project

BY_PERSON = {"decided_by": "person"}  # evidence; the gate's verdict says which rules decided
STYLES = {"passed": "green", "failed": "bold red", "undecided": "yellow", "skipped": "dim"}

Answer = tuple[dict[str, Any], list[str]]  # for programs, and the lines for people


def ask_gate(
    project: Project,
    expected: int | None,
    approved: bool,
    reason: str,
    asked: int | None = None,
) -> Answer:
    """Let the gate judge the challenger, and do what it says, or what a person says to that.

    `asked`: the entry of the ledger that the person answers; without it, the last one about the
    challenger. Raises `ThawlineError` where it was about another version, champion or verdict.
    """
    from tasks import challenge  # heavy, and a rollback wants to be quick

    values = params_file.load(project.root)
    found, note = judge(project, values, expected)
    if found is None:
        made = promotion.promote(project, values, CHAMPION, {})  # it is: nothing changes
        free(project, values)
        return asdict(made), _lines(made)
    made = challenge.decide(project, values, found, approved, reason, asked=asked)
    free(project, values)
    return answer(found, made, note)


def answer(found: Judgement, made: Outcome, note: list[str]) -> Answer:
    """What the gate said, and what followed."""
    told = [*note, *_lines(made), *_to_answer(found, made)]
    return {**asdict(made), "gate": found.as_json()}, told


def judge(
    project: Project, values: Params, expected: int | None = None
) -> tuple[Judgement | None, list[str]]:
    """Ask the gate on the champion's test set and on what has come since; a note where it cannot.

    The judgement is None when the packaged model is champion already.
    """
    from tasks import challenge

    data, note = None, []
    known = past.champion(project, values)
    if known is not None:
        try:
            data = past.data(project, known)
        except ThawlineError as error:
            note = [f"judged on the test examples that both models have seen alone: {error}"]
    return challenge.judge(project, values, expected, data), note


def promote(project: Project, version: str, expected: int | None, reason: str) -> Answer:
    """Make a version champion, whatever the gate would say."""
    values = params_file.load(project.root)
    made = promotion.promote(project, values, version, BY_PERSON, expected, reason)
    free(project, values)
    return asdict(made), _lines(made)


def rollback(project: Project, to: int | None, reason: str, checkout: bool) -> Answer:
    """Bring an earlier champion back, and when asked its code and data with it."""
    values = params_file.load(project.root)
    if checkout:
        checkouts.require_clean(project)
    made = promotion.rollback(project, values, to, reason)
    free(project, values)
    told = checkouts.restore(project, made) if checkout else []
    return {**asdict(made), "checked_out": checkout}, [*_lines(made), *_origin(made), *told]


def free(project: Project, values: Params) -> None:
    """Let the scheduled flows go on that wait for answers which a move of the champion gave, or
    made void: what becomes of each, it finds in the ledger."""
    since = (datetime.now(UTC) - notice.WAIT).isoformat()
    closed = [x for x in ledger.closed(promotion.entries(project, values)) if x.time > since]
    claims = [entry.evidence.get(KEY) or {} for entry in closed]
    runs = {claim["flow_run"] for claim in claims if claim.get("flow_run")}
    if runs and notice.known_server(project):
        for run in runs:
            notice.resume(run)


def show(console: Console, answer: Answer) -> None:
    """Print a decision for a person, after what the gate said."""
    verdict = answer[0].get("gate", {}).get("verdict")
    if verdict:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for heading in ("rule", "", "what was found"):
            table.add_column(heading)
        for rule in verdict["rules"]:
            state = Text(rule["state"], STYLES[rule["state"]])
            table.add_row(rule["name"].replace("_", " "), state, Text(rule["sentence"]))
        console.print(Text(verdict["sentence"], "bold"), soft_wrap=True)
        console.print(table)
    for line in answer[1]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _lines(made: Outcome) -> list[str]:
    if made.entry is None:
        return [f"{made.model}: version {made.to_version} is champion already"]
    if made.kind in (KEPT, WAITING):
        now = f"version {made.to_version} stays champion" if made.to_version else "no champion yet"
    else:
        before = f" (before: version {made.from_version})" if made.from_version else ""
        now = f"version {made.to_version} is champion{before}"
    return [f"{made.model}: {now}", f"ledger: entry {made.entry}, {made.kind}", *made.noticed]


def _to_answer(found: Judgement, made: Outcome) -> list[str]:
    """How a person answers, where one is asked."""
    if made.kind != WAITING:
        return []
    note = [found.note] if found.note else []
    return [*note, f"version {found.challenger} waits for you: thawline promote --approve"]


def _origin(made: Outcome) -> list[str]:
    """The code and data versions that belong to the champion."""
    dirty = ", with changes that were not committed" if made.dirty else ""
    commit = f"{made.commit[:12]}{dirty}" if made.commit else "none (made outside of git)"
    return [f"code: git commit {commit}", *(f"data: {p} {h}" for p, h in made.hashes.items())]
