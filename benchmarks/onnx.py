"""Is the exported ONNX file the packaged model? On 1,000 test images of the embedded sample.

    .venv/bin/python -m benchmarks.onnx            # 5 minutes on 2 cores
    .venv/bin/python -m benchmarks.onnx --quick    # 2 minutes: the head alone

Trains for one epoch only, since parity does not hang on accuracy: the head alone, and half of the
network. `package` with `package.onnx` exports, compares labels and probabilities, and measures the
median milliseconds of a single image in both runtimes on as many threads; it fails where the file
is not the same model. Writes onnx.json and onnx.md into benchmarks/results (with --quick into
--work).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks import projects
from benchmarks.arms.data import COMMON
from benchmarks.options import benchmark_parser, parsed
from benchmarks.results_file import Results, commit, kept
from tasks import catalogue, files
from tasks.records import Project

TRAININGS = ("head_only", "last_blocks")
BEFORE = ("prepare", "augment", "embed@mobilenet_v2", "select", "inspect")
STAGES = ("freeze", "tune", "train", "repeat", "evaluate", "package")
MOST = 1e-3  # difference of a probability


def main() -> None:
    options = parsed(benchmark_parser("onnx", __doc__))
    results = Results("onnx", "The ONNX file against the packaged model", options.results)
    folder = options.work / f"onnx-{projects.version()}-{commit()}"
    folder.mkdir(parents=True, exist_ok=True)
    data = catalogue.fetch_data("fashion_mnist_sample", folder)
    values = {**COMMON, "train.epochs": 1, "package.onnx": "true", "threads": options.threads}
    project = projects.made(folder / "project", data, values)
    rows = []
    for strategy in TRAININGS[: 1 if options.quick else None]:
        rows.append(kept(folder / f"{strategy}.json", partial(measured, project, strategy)))
        print(rows[-1], flush=True)
    results.write({"rows": rows}, table(rows, options.threads))


def measured(project: Project, strategy: str) -> dict[str, Any]:
    """Train, package and export; what `package` found."""
    projects.change(project.root, {"freeze.strategy": strategy})
    projects.run(project.root, *(() if project.selection.exists() else BEFORE), *STAGES)
    projects.wait_for_tracking(project.root)
    found = files.read_json(project.models / "onnx.json")
    weights = (project.models / "model.safetensors").stat().st_size
    return {"strategy": strategy, **found, "torch_megabytes": round(weights / 1e6, 2)}


def table(rows: list[dict[str, Any]], threads: int) -> list[str]:
    lines = [
        f"MobileNetV2, 96 pixels, a single image on {threads} thread(s), float32.",
        "",
        "| trained | images | other labels | largest difference of a probability | ms ONNX | "
        "ms torch | MB ONNX | MB safetensors | same labels, ≤ 0.001 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        met = not row["other_labels"] and row["largest_difference"] <= MOST
        lines.append(
            f"| {row['strategy']} | {row['images']:,} | {row['other_labels']} | "
            f"{row['largest_difference']:.1e} | {row['milliseconds']:.2f} | "
            f"{row['torch_milliseconds']:.2f} | {row['megabytes']:.1f} | "
            f"{row['torch_megabytes']:.1f} | {'met' if met else '**missed**'} |"
        )
    return lines


if __name__ == "__main__":
    main()
