"""Stage `prepare`: raw data → a checked, deduplicated, split manifest and the decoded store.

Read → decode (the unreadable are set aside and named) → exact duplicates → near-duplicates →
splits (see `tasks.partition`). The folder is built beside its place and renamed into it. Rows are
in the order of the source, which is the order of the store, so that reading it is sequential.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tasks import labelling, partition, problems
from tasks.errors import DataError
from tasks.params import Params, PrepareParams
from tasks.partition import Division, Draw, Groups
from tasks.problems import Problem, Words
from tasks.records import SPLITS, DataSummary, Project

SMALL = 5_000  # examples up to which `choose_salt` looks at the data
CANDIDATES, ENOUGH = 40, 400  # working salts that are tried at least, and at most
LOOKED_AT = 40_000  # examples that `choose_salt` divides in all, if that is more
M_MMAP_THRESHOLD, LARGE = -3, 128 << 10  # of glibc's malloc.h; bytes, its first setting
NAMED = 5  # files that an error names
ABOUT = ("id", "label", "split", "group", "source")  # columns about an example, not its content


@dataclass(frozen=True)
class Decoded:
    """The readable examples, the others, and which are near-duplicates."""

    frame: pd.DataFrame
    unreadable: list[dict[str, str]]
    near: Groups
    given: list[str]  # splits that the data brought


def run(project: Project, params: Params) -> None:
    """Fill `data/prepared`; raises `DataError` when the data cannot be used."""
    _give_memory_back()
    problem = problems.load(params.problem)
    raw = problem.read(params.prepare, project.root)
    ignored = raw.attrs.get("ignored", [])
    with _building(project.prepared) as folder:
        data = _decode(problem, raw, folder, params)
        del raw
        draw, division = _divided(data, params.prepare, problem.WORDS)
        data = _manifest(data, division)
        _write(data.frame, folder / project.manifest.name)
        summary = _summary(params, data, division, draw)
        summary.details.update(problem.details(data.frame, folder))
        summary.details["ignored"] = {"files": len(ignored), "first": ignored[:NAMED]}
        summary.write(folder / project.summary.name)


def _give_memory_back() -> None:
    """Return large blocks to the system as soon as they are freed.

    glibc keeps them once it has raised its threshold for blocks of their own. Other systems have
    no such threshold.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, LARGE)


