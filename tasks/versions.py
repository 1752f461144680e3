"""The versions of the stages' code that is installed here.

Raise one when a change of code changes that stage's result; a project's `code.yaml`, on which its
stages depend, follows at the next `thawline run`, so that DVC reruns just what the change touches.
"""

from __future__ import annotations

import importlib.metadata
import io
from pathlib import Path

from tasks import files, params_file, problems
from tasks.errors import ThawlineError

CODE_FILE = "code.yaml"

VERSIONS = {
    "prepare": 5,
    "augment": 4,
    "embed": 5,
    "select": 14,
    "inspect": 4,
    "freeze": 12,
    "tune": 15,
    "train": 11,
    "repeat": 8,
    "evaluate": 9,
    "package": 7,
}

HEADER = """\
# The version of each stage's code. Thawline raises one when a change of code changes results, so
# that DVC reruns just that stage and what follows; `thawline run` keeps this file up to date.
"""


def libraries(problem: str) -> dict[str, str]:
    """The installed versions of what a problem's inputs and networks are computed with.

    Raises `ThawlineError` when one is not installed.
    """
    found = {}
    for name in ("torch", *problems.load(problem).LIBRARIES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise ThawlineError(
                f"{problem} needs {name}, which is not installed; install it with: pip install "
                f"{name}"
            ) from None
    return found


def recorded(root: Path) -> dict[str, int]:
    """The versions in a project's `code.yaml`; empty when there is none."""
    path = root / CODE_FILE
    if not path.is_file():
        return {}
    tree = params_file.parse(path.read_bytes(), str(path))
    if not isinstance(tree, dict) or not all(isinstance(v, int) for v in tree.values()):
        raise ThawlineError(f"{path} is not a list of 'stage: number'; delete it and run again")
    return tree


def changes(root: Path) -> dict[str, tuple[int | None, int]]:
    """Stages whose recorded version is not the installed one: (recorded, installed).

    Raises `ThawlineError` when the project was run by a newer Thawline than this one.
    """
    old = recorded(root)
    for stage, version in VERSIONS.items():
        if old.get(stage, 0) > version:
            raise ThawlineError(
                f"{CODE_FILE} asks for version {old[stage]} of stage {stage!r}, this Thawline has "
                f"{version}: install the newer Thawline that this project was last run with"
            )
    return {s: (old.get(s), v) for s, v in VERSIONS.items() if old.get(s) != v}


def update(root: Path) -> dict[str, tuple[int | None, int]]:
    """Bring `code.yaml` up to the installed versions; returns what changed."""
    changed = changes(root)
    if changed:
        write(root)
    return changed


def write(root: Path) -> None:
    """Write the installed versions, keeping the entries of a user's own stages."""
    entries = recorded(root) | VERSIONS
    text = io.StringIO(HEADER)
    text.seek(0, io.SEEK_END)
    for stage, version in entries.items():
        text.write(f"{stage}: {version}\n")
    with files.atomic(root / CODE_FILE) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
