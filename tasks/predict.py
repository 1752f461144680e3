"""predict: labels and calibrated probabilities of pictures, by the registered champion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import files
from tasks.errors import DataError, ThawlineError
from tasks.params import Params
from tasks.progress import progress
from tasks.records import Project
from tasks.tracking import registry, store

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

BATCH = 128  # images between two steps of the progress bar
SUFFIXES = (".parquet", ".csv", ".json")


def predict(
    project: Project,
    params: Params,
    images: Sequence[str | Path],
    out: Path | None,
    model: str | None = None,
) -> pd.DataFrame:
    """Predict image files and folders of them with a registered version.

    `model` is its alias or number; without one it is the champion.

    Columns: `path`, `label`, `probability`, `error` (why an image could not be read, else empty),
    `p_<class>`. Written to `out` as its suffix says (.parquet, .csv, .json). Raises `DataError`
    when there is nothing to predict or nothing can be read, `ThawlineError` when there is no such
    model or it is not the one that was registered.
    """
    import pandas as pd

    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise ThawlineError(f"--out {out}: the name must end in {', '.join(SUFFIXES)}")
    paths = expand(images)
    loaded = load(project, params, model or "champion")
    frames = []
    with progress("predicting", len(paths)) as advance:
        for start in range(0, len(paths), BATCH):
            batch = [str(path.resolve()) for path in paths[start : start + BATCH]]
            frames.append(loaded.predict(pd.DataFrame({"image": batch})))
            advance(len(batch))
    frame = pd.concat(frames, ignore_index=True)
    frame.insert(0, "path", [str(path) for path in paths])
    if frame["error"].notna().all():
        raise DataError(f"none of the images can be read; the first: {unreadable(frame)[0]}")
    if out is not None:
        write(frame, out)
    return frame


def load(project: Project, params: Params, model: str) -> Any:
    """The pyfunc model of a registered version, its files checked against the registered digest.

    Raises `ThawlineError` when there is no such version or a file is not the registered one.
    """
    import torch

    torch.set_num_threads(params.threads)
    name = params.register_.model
    with store.connect(project.root) as client:
        number = registry.require(registry.aliases(client, name), name, model)
        folder = checked_copy(client, params.problem, name, number)
        return registry.load(folder)


def checked_copy(client: MlflowClient, problem: str, name: str, number: int) -> Path:
    """The files of a registered version, with the packaged model in `artifacts/models`.

    Raises `ThawlineError` when there is no such version or a file is not the registered one.
    """
    from tasks.package import load_predictor

    version = registry.get(client, name, number)
    folder = registry.local_copy(client, name, number)
    found = load_predictor(problem).verify(folder / "artifacts" / "models")
    if found != version.digest:
        raise ThawlineError(
            f"version {number} of {name!r} is not the model that was registered (its digest "
            f"is {found[:12]}…, registered was {str(version.digest)[:12]}…); do not use it: "
            "choose another, or register the packaged model again"
        )
    return folder


def packaged_copy(client: MlflowClient, problem: str, name: str, number: int) -> Path:
    """The packaged model folder of a registered version; raises as `checked_copy`."""
    return checked_copy(client, problem, name, number) / "artifacts" / "models"


def expand(images: Iterable[str | Path]) -> list[Path]:
    """The image files named, and those inside the folders named, sorted, hidden ones left out.

    Raises `DataError` for a path that does not exist and when nothing is left.
    """
    from tasks.problems.image_classification.decode import SUFFIXES as IMAGE_SUFFIXES

    found: list[Path] = []
    for given in map(Path, images):
        if given.is_dir():
            inside = (p for p in given.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            found += sorted(p for p in inside if p.is_file() and not p.name.startswith("."))
        elif given.exists():
            found.append(given)
        else:
            raise DataError(f"{given} does not exist")
    if not found:
        raise DataError("there are no images to predict; name image files or folders of them")
    return list(dict.fromkeys(found))


def unreadable(frame: pd.DataFrame) -> list[str]:
    """`path: reason` of each image that could not be read."""
    failed = frame[frame["error"].notna()]
    return [f"{path}: {error}" for path, error in zip(failed["path"], failed["error"], strict=True)]


def write(frame: pd.DataFrame, out: Path) -> None:
    """Write predictions at once, in the format that the suffix names."""
    writers: dict[str, Callable[[Path], Any]] = {
        ".parquet": lambda path: frame.to_parquet(path, index=False),
        ".csv": lambda path: frame.to_csv(path, index=False, lineterminator="\n"),
        ".json": lambda path: frame.to_json(path, orient="records", force_ascii=False, indent=2),
    }
    with files.atomic(out) as temporary:
        writers[out.suffix.lower()](temporary)
