"""How far Fashion-MNIST goes: test accuracy against minutes, on all 60,000 training images.

    .venv/bin/python -m benchmarks.full            # 45 minutes on 2 quiet cores
    .venv/bin/python -m benchmarks.full --quick    # 2 minutes, on 3,000 images

One training for each recipe and number of epochs, each with the whole schedule, so that every point
of the curve is a model that one could stop at; tested on the 10,000 official test images. Minutes
are those of training, from decoded images to final weights. Finished trainings are kept below
--work. Writes full.json, full.md and full.svg into benchmarks/results (with --quick into --work).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import plots, projects
from benchmarks.arms.data import BACKBONE, COMMON
from benchmarks.options import benchmark_parser, parsed
from benchmarks.results_file import Results, commit
from tasks import catalogue, files
from tasks.records import Project, ThawPlan

# In each, the values that differ from the repository's params.yaml; by the number of epochs.
RECIPES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "last half": ({}, (2, 8)),
    "all layers": (
        {
            "freeze.strategy": "all",
            "train.batch_size": 64,
            "train.ema": 0.995,
        },
        (8,),
    ),
}
METRICS = (
    "test.accuracy",
    "test.accuracy_low",
    "test.accuracy_high",
    "train.seconds",
    "train.cpu_seconds",
    "train.peak_anonymous_mb",
)
AIM, LIMIT = 0.94, 60  # accuracy, minutes


def main() -> None:
    options = parsed(benchmark_parser("full", __doc__))
    results = Results("full", "All of Fashion-MNIST: accuracy against minutes", options.results)
    project = prepared(options.work, options.quick)
    rows = []
    for name, (settings, budgets) in RECIPES.items():
        for epochs in budgets[: 1 if options.quick else None]:
            changed = {**settings, "train.epochs": epochs, "threads": options.threads}
            rows.append({"recipe": name, **row(project, options.work, changed)})
            print(rows[-1], flush=True)
    plot(rows, options.results / "full.svg")
    results.write({"rows": rows}, [*table(rows), "", "![accuracy by minutes](full.svg)"])


def prepared(work: Path, quick: bool) -> Project:
    """A project with all images, up to the choice of its only backbone."""
    folder = work / f"full-{projects.version()}"
    folder.mkdir(parents=True, exist_ok=True)
    name = "fashion_mnist_sample" if quick else "fashion_mnist"
    project = projects.made(folder / "project", catalogue.fetch_data(name, work), COMMON)
    if not project.selection.exists():
        projects.run(project.root, "prepare", "augment", f"embed@{BACKBONE}", "select")
    return project


def row(project: Project, work: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """One training, found or measured now."""
    path = work / "full" / f"{files.sha256_json([settings, str(project.root), commit()])[:12]}.json"
    if not path.exists():
        projects.restore(project.root)
        projects.change(project.root, settings)
        projects.forget(project.root)
        projects.run(project.root, "freeze", "tune", "train", "evaluate")
        projects.wait_for_tracking(project.root)
        projects.forget(project.root)
        metrics = files.read_json(project.reports / "metrics.json")
        found = {name: metrics[name] for name in METRICS}
        plan = ThawPlan.read(project.thaw_plan)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {"settings": settings, "thaw_line": plan.thaw_line, **found})
    found = files.read_json(path)
    return dict(found)


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| recipe | epochs | thaw line | minutes | CPU minutes | test accuracy (95 %) | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['recipe']} | {row['settings']['train.epochs']} | {row['thaw_line']} | "
        f"{row['train.seconds'] / 60:.1f} | {row['train.cpu_seconds'] / 60:.1f} | "
        f"{row['test.accuracy']:.4f} ({row['test.accuracy_low']:.4f} to "
        f"{row['test.accuracy_high']:.4f}) | {row['train.peak_anonymous_mb']:.0f} |"
        for row in rows
    ]
    within = [row for row in rows if row["train.seconds"] <= 60 * LIMIT]
    best = max(within or rows, key=lambda row: float(row["test.accuracy"]))
    reached = "reached" if best["test.accuracy"] >= AIM and within else "not reached"
    lines += [
        "",
        f"{AIM:.0%} within {LIMIT} minutes: {reached}; the best there is {best['recipe']}, "
        f"{best['settings']['train.epochs']} epochs. The recipes, beside the repository's "
        "parameters:",
        "",
        *(f"- {name}: {settings or 'as they are'}" for name, (settings, _) in RECIPES.items()),
    ]
    return lines


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Test accuracy against minutes, a line a recipe."""
    with plots.drawn(path) as [axis]:
        for name in RECIPES:
            line = [row for row in rows if row["recipe"] == name]
            minutes = [row["train.seconds"] / 60 for row in line]
            values = [row["test.accuracy"] for row in line]
            ends = [
                [row["test.accuracy"] - row["test.accuracy_low"] for row in line],
                [row["test.accuracy_high"] - row["test.accuracy"] for row in line],
            ]
            axis.errorbar(minutes, values, yerr=ends, fmt="o-", capsize=3, label=name)
        axis.axhline(AIM, color="grey", linestyle=":")
        axis.set(xscale="log", xlabel="minutes of training", ylabel="test accuracy (95 % interval)")
        axis.legend()


if __name__ == "__main__":
    main()
