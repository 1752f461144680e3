"""How training grows: its cost and memory with the number of images and the depth of the thaw line.

    .venv/bin/python -m benchmarks.growth            # about 40 minutes on 2 cores
    .venv/bin/python -m benchmarks.growth --quick    # 2 minutes

Training images of Fashion-MNIST in 96 pixels, with the repository's parameters but two epochs of
two views, so that each row computes the frozen part and trains what is above. Rows are CPU seconds
of `train` with its frozen part, and the peak of its anonymous memory. Finished rows are kept below
--work. Writes growth.json, growth.md and growth.svg into benchmarks/results (with --quick into
--work).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from benchmarks import plots, projects
from benchmarks.arms.data import BACKBONE, COMMON
from benchmarks.options import benchmark_parser, parsed
from benchmarks.results_file import Results, commit
from tasks import catalogue, files
from tasks.records import Project, ThawPlan, TrainRun

SIZES = (1_000, 4_000, 6_000, 16_000, 60_000)
MEMORY = (6_000, 60_000)  # the sizes whose peaks are compared
HEAD = "head_only"
DEPTHS: dict[int, tuple[str | float, ...]] = {60_000: (HEAD, 0.25)}  # the dear size; others: all
ALL_DEPTHS: tuple[str | float, ...] = (HEAD, 0.25, 0.5, 0.75)
TEST = 500  # images that no row evaluates on; a project wants some
RECIPE = {"train.epochs": 2, "augment.views": 2}


def main() -> None:
    options = parsed(benchmark_parser("growth", __doc__))
    results = Results("growth", "Cost and memory of training, by size and depth", options.results)
    sizes = SIZES[:2] if options.quick else SIZES
    rows = []
    for size in sizes:
        for depth in DEPTHS.get(size, ALL_DEPTHS)[: 2 if options.quick else None]:
            rows.append(row(options.work, size, depth, options.threads))
            print(rows[-1], flush=True)
    plot(rows, options.results / "growth.svg")
    results.write({"rows": rows}, [*table(rows), "", "![CPU seconds by images](growth.svg)"])


def row(work: Path, size: int, depth: str | float, threads: int) -> dict[str, Any]:
    """One training, found or measured now."""
    key = {"size": size, "depth": depth, "threads": threads, "commit": commit()}
    path = work / "growth" / f"{files.sha256_json(key)[:12]}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, measured(prepared(work, size), size, depth, threads))
    found: dict[str, Any] = files.read_json(path)
    return found


def prepared(work: Path, size: int) -> Project:
    """A project with that many images, up to the choice of its only backbone."""
    folder = work / f"growth-{projects.version()}" / str(size)
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "images.parquet"
    if not table.exists():
        whole = pq.read_table(catalogue.fetch_data("fashion_mnist", work)).to_pandas()
        train, test = (whole[whole["split"] == split] for split in ("train", "test"))
        every = len(train) // size
        chosen = pd.concat([train.iloc[::every].head(size), test.head(TEST)])
        with files.atomic(table) as temporary:
            chosen.to_parquet(temporary, row_group_size=1000)
    project = projects.made(folder / "project", table, {**COMMON, **RECIPE})
    if not project.selection.exists():
        projects.run(project.root, "prepare", "augment", f"embed@{BACKBONE}", "select")
    return project


def measured(project: Project, size: int, depth: str | float, threads: int) -> dict[str, Any]:
    line = {"freeze.strategy": HEAD} if depth == HEAD else {"freeze.thaw_fraction": depth}
    projects.restore(project.root)
    projects.change(project.root, {"threads": threads, **line})
    projects.forget(project.root)
    projects.run(project.root, "freeze", "tune", "train")
    projects.wait_for_tracking(project.root)
    run = TrainRun.read(project.train / "run.json")
    plan = ThawPlan.read(project.thaw_plan)
    projects.forget(project.root)
    return {
        "images": size,
        "depth": depth,
        "thaw_line": plan.thaw_line,
        "frozen_share": plan.frozen_share,
        "steps": run.steps,
        "cpu_seconds": run.cpu_seconds,
        "seconds": run.seconds,
        "prefix_seconds": run.prefix_seconds,
        "cache_mb": round(plan.cache_bytes / 2**20),
        "peak_anonymous_mb": run.peak_anonymous_mb,
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Two epochs, two views each, 15 % of the images for validation. *Depth*: the largest share "
        "of the compute above the thaw line.",
        "",
        "| images | depth | thaw line | CPU s | CPU ms an image | of the seconds, frozen part | "
        "kept, MiB | peak anonymous MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['images']:,} | {row['depth']} | {row['thaw_line']} | {row['cpu_seconds']:.1f} | "
        f"{1000 * row['cpu_seconds'] / row['images']:.1f} | "
        f"{row['prefix_seconds'] / row['seconds']:.0%} | {row['cache_mb']:,} | "
        f"{row['peak_anonymous_mb']:.0f} |"
        for row in rows
    ]
    small, large = ({r["depth"]: r for r in rows if r["images"] == size} for size in MEMORY)
    for depth in large:
        ratio = large[depth]["peak_anonymous_mb"] / small[depth]["peak_anonymous_mb"]
        lines += ["", f"Memory of {MEMORY[1]:,} images over {MEMORY[0]:,}, {depth}: {ratio:.2f}×."]
    return lines


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """CPU seconds against images, a line a depth."""
    with plots.drawn(path) as [axis]:
        for depth in ALL_DEPTHS:
            line = [row for row in rows if row["depth"] == depth]
            places = [row["images"] for row in line], [row["cpu_seconds"] for row in line]
            axis.plot(
                *places, "o-", label=f"{depth}" if depth == HEAD else f"thaw_fraction {depth}"
            )
        axis.set(xscale="log", yscale="log", xlabel="images", ylabel="CPU seconds, 2 epochs")
        axis.legend()


if __name__ == "__main__":
    main()
