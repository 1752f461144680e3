"""repeat: the training again, on other folds and with other seeds; how much of the result is luck?

Folds: every example is held out once, by models that were not trained on it or its group, so that a
small data set judges the recipe on all of it; backbone, thaw plan and tuned values stay what they
are, though other folds had a say in them. The test split is held out as all else is: one look at
it, as one model answers each example. Folds depend on the data alone: models of the same data are
compared example by example. Seeds: the same split, other augmented views, order, mixing and
dropout, judged on test; the first is the project's own.
Each repeat that is done is kept in scratch, so that a killed stage goes on with the next.
"""

from __future__ import annotations

import shutil
import warnings
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from tasks import evidence, files, labelling, looks, metrics, side_training, versions
from tasks.errors import DataError
from tasks.labelling import Ints, Labelling, Labels
from tasks.metrics import Bootstrap
from tasks.params import NEVER_CHANGES_A_RESULT, Params, TrainParams
from tasks.params import replace as changed
from tasks.records import DataSummary, Project, ThawPlan, Tuning
from tasks.side_training import Rows

PREDICTIONS, RECORD = "predictions.parquet", "repeat.json"


def run(project: Project, params: Params) -> None:
    """Write `repeat.json` and, with folds, `predictions.parquet` (as `evaluate` does).

    Raises `DataError` when a class has fewer groups than there are folds.
    """
    options = params.repeat
    manifest = pd.read_parquet(project.manifest)
    record: dict[str, Any] = {"folds": None, "seeds": None}
    shutil.rmtree(project.repeat, ignore_errors=True)
    project.repeat.mkdir(parents=True)
    if options.folds:
        parts = []
        known = DataSummary.read(project.summary).labelling
        divided = folds(manifest, params, known)
        for number, rows in enumerate(divided, start=1):
            predicted = _predicted(project, params, rows, f"fold {number} of {options.folds}")
            parts.append(_frame(manifest, rows["test"], predicted, project).assign(fold=number))
        frame = pd.concat(parts, ignore_index=True)
        with files.atomic(project.repeat / PREDICTIONS) as temporary:
            frame.to_parquet(temporary, index=False)
        record["folds"] = _by_fold(frame, params)
        models = [_name(project, params, rows) for rows in divided]
        looks.note(project, manifest, f"folds {files.sha256_json(models)}")
    if options.seeds > 1:
        record["seeds"] = _by_seed(project, params, manifest)
    files.write_json(project.repeat / RECORD, record)


def read(project: Project) -> dict[str, Any]:
    """What the stage found: `folds` and `seeds`, None where nothing was asked of them."""
    try:
        found: dict[str, Any] = files.read_json(project.repeat / RECORD)
    except OSError:
        return {"folds": None, "seeds": None}
    return found


