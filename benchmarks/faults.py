"""Are faults that were planted in real data found before anything is trained?

    .venv/bin/python -m benchmarks.faults            # half an hour on 2 cores
    .venv/bin/python -m benchmarks.faults --quick    # 2 minutes

Data: the embedded sample of Fashion-MNIST and Tux Paint's photographs. Several draws each of:

- 20 copies put into another split than their originals, five each exact, resized (to 50 … 200 %),
  mirrored, and recompressed (JPEG, quality 50 … 90). A copy is found when the one of the pair that
  is in the earlier split is left out. A false alarm is an untouched example that is left out too.
- 3 % of the labels changed to another class's, and beside the image a column that tells the right
  label nine times of ten, and two columns that tell nothing.
- One class corrupted: its pixels noise, its pictures inverted, their lower half grey as after a
  broken transfer, or pictures of the other classes in their place.

Copies go through `prepare`, all else through `inspect`. Finished draws are kept below --work.
Writes faults.json, faults.md and faults.svg into benchmarks/results (with --quick into --work).
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from benchmarks import faults_report, pictures, projects
from benchmarks.options import benchmark_parser, parsed
from benchmarks.pictures import Pixels
from benchmarks.results_file import Results, commit, kept
from tasks import augment, embed, files, inspect, params_file, prepare, select
from tasks.params import Params
from tasks.problems.image_classification.decode import read_image, shrink
from tasks.records import COLUMN, SPLITS, DataSummary, Inspection, Project

NAMES = ("fashion_mnist_sample", "tuxpaint")
BACKBONE = "mobilenet_v2"
SIDE = 256  # of prepare.store_side: larger pictures are shrunk at once
COPIES = 5  # of each kind
FLIPPED = 0.03  # of the labels
MOST = 1000  # examples among which a class is corrupted
TELLS = 0.9  # how often the leaking column is right
DRAWS, CLASSES = 10, 4  # draws of copies and of labels, and of each corruption
SHARES = (0.65, 0.8)  # train and validation end here, where the data brings no test split

Random = np.random.Generator
Found = dict[str, Any]


def _recompressed(image: Image.Image, random: Random) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=int(random.integers(50, 91)))
    return Image.open(stream)


def _resized(image: Image.Image, random: Random) -> Image.Image:
    scale = random.uniform(0.5, 2)
    return image.resize((round(scale * image.width), round(scale * image.height)))


def _half_grey(pixels: Pixels, random: Random) -> Pixels:
    damaged = pixels.copy()
    damaged[len(pixels) // 2 :] = 128
    return damaged


COPIED: dict[str, Callable[[Image.Image, Random], Image.Image]] = {
    "exact": lambda image, random: image,
    "resized": _resized,
    "mirrored": lambda image, random: ImageOps.mirror(image),
    "recompressed": _recompressed,
}
CORRUPTED: dict[str, Callable[[Pixels, Random], Pixels]] = {
    "noise": lambda pixels, random: random.integers(0, 256, pixels.shape, np.uint8),
    "inverted": lambda pixels, random: 255 - pixels,
    "half grey": _half_grey,
}
MIXED = "pictures of others"


def main() -> None:
    options = parsed(benchmark_parser("faults", __doc__, data=NAMES))
    results = Results(
        "faults", "Planted faults: what is found before training", options.results, options.some
    )
    _compute_with(options.threads)
    home = options.work / f"faults-{projects.version()}-{commit()}"
    draws = (1, 1) if options.quick else (DRAWS, CLASSES)
    values = {name: measured(name, home / name, *draws) for name in options.data}
    shown = faults_report.draw(values, home, options.results / f"{results.stem}.svg")
    results.write({"data": values}, [*faults_report.lines(values), *shown])


def _compute_with(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def measured(name: str, folder: Path, draws: int, classes: int) -> dict[str, Any]:
    """What was found in each draw of each fault."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = divided(pictures.table(name, folder))
    sound = Project(folder / "untouched")
    untouched = kept(folder / "untouched.json", partial(as_it_is, sound, frame))

    def each(fault: str, count: int, measure: Callable[[Random], Found]) -> list[Found]:
        found = []
        for draw in range(count):
            path = folder / f"{fault.replace(' ', '-')}-{draw}.json"
            found.append(kept(path, partial(measure, np.random.default_rng(draw))))
            print(f"{name}, {fault} {draw + 1}/{count}: {found[-1]}", flush=True)
        return found

    return {
        "examples": len(frame),
        "untouched": untouched,
        "copies": each("copies", draws, partial(copies, sound, frame)),
        "labels": each("labels", draws, partial(wrong_labels, sound)),
        "corrupted": {
            how: each(how, classes, partial(one_class, sound, frame, how))
            for how in (*CORRUPTED, MIXED)
        },
    }


