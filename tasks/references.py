"""What the registry needs of DVC's cache: the hashes in its versions, in the ledger, and in the
lock files that were kept with the versions.

It is asked for all models, since `register.model` may have had another name; and all stores that
the project is known to have used must answer: what one of them holds cannot be guessed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks import files, snapshot
from tasks.errors import ThawlineError
from tasks.ledger import Ledger, copy_path
from tasks.records import Project
from tasks.tracking import registry, store

if TYPE_CHECKING:
    from mlflow import MlflowClient


def texts(project: Project, model: str) -> Iterator[str]:
    """All that may name a hash: tags of versions and entries, lock files, the ledger's copies.

    Raises `ThawlineError` when a store or an artifact cannot be read, when the ledger is not what
    was written, and when a store that was used is neither the project's own nor the one named now.
    """
    copies = set((project.root / "ledger").glob("*.jsonl"))
    for copy in copies:
        yield copy.read_text(encoding="utf-8", errors="replace")
    unexplained = set(copies)
    for place in _stores(project):
        with place, store.connect(project.root) as client:
            known = registry.all_versions(client)
            names = {model, *(name.removesuffix(".ledger") for name in known)}
            ours = {name: copy_path(project.root, name) for name in names}
            unexplained -= set(ours.values())
            for name, copy in ours.items():
                if name == model or copy in copies:
                    Ledger(client, project, name).read()  # raises where it is not whole
            for version in (version for versions in known.values() for version in versions):
                yield json.dumps(version.tags)
                for content in _kept(client, version).values():
                    yield content.decode(errors="replace")
    _require_no_other(project, [str(p.relative_to(project.root)) for p in sorted(unexplained)])


def _stores(project: Project) -> list[contextlib.AbstractContextManager[None]]:
    """The stores to ask: the project's own files, where there are any, and a server named now."""
    database = project.root / store.DATABASE
    found: list[contextlib.AbstractContextManager[None]] = []
    if database.is_file():
        found.append(store.as_embedded())
    elif (project.root / store.ARTIFACTS).is_dir() or _registered_in(project) == "embedded":
        raise ThawlineError(
            f"{database} is gone, but models were registered in it, and what they need is not "
            "known; bring it back from a backup (nothing was deleted)"
        )
    if not store.is_embedded():
        file = store.database_file(project.root)
        if file is not None and not file.is_file():
            raise ThawlineError(
                f"MLFLOW_TRACKING_URI names {file}, which is not there; set it right, or unset it "
                "(nothing was deleted)"
            )
        found.append(contextlib.nullcontext())
    return found


def _require_no_other(project: Project, signs: list[str]) -> None:
    """Refuse when a store was used that has not been asked; `signs`: copies of its ledgers."""
    last = _registered_in(project)
    if last not in (None, "embedded", store.store_name(project.root)):
        signs.append(f"{project.scratch.name}/registered.json, which names {last}")
    if signs:
        raise ThawlineError(
            f"this project has also used another registry (see {signs[0]}), and what its versions "
            "need is not known; name it in MLFLOW_TRACKING_URI, or, if it is no more, move that "
            "file away (nothing was deleted)"
        )


def _registered_in(project: Project) -> str | None:
    try:
        return str(files.read_json(project.scratch / "registered.json")["store"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _kept(client: MlflowClient, version: registry.Version) -> dict[str, bytes]:
    from mlflow.exceptions import MlflowException

    try:
        return snapshot.fetch(client, version)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # its run was removed, files and all
            return {}
        raise
