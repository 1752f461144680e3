"""The data of the peers: prepared once by Thawline, its rows and pixels then the same for all arms.

Fashion-MNIST: the 3,000 training images of the embedded sample and all 10,000 official test
images, 96 pixels, with the repository's parameters. Tux Paint: a project as `thawline new` makes
it. Near-duplicates of test images are left out of the training part, as in every project.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import projects
from tasks import catalogue, files, params_file, problems
from tasks.records import SPLITS, DataSummary, Project, ViewPolicy

BACKBONE = "mobilenet_v2"
NAMES = ("fashion_mnist", "tuxpaint")
EVERY = {False: 1, True: 20}  # quick: every so manieth image
COMMON = {
    "embed.backbones": f"[{BACKBONE}]",
    "embed.weights": "{}",
    "select.backbone": BACKBONE,
}


@dataclass(frozen=True)
class Data:
    """A prepared project, and its pixels as plain arrays for those who do not use Thawline."""

    name: str
    project: Project
    pixels: Path  # SPLIT.npy uint8 [n, side, side, 3], SPLIT_targets.npy int64 [n]
    digest: str  # of the manifest
    backbone: str = BACKBONE

    def targets(self, split: str) -> npt.NDArray[np.int64]:
        return np.asarray(np.load(self.pixels / f"{split}_targets.npy"))

    def describe(self) -> str:
        """One sentence on the examples and what was left out."""
        summary = DataSummary.read(self.project.summary)
        counts = {split: sum(summary.counts[split].values()) for split in SPLITS}
        side = np.load(self.pixels / "train.npy", mmap_mode="r").shape[1]
        leaks = len(summary.details.get("near_duplicates_left_out", []))
        return (
            f"{counts['train']:,} training, {counts['validation']:,} validation and "
            f"{counts['test']:,} test images of {len(summary.classes)} classes, {side} pixels; "
            f"left out: {len(summary.exact_duplicates)} exact copies, {leaks} near-duplicates "
            "across splits"
        )


def make(name: str, work: Path, quick: bool) -> Data:
    """Prepare a data set below `work`, or find it there; other parameters make another project."""
    folder = work / f"data-{projects.version()}"
    folder.mkdir(parents=True, exist_ok=True)
    project = {"fashion_mnist": _fashion_mnist, "tuxpaint": _tuxpaint}[name](folder, quick)
    projects.restore(project.root)
    pixels = project.root / "pixels"
    done = pixels / "done.json"
    digest = files.sha256_file(project.manifest) if project.manifest.exists() else ""
    if not (done.exists() and files.read_json(done)["digest"] == digest):
        print(f"{name}: preparing", flush=True)
        projects.run(project.root, "prepare", "augment", f"embed@{BACKBONE}", "select")
        digest = files.sha256_file(project.manifest)
        _export(project, pixels)
        files.write_json(done, {"digest": digest})
    return Data(name, project, pixels, digest)


def _fashion_mnist(work: Path, quick: bool) -> Project:
    table = work / "fashion_mnist_3000_10000.parquet"
    if not table.exists():
        sample = pq.read_table(catalogue.fetch_data("fashion_mnist_sample", work))
        whole = pq.read_table(catalogue.fetch_data("fashion_mnist", work))
        parts = [
            rows.filter(pc.equal(rows["split"], split)).select(["image", "label", "split"])
            for rows, split in ((sample, "train"), (whole, "test"))
        ]
        together = pa.concat_tables([part.cast(parts[0].schema) for part in parts])
        together = together.take(np.arange(0, len(together), EVERY[quick]))
        with files.atomic(table) as temporary:
            pq.write_table(together, temporary, row_group_size=1000)
    return projects.made(work / "fashion_mnist", table, COMMON)


def _tuxpaint(work: Path, quick: bool) -> Project:
    folder = work / "tuxpaint"
    if not (folder / "params.yaml").exists():
        command = [*projects.THAWLINE, "new", str(folder), "--data", "tuxpaint"]
        subprocess.run(command, cwd=work, env=projects.environment(), check=True)
    projects.change(folder, COMMON)
    return Project(folder)


def _export(project: Project, folder: Path) -> None:
    """The plain view of every image, as pixels and not normalised."""
    params = params_file.load(project.root)
    problem = problems.load(params.problem)
    backbone = problem.backbone(BACKBONE, params.embed, project.root)
    policy = ViewPolicy.read(project.augment / "plain.json")
    examples = problem.examples(project, policy, backbone)
    manifest = pd.read_parquet(project.manifest)
    folder.mkdir(exist_ok=True)
    mean, std = np.array(backbone.mean, np.float32), np.array(backbone.std, np.float32)
    for split in SPLITS:
        rows = np.flatnonzero(manifest["split"].to_numpy() == split)
        pixels = np.empty(
            (len(rows), policy.shape["image_size"], policy.shape["image_size"], 3), np.uint8
        )
        for begin in range(0, len(rows), 256):
            batch = examples.batch(rows[begin : begin + 256], 0).permute(0, 2, 3, 1).numpy()
            pixels[begin : begin + len(batch)] = np.rint((batch * std + mean) * 255)
        np.save(folder / f"{split}.npy", pixels)
        np.save(folder / f"{split}_targets.npy", manifest["target"].to_numpy(np.int64)[rows])
