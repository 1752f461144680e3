"""`thawline gc`: what nothing needs any more, shown, and deleted once that is agreed to.

Needed is what the project names as it is now, what any commit names that git can reach, and what
any registered version or entry of the ledger names. When one of these cannot be read, nothing is
deleted: DVC's own `dvc gc` knows no registry, and would drop the data of the champion.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from flows import board, history, repository
from flows.run import held
from tasks import files, garbage, params_file, references
from tasks.errors import ThawlineError
from tasks.records import Project

_OBJECT = re.compile(r"[0-9a-f]{32}(\.dir)?")
# Folders in which no lock file of the project's lies.
_ELSEWHERE = {".git", ".dvc", ".venv", ".thawline", ".prefect", "mlartifacts", "node_modules"}


@dataclass(frozen=True)
class Item:
    """A file or a folder that can go."""

    kind: str
    path: Path
    bytes: int


@dataclass(frozen=True)
class Offer:
    """What can go, in the order in which it goes."""

    items: list[Item] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # one sentence each
    kept: int = 0  # objects of DVC's cache

    def kinds(self) -> dict[str, tuple[int, int]]:
        """Kind → (how many, bytes)."""
        sums: dict[str, tuple[int, int]] = {}
        for item in self.items:
            count, size = sums.get(item.kind, (0, 0))
            sums[item.kind] = (count + 1, size + item.bytes)
        return sums

    def as_json(self, root: Path, deleted: bool) -> dict[str, Any]:
        return {
            "deleted": deleted,
            "bytes": sum(item.bytes for item in self.items),
            "kinds": {k: {"count": c, "bytes": b} for k, (c, b) in self.kinds().items()},
            "kept_objects": self.kept,
            "notes": self.notes,
            "items": [os.path.relpath(item.path, root) for item in self.items],
        }


@contextlib.contextmanager
def offered(project: Project, last: int | None = None) -> Iterator[Offer]:
    """What can go, as long as the project is held; `last`: of each git ref, only so many commits.

    Raises `ThawlineError` when a run is at work, and when a commit, the registry, the ledger or a
    list of a folder's files cannot be read.
    """
    values = params_file.load(project.root)
    with held(project), repository.opened(project) as repo, repo.lock:
        _require_quiet(project)
        named: set[str] = set()
        for text in _texts(project, values.register_.model, last):
            named |= garbage.named(text)
        cache = Path(repo.cache.local.path)
        items: list[Item] = []
        kept, notes = 0, _history_notes(project)
        if _is_ours(project, cache):
            items, kept = _of_cache(cache, Path(repo.stage_cache.cache_dir), named)
        else:
            notes.append(f"DVC's cache {cache} lies outside of the project and may be shared")
        yield Offer([*items, *_of_scratch(project)], notes, kept)


def delete(offer: Offer) -> None:
    """Delete it; a kill in between leaves less to delete, and nothing half.

    Raises `ThawlineError` at the first that cannot be deleted.
    """
    try:
        for item in offer.items:
            if item.path.is_dir():
                shutil.rmtree(item.path)
            else:
                item.path.unlink(missing_ok=True)
    except OSError as error:
        raise ThawlineError(
            f"{error.filename} cannot be deleted ({error.strerror}); change its owner or rights, "
            "then again: thawline gc"
        ) from error


def show(console: Console, offer: Offer) -> None:
    """What would go, by kind, for a person."""
    for kind, (count, size) in offer.kinds().items():
        console.print(f"{kind}: {count}, {_megabytes(size)}", highlight=False)
    total = _megabytes(sum(item.bytes for item in offer.items))
    console.print(f"in all {total}" if offer.items else "nothing can go", highlight=False)
    for note in offer.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _require_quiet(project: Project) -> None:
    """Refuse while DVC runs a stage by itself: it holds no lock of ours, nor all of its own."""
    with contextlib.suppress(FileNotFoundError):
        try:
            locks = json.loads((project.root / ".dvc/tmp/rwlock").read_text() or "{}")
        except ValueError:
            return  # torn by a kill
        holders = [*locks.get("write", {}).values()]
        holders += [one for several in locks.get("read", {}).values() for one in several]
        for holder in holders:
            if psutil.pid_exists(int(holder["pid"])):
                raise ThawlineError(
                    f"process {holder['pid']} ({holder.get('cmd', 'dvc')}) is working in "
                    f"{project.root}; wait until it has finished, or end it"
                )


def _texts(project: Project, model: str, last: int | None) -> Iterator[str]:
    """All that names what is needed."""
    yield from _here(project)
    if history.has_git(project.root):
        yield from history.dvc_files(project.root, last)
    yield from references.texts(project, model)


def _here(project: Project) -> Iterator[str]:
    """The lock files and `.dvc` files of the project as it is now, and of projects inside it."""
    for folder, inner, names in os.walk(project.root):
        inner[:] = [name for name in inner if name not in _ELSEWHERE]
        for name in names:
            path = Path(folder, name)
            if name == f"{repository.LOCK_FILE}.broken" or name.endswith(".dvc"):
                yield path.read_text(errors="replace")
            elif name == repository.LOCK_FILE:
                yield _whole(path)


def _whole(lock: Path) -> str:
    """A lock file; one that a kill has cut off would name too little."""
    data = lock.read_bytes()
    tree = params_file.parse(data, str(lock)) if len(data) <= params_file.MAX_BYTES else {}
    if not isinstance(tree, dict):
        raise ThawlineError(
            f"{lock} is not whole, so what it needs is not known; thawline run mends it (nothing "
            "was deleted)"
        )
    return data.decode(errors="replace")


def _history_notes(project: Project) -> list[str]:
    if history.has_git(project.root) and history.is_shallow(project.root):
        return ["git's history is shallow here; what only older commits need is not kept"]
    return []


def _is_ours(project: Project, cache: Path) -> bool:
    return cache.resolve().is_relative_to(project.root.resolve())


def _of_cache(cache: Path, runs: Path, named: set[str]) -> tuple[list[Item], int]:
    """What of DVC's cache nothing needs, and how many objects stay."""
    paths = {oid: path for path in cache.glob("??/*") if (oid := _oid(path)) is not None}
    folders = (oid for oid in paths if oid.endswith(garbage.FOLDER))
    members = {o: _members(paths[o]) for o in folders if o.removesuffix(garbage.FOLDER) in named}
    gone = garbage.unneeded(paths, members, named)
    items = [
        Item("runs DVC remembers", path, files.size(path)) for path in _runs(runs, members, named)
    ]
    items += [Item("data and results", paths[oid], files.size(paths[oid])) for oid in gone]
    torn = [path for path in cache.glob("??/*") if _oid(path) is None and garbage.is_left(path)]
    items += [Item("leftovers", path, files.size(path)) for path in torn]
    return items, len(paths) - len(gone)


