"""How prepare, augment and embed grow: full Fashion-MNIST (70,000 images) against 7,000 of it.

    .venv/bin/python -m benchmarks.scale            # about 10 minutes on 2 cores

Writes benchmarks/results/scale.json and scale.md: images a second and peak anonymous memory (what
a process allocated, without mapped files) of each stage, both sizes in one run.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from benchmarks import projects
from benchmarks.results_file import Results
from tasks import catalogue
from tasks.records import DataSummary

STAGES = ("prepare", "augment", "embed@mobilenet_v2")
SIZES = (7_000, 70_000)


def measure(root: Path, stage: str) -> dict[str, float]:
    """Run one stage as DVC would, without DVC; sample its anonymous memory."""
    begun, peak = time.perf_counter(), 0.0
    process = projects.start(root, stage)
    while process.poll() is None:
        peak = max(peak, anonymous_mb(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{stage} failed in {root}")
    return {"seconds": time.perf_counter() - begun, "peak_anonymous_mb": peak}


def anonymous_mb(pid: int) -> float:
    """Anonymous memory of a process and its children, in MiB."""
    total = 0.0
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    total += int(line.split()[1]) / 1024
    except (OSError, psutil.Error):
        pass  # it has just ended
    return total


def subset(whole: Path, count: int, path: Path) -> Path:
    """Every so manieth row of a Parquet file, so that splits and classes keep their shares."""
    frame = pd.read_parquet(whole)
    frame.iloc[:: len(frame) // count].head(count).to_parquet(path, row_group_size=1000)
    return path


def main() -> None:
    results = Results("scale", "Scale: 7,000 and 70,000 images of Fashion-MNIST")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        whole = catalogue.fetch_data("fashion_mnist", scratch)
        rows: list[dict[str, Any]] = []
        for size in SIZES:
            data = whole if size == max(SIZES) else subset(whole, size, scratch / f"{size}.parquet")
            project = projects.made(scratch / str(size), data)
            for stage in STAGES:
                found = measure(project.root, stage)
                images = size
                if stage.startswith("embed"):
                    counts = DataSummary.read(project.summary).counts
                    images = sum(sum(c.values()) for s, c in counts.items() if s != "test")
                rows.append({"stage": stage, "images": images, **found})
                print(rows[-1], flush=True)
    results.write({"rows": rows}, table(rows))


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "96 pixels. Start-up (imports) is counted in seconds; `embed` works on train and",
        "validation only.",
        "",
        "| stage | images | seconds | images/s | peak anonymous MiB | against the smaller |",
        "|---|---|---|---|---|---|",
    ]
    for stage in STAGES:
        small, large = (r for r in rows if r["stage"] == stage)
        for row in (small, large):
            ratio = row["peak_anonymous_mb"] / small["peak_anonymous_mb"]
            lines.append(
                f"| {stage} | {row['images']:,} | {row['seconds']:.1f} | "
                f"{row['images'] / row['seconds']:,.0f} | {row['peak_anonymous_mb']:.0f} | "
                f"{'' if row is small else f'{ratio:.2f}×'} |"
            )
    return lines


if __name__ == "__main__":
    main()
