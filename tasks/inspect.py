"""inspect: what the data says before anything is trained (`tasks.data_quality`), and whether it
leaks, on the features of the chosen backbone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from tasks import data_quality, embed, files, labelling, partition, problems, select
from tasks.labelling import Floats, Ints, Labelling
from tasks.params import Params
from tasks.progress import progress
from tasks.records import COLUMN, SPLITS, DataSummary, Inspection, Project, Selection

LEAKS = ("copies", "groups", "near_duplicates")


def run(project: Project, params: Params) -> None:
    """Write the `Inspection` of a prepared project."""
    manifest = pd.read_parquet(project.manifest)
    summary = DataSummary.read(project.summary)
    with progress("inspecting the data", 3) as advance:
        certificate = leaks(project, params, manifest, summary)
        advance()
        features, rows = embed.deepest(project, Selection.read(project.selection).backbone)
        chosen = select.drawn(len(rows), params.seed)
        examples = manifest.iloc[rows[chosen]].reset_index(drop=True)
        targets, known = examples["target"].to_numpy(np.int64), summary.labelling
        truth = known.truth(targets)
        kept = np.asarray(features[chosen], np.float32)
        groups = pd.factorize(examples["group"])[0]
        distances, _ = select.neighbours(kept)
        _, nearest = select.neighbours(kept, groups=groups)
        advance()
        says = data_quality.left_out_probabilities(kept, truth, nearest, len(known.classes), groups)
        advance()
    names = summary.classes
    far = data_quality.outliers(distances)
    suspects = data_quality.label_errors(says, truth)
    Inspection(
        certificate=certificate,
        examples=len(examples),
        label_errors=[
            {
                **_about(examples, suspect.row),
                "likely": _likely(known, examples["label"].iloc[suspect.row], suspect.likely),
                "confidence": round(suspect.confidence, 4),
            }
            for suspect in suspects  # all: a list that is cut is no list to clean data by
        ],
        outliers=[
            {**_about(examples, row), "distance": round(float(distances[row].mean()), 4)}
            for row in far
        ],
        odd_classes=[
            {
                "label": names[x.target],
                "recall": round(x.recall, 4),
                "spread": round(x.spread, 3),
                "apart": round(x.apart, 3),
            }
            for x in data_quality.odd_classes(kept, says, truth, distances)
        ],
        telling_columns=[
            {
                "column": x.name.removeprefix(COLUMN),
                "accuracy": round(x.accuracy, 4),
                "majority": round(x.majority, 4),
            }
            for x in data_quality.telling_columns(
                examples[_columns(examples, params.problem)], targets, groups, params.seed
            )
        ],
        drift=_drift(says, examples, names),
        balance=_balance(summary.examples_of("train")),
        found={"label_errors": len(suspects), "outliers": len(far)},
    ).write(project.inspection)


def _likely(known: Labelling, label: str, likely: int) -> str:
    """What an example is probably labelled in truth: of several labels, with one more or less."""
    name = known.classes[likely]
    return labelling.joined({*labelling.parts(label)} ^ {name}) if known.several else name


def leaks(
    project: Project, params: Params, manifest: pd.DataFrame, summary: DataSummary
) -> dict[str, Any]:
    """A certificate, bound to the data's digest, that no example of one split is in another.

    Looks anew at what `prepare` has written: content ids, groups and near-duplicates.
    """
    splits = manifest["split"].to_numpy()
    across = {
        "copies_across_splits": _split_up(partition.contents(manifest), splits),
        "groups_across_splits": _split_up(pd.factorize(manifest["group"])[0], splits),
    }
    if params.prepare.near_duplicates:
        problem = problems.load(params.problem)
        pairs = problem.near_duplicates(manifest, project.prepared)
        across["near_duplicates_across_splits"] = int(
            (splits[pairs[:, 0]] != splits[pairs[:, 1]]).sum()
        )
    found: dict[str, Any] = {
        "data": summary.digest,
        "examples": {split: int((splits == split).sum()) for split in SPLITS},
        **across,
        "near_duplicates_looked_for": params.prepare.near_duplicates,
        "left_out": len(summary.exact_duplicates)
        + len(summary.details.get("near_duplicates_left_out", [])),
        "holds": params.prepare.near_duplicates and not any(across.values()),
    }
    return {**found, "sha256": files.sha256_json(found)}


def _split_up(groups: Ints, splits: Any) -> int:
    """How many groups have members in more than one split."""
    pairs = pd.DataFrame({"group": groups, "split": splits}).drop_duplicates()
    return int(pairs["group"].duplicated().sum())


def _about(examples: pd.DataFrame, row: int) -> dict[str, str]:
    example = examples.iloc[int(row)]
    return {name: str(example[name]) for name in ("id", "source", "split", "label")}


def _columns(examples: pd.DataFrame, problem: str) -> list[str]:
    """What might tell the label without a look at the example."""
    own = [str(name) for name in examples.columns if str(name).startswith(COLUMN)]
    telling = problems.load(problem).TELLING
    return [*own, *(name for name in telling if name in examples)]


def _drift(says: Floats, examples: pd.DataFrame, names: list[str]) -> dict[str, Any]:
    """Training against validation, an example of each group; nothing where one has none."""
    once = ~examples["group"].duplicated().to_numpy()
    trained = examples["split"].to_numpy() == "train"
    before, after = says[once & trained], says[once & ~trained]
    if not (len(before) and len(after)):
        return {"differs": False}
    found = asdict(data_quality.drift(before, after))
    target = found.pop("target")
    return {key: _rounded(value) for key, value in found.items()} | {"label": names[target]}


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def _balance(counts: dict[str, int]) -> dict[str, Any]:
    def named(pick: Any) -> dict[str, Any]:
        label = pick(counts, key=lambda name: (counts[name], name))
        return {"label": label, "examples": counts[label]}

    smallest, largest = named(min), named(max)
    ratio = round(largest["examples"] / max(1, smallest["examples"]), 2)
    return {"smallest": smallest, "largest": largest, "ratio": ratio}


def sentences(found: Inspection) -> Iterable[str]:
    """The findings that a person should know, in words, the gravest first."""
    held = found.certificate
    across = {kind: held.get(f"{kind}_across_splits", 0) for kind in LEAKS}
    if any(across.values()):
        told = ", ".join(f"{n} {kind.replace('_', '-')}" for kind, n in across.items() if n)
        yield f"Examples leak across splits: {told}."
    if not held.get("near_duplicates_looked_for", True):
        yield "Near-duplicates were not looked for, so it is not certified that no split leaks."
    for x in found.telling_columns:
        yield (
            f"The column {x['column']!r} alone tells the label: right on {x['accuracy']:.1%}, "
            f"where the commonest class would be on {x['majority']:.1%}."
        )
    for x in found.odd_classes:
        yield (
            f"Class {x['label']!r} is unlike the others: {x['recall']:.0%} of it is told apart; "
            f"against the usual class, its examples lie {x['spread']:.1f} times as far from each "
            f"other, and {x['apart']:.1f} times as far from the next class."
        )
    if found.drift["differs"]:
        yield (
            "Training and validation differ, most in what is taken for "
            f"{found.drift['label']!r} (p = {found.drift['p_value']:.2g})."
        )
    of = f"of {found.examples:,} examples that were looked at"
    if count := found.found.get("label_errors", 0):
        yield f"{count:,} labels {of} are probably wrong; look at the surest first."
    if count := found.found.get("outliers", 0):
        yield f"{count:,} {of} are unlike all others."
    if found.balance["ratio"] >= 10:
        smallest, largest = found.balance["smallest"], found.balance["largest"]
        yield (
            f"Class {largest['label']!r} has {largest['examples']:,} training examples, "
            f"{smallest['label']!r} has {smallest['examples']:,}; see train.balance."
        )
