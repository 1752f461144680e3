"""What another machine needs to retrain against a version, brought to DVC's default remote.

It compares its data with the champion's by prepared data, features and answers (`flows.past`),
which lie in the cache of the machine that made them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows import past, repository
from flows.changes import EVALUATED, FEATURES
from tasks import files
from tasks.params import Params
from tasks.records import Project


def push(project: Project) -> list[str]:
    """Push the data version as it is in the project; what could not be, in one sentence, or none.

    The inputs that `.dvc` files name go with it.
    """
    if not _leads_elsewhere(project):
        return []
    lock = project.root / repository.LOCK_FILE
    hashes = past.hashes(lock.read_bytes()) if lock.is_file() else {}
    backbone = files.read_json(project.models / "model.json")["backbone"]
    return _pushed(project, hashes, backbone, inputs=True)


def push_champion(project: Project, params: Params) -> list[str]:
    """The same of the champion, as far as this machine's cache has it.

    It may come from `thawline run`, or the remote was away when it was recorded.
    """
    if not _leads_elsewhere(project) or (known := past.champion(project, params)) is None:
        return []
    return _pushed(project, known.hashes, known.backbone)


def _pushed(
    project: Project, hashes: Mapping[str, str], backbone: str | None, inputs: bool = False
) -> list[str]:
    names = (past.PREPARED, f"{FEATURES}/{backbone}", EVALUATED)
    with repository.opened(project) as repo:
        try:
            if inputs:
                repository.push_inputs(repo)
            _push(repo, [hashes[name] for name in names if name in hashes])
        except Exception as error:  # of any library that DVC uses for a remote
            return [
                f"the DVC remote did not take the data version ({repository.sentence(error)}), so "
                "other machines cannot compare with it; the next thawline retrain tries again"
            ]
    return []


def _push(repo: Any, digests: list[str]) -> None:
    """Raises `UploadError` and what the remote's library raises."""
    from dvc.exceptions import UploadError
    from dvc_data.hashfile.db import get_index
    from dvc_data.hashfile.hash_info import HashInfo

    cache, remote = repo.cache.local, repo.cloud.get_remote_odb(command="push")
    here = [HashInfo("md5", digest) for digest in digests if cache.exists(digest)]
    done = repo.cloud.transfer(
        cache, remote, here, dest_index=get_index(remote), cache_odb=cache, shallow=False
    )
    if done.failed:
        raise UploadError(len(done.failed))


def _leads_elsewhere(project: Project) -> bool:
    """Whether there is a default remote, from which other machines can get what is pushed."""
    with repository.opened(project) as repo:
        name = repo.config["core"].get("remote")
        url = str(repo.config["remote"].get(name, {}).get("url", "")) if name else ""
    is_folder = "://" not in url
    return bool(url) and not (
        is_folder and Path(url).resolve().is_relative_to(project.root.resolve())
    )
