"""`thawline retrain`: what changed, is it worth a training, is the new model better, what follows.

    bring data → what changed → decide → run the stages → record → gate → promote or keep → notify

The data version is recorded before the gate decides: what git refuses, or a kill, then leaves a
retraining that has not come to its end, and the next one does the rest.

Where several things ask for the same one (a slot of a schedule, on the same data), one is done:
see `tasks.claim`. One that was killed is taken up again by whoever asks next.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from rich.console import Console

from flows import champion, changes, data_branch, notice, past, repository, sharing
from flows.changes import Advice
from flows.project import DVC_FILE
from flows.run import Busy, Wish, held, run
from tasks import challenge, files, params_file, promotion, warm_start
from tasks.claim import TRIES, Claim
from tasks.decision import SKIP
from tasks.errors import ThawlineError
from tasks.ledger import BEGUN, KEPT, PROMOTION, SKIPPED, WAITING
from tasks.params import Params
from tasks.records import DataSummary, Project
from tasks.warm_start import WarmStart

BY_HAND = "by hand"
Kind = Literal["skipped", "done before", "kept", "promoted", "waiting", "failed"]
OUTCOMES: dict[str, Kind] = {PROMOTION: "promoted", WAITING: "waiting"}


@dataclass(frozen=True)
class Trigger:
    """What asked for a retraining."""

    deployment: str = BY_HAND
    slot: str = ""  # of its schedule, ISO 8601; empty: of none
    flow_run: str | None = None  # of Prefect


@dataclass(frozen=True)
class Retrained:
    """What came of it; `skipped` is nothing worth a training, `done before` another's work."""

    outcome: Kind
    sentence: str
    advice: Advice | None = None
    decision: dict[str, Any] | None = None  # of ledger and gate, as `thawline promote --json`
    commit: str | None = None  # of git, with the data version
    lines: list[str] = field(default_factory=list)  # for people, after the sentence

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "advice": self.advice and self.advice.as_json()}


def retrain(
    project: Project,
    console: Console,
    trigger: Trigger | None = None,
    force: bool = False,
    cold: bool = False,
) -> Retrained:
    """Do all of it; `force`: also where nothing is worth a training; `cold`: from the pretrained
    backbone in any case.

    Where another run holds the project, it waits or skips, as `retrain.overlap` says. Raises
    `ThawlineError` when the data cannot be used, a stage fails, or MLflow or git refuses.
    """
    params = _params(project)
    try:
        with held(project, console if params.retrain.overlap == "queue" else None):
            params = _params(project)  # somebody may have changed them while we waited
            made = _retrained(project, params, console, trigger or Trigger(), force, cold)
    except Busy as error:
        made = Retrained("skipped", f"{error} (retrain.overlap: skip)")
    except ThawlineError as error:
        notice.send(project, params, Retrained("failed", str(error)))
        raise
    notice.send(project, params, made)
    return made


def _params(project: Project) -> Params:
    params = params_file.load(project.root)
    data_branch.check(project, params.retrain.branch)
    return params