def choose_salt(project: Project, frame: pd.DataFrame, params: Params) -> int:
    """A `prepare.split.salt` under which a small data set splits well.

    `frame` is what the problem's `read` gave. Of the first salts that give every class an example
    in each split, the one whose classes are spread most evenly; large data keeps its salt. Looks
    at contents only, never at results. Raises `DataError` as `run` does.
    """
    draw = partition.draw_of(frame, params.prepare.split)
    if len(frame) > SMALL or not draw.splits[1:]:
        return draw.salt
    problem = problems.load(params.problem)
    with tempfile.TemporaryDirectory(prefix=".prepare.", dir=project.root) as scratch:
        data = _decode(problem, frame, Path(scratch), params)
    several = bool(params.prepare.label_separator)
    _refuse_small_classes(data.frame, draw, problem.WORDS, several)
    labels, best = data.frame["label"], (float("inf"), draw.salt)
    number = min(ENOUGH, max(CANDIDATES, LOOKED_AT // len(labels)))
    for candidate in islice(partition.working_salts(data.frame, draw, several), number):
        division = partition.divide(data.frame, data.near, candidate)
        if not partition.short_of_examples(labels, division, candidate, several):
            uneven = partition.imbalance(labels, division, candidate, several)
            best = min(best, (uneven, candidate.salt))
    return best[1]


@contextlib.contextmanager
def _building(place: Path) -> Iterator[Path]:
    """A folder to fill beside `place`, which takes its place in the end, or goes."""
    building, old = (place.with_name(f".{place.name}.{kind}") for kind in ("partial", "old"))
    for left_behind in (building, old):  # by a kill
        shutil.rmtree(left_behind, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
        if place.exists():
            place.rename(old)
        building.rename(place)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _decode(problem: Problem, raw: pd.DataFrame, folder: Path, params: Params) -> Decoded:
    frame, unreadable = problem.store(raw, folder, params.prepare, params.threads)
    _refuse_unreadable(raw, frame, unreadable, params.prepare, problem.WORDS)
    frame = frame.reset_index(drop=True)
    near = np.arange(len(frame))
    if params.prepare.near_duplicates:
        contents = partition.contents(frame)
        first = np.unique(contents, return_index=True)[1]
        own = [c for c in frame.columns if c not in ABOUT]  # to compare contents takes no more
        distinct = frame[own].iloc[first].reset_index(drop=True)
        pairs = problem.near_duplicates(distinct, folder)
        near = partition.components(len(distinct), pairs)[contents]
    given = set(frame["split"].dropna().unique())
    return Decoded(frame, unreadable, near, [split for split in SPLITS if split in given])


def _refuse_unreadable(
    raw: pd.DataFrame,
    frame: pd.DataFrame,
    unreadable: list[dict[str, str]],
    params: PrepareParams,
    words: Words,
) -> None:
    named = "; ".join(f"{x['source']}: {x['reason']}" for x in unreadable[:NAMED])
    if len(unreadable) > NAMED:
        named += f"; and {len(unreadable) - NAMED} more"
    if frame.empty or len(unreadable) > params.max_unreadable * len(raw):
        raise DataError(
            f"{len(unreadable)} of {len(raw)} {words.many} cannot be read, a larger share than "
            f"prepare.max_unreadable ({params.max_unreadable:g}): {named}"
        )
    several = bool(params.label_separator)
    known, left = (labelling.of(each["label"].unique(), several) for each in (raw, frame))
    if lost := sorted(set(known.classes) - set(left.classes)):
        raise DataError(f"class {lost[0]!r} has no readable {words.one}: {named}")


def _divided(data: Decoded, params: PrepareParams, words: Words) -> tuple[Draw, Division]:
    """The division into splits, refused when a class would lack an example where it needs one."""
    draw, several = partition.draw_of(data.frame, params.split), bool(params.label_separator)
    _refuse_small_classes(data.frame, draw, words, several)
    division = partition.divide(data.frame, data.near, draw)
    lacking = partition.short_of_examples(data.frame["label"], division, draw, several)
    if lacking:
        raise DataError(_lacking(data, draw, division, lacking, words, several))
    return draw, division


def _refuse_small_classes(frame: pd.DataFrame, draw: Draw, words: Words, several: bool) -> None:
    """Refuse what no salt can mend: nothing to draw from, or less than one a split."""
    given = set(frame["split"].dropna())
    for name, share in (("validation", draw.validation), ("test", draw.test)):
        if not share and name not in given:
            raise DataError(
                f"the data brings no {name} split and prepare.split.{name} is 0; set it to a share"
            )
    drawn = frame["label"].iloc[partition.rows_to_draw(frame)]
    names, _, numbers = labelling.pairs(drawn, several)
    counts = dict(zip(names, np.bincount(numbers, minlength=len(names)), strict=True))
    needed = [SPLITS[code] for code in draw.splits]
    for label in labelling.of(frame["label"].unique(), several).classes:
        if (count := int(counts.get(label, 0))) < len(needed):
            raise DataError(
                f"class {label!r} has {count} different {words.many} or groups to divide into "
                f"{', '.join(needed)}, one each at least: add {words.many} or remove the class"
            )


def _lacking(
    data: Decoded,
    draw: Draw,
    division: Division,
    lacking: list[tuple[str, dict[str, int]]],
    words: Words,
    several: bool,
) -> str:
    """The error for classes without an example in some split, with a salt that works."""
    label, counts = lacking[0]
    shown = ", ".join(f"{count} {split}" for split, count in counts.items())
    more = f" (and {len(lacking) - 1} more classes are short)" if len(lacking) > 1 else ""
    text = f"class {label!r} would have {shown} examples{more}"
    if division.leaks:
        text += f", {len(division.leaks)} near-duplicates across splits being left out"
    labels = data.frame["label"]
    for candidate in islice(partition.working_salts(data.frame, draw, several), CANDIDATES):
        other = partition.divide(data.frame, data.near, candidate)
        if not partition.short_of_examples(labels, other, candidate, several):
            return (
                f"{text}; another draw works: thawline run --set "
                f"prepare.split.salt={candidate.salt}"
            )
    return f"{text}; no draw gives each one: add {words.many}, or larger shares in prepare.split"


def _manifest(data: Decoded, division: Division) -> Decoded:
    """The examples that stay, as the manifest names them, in place of all that were read.

    Taken over column by column, so that no two copies of the data lie in memory.
    """
    rows, near, read = division.rows, data.near[division.rows], data.frame
    frame = pd.DataFrame({name: read.pop(name).iloc[rows].array for name in map(str, read.columns)})
    names = sorted(frame["label"].unique())
    frame["target"] = frame["label"].map({c: i for i, c in enumerate(names)}).astype(np.int64)
    frame["split"] = pd.Series(division.codes).map(dict(enumerate(SPLITS))).astype("str")
    frame["group"] = partition.group_names(frame, near)
    first = ["id", "label", "target", "split", "group", "source"]
    frame = frame[[*first, *(c for c in frame.columns if c not in first)]]
    return replace(data, frame=frame, near=near)


def _write(manifest: pd.DataFrame, path: Path) -> None:
    """Write the manifest in pieces, without looking for repeated values where there are none."""
    manifest.to_parquet(path, index=False, row_group_size=2_000, use_dictionary=["label", "split"])


def _summary(params: Params, data: Decoded, division: Division, draw: Draw) -> DataSummary:
    manifest = data.frame
    known = labelling.of(manifest["label"].unique(), bool(params.prepare.label_separator))
    table = manifest.groupby(["split", "label"]).size()
    sizes = np.unique(data.near, return_counts=True)[1]
    details: dict[str, Any] = {
        "near_duplicates_left_out": division.leaks,
        "drawn": {SPLITS[code]: draw.salt for code in draw.splits[1:]},
    }
    return DataSummary(
        problem=params.problem,
        classes=known.classes,
        counts={s: {c: int(table.get((s, c), 0)) for c in known.names} for s in SPLITS},
        digest=_digest(manifest),
        unreadable=data.unreadable,
        exact_duplicates=division.exact_duplicates,
        near_duplicate_groups=int((sizes > 1).sum()),
        near_duplicate_examples=int(sizes[sizes > 1].sum()),
        conflicts=division.conflicts,
        given_splits=data.given,
        details=details,
        combinations=known.combinations,
    )


def _digest(manifest: pd.DataFrame) -> str:
    """sha256 over ids, labels, splits and groups, whatever their order."""
    rows = partition.rows_of(manifest, "id", "label", "split", "group")
    lines = np.zeros(len(manifest), "S32")
    for place, row in enumerate(rows):
        lines[place] = hashlib.sha256("\t".join(row).encode()).digest()
    lines.sort()  # as bytes, and zeros at the end stay in the array
    return hashlib.sha256(lines.view(np.uint8).data).hexdigest()
