"""predict: labels and calibrated probabilities of examples, by the registered champion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import files, packaged, problems
from tasks.errors import DataError, ThawlineError
from tasks.params import Params
from tasks.problems import INPUT
from tasks.progress import progress
from tasks.records import Project
from tasks.tracking import registry, store

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

BATCH = 128  # examples between two steps of the progress bar
SUFFIXES = (".parquet", ".csv", ".json")


def predict(
    project: Project,
    params: Params,
    given: Sequence[str | Path],
    out: Path | None,
    model: str | None = None,
) -> pd.DataFrame:
    """Predict what the problem makes of some files and folders with a registered version.

    `model` is its alias or number; without one it is the champion.

    Columns: those of `Problem.asked`, such as `path`, which say what was predicted, then `label`,
    `probability`, `error` (why it could not be read, else empty),
    `p_<class>`. Written to `out` as its suffix says (.parquet, .csv, .json). Raises `DataError`
    when there is nothing to predict or nothing can be read, `ThawlineError` when there is no such
    model or it is not the one that was registered.
    """
    import pandas as pd

    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise ThawlineError(f"--out {out}: the name must end in {', '.join(SUFFIXES)}")
    problem = problems.load(params.problem)
    asked = problem.asked([Path(each) for each in given], params.prepare)
    inputs = asked.pop(INPUT)
    loaded = load(project, params, model or "champion")
    frames = []
    with progress("predicting", len(inputs)) as advance:
        for start in range(0, len(inputs), BATCH):
            batch = inputs.iloc[start : start + BATCH]
            frames.append(answers(loaded, batch))
            advance(len(batch))
    frame = pd.concat([asked, pd.concat(frames, ignore_index=True)], axis=1)
    if frame["error"].notna().all():
        raise DataError(
            f"none of the {problem.WORDS.many} can be read; the first: {unreadable(frame)[0]}"
        )
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
        folder = checked_copy(client, name, number)
        return registry.load(folder)


def checked_copy(client: MlflowClient, name: str, number: int) -> Path:
    """The files of a registered version, with the packaged model in `artifacts/models`.

    Raises `ThawlineError` when there is no such version or a file is not the registered one.
    """
    version = registry.get(client, name, number)
    folder = registry.local_copy(client, name, number)
    found = packaged.verify(folder / "artifacts" / "models")
    if found != version.digest:
        raise ThawlineError(
            f"version {number} of {name!r} is not the model that was registered (its digest "
            f"is {found[:12]}…, registered was {str(version.digest)[:12]}…); do not use it: "
            "choose another, or register the packaged model again"
        )
    return folder


def packaged_copy(client: MlflowClient, name: str, number: int) -> Path:
    """The packaged model folder of a registered version; raises as `checked_copy`."""
    return checked_copy(client, name, number) / "artifacts" / "models"


def unreadable(frame: pd.DataFrame) -> list[str]:
    """`path: reason` of each example that could not be read."""
    failed = frame[frame["error"].notna()]
    names = failed[about(frame)].astype(str).agg(", ".join, axis=1)
    return [f"{name}: {error}" for name, error in zip(names, failed["error"], strict=True)]


def about(frame: pd.DataFrame) -> list[str]:
    """The columns of predictions that say what was predicted."""
    return [*frame.columns[: frame.columns.get_loc("label")]]


def answers(model: Any, inputs: Iterable[Any]) -> pd.DataFrame:
    """What a pyfunc model says of inputs as the problem's predictor takes them."""
    import pandas as pd

    return model.predict(pd.DataFrame({INPUT: pd.Series([*inputs], dtype=object)}))


def write(frame: pd.DataFrame, out: Path) -> None:
    """Write predictions at once, in the format that the suffix names."""
    writers: dict[str, Callable[[Path], Any]] = {
        ".parquet": lambda path: frame.to_parquet(path, index=False),
        ".csv": lambda path: frame.to_csv(path, index=False, lineterminator="\n"),
        ".json": lambda path: frame.to_json(path, orient="records", force_ascii=False, indent=2),
    }
    with files.atomic(out) as temporary:
        writers[out.suffix.lower()](temporary)