def folds(manifest: pd.DataFrame, params: Params, known: Labelling | None = None) -> list[Rows]:
    """The rows of each fold: its own as `test`, and of the others `train` and `validation`.

    Groups stay together, classes are spread evenly; of several labels (`known`) the rarest of each
    example is.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    count, known = params.repeat.folds, known or labelling.of(manifest["label"], several=False)
    truth = known.truth(manifest["target"].to_numpy(np.int64))
    targets = labelling.rarest(truth)
    groups = metrics.group_index(manifest["group"])
    own = {name: labelling.has(truth, number) for number, name in enumerate(known.classes)}
    smallest = min(len(np.unique(groups[here])) for here in own.values() if here.any())
    if smallest < count:
        raise DataError(
            f"repeat.folds is {count}, but the smallest class has {smallest} examples or groups; "
            f"set it to {smallest} at most"
        )

    def divided(rows: Ints, parts: int) -> list[Ints]:
        salt = files.number(f"{params.prepare.split.salt}")
        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=salt)
        with warnings.catch_warnings():  # of classes rarer than the parts of validation
            warnings.simplefilter("ignore", UserWarning)
            pieces = list(splitter.split(rows, targets[rows], groups[rows]))
        return [rows[inside] for _, inside in pieces]

    everything = np.arange(len(manifest))
    parts = max(2, round(1 / (params.prepare.split.validation or 0.15)))
    found = []
    for held_out in divided(everything, count):
        rest = np.setdiff1d(everything, held_out)
        most = min(int(np.bincount(targets[rest]).max()), len(np.unique(groups[rest])))
        validation = divided(rest, min(parts, most))[0]
        train = np.setdiff1d(rest, validation)
        # A class that validation has all of goes back: what learns must know every class.
        for here in own.values():
            if not here[train].any():
                train = np.union1d(train, validation[here[validation]])
        lost = (name for name, here in own.items() if here.any() and not here[train].any())
        if name := next(lost, None):
            raise DataError(
                f"repeat.folds is {count}, but one fold would leave class {name!r} without "
                "training examples; lower it, or add examples of the class"
            )
        found.append(
            {
                "train": train,
                "validation": np.setdiff1d(rest, train),
                "test": np.sort(held_out),
            }
        )
    return found


def _by_fold(frame: pd.DataFrame, params: Params) -> dict[str, Any]:
    options = params.evaluate
    groups = metrics.group_index(frame["group"])
    bootstrap = Bootstrap(groups, options.bootstrap, options.confidence, params.seed)
    right = (frame["label"] == frame["predicted"]).to_numpy(np.float64)
    accuracy = metrics.share(right, bootstrap)
    each = [float(right[frame["fold"] == number].mean()) for number in sorted(set(frame["fold"]))]
    found: dict[str, Any] = evidence.plain(
        {"examples": len(frame), "accuracy": asdict(accuracy), "each": each}
    )
    return found


def _by_seed(project: Project, params: Params, manifest: pd.DataFrame) -> dict[str, Any]:
    splits = manifest["split"].to_numpy()
    rows = {name: np.flatnonzero(splits == name) for name in ("train", "validation", "test")}
    known = DataSummary.read(project.summary).labelling
    labels = known.truth(manifest["target"].to_numpy(np.int64)[rows["test"]])
    each = []
    for number in range(params.repeat.seeds):
        seed = params.seed if not number else files.number(f"{params.seed} {number}")
        seeded = changed(params, {"seed": seed})
        what = f"seed {number + 1} of {params.repeat.seeds}"
        said = _predicted(project, seeded, rows, what)
        each.append(float(labelling.right(labels, said).mean()))
        if number:  # the first is the project's own, which evaluate notes
            looks.note(project, manifest, f"repeat {_name(project, seeded, rows)}")
    spread = float(np.std(each, ddof=1))
    found: dict[str, Any] = evidence.plain(
        {"examples": len(labels), "mean": float(np.mean(each)), "spread": spread, "each": each}
    )
    return found


def _predicted(project: Project, params: Params, rows: Rows, what: str) -> Labels:
    """What a model trained on some rows says of those of `test`; kept once found."""
    path = project.scratch / "repeat" / f"{_name(project, params, rows)[:24]}.npy"
    if not path.exists():
        plan, settings = ThawPlan.read(project.thaw_plan), _settings(project, params)
        logits = side_training.run(project, params, plan, settings, rows, what).logits
        several = DataSummary.read(project.summary).labelling.several
        found = labelling.answers(logits, several, cut=0.0)
        with files.atomic(path) as temporary, temporary.open("wb") as file:
            np.save(file, found)
    return np.asarray(np.load(path))


def _settings(project: Project, params: Params) -> TrainParams:
    fixed = params.train.model_dump(include=NEVER_CHANGES_A_RESULT)
    return TrainParams.model_validate(fixed | Tuning.read(project.tuning).train)


def _name(project: Project, params: Params, rows: Rows) -> str:
    """A digest of all that determines a repeat."""
    from tasks.engine.device import resolve

    compute = resolve(params.device, params.precision)
    return files.sha256_json(
        {
            "rows": {name: files.sha256_json(part.tolist()) for name, part in rows.items()},
            "inputs": [files.sha256_file(path) for path in _inputs(project)],
            "computed": [params.seed, params.threads, params.embed.batch_size],
            "device": [compute.device.type, compute.precision],
            "versions": [versions.VERSIONS[name] for name in ("repeat", "train")],
            "libraries": versions.libraries(params.problem),
        }
    )


def _inputs(project: Project) -> list[Any]:
    policy = project.augment / "policy.json"
    return [project.manifest, policy, project.thaw_plan, project.tuning]


def _frame(manifest: pd.DataFrame, rows: Ints, predicted: Labels, project: Project) -> pd.DataFrame:
    examples, known = manifest.iloc[rows], DataSummary.read(project.summary).labelling
    kept = examples[["id", "source", "group", "label"]].reset_index(drop=True)
    return kept.assign(predicted=known.called(predicted))
