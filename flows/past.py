"""Files of an earlier version of the project, by the hashes that its lock file names: from DVC's
cache, else from its remote. The working tree stays as it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from flows import repository
from tasks import params_file
from tasks.errors import ThawlineError


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
    listed = json.loads(_cached(repo, digest, what).read_bytes())
    found = {entry["relpath"]: entry["md5"] for entry in listed}
    if inside not in found:
        raise ThawlineError(f"{what} holds no {inside}: it was written by another Thawline")
    return _cached(repo, found[inside], what)


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
