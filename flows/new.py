"""`thawline new`: a project folder for somebody's data."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args

from flows import start as starts
from tasks import labelling, params_file, problems, recipes, versions, warm_start
from tasks.errors import ThawlineError, nearest
from tasks.params import Params
from tasks.problems import Problem
from tasks.records import Project

if TYPE_CHECKING:
    import pandas as pd

    from tasks.labelling import Labelling

TEMPLATES = Path(__file__).parent / "templates"
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
    problem: str | None = None  # None: what the catalogue says of the data, or the default
    name: str | None = None  # of the registered model
    recipe: str | None = None  # None: by the number of examples, see `recipes.chosen`
    start: str | None = None  # a model or file of weights to start from, see `tasks.start`
    options: dict[str, str] = field(default_factory=dict)  # keys of `prepare`, as typed


def make(wanted: Wanted) -> list[str]:
    """Make the project folder, whole or not at all; returns what to tell the user.

    Raises `ThawlineError` when the folder is in use or the data cannot be read.
    """
    folder = wanted.folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ThawlineError(f"{folder} exists and is not an empty folder; choose another name")
    versions.libraries(problem_of(wanted.data, wanted.problem))
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
    from tasks import raw_examples
    from tasks.prepare import choose_salt

    root = project.root
    called = problem_of(wanted.data, wanted.problem)
    problem = problems.load(called)
    _refuse_unknown(wanted.options, problem)
    (root / "params.yaml").write_text(template(called), encoding="utf-8")
    options = {key: _typed(problem, key, text) for key, text in wanted.options.items()}
    data = _data(wanted.data, root)
    values: dict[str, Any] = {
        "problem": called,
        "threads": _threads(),
        "prepare.data": data,
        "register.model": wanted.name or _model_name(name),
        **{f"prepare.{key}": value for key, value in options.items()},
    }
    values |= problem.proposals(root / data, options)
    parameters = _set(root, values)
    frame = problem.read(parameters.prepare, root)
    given = frame["split"].notna().any()
    known = labelling.of(frame["label"].unique(), bool(parameters.prepare.label_separator))
    recipe, why = _recipe(wanted, called, frame, known)
    values = {
        **recipes.values(recipe, called),
        "prepare.split.salt": choose_salt(project, frame, parameters),
    }
    _set(root, values)
    _write_dvc_yaml(root, problem, parameters)
    versions.write(root)
    warm_start.write(root, None)
    fetched = "" if Path(data).is_absolute() else f"/{data}\n"  # the catalogue has it again
    (root / ".gitignore").write_text(GITIGNORE + fetched, encoding="utf-8")
    _start_dvc(root)
    (root / ".dvcignore").write_text(DVCIGNORE, encoding="utf-8")
    odd = raw_examples.like_missing(frame, known.several)
    told = [f"{sentence}: {raw_examples.IF_MISSING}" for sentence in odd]
    if wanted.start is not None:
        told += starts.start_from(project, wanted.start, classes=known.classes)
    split = "with its own split" if given else "to be split"
    classes = f"{len(known.classes)} {'labels, several each' if known.several else 'classes'}"
    return [f"{len(frame)} examples of {classes}, {split}; recipe {recipe}{why}", *told]


def _recipe(wanted: Wanted, problem: str, frame: pd.DataFrame, known: Labelling) -> tuple[str, str]:
    """The recipe's name, and in brackets why it was chosen, if the user did not."""
    if wanted.recipe is not None:
        return wanted.recipe, ""
    learned = frame["label"][frame["split"] != "test"]
    _, _, classes = labelling.pairs(learned, known.several)
    each = len(classes) // len(known.classes)
    name, why = recipes.chosen(len(learned), each, problem, known.several)
    return name, f" ({why})"


def problem_of(data: str, said: str | None = None) -> str:
    """What the model is for: as the user said, or else as the catalogue says of its data sets."""
    if said is not None:
        return said
    catalogue = importlib.import_module("tasks.catalogue")
    entry = None if _there(data) else catalogue.known_data().get(data)
    return entry.problem if entry else problems.DEFAULT


def template(problem: str) -> str:
    """The `params.yaml` to start with, its sections of a problem's own in their places."""
    sections = _sections(TEMPLATES / "params.yaml")
    own = problems.folder_of(problem) / "params.yaml"
    if own.is_file():
        sections |= _sections(own)
    return "".join(sections.values())


def _sections(path: Path) -> dict[str, str]:
    """The text of a YAML file by its top-level keys, comments and all."""
    found: dict[str, str] = {}
    key = ""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line[0].isalpha():
            key = line.partition(":")[0]
        found[key] = found.get(key, "") + line
    return found


def explained(problem: str, section: str) -> dict[str, str]:
    """Key → its comment in a section of that `params.yaml`."""
    text = template(problem).partition(f"\n{section}:\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^  (\w+):.*?#\s+(.*)$", text, re.MULTILINE))


def _data(given: str, root: Path) -> str:
    """The data's place as `prepare.data` says it; a name of the catalogue is fetched."""
    if path := _there(given):
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


def _there(given: str) -> Path | None:
    """The user's own file or folder, which comes before a name of the catalogue."""
    path = Path(given).expanduser()
    return path if path.exists() else None


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


def _refuse_unknown(options: dict[str, str], problem: Problem) -> None:
    known = problem.sections().prepare.model_fields
    for key in options:
        if key not in known:
            option = f"--{key.replace('_', '-')}"
            raise ThawlineError(f"{option} is no option of this problem{nearest(key, known)}")


def _typed(problem: Problem, key: str, text: str) -> Any:
    """An option's value: a text where a text may stand, such as a column named 2024; several of
    them with commas between; else YAML."""
    kind: Any = problem.sections().prepare.model_fields[key].annotation
    if kind == list[str]:
        return [part.strip() for part in text.strip("[] ").split(",")]
    is_text = kind is str or (isinstance(kind, UnionType) and str in get_args(kind))
    return text if is_text else params_file.parse(text.encode(), f"--{key.replace('_', '-')}")


def _write_dvc_yaml(root: Path, problem: Problem, parameters: Params) -> None:
    """The template, with the data's further places and what the packaged model needs of them."""
    text = (TEMPLATES / "dvc.yaml").read_text(encoding="utf-8")
    data = "      - ${prepare.data}\n"
    places = problem.places(parameters.prepare)  # a changed one must count as changed data
    text = text.replace(data, data + "".join(f"      - ${{{key}}}\n" for key in places), 1)
    default = problems.load(problems.DEFAULT)
    listed, own = (
        "".join(f"      - prepare.{key}\n" for key in each.PACKAGED) for each in (default, problem)
    )
    text = text.replace(f"      - prepare.data\n{listed}", f"      - prepare.data\n{own}", 1)
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
