"""What nothing needs any more, of DVC's cache and of scratch: the judging part of `thawline gc`.

To keep too much costs some disk, to drop too much costs a model: where a text is doubtful, all
that looks like a hash in it counts as needed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from tasks import trainings
from tasks.records import Project

FOLDER = ".dir"  # DVC's suffix of an object that lists a folder's files
LEFTOVER_AGE = 3600.0  # seconds: a stage called by hand may be writing what is younger
LOG_AGE = 30 * 86400.0  # seconds

_HASH = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # as `tempfile` names what `files.atomic` asks for


def named(text: str) -> set[str]:
    """Whatever looks like a hash of DVC's in a text, without its suffix.

    The text is not parsed, so that a lock file with conflict markers, or one of another version of
    DVC, still keeps what it names.
    """
    return set(_HASH.findall(text.lower()))


def needed(members: Mapping[str, Collection[str]], named: Collection[str]) -> set[str]:
    """Hashes, without suffix, that are named, or that a named folder lists.

    `members`: of each folder that is in the cache, by its object's full name.
    """
    listed = (members[oid] for oid in members if oid.removesuffix(FOLDER) in named)
    return set(named).union(*listed)


def unneeded(
    objects: Iterable[str], members: Mapping[str, Collection[str]], named: Collection[str]
) -> list[str]:
    """The objects that nothing needs, in the order in which they can go.

    Folders go before files, so that a kill in between leaves no folder whose files are gone.
    """
    kept = needed(members, named)
    gone = [oid for oid in objects if oid.removesuffix(FOLDER) not in kept]
    return sorted(gone, key=lambda oid: (not oid.endswith(FOLDER), oid))


def finished_checkpoints(project: Project) -> list[Path]:
    """Folders of checkpoints whose training has ended and whose result is here.

    The newest training counts as ended only if its record is the project's: a kill may have come
    between its last step and its results.
    """
    known = trainings.found(project)
    newest = max((t.folder.stat().st_mtime for t in known), default=0.0)
    current = trainings.current_key(project)
    return [
        t.folder
        for t in known
        if t.status == "FINISHED" and (t.run_key == current or t.folder.stat().st_mtime < newest)
    ]


def leftovers(project: Project) -> Iterator[Path]:
    """What killed runs left half-written, in scratch, beside the results and in the root."""
    root, scratch = project.root, project.scratch
    here = [*root.glob(".prepare.*"), *root.glob(".mlflow.db.new"), *scratch.glob("probe-*")]
    # Only where all is ours: among raw data, any name may be the user's.
    for folder in (scratch, root / "outputs", project.prepared, project.models, project.reports):
        here += [path for path in folder.rglob(".*") if _TEMPORARY.fullmatch(path.name)]
    yield from filter(is_left, sorted(set(here)))


def is_left(path: Path) -> bool:
    """Whether nobody has written to a file, or anywhere in a folder, for a while."""
    inside = [path, *path.rglob("*")] if path.is_dir() else [path]
    return time.time() - max(part.lstat().st_mtime for part in inside) > LEFTOVER_AGE


def old_logs(project: Project, last: str | None) -> list[Path]:
    """Logs that nobody has written to for a month, but for that of the last run."""
    now = time.time()
    logs = (path for path in (project.root / "logs").glob("*") if path.is_file())
    spared = project.root / last if last else None
    return sorted(
        path
        for path in logs
        if now - path.stat().st_mtime > LOG_AGE and (spared is None or path.stem != spared.stem)
    )
