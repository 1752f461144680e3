"""The select stage: every candidate's score, cost and rank; the choice and why.

The score is the mean of two leave-one-out accuracies on the frozen features of train + validation,
a ridge head's and k nearest neighbours', less what the backbone costs:

    score = (ridge + knn) / 2 − cost_weight × log(cost / cost of the cheapest) / log(1000)

so `cost_weight` is the accuracy that a candidate of a thousand times the cost has to bring, and
a third of it for ten times; `prefer` says whether the cost is compute or parameters. Equal scores
go to the cheaper one, then to the first name. Candidates whose scores are close are raced
(`tasks.contest`), since what thawing brings does not show in frozen features.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tasks import plugins, problems, ridge
from tasks.embed import deepest, drop_unlisted
from tasks.errors import ThawlineError
from tasks.params import Params, SelectParams
from tasks.progress import progress
from tasks.records import Candidate, DataSummary, Embedding, Project, Selection, ViewPolicy

if TYPE_CHECKING:
    from tasks.contest import Outcome

Features = npt.NDArray[np.float32]
Targets = npt.NDArray[np.int64]

NEIGHBOURS = 10
MAX_EXAMPLES = 5000  # more would take minutes and not change the order
CLOSE = 0.03  # of the best score: candidates that only a race can tell apart
log = logging.getLogger(__name__)

TIMED, WARM_UP = 25, 5  # single images that are timed, and those not counted
_COST_SPAN = 1000.0


def run(project: Project, params: Params) -> None:
    """Rank the listed backbones and write the choice.

    What is left of others goes, also when DVC alone runs the stages: DVC notes the folder as it is
    afterwards, and what follows then reads the same as after `thawline run`. Raises `ThawlineError`
    when no candidate is within the limits.
    """
    names, options = params.embed.backbones, params.select
    drop_unlisted(project, names)
    embeddings = {n: Embedding.read(project.features(n) / "embedding.json") for n in names}
    measured = []
    with progress("comparing backbones", len(names)) as advance:
        for name, embedding in embeddings.items():
            features, targets = _features(project, embedding, params.seed)
            candidate = _candidate(embedding, features, targets)
            measured.append(replace(candidate, ruled_out=_beyond(project, params, candidate)))
            advance(backbone=name)
    ranked = rank(measured, options)
    automatic = options.backbone == "auto"
    _require_one(ranked if automatic else [c for c in ranked if c.backbone == options.backbone])
    selections = {name: _selection(project, embeddings[name]) for name in names}
    agreement: dict[str, Any] = {}
    if automatic and len(close := shortlist(ranked, options.race)) > 1:
        from tasks import contest

        contenders = [selections[candidate.backbone] for candidate in close]
        outcome = contest.run(project, params, contenders, worth(ranked, options))
        ranked, agreement = by_race(ranked, outcome)
    chosen = ranked[0].backbone if automatic else options.backbone
    replace(
        selections[chosen],
        why=why(ranked, chosen, automatic, agreement.get("lead")),
        candidates=ranked,
        agreement=agreement,
    ).write(project.selection)


def rank(candidates: Sequence[Candidate], options: SelectParams) -> list[Candidate]:
    """The candidates with score and rank, best first, those beyond a limit last."""
    value = worth(candidates, options)

    def score(candidate: Candidate) -> float:
        return round(value(candidate.backbone, (candidate.ridge + candidate.knn) / 2), 6)

    scored = [replace(candidate, score=score(candidate)) for candidate in candidates]
    scored.sort(key=lambda c: (bool(c.ruled_out), -c.score, c.flops, c.backbone))
    return [replace(candidate, rank=i) for i, candidate in enumerate(scored, start=1)]


def worth(candidates: Sequence[Candidate], options: SelectParams) -> Callable[[str, float], float]:
    """What an accuracy of a backbone is worth, less what it costs against the cheapest."""
    costs = {c.backbone: max(1, _cost(c, options.prefer)) for c in candidates}
    cheapest = min(costs.values())
    weight = 0.0 if options.prefer == "accuracy" else options.cost_weight

    def value(backbone: str, accuracy: float) -> float:
        return accuracy - weight * math.log(costs[backbone] / cheapest) / math.log(_COST_SPAN)

    return value


def shortlist(ranked: Sequence[Candidate], most: int) -> list[Candidate]:
    """The candidates that a race has to tell apart: the best, and those close behind it."""
    allowed = [c for c in ranked if not c.ruled_out]
    return [c for c in allowed[:most] if c.score >= allowed[0].score - CLOSE]


def by_race(
    candidates: Sequence[Candidate], outcome: Outcome
) -> tuple[list[Candidate], dict[str, Any]]:
    """The candidates ranked anew, those of the race first, and what it says about the scores:
    `same_first`, Kendall's `tau`, the `lead` in accuracy of the one that came furthest over the
    one with the best score (null: the same), and the race's `multiply_adds`."""
    from scipy.stats import kendalltau

    by_name = {c.backbone: c for c in candidates}
    raced = [replace(by_name[name], race=outcome.rounds[name]) for name in outcome.order]
    tau = kendalltau([c.rank for c in raced], range(len(raced))).statistic
    agreement = {
        "same_first": raced[0].rank == min(c.rank for c in raced),
        "tau": round(float(tau), 4),
        "lead": outcome.lead,
        "multiply_adds": sum(r["multiply_adds"] for c in raced for r in c.race),
    }
    ordered = [*raced, *(c for c in candidates if c.backbone not in outcome.rounds)]
    return [replace(c, rank=i) for i, c in enumerate(ordered, start=1)], agreement


