"""Is the backbone that `select` chooses as good as the best after fine-tuning them all?

    .venv/bin/python -m benchmarks.choice            # hours
    .venv/bin/python -m benchmarks.choice --quick    # 10 minutes, four candidates

Twelve candidates, two with real weights, the others decoys (`benchmarks/decoys.py`), on the data of
benchmarks/peers.py. The exhaustive way fine-tunes every one of them with the repository's
parameters, a few seeds each. The other lets `select` choose by cached features and a short race,
once for each seed and preference, and fine-tunes its choice alone; what it is charged: the stage
`embed` of every candidate, `select`, and that training. CPU seconds are those of whole stages with
their start, on both sides. The best of all is chosen by test accuracy, which favours it.

Finished runs are kept below --work. Writes choice.json, choice.md and choice.svg into
benchmarks/results (with --quick into --work).
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import decoys, peers_report, plots, projects
from benchmarks.arms import data as peer_data
from benchmarks.arms.data import Data
from benchmarks.arms.runner import Arm, Run, Runner
from benchmarks.options import benchmark_parser, parsed
from benchmarks.peers_report import Interval, Summary
from benchmarks.results_file import Results, commit, kept
from tasks import files
from tasks.records import Selection

PREFERENCES = ("accuracy", "speed")
QUICK = ("mobilenet_v2", "tf_efficientnet_lite0", "mobilenetv2_100", "mobilenet_v3_small")
POINTS, SHARE = 0.5, 1 / 5  # what the choice may lose, and may cost


def main() -> None:
    options = parsed(benchmark_parser("choice", __doc__, seeds=3, data=peer_data.NAMES))
    results = Results(
        "choice", "Choosing a backbone against fine-tuning all", options.results, options.some
    )
    runner = Runner.of(options, jobs=options.jobs)
    names = QUICK if options.quick else tuple(decoys.descriptions())
    values, lines = {}, []
    for name in options.data:
        data = peer_data.make(name, options.work / "choice", options.quick)
        values[name] = measured(runner, data, names, options)
        lines += [f"## {name}", "", f"{data.describe()}.", "", *table(values[name]), ""]
    plot(values, options.results / f"{results.stem}.svg")
    results.write({"data": values}, [*lines, f"![accuracy by CPU seconds]({results.stem}.svg)"])


def measured(
    runner: Runner, data: Data, names: tuple[str, ...], options: argparse.Namespace
) -> dict[str, Any]:
    """Choose first, since fine-tuning one drops the features of the others."""
    weights = {
        name: decoys.write(name, data.project.root) for name in names if name not in decoys.REAL
    }
    listed = {"embed.backbones": list(names), "embed.weights": weights, "threads": options.threads}
    key = files.sha256_json([data.digest, listed, commit()])[:12]
    folder = options.work / "choice" / f"{data.name}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {
        prefer: [
            kept(folder / f"{prefer}-{seed}.json", partial(choose, data, listed, prefer, seed))
            for seed in range(options.seeds)
        ]
        for prefer in PREFERENCES
    }
    arms = {
        name: Arm(
            name,
            "thawline",
            {
                "embed.backbones": [name],
                "embed.weights": {name: weights[name]} if name in weights else {},
                "select.backbone": name,
            },
        )
        for name in names
    }
    wanted = [(arm, seed) for seed in range(options.seeds) for arm in arms.values()]
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for run in runner.runs(data, wanted, "candidates"):
        runs[run.arm.label].append(run)
    return judged(runs, chosen)


def choose(data: Data, listed: dict[str, Any], prefer: str, seed: int) -> dict[str, Any]:
    """Let `select` choose; the features of all candidates are computed where they are not there."""
    root = data.project.root
    projects.restore(root)
    projects.change(root, {**listed, "select.backbone": "auto", "select.prefer": prefer})
    projects.change(root, {"seed": seed})
    projects.forget(root)
    names = listed["embed.backbones"]
    missing = [n for n in names if not (data.project.features(n) / "embedding.json").exists()]
    projects.run(root, "augment", *(f"embed@{name}" for name in missing))
    projects.run(root, "select")
    found = Selection.read(data.project.selection)
    print(f"{data.name}, seed {seed}, {prefer}: {found.why}", flush=True)
    return {
        "backbone": found.backbone,
        "why": found.why,
        "scores": {c.backbone: c.score for c in found.candidates},
        "embed_cpu_seconds": sum(
            projects.cost(root, f"embed@{name}")["cpu_seconds"] for name in names
        ),
        "select_cpu_seconds": projects.cost(root, "select")["cpu_seconds"],
    }


def judged(runs: dict[str, list[Run]], chosen: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Each candidate fine-tuned, and what each choice loses and costs against all of them."""
    candidates = {name: Summary(found) for name, found in runs.items()}
    best = max(candidates.values(), key=lambda summary: float(summary.hits.mean()))
    whole = sum(statistics.mean(map(cost, found)) for found in runs.values())
    choices = []
    for prefer, picks in chosen.items():
        own = Summary([runs[pick["backbone"]][seed] for seed, pick in enumerate(picks)])
        spent = [
            pick["embed_cpu_seconds"] + pick["select_cpu_seconds"] + cost(run)
            for pick, run in zip(picks, own.runs, strict=True)
        ]
        choices.append(
            {
                "prefer": prefer,
                "picks": picks,
                "test_accuracy": peers_report.interval(own.hits).__dict__,
                "difference": peers_report.interval(own.hits, best.hits).__dict__,
                "cpu_seconds": statistics.mean(spent),
                "cost_ratio": statistics.mean(spent) / whole,
            }
        )
    rows = [
        {
            "backbone": name,
            "what": decoys.descriptions()[name],
            "score": chosen[PREFERENCES[0]][0]["scores"][name],
            "test_accuracy": peers_report.interval(summary.hits).__dict__,
            "cpu_seconds": statistics.mean(map(cost, summary.runs)),
        }
        for name, summary in candidates.items()
    ]
    return {"rows": rows, "best": best.label, "cpu_seconds": whole, "choices": choices}


