"""challenge: the gate judges the challenger of the registry against its champion; what follows.

`judge` gathers what both bring and keeps what the gate says: in `reports/gate.json`, with the
report, and in tags of the challenger. `decide` acts on it through the ledger, where a verdict
against a champion that was moved meanwhile decides nothing, and a person's approval counts for what
that person was asked about alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tasks import files, gate, predict, promotion, warm_start
from tasks.desk import Outcome
from tasks.errors import ThawlineError
from tasks.gate import GateParams, Verdict, collect
from tasks.gate.together import together
from tasks.judgement import Judgement
from tasks.ledger import (
    BY_HAND,
    CHALLENGER,
    CHAMPION,
    KEPT,
    MOVES,
    ROLLBACK,
    WAITING,
    Entry,
    Ledger,
    champion,
    questions,
)
from tasks.params import Params
from tasks.promotion import NOBODY
from tasks.records import Project
from tasks.redaction import redacted
from tasks.register import packaged
from tasks.report import judged
from tasks.tracking import registry, store


def judge(
    project: Project, params: Params, expected: int | None = None, past: Project | None = None
) -> Judgement | None:
    """Ask the gate about the packaged model; None when it is champion already.

    `past`: a project whose prepared data is the champion's, so that both are judged on its test set
    and on what has come since; without it, on the test examples that both have seen. Without a
    champion, the commonest class is to beat. What was rolled back from, or taken down by hand, is
    not promoted again without a person. Raises `ThawlineError` when the challenger is not the
    packaged model, or the champion not `expected` (`NOBODY`: none).
    """
    packaged(project)  # refuses where there is none
    name = params.register_.model
    with store.connect(project.root) as client:
        aliases = registry.aliases(client, name)
        number, rival = registry.require(aliases, name, CHALLENGER), aliases.get(CHAMPION)
        if expected is not None:
            promotion.require_same(name, rival or NOBODY, expected)
        _require_packaged(project, name, registry.get(client, name, number))
        if rival == number:
            return None
        reigning = registry.get(client, name, rival) if rival else None
        taken_down = _taken_down(Ledger(client, project, name), number)
    own = collect.of_project(project, params, f"{name} version {number}")
    other = collect.of_version(project, params, reigning) if reigning else None
    if reigning and other and past:
        own, other = together(project, params, own, other, _files(project, params, reigning), past)
    verdict = gate.judge(own, other, GateParams.of(params))
    action, note = verdict.action(params.promote), ""
    if action == "promote" and taken_down:
        action, note = "ask", f"version {number} {taken_down}, so a person decides"
    found = Judgement(name, number, rival, action, verdict, note)
    found.write(project)
    judged.page(project)
    with store.connect(project.root) as client:
        registry.tag(client, name, number, redacted(verdict.tags()))
    return found


def decide(
    project: Project,
    params: Params,
    found: Judgement,
    approved: bool = False,
    reason: str = "",
    about: Mapping[str, Any] = MappingProxyType({}),
    asked: int | None = None,
) -> Outcome:
    """Promote, keep, or wait for a person, who has `approved` or not been asked yet.

    `about`: what else belongs to the evidence. `asked`: the entry of the ledger that the person
    answers; without it, the last one about this version.
    Raises `ThawlineError` when the champion was moved since, or a person approves of what failed,
    or of something else than what was asked.
    """
    verdict, number = found.verdict, found.challenger
    if approved and verdict.decision == "keep":
        raise ThawlineError(
            f"{verdict.sentence} To promote version {number} all the same, by your own decision: "
            f"thawline promote --version {number} --reason TEXT"
        )
    if approved and (asked or found.action != "promote"):
        _require_asked(promotion.entries(project, params), found, asked)
    by = "person" if approved else "gate"
    evidence: dict[str, Any] = {"decided_by": by, "verdict": verdict.as_json(), **about}
    if start := files.read_json(project.models / "model.json").get(warm_start.KEY):
        evidence[warm_start.KEY] = f"version {start['version']}"
    expected, reason = found.champion or NOBODY, reason or found.note
    if approved or found.action == "promote":
        return promotion.promote(project, params, str(number), evidence, expected, reason)
    kind = WAITING if found.action == "ask" else KEPT
    return promotion.keep(project, params, number, evidence, expected, reason, kind)


def _taken_down(book: Ledger, number: int) -> str:
    """How a version lost the championship without being beaten; empty: it did not.

    The challenger is not champion, so one that the ledger has as champion was moved by hand, and
    that is no entry yet; unless its promotion is still to be finished.
    """
    ends = {(e.kind, e.from_version) for e in book.read() if e.alias == CHAMPION}
    unfinished = book.pending is not None and book.pending.kind in MOVES
    if (ROLLBACK, number) in ends:
        return "was rolled back from"
    if (BY_HAND, number) in ends or (champion(book.entries) == number and not unfinished):
        return "was taken down by hand"
    return ""


def _require_asked(entries: list[Entry], found: Judgement, asked: int | None) -> None:
    """Raises `ThawlineError` unless a person was asked about this very version and verdict."""
    number, name = found.challenger, found.model
    open_ = [entry for entry in questions(entries) if entry.from_version == found.champion]
    wanted = [entry for entry in open_ if asked in (None, entry.number)]
    about = [entry for entry in wanted if entry.evidence.get("challenger") == number]
    if not about:
        next_step = "ask the gate with: thawline promote"
        if open_:
            other = (wanted or open_)[0].evidence.get("challenger")
            next_step = (
                f"the question was about version {other}, and to promote that one: thawline "
                f"promote --version {other} --reason TEXT"
            )
        raise ThawlineError(
            f"nobody was asked about version {number} of {name!r} against the champion of now, so "
            f"there is nothing to approve and nothing was changed; {next_step}"
        )
    then = Verdict.from_json(about[0].evidence["verdict"])
    if _states(then) != _states(found.verdict):
        raise ThawlineError(
            f"the gate says something else of version {number} of {name!r} now than when a person "
            f"was asked (ledger: entry {about[0].number}), so nothing was changed: "
            f"{found.verdict.sentence} To be asked anew: thawline promote"
        )


def _states(verdict: Verdict) -> dict[str, str]:
    return {rule.name: rule.state for rule in verdict.rules}


def _files(project: Project, params: Params, version: registry.Version) -> Path:
    """The packaged folder of a registered version, checked."""
    name = params.register_.model
    with store.connect(project.root) as client:
        return predict.packaged_copy(client, name, version.number)


def _require_packaged(project: Project, name: str, challenger: registry.Version) -> None:
    if challenger.digest != files.read_json(project.models / "digests.json")["model_digest"]:
        raise ThawlineError(
            f"the challenger (version {challenger.number} of {name!r}) is not the model packaged "
            f"in {project.models}, so nothing here speaks for it; make that the challenger with: "
            "thawline register"
        )
