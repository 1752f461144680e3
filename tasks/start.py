"""Starting points: a model, or a file of weights, copied into the project to fine-tune from.

An address such as `models:/pets@champion` means another model tomorrow. So it is resolved once,
when the user asks, to a file in the project whose sha256 stands in `params.yaml`.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import files, labelling, packaged, params_file, predict, problems
from tasks.errors import ThawlineError
from tasks.params import Params, WeightsFile
from tasks.records import DataSummary, Project
from tasks.tracking import registry, store

FOLDER = "weights"  # of the project
_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>\d+))")


@dataclass(frozen=True)
class Taken:
    """A start that lies in the project."""

    file: str  # relative to the project
    values: dict[str, Any]  # key path → what `params.yaml` must say
    told: list[str]  # what a user should know


def take(
    project: Project,
    params: Params,
    source: str,
    backbone: str | None = None,
    classes: Sequence[str] | None = None,
) -> Taken:
    """Copy what `source` means into the project.

    It is `models:/NAME@ALIAS` or `models:/NAME/NUMBER` in the project's registry; another project,
    whose packaged model is meant, or `PROJECT@ALIAS`, one of its registry; a packaged folder; or a
    file or folder of weights, of the network `backbone`. `classes`: the project's, read if not
    given. Raises `ThawlineError` when there is no such model, it is damaged, or it does not fit.
    """
    path = Path(source).expanduser()
    if path.is_file() or (path.is_dir() and backbone and not (path / "digests.json").is_file()):
        return _weights(project, params, path, backbone)
    with _packaged(project, source) as (folder, origin):
        if backbone is not None:
            raise ThawlineError(
                "--backbone is for a file or folder of weights; a packaged model says itself what "
                "network it is"
            )
        return _model(project, params, folder, origin, classes)


def _model(
    project: Project, params: Params, folder: Path, origin: str, classes: Sequence[str] | None
) -> Taken:
    """A verified packaged folder as one file."""
    record = files.read_json(folder / "model.json")
    if record["problem"] != params.problem:
        raise ThawlineError(
            f"{origin} is a model for {record['problem']}, this project is for {params.problem}"
        )
    starts = problems.starting(params.problem)
    with _written(project) as temporary:
        start = starts.write(folder, origin, temporary)
        sha256 = files.sha256_file(temporary)
        file = _place(project, temporary, sha256, start.backbone, temporary.suffix)
    _check(project, params, start.backbone, file, sha256)
    names = classes if classes is not None else _classes(project, params)
    shared = [name for name in names if name in start.classes]
    several = packaged.several(record) or bool(params.prepare.label_separator)
    keeps = bool(shared) and start.linear and not params.train.head.hidden and not several
    values = _values(params, start.backbone, file, sha256)
    values |= start.values
    if keeps:
        values["train.head.init"] = "keep"
    told = [f"start: {origin}, {start.backbone}, which knows {_listed(start.classes)}"]
    if keeps:
        new = [name for name in names if name not in shared]
        told.append(
            f"its head goes on for {_listed(shared)}; "
            + (f"new: {_listed(new)}" if new else "no class is new")
        )
    elif shared and several:
        told.append("its head starts anew, as an example may have several labels")
    elif shared:
        told.append("its head cannot go on, as it or the project's has hidden layers")
    else:
        told.append("none of the project's classes is among them, so the head starts anew")
    return Taken(file, values, told)


def _weights(project: Project, params: Params, path: Path, backbone: str | None) -> Taken:
    """Weights as they are, a file or a folder; what `take` once wrote may be copied too."""
    if backbone is None and len(params.embed.backbones) > 1:
        listed = ", ".join(params.embed.backbones)
        raise ThawlineError(f"say which network {path} is of, with --backbone (such as {listed})")
    name = backbone or params.embed.backbones[0]
    with _written(project) as temporary:
        if path.is_dir():
            sha256 = problems.starting(params.problem).copy(path, temporary)
        else:
            shutil.copyfile(path, temporary)
            sha256 = files.sha256_file(temporary)
        file = _place(project, temporary, sha256, name, "" if path.is_dir() else path.suffix)
    source = _check(project, params, name, file, sha256)
    return Taken(file, _values(params, name, file, sha256), [f"start: {name}, {source}"])


def _values(params: Params, backbone: str, file: str, sha256: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "embed.backbones": [backbone],
        "embed.weights": {backbone: {"file": file, "sha256": sha256}},
    }
    if params.select.backbone not in ("auto", backbone):
        values["select.backbone"] = "auto"
    if params.train.head.init == "keep":  # of an earlier start
        values["train.head.init"] = "closed_form"
    return values


@contextlib.contextmanager
def _written(project: Project) -> Iterator[Path]:
    """A temporary file in the folder of starts, gone afterwards if it was not moved."""
    folder = project.root / FOLDER
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".start-", dir=folder) as name:
        yield Path(name) / "start.safetensors"


def _place(project: Project, temporary: Path, sha256: str, backbone: str, suffix: str) -> str:
    """Move a file or folder to where its content says; an earlier start keeps its own."""
    file = f"{FOLDER}/{backbone}-{sha256[:12]}{suffix}"
    target = project.root / file
    if temporary.is_dir():
        with files.atomic_folder(target) as made:
            for each in temporary.iterdir():
                each.replace(made / each.name)
    elif not target.is_file() or files.sha256_file(target) != sha256:
        with files.atomic(target) as made:
            temporary.replace(made)
    return file


def _check(project: Project, params: Params, backbone: str, file: str, sha256: str) -> str:
    """Load the network with it once; returns how the weights call themselves.

    A file that does not fit is taken away again.
    """
    entry = WeightsFile(file=file, sha256=sha256)
    embed = params.embed.model_copy(update={"backbones": [backbone], "weights": {backbone: entry}})
    try:
        loaded = problems.load(params.problem).backbone(backbone, embed, project.root)
    except BaseException:  # also of an interrupted one nothing stays
        if not (project.root / f"{file}.dvc").is_file():
            _remove(project.root / file)
        raise
    return str(loaded.weights_source)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextlib.contextmanager
def _packaged(project: Project, source: str) -> Iterator[tuple[Path, str]]:
    """The packaged folder that an address means, verified, and what to call it."""
    if match := _ADDRESS.fullmatch(source):
        version = match["alias"] or match["number"]
        with _registered(project, match["name"], version) as found:
            yield found
        return
    path, _, alias = source.rpartition("@")
    other = Path(path or source).expanduser().resolve()
    if path and not Path(source).exists() and (other / params_file.PARAMS_FILE).is_file():
        owner = params_file.load(other)
        with _registered(Project(other), owner.register_.model, alias) as found:
            yield found
        return
    folder = Path(source).expanduser()
    if (folder / "models").is_dir():  # a project
        folder = folder / "models"
    if not folder.is_dir():
        raise ThawlineError(
            f"{source}: there is no such model; name models:/NAME@champion, a project's folder, "
            "PROJECT@champion, a packaged model's folder, or a file or folder of weights"
        )
    digest = packaged.verify(folder)
    yield folder, f"packaged model {digest[:12]}"


@contextlib.contextmanager
def _registered(project: Project, name: str, version: str) -> Iterator[tuple[Path, str]]:
    """A version of a project's registry, by alias or number."""
    if store.is_embedded() and not (project.root / store.DATABASE).is_file():
        raise ThawlineError(
            f"{project.root.name} has no registry of its own yet; name the project that has the "
            f"model, such as ../pets@champion, or set MLFLOW_TRACKING_URI to a server that has it"
        )
    with store.connect(project.root) as client:
        aliases = registry.aliases(client, name)
        if not version.isdigit() and version not in aliases:
            there = ", ".join(f"{alias} → {n}" for alias, n in sorted(aliases.items())) or "none"
            raise ThawlineError(
                f"the registered model {name!r} has no {version!r} (aliases: {there}); name one "
                f"that there is, such as models:/{name}@challenger, or a number: models:/{name}/1"
            )
        number = int(version) if version.isdigit() else aliases[version]
        folder = predict.packaged_copy(client, name, number)
        digest = packaged.verify(folder)
        yield folder, f"{name} version {number} (model {digest[:12]})"


def _classes(project: Project, params: Params) -> list[str]:
    """The project's classes: as prepared, else from the raw data."""
    if project.summary.is_file():
        return DataSummary.read(project.summary).classes
    frame = problems.load(params.problem).read(params.prepare, project.root)
    several = bool(params.prepare.label_separator)
    return labelling.of(frame["label"].unique(), several).classes


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
