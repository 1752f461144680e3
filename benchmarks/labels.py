"""Does the learning curve of a quarter of the data tell the accuracy that all of it brings?

    .venv/bin/python -m benchmarks.labels            # a quarter of an hour on 2 cores
    .venv/bin/python -m benchmarks.labels --quick    # 2 minutes

Features of the frozen MobileNetV2 of scikit-learn's digits (1,200 are the data, the others judge),
of Fashion-MNIST (3,000, judged on almost 10,000) and of Tux Paint's photographs (148). In each draw
other examples are the data. The curve sees a random quarter of them and says with which interval a
linear head will be right when it learns from all (`tasks/learning_curve.py`, its 95 % interval).
The head is then fitted to all of them and judged on examples that neither saw.
Draws share examples, so that the interval of the share that is held is a little too narrow.

Finished draws are kept below --work. Writes labels.json, labels.md and labels.svg into
benchmarks/results (with --quick into --work).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import pictures, plots, projects
from benchmarks.arms.measured import Clock
from benchmarks.options import benchmark_parser, parsed
from benchmarks.results_file import Results, commit, kept
from tasks import embed, learning_curve, metrics, ridge
from tasks.metrics import Bootstrap, Ints
from tasks.records import DataSummary, Project

BACKBONE = "mobilenet_v2"
SIZES = {"digits": 1200, "fashion_mnist": 3000, "tuxpaint": 148}  # examples that are the data
POOL = 13_000  # examples at most, with those to judge by
QUARTER = 4
DRAWS = 40
STAGES = ("prepare", "augment", f"embed@{BACKBONE}")
LEAST_TEST = 0.02  # the smallest test split, which no curve looks at


def main() -> None:
    options = parsed(benchmark_parser("labels", __doc__, data=tuple(SIZES)))
    results = Results(
        "labels", "The learning curve from a quarter of the data", options.results, options.some
    )
    home = options.work / f"labels-{projects.version()}-{commit()}"
    draws = 2 if options.quick else DRAWS
    values = {name: measured(name, home / name, draws) for name in options.data}
    plot(values, options.results / f"{results.stem}.svg")
    results.write(
        {"data": values}, [*table(values), "", f"![predicted and true]({results.stem}.svg)"]
    )


def measured(name: str, folder: Path, draws: int) -> dict[str, Any]:
    """The curve and the truth in each draw, and what the features cost."""
    folder.mkdir(parents=True, exist_ok=True)
    project = Project(folder / "project")
    embedded = kept(folder / "embedded.json", partial(_embedded, name, project))
    features, rows = embed.deepest(project, BACKBONE)
    targets = pd.read_parquet(project.manifest)["target"].to_numpy(np.int64)[rows]
    classes, found = len(DataSummary.read(project.summary).classes), []
    for seed in range(draws):
        one = partial(draw, features, targets, classes, SIZES[name], seed)
        found.append(kept(folder / f"{seed}.json", one))
        print(f"{name} {seed + 1}/{draws}: {found[-1]}", flush=True)
    return {"examples": SIZES[name], "judged_on": len(rows) - SIZES[name], **embedded} | {
        "draws": found
    }


def _embedded(name: str, project: Project) -> dict[str, Any]:
    """Embed the pictures; all but a few are training or validation data of the project."""
    project.root.mkdir(parents=True, exist_ok=True)
    frame = pictures.table(name, project.root)
    frame = frame.sample(min(POOL, len(frame)), random_state=0).assign(split=None)
    frame.to_parquet(project.root / "data.parquet", row_group_size=1000)
    values = {"embed.backbones": f"[{BACKBONE}]", "prepare.split.test": LEAST_TEST}
    projects.made(project.root, Path("data.parquet"), values)
    projects.run(project.root, *STAGES)
    embedded = len(embed.deepest(project, BACKBONE)[1])
    cpu = projects.cost(project.root, STAGES[-1])["cpu_seconds"]
    return {"embedding_cpu_seconds_each": cpu / embedded}


def draw(features: Any, targets: Ints, classes: int, size: int, seed: int) -> dict[str, Any]:
    """What the curve of a quarter says, and what is so."""
    mixed = np.random.default_rng(seed).permutation(len(targets))
    data, others = np.sort(mixed[:size]), np.sort(mixed[size:])
    quarter = np.sort(mixed[: size // QUARTER])
    clock = Clock()
    resamples = Bootstrap(np.arange(len(quarter)), seed=seed)
    few = np.asarray(features[quarter], np.float32)
    # The curve tells the accuracy with twice the labels that there are: here, half of the data.
    curve = learning_curve.measure(few, targets[quarter], classes, resamples, size // 2)
    cpu = clock.read()[1]
    head = ridge.fit(np.asarray(features[data], np.float32), targets[data], classes)
    right = (features[others] @ head.weight.T + head.bias).argmax(1) == targets[others]
    found: dict[str, Any] = {"true": float(right.mean()), "cpu_seconds": cpu}
    if curve is not None:
        told = curve.doubled
        found |= {
            "quarter": curve.accuracy[-1].value,
            "told": told.value,
            "low": told.low,
            "high": told.high,
            "held": told.low <= found["true"] <= told.high,
        }
    return found


def table(values: dict[str, Any]) -> list[str]:
    lines = [
        "Accuracies of a linear head in percent, means over the draws.",
        "",
        "| data | examples: a quarter → all (judged on) | draws | with ¾ of a quarter | predicted "
        "for all (95 %) | true | held by the interval (95 % of the share) | mean width, points | "
        "CPU s of a curve | of its features |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, value in values.items():
        draws, size = value["draws"], value["examples"]
        sizes = f"{size // QUARTER:,} → {size:,} ({value['judged_on']:,})"
        told = [found for found in draws if "told" in found]
        if not told:
            lines.append(f"| {name} | {sizes} | {len(draws)} | too few examples for a curve |")
            continue
        mean = {key: 100 * np.mean([d[key] for d in told]) for key in told[0]}
        held = metrics.wilson(mean["held"] / 100, len(told), 0.95)
        features = value["embedding_cpu_seconds_each"] * (size // QUARTER)
        lines.append(
            f"| {name} | {sizes} | {len(told)} | {mean['quarter']:.1f} | {mean['told']:.1f} "
            f"({mean['low']:.1f} … {mean['high']:.1f}) | {mean['true']:.1f} | "
            f"{held.value:.0%} ({held.low:.0%} … {held.high:.0%}) | "
            f"{mean['high'] - mean['low']:.1f} | {mean['cpu_seconds'] / 100:.1f} | {features:.1f} |"
        )
    return lines


def plot(values: dict[str, Any], path: Path) -> None:
    """The interval and the truth of each draw, one panel a data set."""
    shown = {name: [d for d in value["draws"] if "told" in d] for name, value in values.items()}
    shown = {name: draws for name, draws in shown.items() if draws}
    with plots.drawn(path, len(shown)) as axes:
        for axis, (name, draws) in zip(axes, shown.items(), strict=True):
            told, low, high, true = (
                100 * np.array([d[key] for d in draws]) for key in ("told", "low", "high", "true")
            )
            place = np.arange(len(draws))
            axis.errorbar(place, told, yerr=[told - low, high - told], fmt="o", label="predicted")
            axis.plot(place, true, "kx", label="true")
            axis.set(title=name, xlabel="draw", ylabel="accuracy with all data, %")
            axis.legend()


if __name__ == "__main__":
    main()