def as_it_is(sound: Project, frame: pd.DataFrame) -> Found:
    inspected(sound, frame)
    found = Inspection.read(sound.inspection)
    return {
        "left_out": sorted(left_out(sound).items()),
        "odd_classes": [odd["label"] for odd in found.odd_classes],
        "label_errors": found.found["label_errors"],
    }


def divided(frame: pd.DataFrame) -> pd.DataFrame:
    """The same examples with all three splits given, each class divided alike; a test split that
    the data brings stays."""
    random, frame = np.random.default_rng(0), frame.reset_index(drop=True)
    given = frame["split"].notna().any()
    for _, rows in frame.groupby("label").groups.items():
        mixed = random.permutation(np.asarray(rows))
        if given:
            mixed = mixed[frame["split"].iloc[mixed] != "test"]
        ends = (np.array([0.85, 1] if given else SHARES) * len(mixed)).astype(int)
        for split, part in zip(SPLITS, np.split(mixed, ends), strict=True):
            frame.loc[part, "split"] = split
    return frame


def prepared(project: Project, frame: pd.DataFrame) -> Params:
    """The stage `prepare` on a table of pictures."""
    project.root.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(project.root / "data.parquet", row_group_size=1000)
    one = {"embed.backbones": f"[{BACKBONE}]", "select.backbone": BACKBONE}
    projects.made(project.root, Path("data.parquet"), one)
    params = params_file.load(project.root)
    prepare.run(project, params)
    return params


def inspected(project: Project, frame: pd.DataFrame) -> None:
    """The stages up to `inspect`."""
    params = prepared(project, frame)
    augment.run(project, params)
    embed.run(project, params, BACKBONE)
    select.run(project, params)
    inspect.run(project, params)


def left_out(project: Project) -> dict[int, int]:
    """Rows of the data that were called copies or near-duplicates, each with its partner."""
    summary = DataSummary.read(project.summary)
    near = summary.details["near_duplicates_left_out"]
    pairs = [(x["source"], x["kept"]) for x in summary.exact_duplicates]
    pairs += [(x["source"], x["near"]) for x in near]
    return {row_of(one): row_of(other) for one, other in pairs}


def row_of(source: str) -> int:
    return int(source.rpartition("#")[2])


def copies(sound: Project, frame: pd.DataFrame, random: Random) -> Found:
    """Plant copies of examples that have no near-duplicate by themselves."""
    alarms = left_out(sound)
    alone = sorted(set(range(len(frame))) - {*alarms, *alarms.values()})
    originals = random.choice(alone, len(COPIED) * COPIES, replace=False)
    kinds = [kind for kind in COPIED for _ in range(COPIES)]
    planted, images, splits = frame.iloc[originals], [], []
    for kind, image, own in zip(kinds, planted["image"], planted["split"], strict=True):
        images.append(_copy(image, kind, random))
        splits.append(str(random.choice([split for split in SPLITS if split != own])))
    planted = planted.assign(image=images, split=splits)
    together = pd.concat([frame, planted], ignore_index=True)
    with tempfile.TemporaryDirectory(dir=sound.root) as scratch:
        project = Project(Path(scratch) / "copies")
        prepared(project, together)
        called = left_out(project)
    order = together["split"].map(SPLITS.index)
    found = dict.fromkeys(COPIED, 0)
    for row, (original, kind) in enumerate(zip(originals, kinds, strict=True), len(frame)):
        found[kind] += int(min(int(original), row, key=lambda r: order[r]) in called)
    untouched = {row for row in called if row < len(frame)} - set(map(int, originals))
    return {
        "found": found,
        "false_alarms": len(untouched),
        "not_without_planting": len(untouched - set(alarms)),
    }


