"""The select stage: every candidate's score, cost and rank; the choice and why.

The score is the mean of two leave-one-out accuracies on the frozen features of train + validation,
a ridge head's and k nearest neighbours', less what the compute costs:

    score = (ridge + knn) / 2 − cost_weight × log(FLOPs / FLOPs of the cheapest) / log(1000)

so `cost_weight` is the accuracy that a candidate of a thousand times the compute has to bring, and
a third of it for ten times. Equal scores go to the cheaper one, then to the first name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tasks import ridge
from tasks.embed import deepest, drop_unlisted
from tasks.params import Params
from tasks.progress import progress
from tasks.records import Candidate, DataSummary, Embedding, Project, Selection

Features = npt.NDArray[np.float32]
Targets = npt.NDArray[np.int64]

NEIGHBOURS = 10
MAX_EXAMPLES = 5000  # more would take minutes and not change the order
_COST_SPAN = 1000.0


def run(project: Project, params: Params) -> None:
    """Rank the listed backbones and write the choice.

    What is left of others goes, also when DVC alone runs the stages: DVC notes the folder as it is
    afterwards, and what follows then reads the same as after `thawline run`.
    """
    names = params.embed.backbones
    drop_unlisted(project, names)
    embeddings = {n: Embedding.read(project.features(n) / "embedding.json") for n in names}
    measured = []
    with progress("comparing backbones", len(names)) as advance:
        for name, embedding in embeddings.items():
            features, targets = _features(project, embedding, params.seed)
            measured.append(_candidate(embedding, features, targets))
            advance(backbone=name)
    ranked = rank(measured, params.select.cost_weight)
    chosen = params.select.backbone
    chosen = ranked[0].backbone if chosen == "auto" else chosen
    evidence = embeddings[chosen]
    summary = DataSummary.read(project.summary)
    Selection(
        backbone=chosen,
        why=why(ranked, chosen, params.select.backbone == "auto"),
        candidates=ranked,
        weights_sha256=evidence.weights_sha256,
        weights_source=evidence.weights_source,
        licence=evidence.licence,
        pretraining=evidence.pretraining,
        layers=evidence.layers,
        examples=sum(summary.counts["train"].values()),
        classes=len(summary.classes),
    ).write(project.selection)


def rank(candidates: Sequence[Candidate], cost_weight: float) -> list[Candidate]:
    """The candidates with score and rank, best first."""
    cheapest = max(1, min(c.flops for c in candidates))

    def score(candidate: Candidate) -> float:
        cost = math.log(max(1, candidate.flops) / cheapest) / math.log(_COST_SPAN)
        return round((candidate.ridge + candidate.knn) / 2 - cost_weight * cost, 6)

    scored = [replace(candidate, score=score(candidate)) for candidate in candidates]
    scored.sort(key=lambda c: (-c.score, c.flops, c.backbone))
    return [replace(candidate, rank=i) for i, candidate in enumerate(scored, start=1)]


def why(ranked: Sequence[Candidate], chosen: str, automatic: bool) -> str:
    """One sentence on the choice."""
    best = next(c for c in ranked if c.backbone == chosen)
    figures = (
        f"leave-one-out accuracy {best.ridge:.3f} with a ridge head and {best.knn:.3f} with "
        f"nearest neighbours, at {best.flops / 1e9:.2f} billion multiply-adds an image"
    )
    if not automatic:
        return (
            f"{chosen} is set by select.backbone ({figures}); "
            f"by score it is number {best.rank} of {len(ranked)}."
        )
    if len(ranked) == 1:
        return f"{chosen} is the only candidate ({figures})."
    second = ranked[1]
    if second.score == best.score:
        return f"{chosen} scores as well as {second.backbone} and costs no more ({figures})."
    return (
        f"{chosen} has the best score of {len(ranked)} candidates, {best.score:.3f} against "
        f"{second.score:.3f} of {second.backbone} ({figures})."
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
    )


def _features(project: Project, embedding: Embedding, seed: int) -> tuple[Features, Targets]:
    """The deepest features and their targets, at most `MAX_EXAMPLES` drawn by the seed."""
    import pandas as pd

    features, rows = deepest(project, embedding.backbone)
    targets = pd.read_parquet(project.manifest, columns=["target"])["target"].to_numpy(np.int64)
    chosen = drawn(len(rows), seed)
    return np.asarray(features[chosen], np.float32), targets[rows[chosen]]
