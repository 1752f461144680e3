"""Writing files so that a kill never leaves half of one, and hashing them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)  # mkstemp's 0600 would keep a colleague from reading it
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success rename it into place.

    Where `path` is there already, each of its files is replaced by a rename instead: two processes
    that put the same in place leave no moment without it. Raises `OSError` when `path` is a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        made.mkdir()
        yield made
        written = [file for file in made.rglob("*") if file.is_file()]
        for file in written:
            with file.open("rb") as content:
                os.fsync(content.fileno())
        try:
            made.rename(path)
        except OSError:
            if not path.is_dir():
                raise
            for file in written:
                target = path / file.relative_to(made)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make the renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(path: Path) -> None:
    """Give a sparse file its blocks: a full disk is an error now, not a crash on a mapped write."""
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, the same bytes for the same value (keys keep their order)."""
    with atomic(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def size(path: Path) -> int:
    """The bytes of a file, or of all files in a folder; 0 when there is none."""
    total = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with contextlib.suppress(FileNotFoundError):  # none, or removed meanwhile
            total += 0 if file.is_dir() else file.stat().st_size
    return total


def newest(path: Path) -> float:
    """When a file, or the last of all in a folder, was changed or came: seconds since the epoch."""
    found = 0.0
    for file in [path, *(path.rglob("*") if path.is_dir() else ())]:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            status = file.stat()
            # A copy may keep the time of its original; when it came here is another.
            found = max(found, status.st_mtime, status.st_ctime)
    return found


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """A digest of a JSON value that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def number(text: str) -> int:
    """A number below 2³¹ that a text determines, for a seed."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
