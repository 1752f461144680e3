"""Raw images from a folder of class folders, a CSV/Parquet manifest, or a Parquet of images."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from tasks.errors import DataError
from tasks.problems.image_classification import tables
from tasks.problems.image_classification.decode import SUFFIXES
from tasks.problems.image_classification.parameters import ImagePrepare

TABLES = (".csv", ".tsv", ".parquet")
DEEPEST = 32  # folders below a class; systems follow at most 40 links


def read(params: ImagePrepare, root: Path) -> pd.DataFrame:
    """The raw examples of `params.data`, a path relative to the project or absolute.

    Columns: `source` (relative to the data), `label`, `split` and `group` (missing where not
    given), `file` (absolute path) and `row` (in a Parquet of images; -1: `file` is the image), and
    those of `params.columns`, their names after `COLUMN`.
    `frame.attrs["ignored"]` counts other files. Raises `DataError` when the data is unusable.
    """
    path = root / params.data
    if path.is_dir():
        if params.columns:
            raise DataError(f"prepare.columns needs a manifest, and {params.data} is a folder")
        frame = _read_folder(path)
    elif path.is_file() and path.suffix.lower() in TABLES:
        frame = tables.read(path, params, root)
    elif path.exists():
        raise DataError(f"{params.data} is neither a folder nor a {', '.join(TABLES)} file")
    else:
        raise DataError(_missing(path, params.data))
    return _checked(frame, params.data)


def contents(frame: pd.DataFrame) -> Iterator[bytes | Path]:
    """The bytes, or the file, of each raw example in order; a Parquet is read piece by piece."""
    if len(frame) and frame["row"].iloc[0] >= 0:
        yield from tables.images(Path(frame["file"].iloc[0]), frame["row"].to_numpy())
    else:
        yield from (Path(file) for file in frame["file"])


def _missing(path: Path, data: str) -> str:
    if path.with_name(f"{path.name}.dvc").exists():
        return f"prepare.data: {data} is not here, but DVC tracks it: dvc pull {data}"
    from tasks import catalogue

    if path.stem in catalogue.known_data():
        return (
            f"prepare.data: {data} is not here, but the catalogue has it: thawline data {path.stem}"
        )
    return f"prepare.data: {data} does not exist; give a folder of class folders or a manifest"


def _checked(frame: pd.DataFrame, data: str) -> pd.DataFrame:
    """The frame with names in one Unicode form (NFC), refused where that makes two names one."""
    if frame.empty:
        raise DataError(f"{data} has no images")
    for column in ("label", "source"):
        names = frame[column]
        if (names.str.isascii() & (names == names.str.strip())).all():
            continue  # nothing to do in most data
        names = names.drop_duplicates()
        clean = names.map(_clean)
        if (clash := clean.duplicated(keep=False)).any():
            twins = names[clean == clean[clash].iloc[0]].tolist()
            what = "classes" if column == "label" else "files"
            raise DataError(
                f"{data} has {what} whose names differ only in spaces or Unicode form "
                f"(NFC/NFD): {twins[0]!a} and {twins[1]!a}; rename one"
            )
        frame[column] = frame[column].map(_clean)
    if frame["label"].nunique() < 2:
        only = frame["label"].iloc[0]
        raise DataError(f"{data} has one class only ({only!r}); there must be at least two")
    return frame


def _clean(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())


@dataclass
class _Folder:
    """The images found below a data folder."""

    root: Path  # resolved: nothing may lie outside
    found: list[tuple[str, str, str, str | None]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)  # files that are no images by their names

    def collect(self, folder: Path, label: str, split: str | None, depth: int = 0) -> None:
        """Add every image below `folder`; hidden entries are left out."""
        if depth > DEEPEST:
            raise DataError(f"{self.relative(folder)} is too deep: do its links go in a circle?")
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            if entry.is_symlink():
                self.refuse_bad_link(path)
            if entry.is_dir():
                self.collect(path, label, split, depth + 1)
            elif path.suffix.lower() in SUFFIXES:
                self.found.append((entry.path, self.relative(path), label, split))
            else:
                self.ignored.append(self.relative(path))

    def relative(self, path: Path) -> str:
        """The place of a file within the data, with `/`."""
        name = path.relative_to(self.root).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"the name of {name!a} is not UTF-8: rename it") from None
        return name

    def refuse_bad_link(self, path: Path) -> None:
        """A link must not lead out of the data, nor to a folder that it lies in."""
        target = path.resolve()
        if path.parent.resolve().is_relative_to(target):
            raise DataError(f"{self.relative(path)} is a link that goes in a circle: remove it")
        if not target.is_relative_to(self.root):
            raise DataError(
                f"{self.relative(path)} is a link out of the data folder, to {target}: "
                "copy what it points to, or list the files in a manifest"
            )


def _read_folder(path: Path) -> pd.DataFrame:
    """Class folders, perhaps below train/, val/ and test/; images lie at any depth below them."""
    data = _Folder(path.resolve())
    splits = _split_folders(data.root)
    if splits is None:
        _collect_classes(data, data.root, None)
    for folder, split in (splits or {}).items():
        _collect_classes(data, folder, split)
    _refuse_empty_classes(data, splits)
    frame = pd.DataFrame(data.found, columns=["file", "source", "label", "split"], dtype="str")
    frame["group"] = pd.Series(None, index=frame.index, dtype="str")
    frame["row"] = -1
    frame.attrs["ignored"] = data.ignored
    return frame


def _folders(folder: Path) -> list[Path]:
    return sorted(x for x in folder.iterdir() if x.is_dir() and not x.name.startswith("."))


def _split_folders(root: Path) -> dict[Path, str] | None:
    """The folders of splits when the data has them at the top: train and others, nothing else."""
    names = {x: tables.SPLIT_NAMES.get(x.name.lower()) for x in _folders(root)}
    known = {path: split for path, split in names.items() if split}
    if len(known) == 0 or len(known) == 1 < len(names):  # `train` may be a class among others
        return None
    if "train" not in known.values():
        raise DataError(f"{root.name} has {', '.join(x.name for x in known)} but no train folder")
    if len(known) < len(names):
        strange = next(path.name for path in names if path not in known)
        raise DataError(
            f"{root.name} has folders of splits ({', '.join(x.name for x in known)}) beside "
            f"{strange!r}: put everything below train/, val/ and test/, or nothing"
        )
    if repeated := [s for s, count in Counter(known.values()).items() if count > 1]:
        raise DataError(f"{root.name} has two folders for the {repeated[0]} split: merge them")
    return known


def _collect_classes(data: _Folder, folder: Path, split: str | None) -> None:
    classes = _folders(folder)
    if not classes:
        raise DataError(
            f"{folder.name} has no class folders; make one a class, with its images inside"
        )
    for path in classes:
        if path.is_symlink():
            data.refuse_bad_link(path)
        data.relative(path)  # a class must have a UTF-8 name
        data.collect(path, path.name, split)
    data.ignored += [
        data.relative(x) for x in sorted(folder.iterdir()) if x.is_file() and x.name[0] != "."
    ]


def _refuse_empty_classes(data: _Folder, splits: dict[Path, str] | None) -> None:
    counts = Counter(label for _, _, label, _ in data.found)
    for folder in splits or [data.root]:
        for path in _folders(folder):
            if not counts[path.name]:
                where = data.relative(path)
                raise DataError(f"class folder {where} has no images: fill it or remove it")
