"""The tables and the picture of the planted faults."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks import plots

MOST_ALARMS = 0.02  # of the untouched examples
LEAST_RECALL = 0.7  # of changed labels, among the first twice as many as were changed
THUMB = (128, 128)
SHOWN = 6  # pairs in the picture


def mean_interval(values: Any) -> tuple[float, float, float]:
    """The mean of a figure over draws, and Student's 95 % interval of it, within 0 and 1."""
    from scipy.stats import t

    mean, count = float(np.mean(values)), len(values)
    half = float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5) if count > 1 else 1
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def lines(values: dict[str, Any]) -> list[str]:
    """Everything as Markdown."""
    return [
        *_copies(values),
        "",
        *_labels(values),
        "",
        *_classes(values),
        "",
    ]


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def _copies(values: dict[str, Any]) -> list[str]:
    found = [
        "## Copies across splits",
        "",
        "20 in each draw; false alarms: untouched examples that are left out as copies or "
        "near-duplicates, all of them also without planting unless a number says otherwise.",
        "",
        "| data | draws | exact | resized | mirrored | recompressed | most false alarms | all, "
        f"≤ {MOST_ALARMS:.0%} false |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, value in values.items():
        draws = value["copies"]
        planted = 5 * len(draws)
        totals = {kind: sum(d["found"][kind] for d in draws) for kind in draws[0]["found"]}
        alarms = max(d["false_alarms"] for d in draws)
        only = max(d["not_without_planting"] for d in draws)
        share = alarms / value["examples"]
        met = set(totals.values()) == {planted} and share <= MOST_ALARMS
        found.append(
            f"| {name} | {len(draws)} | "
            + " | ".join(f"{total} of {planted}" for total in totals.values())
            + f" | {alarms} of {value['examples']:,} ({share:.2%})"
            + (f", {only} not without planting" if only else "")
            + f" | {verdict(met)} |"
        )
    return found


def _labels(values: dict[str, Any]) -> list[str]:
    found = [
        "## Wrong labels, and a column that tells the label",
        "",
        "| data | draws | changed | share of them among the first 2 × changed (95 % of the mean) | "
        "in the worst draw | suspected without any changed | ≥ 70 % | leaking column named | "
        "other columns named |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, value in values.items():
        draws = value["labels"]
        shares = [d["among_the_first"] / d["planted"] for d in draws]
        mean, low, high = mean_interval(shares)
        named = sum("camera" in d["columns"] for d in draws)
        others = sum(len(set(d["columns"]) - {"camera"}) for d in draws)
        found.append(
            f"| {name} | {len(draws)} | {draws[0]['planted']} | {mean:.1%} ({low:.1%} … {high:.1%})"
            f" | {min(shares):.1%} | {value['untouched']['label_errors']} | "
            f"{verdict(mean >= LEAST_RECALL)} | {named} of {len(draws)} | {others} |"
        )
    return found


def _classes(values: dict[str, Any]) -> list[str]:
    found = [
        "## A corrupted class",
        "",
        "Named among the odd classes, of so many draws; at most 1,000 examples each.",
        "",
        "| data | " + " | ".join(next(iter(values.values()))["corrupted"]) + " | sound classes "
        "named | of the untouched data |",
        "|---" * (len(next(iter(values.values()))["corrupted"]) + 3) + "|",
    ]
    for name, value in values.items():
        kinds = value["corrupted"]
        shown = [f"{sum(d['broken'] in d['odd'] for d in k)} of {len(k)}" for k in kinds.values()]
        others = {x for k in kinds.values() for d in k for x in d["odd"] if x != d["broken"]}
        untouched = value["untouched"]["odd_classes"]
        found.append(
            f"| {name} | " + " | ".join(shown) + f" | {', '.join(sorted(others)) or 'none'} | "
            f"{', '.join(untouched) or 'none'} |"
        )
    return [
        *found,
        "",
        "A class whose pictures are all inverted or half grey may lie in the features as far from "
        "others, and be as wide, as a sound class: then nothing but a look at the pictures tells. "
        "One threshold (`ODD_OWN_WORLD`) was set on draws of noise in these two data sets.",
    ]


def draw(values: dict[str, Any], home: Path, path: Path) -> list[str]:
    """Show the pairs of the untouched data that are called near-duplicates, those that there are;
    returns the lines that show it."""
    pairs = [
        (name, pair) for name, value in values.items() for pair in value["untouched"]["left_out"]
    ][:SHOWN]
    if not pairs:
        return []
    with plots.drawn(path, len(pairs), side=2.5) as axes:
        for axis, (name, pair) in zip(axes, pairs, strict=True):
            images = pd.read_parquet(home / name / "untouched/data.parquet")["image"]
            axis.imshow(np.hstack([_thumb(images.iloc[row]) for row in pair]))
            axis.set_axis_off()
    return [
        f"What is called near-duplicate in the untouched data ({len(pairs)} pairs shown):",
        "",
        f"![pairs of similar pictures]({path.name})",
    ]


def _thumb(image: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB").resize(THUMB))
