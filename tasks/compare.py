"""compare: two models on the test examples that both have judged; which is better, if that shows.

A model is a version of the project's registered model (number or alias), `models:/NAME@alias`, an
MLflow run, or the predictions that an evaluation left (a file, or a project's folder).
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import evidence, metrics, paired
from tasks.errors import DataError, ThawlineError
from tasks.metrics import Bootstrap, Interval, Ints
from tasks.paired import Comparison
from tasks.params import Params
from tasks.records import Project
from tasks.tracking import registry, store

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

COLUMNS = ["id", "group", "label", "predicted"]
ARTIFACT = "reports/test_predictions.parquet"
FOLDS = "reports/fold_predictions.parquet"  # of cross-validation, where a model has it
POWER = 0.8  # chance that the examples asked for would decide
_ADDRESS = re.compile(r"models:/(?P<name>[^@/]+)[@/](?P<version>[^@/]+)")
_RUN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Compared:
    """Two models, `a` as the one in question and `b` as the one to beat."""

    a: str
    b: str
    examples: int  # that both have judged
    left_out: int  # that only one of them has judged
    accuracy_a: Interval
    accuracy_b: Interval
    comparison: Comparison
    needed: int | None  # examples that would decide; None: decided, or no difference to decide
    sentence: str

    def lines(self) -> list[str]:
        """For people: each model's accuracy, what they disagree on, the verdict."""
        judged = self.comparison
        missing = f" ({self.left_out:,} more were judged by one of them)" if self.left_out else ""
        return [
            *(
                f"{name}: right on {100 * x.value:.2f}% ({100 * x.low:.2f} to {100 * x.high:.2f})"
                for name, x in ((self.a, self.accuracy_a), (self.b, self.accuracy_b))
            ),
            f"{self.examples:,} test examples{missing}; only the first is right on "
            f"{judged.only_model_right:,}, only the second on {judged.only_baseline_right:,} "
            f"(McNemar p = {judged.p_value:.2g})",
            self.sentence,
        ]

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = evidence.plain(asdict(self))
        return found


def compare(project: Project, params: Params, a: str, b: str) -> Compared:
    """Judge two models on the examples that both have predicted, paired by example.

    Raises `ThawlineError` when one is not found or came without predictions, and `DataError` when
    they share no example or disagree about the labels.
    """
    (name_a, of_a), (name_b, of_b) = (predictions(project, params, name) for name in (a, b))
    # The same content under two labels, which a given test split may hold, is no evidence.
    of_a, of_b = (each[~each["id"].duplicated(keep=False)] for each in (of_a, of_b))
    both = of_a.merge(of_b, on="id", suffixes=("_a", "_b"))
    if both.empty:
        raise DataError(f"{name_a} and {name_b} were tested on different examples; none is shared")
    relabelled = int((both["label_a"] != both["label_b"]).sum())
    if relabelled:
        raise DataError(
            f"{name_a} and {name_b} were judged by different labels ({relabelled} of {len(both)} "
            "shared examples); evaluate both on the same data: thawline run --from evaluate"
        )
    options = params.evaluate
    groups = metrics.group_index(both["group_a"])
    bootstrap = Bootstrap(groups, options.bootstrap, options.confidence, params.seed)
    numbers = {name: i for i, name in enumerate(_names(both))}

    def numbered(column: str) -> Ints:
        return np.asarray(both[column].map(numbers), np.int64)

    labels, in_a, in_b = map(numbered, ("label_a", "predicted_a", "predicted_b"))
    judged = paired.compare(labels, in_a, in_b, groups, options.confidence)
    steps = (in_a == labels).astype(np.int64) - (in_b == labels)
    needed = examples_needed(
        judged, len(both), options.confidence, paired.design_effect(steps, groups)
    )

    def accuracy(found: Ints) -> Interval:
        return metrics.answers(labels, found, len(numbers), bootstrap)["accuracy"]

    return Compared(
        name_a,
        name_b,
        len(both),
        len(of_a) + len(of_b) - 2 * len(both),
        accuracy(in_a),
        accuracy(in_b),
        judged,
        needed,
        told(name_a, name_b, judged, len(both), needed),
    )


