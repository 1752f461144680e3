"""Bringing packages and files to this machine, from wherever pip and npm are configured to look."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tasks.progress import progress

CHUNK = 1 << 20
PATIENCE = 600  # seconds for one package
ARCHIVES = (".whl", ".gz", ".tgz")


class NotHad(Exception):
    """A source that has nothing for us, and why."""


def from_url(url: str, target: Path) -> None:
    """Download one file. Raises `OSError`."""
    with urllib.request.urlopen(url, timeout=30) as answer, target.open("wb") as file:
        total = int(answer.headers.get("Content-Length") or 0)
        with progress(f"downloading {target.name}", total) as advance:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                advance(len(chunk))


def from_wheel(requirement: str, targets: Mapping[str, Path]) -> None:
    """Take members out of a wheel, which is not installed: its pins would break ours.

    `targets`: member → file to write. Raises `NotHad`, or `KeyError` for a member that it lacks.
    """
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _from_pip(requirement, Path(scratch), "--only-binary", ":all:", requirement)
        with zipfile.ZipFile(wheel) as archive:
            for member, target in targets.items():
                with archive.open(member) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file, CHUNK)


def from_sdist(requirement: str, sha256: str, member: str, folder: Path) -> Path:
    """Unpack an sdist into `folder`; returns the folder that `member` is, or was packed in.

    pip runs an sdist's setup to learn its metadata, hence only one of a known sha256.
    Raises `NotHad`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        options = ["--no-binary", requirement.partition("==")[0]]  # all: builds setuptools as well
        options += ["--requirement", str(wanted)]
        return _unpacked(_from_pip(requirement, Path(scratch), *options), member, folder)


def from_npm(package: str, member: str, folder: Path) -> Path:
    """Unpack a package of npm into `folder`, running nothing of it; returns as `from_sdist`.

    Raises `NotHad`.
    """
    if shutil.which("npm") is None:
        raise NotHad(f"npm has {package}, but npm is not installed here; install it and try again")
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", "--loglevel=error", "--logs-max=0", "--ignore-scripts"]
        command += ["--pack-destination", scratch, package]
        archive = _fetched(f"npm pack {package}", command, Path(scratch), telling=0)
        return _unpacked(archive, member, folder)


def _from_pip(requirement: str, folder: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--dest", str(folder), *options]
    return _fetched(f"pip download --no-deps {requirement}", command, folder)


def _fetched(what: str, command: list[str], folder: Path, telling: int = -1) -> Path:
    """The package that a command leaves in a folder.

    Raises `NotHad` with the line of its complaint that tells most: npm's first, pip's last.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    found = [path for path in folder.iterdir() if path.suffix in ARCHIVES]
    if done.returncode or not found:
        lines = done.stderr.strip().splitlines() or ["nothing came"]
        raise NotHad(f"{what} failed ({lines[telling]})")
    return found[0]


def _unpacked(archive: Path, member: str, folder: Path) -> Path:
    shutil.unpack_archive(archive, folder, filter="data")
    inside = folder / member
    if not inside.is_file():
        return inside
    shutil.unpack_archive(inside, inside.parent, filter="data")  # an archive in the archive
    return inside.parent