def _retrained(
    project: Project, params: Params, console: Console, trigger: Trigger, force: bool, cold: bool
) -> Retrained:
    with repository.opened(project) as repo:
        for path in repository.update_imports(repo):
            console.print(f"fetched {path} anew", highlight=False)
    for line in sharing.push_champion(project, params):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    advice = changes.advise(project, console)
    for line in advice.lines():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if advice.champion is None:  # nothing was compared, so the data is not up to date yet
        changes.prepare(project, params, console)
    wanted = _claim(project, trigger)
    why, skip = advice.decision.sentence, advice.decision.verdict == SKIP
    entries = promotion.entries(project, params)
    former = wanted.judged(entries)
    if former and not (cold and warm_start.KEY in former.evidence):
        skip, why = (
            True,
            (
                f"Skip: what this data makes was judged before (ledger: entry {former.number}, "
                f"{former.kind}); to do it all the same: thawline retrain --force"
            ),
        )
    if tries := wanted.tries(entries):
        why, skip = "begun before, and not finished", False
    if tries >= TRIES:
        skip, why = (
            True,
            (
                f"Skip: begun {tries} times with this data and these parameters, and never "
                "finished; mend what ends it (the logs tell), then: thawline retrain --force"
            ),
        )
    if force:
        why, skip = "asked for all the same", False
    decided, kind = {"decision": advice.decision.as_json()}, SKIPPED if skip else BEGUN
    claimed = promotion.claim(project, params, kind, wanted, decided, why)
    told = claimed.noticed
    if former := claimed.former:
        return Retrained("done before", f"Nothing to do: {former.sentence()}.", advice, lines=told)
    if skip:
        return Retrained("skipped", why, advice, lines=told)
    start, because = _start(project, params, advice, cold)
    console.print(because, highlight=False, markup=False, soft_wrap=True)
    warm_start.write(project.root, start)
    try:
        registration = run(project, Wish(), console).registration
    except ThawlineError:
        for line in told:  # the ledger has it, and nobody would be told again
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        raise
    made = _judged(project, params, advice, wanted)
    moved = registration.moved if registration else []
    return replace(made, lines=[*made.lines, *told, *moved])


def _start(
    project: Project, params: Params, advice: Advice, cold: bool
) -> tuple[WarmStart | None, str]:
    """What the training starts from, and why, in words."""
    known = past.champion(project, params)
    if cold:
        why = "asked for by --cold"
    elif warm_start.FILE not in (project.root / DVC_FILE).read_text(encoding="utf-8"):
        why = (
            f"{DVC_FILE} is from before {warm_start.FILE}; add it to the params of select and train"
        )
    elif known is None or advice.changes is None or advice.champion != known.number:
        why = "there is no champion to go on from"
    else:
        entries = promotion.entries(project, params)
        why = warm_start.why_not(
            params, known.params, advice.changes, known.backbone, entries, known.went_on
        )
        if known.digest and known.backbone and not why:
            start = WarmStart(
                params.register_.model,
                known.number,
                known.digest,
                known.backbone,
                warm_start.recipe(params),
                DataSummary.read(project.summary).digest,
            )
            return start, f"It goes on from {start}, as examples were only added."
    return None, f"It starts from the pretrained backbone: {why}."


def _claim(project: Project, trigger: Trigger) -> Claim:
    data = DataSummary.read(project.summary).digest
    params = files.sha256_file(project.root / params_file.PARAMS_FILE)
    return Claim(
        trigger.deployment, trigger.slot, data, params, str(project.root), trigger.flow_run
    )


def _judged(project: Project, params: Params, advice: Advice, claim: Claim) -> Retrained:
    """Record the data version, ask the gate, and do what it says."""
    branch = params.retrain.branch
    commit = data_branch.commit(project, branch, _message(params, claim))
    # Before any other machine can see a new champion, but for the first, which `run` registers.
    unshared = sharing.push(project)
    found, note = champion.judge(project, params)
    if found is None:  # registered as the first champion, or trained to the very same model
        first = advice.champion is None
        made = promotion.keep(
            project, params, None, claim.evidence(), reason="the model is champion already"
        )
        decision = {**asdict(made), "kind": PROMOTION if first else KEPT}
        lines = [*note, *made.noticed]
        sentence = f"{made.model}: version {made.to_version} is champion"
    else:
        made = challenge.decide(project, params, found, about=claim.evidence())
        champion.free(project, params)
        decision, lines = champion.answer(found, made, note)
        sentence = found.verdict.sentence
    outcome = OUTCOMES.get(decision["kind"], "kept")
    if commit:
        lines = [*lines, f"data version: commit {commit[:12]} on {branch}"]
    lines = [*lines, *unshared]
    return Retrained(outcome, sentence, advice, decision, commit, lines)


def _message(params: Params, claim: Claim) -> str:
    slot = f" of {claim.slot}" if claim.slot else ""
    return (
        f"Retrained {params.register_.model} on data {claim.data[:12]}\n\n"
        f"Asked {claim.deployment}{slot}; data {claim.data}. What came of it stands in the ledger "
        "(thawline status).\n"
    )