def _oid(path: Path) -> str | None:
    oid = path.parent.name + path.name
    return oid if _OBJECT.fullmatch(oid) else None


def _members(path: Path) -> list[str]:
    """The files that a folder's object lists. Raises `ThawlineError` when it was changed."""
    data = path.read_bytes()
    oid = _oid(path) or ""
    if hashlib.md5(data).hexdigest() != oid.removesuffix(garbage.FOLDER):
        raise ThawlineError(
            f"{path} is not what DVC wrote, so which files it needs is not known; fetch it anew "
            "(delete it, then: dvc fetch) or bring it back from a copy (nothing was deleted)"
        )
    return [entry["md5"] for entry in json.loads(data) if "md5" in entry]


def _runs(folder: Path, members: dict[str, list[str]], named: set[str]) -> list[Path]:
    """What DVC noted of earlier runs of stages, where an output of theirs goes."""
    kept = garbage.needed(members, named)
    notes = (path for path in sorted(folder.glob("??/*/*")) if path.is_file())
    return [path for path in notes if not _outputs(path) <= kept]


def _outputs(path: Path) -> set[str]:
    """Hashes of a remembered run's outputs."""
    try:
        outs = params_file.parse(path.read_bytes(), str(path))["outs"]
        return {str(out["md5"]).removesuffix(garbage.FOLDER) for out in outs if "md5" in out}
    except (ThawlineError, KeyError, TypeError):
        return {""}  # broken, as DVC would find too


def _of_scratch(project: Project) -> Iterator[Item]:
    """What can be computed again, and what killed runs have left."""
    standing = board.read(project)
    found = {
        "prefix cache": [
            p for p in [project.scratch / "prefix"] if p.is_dir() and any(p.iterdir())
        ],
        "tokens": [p for p in [project.scratch / "tokens"] if p.is_dir()],
        "checkpoints of finished trainings": garbage.finished_checkpoints(project),
        "leftovers": list(garbage.leftovers(project)),
        "old logs": garbage.old_logs(project, standing.log if standing else None),
    }
    seen: set[Path] = set()
    for kind, paths in found.items():
        for path in paths:
            if seen.isdisjoint(path.parents):  # else it goes with the folder around it
                seen.add(path)
                yield Item(kind, path, files.size(path))
