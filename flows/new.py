"""`thawline new`: a project folder for somebody's data."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows import start as starts
from tasks import params_file, plugins, problems, recipes, versions
from tasks.errors import ThawlineError
from tasks.params import Params
from tasks.records import Project

TEMPLATES = Path(__file__).parent / "templates"
MANIFESTS = (".csv", ".tsv", ".parquet")
IMAGE_SIDE = 160  # photographs need more than the 96 of the embedded data set
FEW = 1_000  # examples below which the recipe is that for small data
MOST_THREADS = 8

GITIGNORE = """\
# What a run leaves beside the DVC outputs (DVC ignores its own outputs itself).
/.thawline/
/logs/
/mlflow.db*
/mlartifacts/
/ledger/
/reports/gate.*
/.prefect/
/predictions.parquet
"""
DVCIGNORE = """\
# DVC writes these into folders of outputs; their line order follows the order of completion.
.gitignore
"""


@dataclass(frozen=True)
class Wanted:
    """What the user asked for."""

    folder: Path
    data: str  # a path, or a name of the catalogue
    problem: str = "image_classification"
    name: str | None = None  # of the registered model
    images: str | None = None
    recipe: str | None = None  # None: by the number of examples
    start: str | None = None  # a model or file of weights to start from, see `tasks.start`
    columns: dict[str, str] = field(default_factory=dict)  # of a manifest: path_column …


def make(wanted: Wanted) -> list[str]:
    """Make the project folder, whole or not at all; returns what to tell the user.

    Raises `ThawlineError` when the folder is in use or the data cannot be read.
    """
    folder = wanted.folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ThawlineError(f"{folder} exists and is not an empty folder; choose another name")
    plugins.load(problems, wanted.problem)
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        told = _fill(Project(building), wanted, folder.name)
        building.chmod(0o755)
        building.replace(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return [*told, f"made {folder}", f"next: cd {wanted.folder} && thawline run"]


def _fill(project: Project, wanted: Wanted, name: str) -> list[str]:
    from tasks.prepare import choose_salt

    root = project.root
    shutil.copy(TEMPLATES / "params.yaml", root / "params.yaml")
    data = _data(wanted.data, root)
    is_manifest = Path(data).suffix.lower() in MANIFESTS
    images = _images(wanted, root / data, is_manifest)
    values: dict[str, Any] = {
        "problem": wanted.problem,
        "threads": _threads(),
        "prepare.data": data,
        "augment.image_size": IMAGE_SIDE,
        "register.model": wanted.name or _model_name(name),
    }
    if is_manifest:
        values |= {f"prepare.{key}": value for key, value in wanted.columns.items()}
    if images is not None:
        values["prepare.images"] = images
    parameters = _set(root, values)
    frame = plugins.load(problems, wanted.problem).read(parameters.prepare, root)
    given = frame["split"].notna().any()
    recipe = wanted.recipe or ("small_data" if len(frame) < FEW else "standard")
    values = {
        **recipes.values(recipe),
        "prepare.split.salt": choose_salt(project, frame, parameters),
    }
    _set(root, values)
    _write_dvc_yaml(root, images is not None)
    versions.write(root)
    fetched = "" if Path(data).is_absolute() else f"/{data}\n"  # the catalogue has it again
    (root / ".gitignore").write_text(GITIGNORE + fetched, encoding="utf-8")
    _start_dvc(root)
    (root / ".dvcignore").write_text(DVCIGNORE, encoding="utf-8")
    told = []
    if wanted.start is not None:
        told = starts.start_from(project, wanted.start, classes=sorted(set(frame["label"])))
    split = "with its own split" if given else "to be split"
    classes = frame["label"].nunique()
    return [f"{len(frame)} examples of {classes} classes, {split}; recipe {recipe}", *told]


def _data(given: str, root: Path) -> str:
    """The data's place as `prepare.data` says it; a name of the catalogue is fetched."""
    path = Path(given).expanduser()
    if path.exists():
        return str(path.resolve())
    catalogue = importlib.import_module("tasks.catalogue")
    if given in catalogue.known_data():
        fetched = Path(catalogue.fetch_data(given, root)).resolve()
        inside = fetched.is_relative_to(root.resolve())
        return str(fetched.relative_to(root.resolve())) if inside else str(fetched)
    known = ", ".join(catalogue.known_data())
    raise ThawlineError(
        f"--data {given}: there is no such file or folder, and no data set of that name ({known})"
    )


def _images(wanted: Wanted, data: Path, is_manifest: bool) -> str | None:
    """Where a manifest's paths start from; None when the images lie in the data itself."""
    if wanted.images is not None:
        folder = Path(wanted.images).expanduser()
        if not folder.is_dir():
            raise ThawlineError(f"--images {wanted.images}: there is no such folder")
        return str(folder.resolve())
    if not is_manifest or _holds_images(data):
        return None
    return str(data.parent)


def _holds_images(data: Path) -> bool:
    if data.suffix.lower() != ".parquet":
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return "image" in pq.read_schema(data).names
    except (pa.ArrowException, OSError):
        return True  # not readable; the reader of the data says so


def _set(root: Path, values: dict[str, Any]) -> Params:
    assignments = [
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()
    ]
    return params_file.set_values(root, assignments)


def _threads() -> int:
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable, MOST_THREADS))


def _model_name(folder: str) -> str:
    """The folder's name without what a registry's names must not have."""
    kept = "".join("-" if c in "/:.%\"' " else c for c in folder).strip("-")
    return kept or "model"


def _write_dvc_yaml(root: Path, images: bool) -> None:
    text = (TEMPLATES / "dvc.yaml").read_text(encoding="utf-8")
    if images:  # a changed image must count as changed data, not only a changed manifest
        data = "      - ${prepare.data}\n"
        text = text.replace(data, f"{data}      - ${{prepare.images}}\n", 1)
    (root / "dvc.yaml").write_text(text, encoding="utf-8")


def _start_dvc(root: Path) -> None:
    """A DVC repository, in a git repository of its own where there is none above."""
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)  # it tells what it did on stdout
    inside_git = _git(root, "rev-parse", "--is-inside-work-tree")
    if not inside_git and not _git(root, "init", "--quiet"):
        repo = Repo.init(str(root), no_scm=True)  # no git on this machine
    else:
        repo = Repo.init(str(root), subdir=inside_git)
    with repo, repo.config.edit() as config:
        config["core"].update({"analytics": False, "check_update": False})


def _git(root: Path, *arguments: str) -> bool:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0
