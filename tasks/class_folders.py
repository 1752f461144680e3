"""Examples that lie in folders of their classes, one file each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from tasks.errors import DataError
from tasks.tables import SPLIT_NAMES

DEEPEST = 32  # folders below a class; systems follow at most 40 links


def read(path: Path, suffixes: Collection[str], many: str, separator: str = "") -> pd.DataFrame:
    """Class folders, perhaps below train/, val/ and test/; files lie at any depth below them.

    Columns: `source` (relative to the data), `label`, `split` and `group` (missing where not
    given), `file` (absolute path). `attrs["ignored"]`: files with other suffixes. `many`: what the
    examples are called; `separator`: of several labels, which no folder gives. Raises `DataError`
    for what is ambiguous, empty, or leads out of `path`.
    """
    if separator:
        raise DataError(
            f"{path.name} is a folder of class folders, which give each of the {many} one label; "
            "for several, list them in a table, or set prepare.label_separator to ''"
        )
    data = _Folder(path.resolve(), suffixes, many)
    splits = _split_folders(data.root)
    if splits is None:
        _collect_classes(data, data.root, None)
    for folder, split in (splits or {}).items():
        _collect_classes(data, folder, split)
    _refuse_empty_classes(data, splits)
    frame = pd.DataFrame(data.found, columns=["file", "source", "label", "split"], dtype="str")
    frame["group"] = pd.Series(None, index=frame.index, dtype="str")
    frame.attrs["ignored"] = data.ignored
    return frame


@dataclass
class _Folder:
    """The examples found below a data folder."""

    root: Path  # resolved: nothing may lie outside
    suffixes: Collection[str]
    many: str
    found: list[tuple[str, str, str, str | None]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)  # files that are no examples by their names

    def collect(self, folder: Path, label: str, split: str | None, depth: int = 0) -> None:
        """Add every example below `folder`; hidden entries are left out."""
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
            elif path.suffix.lower() in self.suffixes:
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


def _folders(folder: Path) -> list[Path]:
    return sorted(x for x in folder.iterdir() if x.is_dir() and not x.name.startswith("."))


def _split_folders(root: Path) -> dict[Path, str] | None:
    """The folders of splits when the data has them at the top: train and others, nothing else."""
    names = {x: SPLIT_NAMES.get(x.name.lower()) for x in _folders(root)}
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
            f"{folder.name} has no class folders; make one a class, with its {data.many} inside"
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
                raise DataError(f"class folder {where} has no {data.many}: fill it or remove it")