def why(
    ranked: Sequence[Candidate],
    chosen: str,
    automatic: bool,
    lead: dict[str, float] | None = None,
) -> str:
    """One sentence on the choice; `lead` as in `by_race`."""
    best = next(c for c in ranked if c.backbone == chosen)
    figures = (
        f"leave-one-out accuracy {best.ridge:.3f} with a ridge head and {best.knn:.3f} with "
        f"nearest neighbours, at {best.flops / 1e9:.2f} billion multiply-adds an image"
    )
    allowed = [c for c in ranked if not c.ruled_out]
    out = f"; {len(ranked) - len(allowed)} beyond a limit" if len(allowed) < len(ranked) else ""
    if not automatic:
        return (
            f"{chosen} is set by select.backbone ({figures}); "
            f"by score it is number {best.rank} of {len(ranked)}."
        )
    if len(allowed) == 1:
        return f"{chosen} is the only candidate{out} ({figures})."
    second = allowed[1]
    if best.race:
        last = min(len(best.race), len(second.race)) - 1
        own, other = (c.race[last]["accuracy"]["value"] for c in (best, second))
        raced = sum(bool(c.race) for c in ranked)
        kept = lead is not None and best.score == max(c.score for c in allowed)
        won = "keeps its lead by score in" if kept else "has won"
        doubt = ", which does not tell them apart" if kept else ""
        return (
            f"{chosen} {won} a race of {raced} close candidates, its cost counted: right on "
            f"{own:.1%} of validation after {best.race[last]['epochs']} epochs, {second.backbone} "
            f"on {other:.1%}{doubt}{out} ({figures})."
        )
    if second.score == best.score:
        return f"{chosen} scores as well as {second.backbone} and costs no more{out} ({figures})."
    return (
        f"{chosen} has the best score of {len(allowed)} candidates, {best.score:.3f} against "
        f"{second.score:.3f} of {second.backbone}{out} ({figures})."
    )


def _cost(candidate: Candidate, prefer: str) -> int:
    return candidate.parameters if prefer == "size" else candidate.flops


def _beyond(project: Project, params: Params, candidate: Candidate) -> str:
    """The limit that a candidate is beyond, in words; empty when it is within all."""
    limits = params.select
    megabytes = 4 * candidate.parameters / 1e6
    if limits.licences and candidate.licence not in limits.licences:
        return f"its licence is {candidate.licence}, not one of select.licences"
    if limits.max_parameters is not None and candidate.parameters > limits.max_parameters:
        return f"{candidate.parameters:,} parameters, select.max_parameters is " + (
            f"{limits.max_parameters:,}"
        )
    if limits.max_megabytes is not None and megabytes > limits.max_megabytes:
        return f"{megabytes:.1f} MB, select.max_megabytes is {limits.max_megabytes:g}"
    if limits.max_latency_ms is not None:
        taken = milliseconds(project, params, candidate.backbone)
        if taken > limits.max_latency_ms:
            log.warning("%s: %.1f ms an image", candidate.backbone, taken)
            # Without the figure, which would differ from run to run.
            return f"slower here than select.max_latency_ms, {limits.max_latency_ms:g}"
    return ""


