"""Where an Optuna study is kept: a journal in scratch, or the database that `tune.storage` names.

A journal takes a line for each thing that happens, which costs a small part of what Optuna's tables
in SQLite do. Its lock is the kernel's, which lets go of it when a process is killed.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from tasks.errors import ThawlineError

if TYPE_CHECKING:
    from optuna import Study


def opened(file: Path, url: str | None = None) -> tuple[Study, FileLock]:
    """The study that is named as its file, made where there is none, and the lock of its workers.

    `url`: of a database instead of the file, as SQLAlchemy takes it; `$NAME` in it is an
    environment variable. Raises `ThawlineError` when that cannot be used.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Of choices that are lists, which a study keeps as well as others.
    warnings.filterwarnings("ignore", "Choices for a categorical distribution")
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.with_suffix(".lock"))
    with lock:
        storage = _journal(file, lock) if url is None else _database(url)
        study = optuna.create_study(storage=storage, study_name=file.stem, load_if_exists=True)
    return study, lock


def _journal(file: Path, lock: FileLock) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if file.exists():  # without half a line from a kill, to which the next would be added
        whole = file.read_bytes().rpartition(b"\n")
        os.truncate(file, len(whole[0]) + len(whole[1]))
    return JournalStorage(JournalFileBackend(str(file), lock_obj=lock))


def _database(url: str) -> Any:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    for name in re.findall(r"\$\{?(\w+)", url):
        if name not in os.environ:
            raise ThawlineError(
                f"tune.storage names the environment variable {name}, which is not set"
            )
    try:
        return RDBStorage(os.path.expandvars(url), engine_kwargs={"pool_pre_ping": True})
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise ThawlineError(f"tune.storage cannot be used: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What is wrong, in a line, without the address, which may hold a password."""
    cause = getattr(error, "orig", None) or error.__cause__ or error
    if isinstance(cause, ImportError) and "psycopg" in str(cause):
        return "PostgreSQL needs a driver: pip install 'thawline[postgres]'"
    lines = str(cause).strip().splitlines()
    return lines[0][:200] if lines else type(cause).__name__