def _copy(image: bytes, kind: str, random: Random) -> bytes:
    """The file as it is, or another one of the picture as it is stored."""
    if kind == "exact":
        return image
    pixels = shrink(read_image(image, 10**9), SIDE)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return pictures.png(np.asarray(COPIED[kind](picture, random)))


def wrong_labels(project: Project, random: Random) -> Found:
    """Change labels in the manifest, whose features stay, and add columns."""
    first = project.root / "manifest.first.parquet"
    if not first.exists():
        shutil.copyfile(project.manifest, first)
    manifest = pd.read_parquet(first)
    classes = DataSummary.read(project.summary).classes
    targets = manifest["target"].to_numpy().copy()
    told = np.where(random.random(len(targets)) < TELLS, targets, 0)
    seen = np.flatnonzero(manifest["split"] != "test")  # test is looked at in evaluate
    flipped = random.choice(seen, round(FLIPPED * len(seen)), replace=False)
    by = random.integers(1, len(classes), len(flipped))
    targets[flipped] = (targets[flipped] + by) % len(classes)
    manifest["target"], manifest["label"] = targets, [classes[target] for target in targets]
    manifest[f"{COLUMN}camera"] = [f"camera {code}" for code in told]
    manifest[f"{COLUMN}site"] = random.choice(["north", "south"], len(manifest))
    manifest[f"{COLUMN}hour"] = random.uniform(0, 24, len(manifest))
    with files.atomic(project.manifest) as temporary:
        manifest.to_parquet(temporary, index=False)
    inspect.run(project, params_file.load(project.root))
    found = Inspection.read(project.inspection)
    suspected = [suspect["id"] for suspect in found.label_errors]
    planted = set(manifest["id"].iloc[flipped])
    return {
        "planted": len(flipped),
        "among_the_first": len(planted & set(suspected[: 2 * len(flipped)])),
        "suspected": found.found["label_errors"],
        "columns": [column["column"] for column in found.telling_columns],
    }


def one_class(sound: Project, frame: pd.DataFrame, how: str, random: Random) -> Found:
    """Corrupt the pictures of one class."""
    frame = frame.sample(min(MOST, len(frame)), random_state=random).reset_index(drop=True)
    broken = str(random.choice(sorted(frame["label"].unique())))
    rows = np.flatnonzero(frame["label"] == broken)
    others = np.flatnonzero(frame["label"] != broken)
    taken = random.choice(others, len(rows), replace=False)
    images = frame["image"].tolist()
    for row, other in zip(rows, taken, strict=True):
        if how == MIXED:
            images[row] = images[other]
        else:
            pixels = shrink(read_image(images[row], 10**9), SIDE)
            images[row] = pictures.png(CORRUPTED[how](pixels, random).squeeze())
    frame = frame.assign(image=images)
    if how == MIXED:
        frame = frame.drop(index=taken.tolist())
    with tempfile.TemporaryDirectory(dir=sound.root) as scratch:
        project = Project(Path(scratch) / "class")
        inspected(project, divided(frame.assign(split=None)))
        odd = [found["label"] for found in Inspection.read(project.inspection).odd_classes]
    return {"broken": broken, "odd": odd}


if __name__ == "__main__":
    main()