def examples_needed(
    judged: Comparison, examples: int, confidence: float, design: float = 1.0
) -> int | None:
    """How many examples like these an exact test needs to see a difference as large as this one.

    `design`: how many examples in groups like these say as much as one by itself. Sample size of
    McNemar's test (Connor, Biometrics 1987) at the power `POWER`; None where the models do not
    differ, or the verdict is out.
    """
    from scipy.stats import norm

    gap = (judged.only_model_right - judged.only_baseline_right) / examples
    if judged.verdict != "not distinguishable" or not gap:
        return None
    discordant = (judged.only_model_right + judged.only_baseline_right) / examples
    sure, power = norm.ppf(0.5 + confidence / 2), norm.ppf(POWER)
    spread = sure * math.sqrt(discordant) + power * math.sqrt(discordant - gap**2)
    return max(examples + 1, math.ceil(design * (spread / gap) ** 2))


def told(a: str, b: str, judged: Comparison, examples: int, needed: int | None) -> str:
    """The verdict in words."""
    gap = judged.difference
    span = f"{100 * gap.low:+.2f} to {100 * gap.high:+.2f}"
    if judged.verdict != "not distinguishable":
        return f"{a} is {judged.verdict} than {b}: {100 * gap.value:+.2f} points ({span})."
    more = (
        "they are right equally often"
        if needed is None
        else f"about {_round(needed):,} examples would decide a difference as large as this"
    )
    return (
        f"{a} and {b} are not distinguishable on {examples:,} examples: "
        f"{100 * gap.value:+.2f} points ({span}); {more}."
    )


def predictions(project: Project, params: Params, model: str) -> tuple[str, pd.DataFrame]:
    """What to call a model, and its `COLUMNS` for each test example."""
    path = Path(model).expanduser()
    if path.is_dir():
        path = Project(path).evaluate / "predictions.parquet"
    if path.suffix == ".parquet":
        return model, _read(path, model)
    if store.is_embedded() and not (project.root / store.DATABASE).is_file():
        raise ThawlineError(f"{project.root} has no registered model yet: thawline run makes one")
    with store.connect(project.root) as client:
        name, run_id = _found(client, params.register_.model, model)
        return name, _read(_downloaded(client, name, run_id, ARTIFACT), name)


def folds(project: Project, params: Params, version: int) -> pd.DataFrame | None:
    """The `COLUMNS` of a version's cross-validation, if it was registered with any."""
    with store.connect(project.root) as client:
        name, run_id = _found(client, params.register_.model, str(version))
        known = [each.path for each in client.list_artifacts(run_id, str(Path(FOLDS).parent))]
        return _read(_downloaded(client, name, run_id, FOLDS), name) if FOLDS in known else None


def slim(frame: pd.DataFrame) -> pd.DataFrame:
    """What of an evaluation's predictions goes with a registered model."""
    return frame[COLUMNS]


def _found(client: MlflowClient, own: str, model: str) -> tuple[str, str]:
    """What to call a version or a run, and the id of the run."""
    from mlflow.exceptions import MlflowException

    if _RUN.fullmatch(model):
        try:
            return f"run {model[:8]}", client.get_run(model).info.run_id
        except MlflowException:
            raise ThawlineError(f"the tracking server has no run {model}") from None
    address = _ADDRESS.fullmatch(model)
    name, version = (address["name"], address["version"]) if address else (own, model)
    number = registry.require(registry.aliases(client, name), name, version)
    run_id = registry.get(client, name, number).run_id
    if run_id is None:
        raise ThawlineError(f"version {number} of {name!r} belongs to no run, so nothing is known")
    alias = "" if version.isdigit() else f" ({version})"
    return f"{name} version {number}{alias}", run_id


def _downloaded(client: MlflowClient, name: str, run_id: str, artifact: str) -> Path:
    from mlflow.exceptions import MlflowException

    try:
        return Path(client.download_artifacts(run_id, artifact))
    except (MlflowException, OSError):
        raise ThawlineError(
            f"{name} came without its test predictions; compare models that this version of "
            "Thawline has registered"
        ) from None


def _read(path: Path, name: str) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path, columns=COLUMNS)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name}: {path} holds no predictions of an evaluation ({type(error).__name__}); "
            "make them with: thawline run"
        ) from None


def _names(both: pd.DataFrame) -> list[str]:
    columns = ("label_a", "predicted_a", "predicted_b")
    return sorted({name for column in columns for name in both[column].unique()})


def _round(count: int) -> int:
    """Two digits, as the estimate has no more."""
    return int(float(f"{count:.1e}"))