def cost(run: Run) -> float:
    """CPU seconds of the stage that trained."""
    return float(run.record["notes"]["stages"]["train"]["cpu_seconds"])


def table(found: dict[str, Any]) -> list[str]:
    lines = [
        "| candidate | what it is | score | test % after fine-tuning (95 %) | CPU s |",
        "|---|---|---|---|---|",
    ]
    rows = sorted(found["rows"], key=lambda row: -float(row["test_accuracy"]["value"]))
    lines += [
        f"| {row['backbone']} | {row['what']} | {row['score']:.3f} | "
        f"{Interval(**row['test_accuracy'])} | {row['cpu_seconds']:.0f} |"
        for row in rows
    ]
    lines += [
        "",
        f"| `select.prefer` | chosen, by seed | points against {found['best']}, the best (95 %) | "
        f"within {POINTS} | CPU s, of {found['cpu_seconds']:.0f} for all | share | ≤ {SHARE:g} |",
        "|---|---|---|---|---|---|---|",
    ]
    for choice in found["choices"]:
        difference = Interval(**choice["difference"])
        names = ", ".join(pick["backbone"] for pick in choice["picks"])
        near, cheap = difference.value >= -POINTS, choice["cost_ratio"] <= SHARE
        lines.append(
            f"| {choice['prefer']} | {names} | {difference} | {'met' if near else '**missed**'} | "
            f"{choice['cpu_seconds']:.0f} | {choice['cost_ratio']:.2f} | "
            f"{'met' if cheap else '**missed**'} |"
        )
    return lines


def plot(values: dict[str, Any], path: Path) -> None:
    """Test accuracy after fine-tuning against the score, one panel a data set."""
    with plots.drawn(path, len(values)) as axes:
        for axis, (name, found) in zip(axes, values.items(), strict=True):
            for row in found["rows"]:
                place = (row["score"], row["test_accuracy"]["value"])
                real = row["backbone"] in decoys.REAL
                axis.plot(*place, "o", color="tab:blue" if real else "tab:grey")
                axis.annotate(
                    row["backbone"], place, (5, 4), textcoords="offset points", fontsize=7
                )
            axis.set(title=name, xlabel="score of the frozen features")
            axis.set_ylabel("test accuracy after fine-tuning, %")


if __name__ == "__main__":
    main()
