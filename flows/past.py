"""What the champion was made from, by the hashes that its lock file names: from DVC's cache, else
from its remote. The working tree stays as it is."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from flows import repository
from tasks import params_file, snapshot
from tasks.errors import ThawlineError
from tasks.params import Params
from tasks.records import Project
from tasks.tracking import registry, runs, store

PREPARED = "data/prepared"
UNUSED_SECONDS = 24 * 3600.0  # after which nobody reads what was laid out for a former champion


@dataclass(frozen=True)
class Champion:
    """What is known of the data that the champion was trained on."""

    number: int
    backbone: str | None
    hashes: dict[str, str]  # of DVC, by path
    digest: str | None = None  # of the model
    params: Params | None = None  # that it was made with; None: of an older schema, or not kept
    went_on: bool = False  # from another version: see `tasks.warm_start`


def champion(project: Project, params: Params) -> Champion | None:
    """The champion and the hashes of what it was made from; None: there is none."""
    if store.is_embedded() and not (project.root / store.DATABASE).is_file():
        return None  # asking would make the database
    name = params.register_.model
    with store.connect(project.root) as client:
        number = registry.aliases(client, name).get("champion")
        if number is None:
            return None
        version = registry.get(client, name, number)
        kept = snapshot.fetch(client, version)
    lock = kept.get(repository.LOCK_FILE, b"")
    tagged = {
        key.removeprefix(runs.DVC): value
        for key, value in version.tags.items()
        if key.startswith(runs.DVC)
    }
    backbone = version.tags.get("thawline.backbone")
    return Champion(
        number,
        backbone,
        hashes(lock) | tagged,
        version.digest,
        _params(kept),
        went_on=registry.WARM_START in version.tags,
    )


def _params(kept: dict[str, bytes]) -> Params | None:
    with contextlib.suppress(ThawlineError, KeyError):
        return params_file.check(params_file.parse(kept[params_file.PARAMS_FILE]))
    return None


def data(project: Project, known: Champion) -> Project:
    """A project in scratch whose prepared data is the champion's: to be read only.

    Raises `ThawlineError` when it was not made by DVC, or neither cache nor remote has it whole.
    """
    what = data_name(known)
    digest = known.hashes[PREPARED]
    home = project.scratch / "past"
    made = Project(home / digest.removesuffix(".dir"))
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(project.scratch / "past.lock"):  # two processes may want it at once
        for other in home.iterdir():
            if other != made.root and time.time() - other.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(other, ignore_errors=True)  # what stays is tried again next time
        if made.prepared.is_dir():
            os.utime(made.root)
        else:
            building = Path(tempfile.mkdtemp(dir=home))
            with repository.opened(project) as repo:
                for inside, member in _members(repo, digest, what).items():
                    place = building / PREPARED / inside
                    place.parent.mkdir(parents=True, exist_ok=True)
                    _link(_cached(repo, member, what), place)
            building.replace(made.root)
    return made


def data_name(known: Champion) -> str:
    """Its data in words. Raises `ThawlineError` when it was not made by DVC."""
    what = f"the data of version {known.number}, the champion,"
    if PREPARED not in known.hashes:
        raise ThawlineError(
            f"{what} is not known, as it was not made by DVC; make one that is: thawline run"
        )
    return what


def hashes(lock: bytes) -> dict[str, str]:
    """Path → hash of each output that a `dvc.lock` names; empty for none."""
    tree = params_file.parse(lock, repository.LOCK_FILE) if lock else {}
    outs = (out for stage in tree.get("stages", {}).values() for out in stage.get("outs", []))
    return {str(out["path"]): str(out["md5"]) for out in outs if out.get("md5")}


def file(repo: Any, digest: str, inside: str, what: str) -> Path:
    """One file of a folder with this hash, in DVC's cache: to be read only.

    Raises `ThawlineError` when neither the cache nor the remote has it as it was; `what` it is,
    for the sentence.
    """
    found = _members(repo, digest, what)
    if inside not in found:
        raise ThawlineError(f"{what} holds no {inside}: it was written by another Thawline")
    return _cached(repo, found[inside], what)


def _members(repo: Any, digest: str, what: str) -> dict[str, str]:
    """The files of a folder, by their path in it."""
    listed = json.loads(_cached(repo, digest, what).read_bytes())
    return {entry["relpath"]: entry["md5"] for entry in listed}


def _link(kept: Path, place: Path) -> None:
    try:
        os.link(kept, place)
    except OSError:  # another file system, or one without links
        shutil.copyfile(kept, place)


def _cached(repo: Any, digest: str, what: str) -> Path:
    from dvc.exceptions import DvcException

    cache, why = repo.cache.local, "it differs from what was written"
    path = Path(cache.oid_to_path(digest))
    if not path.is_file():
        try:
            remote = repo.cloud.get_remote_odb(command="fetch")
            cache.add(remote.oid_to_path(digest), remote.fs, digest)
        except (DvcException, OSError) as error:
            why = repository.sentence(error)
    if path.is_file():
        with path.open("rb") as opened:
            if hashlib.file_digest(opened, "md5").hexdigest() == digest.removesuffix(".dir"):
                return path
    raise ThawlineError(
        f"{what} is not whole in DVC's cache or its remote ({why}); give DVC the remote that has "
        f"it, or bring .dvc/cache/files/md5/{digest[:2]}/{digest[2:]} back from a copy"
    )