def milliseconds(project: Project, params: Params, backbone: str) -> float:
    """The median time of one image in float32, on the device and with the threads of `params`."""
    import statistics
    import time

    from tasks.engine.device import resolve

    problem = plugins.load(problems, params.problem)
    compute = resolve(params.device, "float32")
    loaded = problem.backbone(backbone, params.embed, project.root)
    policy = ViewPolicy.read(project.augment / "plain.json")
    one = problem.examples(project, policy, loaded).batch(np.zeros(1, np.int64), 0)
    model, inputs = loaded.model.to(compute.device).eval(), compute.send(one)
    taken = []
    for _ in range(TIMED):
        begun = time.perf_counter()
        compute.forward(model, inputs).cpu()  # to the CPU: a GPU is asked to have finished
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken[WARM_UP:])


def _require_one(candidates: Sequence[Candidate]) -> None:
    """Raises `ThawlineError` when all are beyond some limit."""
    if all(candidate.ruled_out for candidate in candidates):
        told = "; ".join(f"{c.backbone}: {c.ruled_out}" for c in candidates)
        raise ThawlineError(
            f"no backbone is within the limits of the section select ({told}); raise a limit, or "
            "list others in embed.backbones"
        )


def _selection(project: Project, evidence: Embedding) -> Selection:
    """A backbone as the choice of the next stages."""
    summary = DataSummary.read(project.summary)
    return Selection(
        backbone=evidence.backbone,
        why="",
        candidates=[],
        weights_sha256=evidence.weights_sha256,
        weights_source=evidence.weights_source,
        licence=evidence.licence,
        pretraining=evidence.pretraining,
        layers=evidence.layers,
        examples=sum(summary.counts["train"].values()),
        classes=len(summary.classes),
    )


def knn_accuracy(features: Features, targets: Targets) -> float:
    """Leave-one-out accuracy of the k nearest neighbours by cosine, their votes weighed by it."""
    distances, nearest = neighbours(features)
    votes = np.zeros((len(features), int(targets.max()) + 1))
    rows = np.repeat(np.arange(len(features)), nearest.shape[1])
    np.add.at(votes, (rows, targets[nearest].ravel()), 2 - distances.ravel())
    return float((votes.argmax(1) == targets).mean())


def neighbours(features: Features) -> tuple[Features, Targets]:
    """Cosine distances and positions of each example's nearest others, both [n, k]."""
    from sklearn.neighbors import NearestNeighbors

    count = min(NEIGHBOURS, len(features) - 1)
    search = NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit(features)
    distances, nearest = search.kneighbors()  # without arguments: each example's others
    return distances, nearest


def drawn(count: int, seed: int) -> Targets:
    """At most `MAX_EXAMPLES` of so many examples, in order."""
    if count <= MAX_EXAMPLES:
        return np.arange(count)
    chosen = np.random.default_rng(seed).choice(count, MAX_EXAMPLES, replace=False)
    return np.sort(chosen)


def _candidate(embedding: Embedding, features: Features, targets: Targets) -> Candidate:
    """The measurements of one backbone; score and rank come with the others'."""
    return Candidate(
        backbone=embedding.backbone,
        parameters=sum(layer.parameters for layer in embedding.layers[:-1]),
        flops=sum(layer.flops for layer in embedding.layers),
        ridge=round(ridge.fit(features, targets, int(targets.max()) + 1).accuracy, 6),
        knn=round(knn_accuracy(features, targets), 6),
        score=0.0,
        rank=0,
        licence=embedding.licence,
    )


def _features(project: Project, embedding: Embedding, seed: int) -> tuple[Features, Targets]:
    """The deepest features and their targets, at most `MAX_EXAMPLES` drawn by the seed."""
    import pandas as pd

    features, rows = deepest(project, embedding.backbone)
    targets = pd.read_parquet(project.manifest, columns=["target"])["target"].to_numpy(np.int64)
    chosen = drawn(len(rows), seed)
    return np.asarray(features[chosen], np.float32), targets[rows[chosen]]
