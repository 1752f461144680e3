"""The select stage: every candidate measured, ranked (`tasks.ranking`) and within limits or not.

Measured are leave-one-out accuracies on the frozen features of train + validation: a ridge head's
at each depth that embed has kept, and k nearest neighbours' at the deepest. Candidates whose scores
are close are raced (`tasks.contest`), since what thawing brings does not show in frozen features;
but only where there is enough validation data to see who has won.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks import labelling, problems, ranking, ridge, serving, warm_start
from tasks.embed import drop_unlisted
from tasks.errors import ThawlineError
from tasks.labelling import Labels
from tasks.params import HeadParams, Params
from tasks.progress import progress
from tasks.records import Candidate, DataSummary, Embedding, Project, Selection

Features = npt.NDArray[np.float32]
Targets = npt.NDArray[np.int64]

NEIGHBOURS = 10
OWN = 2.0  # a cosine distance that nothing exceeds: of an example's own group
MAX_EXAMPLES = 5000  # more would take minutes and not change the order
log = logging.getLogger(__name__)


def run(project: Project, params: Params) -> None:
    """Rank the listed backbones and write the choice.

    What is left of others goes, also when DVC alone runs the stages: DVC notes the folder as it is
    afterwards, and what follows then reads the same as after `thawline run`. Raises `ThawlineError`
    when no candidate is within the limits.
    """
    names, options = params.embed.backbones, params.select
    start = warm_start.of(project, params)
    if start is not None:
        options = options.model_copy(update={"backbone": start.backbone})
    drop_unlisted(project, names)
    embeddings = {n: Embedding.read(project.features(n) / "embedding.json") for n in names}
    measured = []
    with progress("comparing backbones", len(names)) as advance:
        for name, embedding in embeddings.items():
            candidate = _candidate(project, embedding, params.seed)
            measured.append(replace(candidate, ruled_out=_beyond(project, params, candidate)))
            advance(backbone=name)
    ranked = ranking.rank(measured, options)
    automatic = options.backbone == "auto"
    if start is None:  # the champion was within the limits; a latency measured anew is noise
        _require_one(ranked if automatic else [c for c in ranked if c.backbone == options.backbone])
    selections = {name: _selection(project, embeddings[name]) for name in names}
    agreement: dict[str, Any] = {}
    close = ranking.shortlist(ranked, options.race) if automatic else []
    examples = _validation_examples(project) if len(close) > 1 else 0
    if examples and (raced := examples >= options.race_from):
        from tasks import contest

        contenders = [selections[candidate.backbone] for candidate in close]
        outcome = contest.run(project, params, contenders, ranking.worth(ranked, options))
        ranked, agreement = ranking.by_race(ranked, outcome)
    chosen = ranked[0].backbone if automatic else options.backbone
    words = problems.load(params.problem).WORDS
    why = ranking.why(ranked, chosen, automatic, agreement.get("lead"), words.a)
    if start is not None:
        why = f"{chosen}, as training goes on from {start}."
    if examples and not raced:
        why += (
            f" {len(close) - 1} close behind, not raced: {examples:,} validation examples would "
            f"not tell them apart (select.race_from: {options.race_from:,})."
        )
    replace(
        selections[chosen],
        why=why,
        candidates=ranked,
        agreement=agreement,
    ).write(project.selection)


def _validation_examples(project: Project) -> int:
    return sum(DataSummary.read(project.summary).counts["validation"].values())


def _beyond(project: Project, params: Params, candidate: Candidate) -> str:
    """The limit that a candidate is beyond, in words; empty when it is within all."""
    limits = params.select
    if limits.licences and candidate.licence not in limits.licences:
        return f"its licence is {candidate.licence}, not one of select.licences"
    if limits.max_parameters is not None and candidate.parameters > limits.max_parameters:
        return f"{candidate.parameters:,} parameters, select.max_parameters is " + (
            f"{limits.max_parameters:,}"
        )
    most, slowest = limits.max_megabytes, limits.max_latency_ms
    if most is None and slowest is None:
        return ""
    served = serving.Expected(project, params, candidate.backbone, HeadParams())
    if most is not None and served.megabytes > most:
        return f"{served.megabytes:.1f} MB, select.max_megabytes is {most:g}"
    if slowest is not None and (taken := served.milliseconds()) > slowest:
        log.warning("%s: %.1f ms an example", candidate.backbone, taken)
        # Without the figure, which would differ from run to run.
        return f"slower here than select.max_latency_ms, {slowest:g}"
    return ""


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


def knn_accuracy(features: Features, labels: Labels, groups: Targets | None = None) -> float:
    """Leave-one-out accuracy of the k nearest neighbours by cosine, their votes weighed by it.

    Those of an example's own group [n], such as its near-duplicates, have no vote. Of several
    labels, an example gets those that most of the votes are for.
    """
    distances, nearest = neighbours(features, groups=groups)
    weights = np.maximum(2 - distances, 1e-9)
    votes = labelling.votes(labels, nearest, weights, labelling.width(labels))
    if several := labels.ndim == 2:
        votes /= weights.sum(1, keepdims=True)
    return float(labelling.right(labels, labelling.answers(votes, several)).mean())


def neighbours(
    features: Features, most: int = NEIGHBOURS, groups: Targets | None = None
) -> tuple[Features, Targets]:
    """Cosine distances and positions of each example's nearest others, both [n, k].

    Those of an example's own group [n] come last, at a distance of `OWN`.
    """
    from sklearn.neighbors import NearestNeighbors

    of_a_group = 1 if groups is None else int(np.bincount(groups).max())
    count = min(most + of_a_group - 1, len(features) - 1)
    search = NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit(features)
    distances, nearest = search.kneighbors()  # without arguments: each example's others
    if groups is None:
        return distances, nearest
    distances = np.where(groups[nearest] == groups[:, None], OWN, distances)
    first = np.argsort(distances, axis=1, kind="stable")[:, :most]
    return np.take_along_axis(distances, first, 1), np.take_along_axis(nearest, first, 1)


def drawn(count: int, seed: int) -> Targets:
    """At most `MAX_EXAMPLES` of so many examples, in order."""
    if count <= MAX_EXAMPLES:
        return np.arange(count)
    chosen = np.random.default_rng(seed).choice(count, MAX_EXAMPLES, replace=False)
    return np.sort(chosen)


def _candidate(project: Project, embedding: Embedding, seed: int) -> Candidate:
    """The measurements of one backbone; score and rank come with the others'."""
    folder = project.features(embedding.backbone)
    manifest = pd.read_parquet(project.manifest, columns=["target", "group"])
    targets, groups = manifest["target"].to_numpy(np.int64), manifest["group"]
    rows = np.load(folder / embedding.rows)
    chosen = drawn(len(rows), seed)  # at most `MAX_EXAMPLES`
    together = pd.factorize(groups.iloc[rows[chosen]])[0]
    truth = DataSummary.read(project.summary).labelling.truth(targets[rows[chosen]])
    depths = {}
    for layer in (each.name for each in embedding.layers if each.name in embedding.depths):
        kept = np.load(folder / embedding.depths[layer], mmap_mode="r")
        features = np.asarray(kept[chosen], np.float32)
        solution = ridge.fit(features, truth, labelling.width(truth), groups=together)
        depths[layer] = round(solution.accuracy, 6)
    return Candidate(
        backbone=embedding.backbone,
        parameters=sum(layer.parameters for layer in embedding.layers[:-1]),
        flops=sum(layer.flops for layer in embedding.layers),
        ridge=depths[embedding.deepest],
        # Of the last, the deepest.
        knn=round(knn_accuracy(features, truth, together), 6),
        score=0.0,
        rank=0,
        licence=embedding.licence,
        pretraining=embedding.pretraining,
        prior=embedding.accuracy,
        depths=depths,
    )
