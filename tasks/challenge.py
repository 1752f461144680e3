"""challenge: the gate judges the challenger of the registry against its champion; what follows.

`judge` gathers what both bring and keeps what the gate says: in `reports/gate.json`, with the
report, and in tags of the challenger. `decide` acts on it through the ledger, where a verdict
against a champion that was moved meanwhile decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tasks import files, gate, predict, promotion, warm_start
from tasks.desk import Outcome
from tasks.errors import ThawlineError
from tasks.gate import GateParams, collect
from tasks.gate.together import together
from tasks.judgement import Judgement
from tasks.ledger import CHALLENGER, CHAMPION, KEPT, ROLLBACK, WAITING, Ledger
from tasks.params import Params
from tasks.promotion import NOBODY
from tasks.records import Project
from tasks.register import packaged
from tasks.report import judged
from tasks.tracking import registry, store


def judge(
    project: Project, params: Params, expected: int | None = None, past: Project | None = None
) -> Judgement | None:
    """Ask the gate about the packaged model; None when it is champion already.

    `past`: a project whose prepared data is the champion's, so that both are judged on its test set
    and on what has come since; without it, on the test examples that both have seen. Without a
    champion, the commonest class is to beat. What was rolled back from is not promoted again
    without a person. Raises `ThawlineError` when the challenger is not the packaged model,
    or the champion not `expected` (`NOBODY`: none).
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
        champion = registry.get(client, name, rival) if rival else None
        entries = Ledger(client, project, name).read()
    own = collect.of_project(project, params, f"{name} version {number}")
    other = collect.of_version(project, params, champion) if champion else None
    if champion and other and past:
        own, other = together(project, params, own, other, _files(project, params, champion), past)
    verdict = gate.judge(own, other, GateParams.of(params))
    action, note = verdict.action(params.promote), ""
    if action == "promote" and (ROLLBACK, number) in {(e.kind, e.from_version) for e in entries}:
        action, note = "ask", f"version {number} was rolled back from, so a person decides"
    found = Judgement(name, number, rival, action, verdict, note)
    found.write(project)
    judged.page(project)
    with store.connect(project.root) as client:
        registry.tag(client, name, number, verdict.tags())
    return found


def decide(
    project: Project,
    params: Params,
    found: Judgement,
    approved: bool = False,
    reason: str = "",
    about: Mapping[str, Any] = MappingProxyType({}),
) -> Outcome:
    """Promote, keep, or wait for a person, who has `approved` or not been asked yet.

    `about`: what else belongs to the evidence.
    Raises `ThawlineError` when the champion was moved since, or a person approves of what failed.
    """
    verdict, number = found.verdict, found.challenger
    if approved and verdict.decision == "keep":
        raise ThawlineError(
            f"{verdict.sentence} To promote version {number} all the same, by your own decision: "
            f"thawline promote --version {number} --reason TEXT"
        )
    by = "person" if approved else "gate"
    evidence: dict[str, Any] = {"decided_by": by, "verdict": verdict.as_json(), **about}
    if start := files.read_json(project.models / "model.json").get(warm_start.KEY):
        evidence[warm_start.KEY] = f"version {start['version']}"
    expected, reason = found.champion or NOBODY, reason or found.note
    if approved or found.action == "promote":
        return promotion.promote(project, params, str(number), evidence, expected, reason)
    kind = WAITING if found.action == "ask" else KEPT
    return promotion.keep(project, params, number, evidence, expected, reason, kind)


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
