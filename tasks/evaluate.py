"""evaluate: the final model on the test split, with intervals, beside what it must beat.

The stage that looks at the test split; `repeat` does where it is asked to. Leaves
`predictions.parquet`, `predictions.csv` (for DVC's plots), `evaluation.json` (a pure function of
its inputs), `reports/metrics.json` (which adds seconds and looks) and the report.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

import tasks.problems
from tasks import (
    baselines,
    calibration,
    costs,
    data_quality,
    embed,
    evidence,
    files,
    labelling,
    learning_curve,
    linear_probes,
    looks,
    metrics,
    repeat,
    report,
    retention,
    select,
    serving,
    slices,
)
from tasks.baselines import Baseline
from tasks.errors import DataError
from tasks.labelling import Floats, Ints, Labelling
from tasks.learning_curve import LearningCurve
from tasks.metrics import Bootstrap
from tasks.params import Params, TrainParams
from tasks.problems import Backbone, Problem
from tasks.records import DataSummary, Project, ThawPlan, TrainRun, Tuning, ViewPolicy
from tasks.retention import Knowledge, Retention

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn


DRIFT = ("validation", "test")  # the splits that are compared
_ENDS = {"": "value", "_low": "low", "_high": "high"}  # of an interval, in metrics.json


def run(project: Project, params: Params) -> None:
    """Evaluate the trained model of a project and write the report.

    Raises `DataError` when the test split is empty.
    """
    import pandas as pd

    begun = time.monotonic()
    manifest = pd.read_parquet(project.manifest)
    summary = DataSummary.read(project.summary)
    if not len(_rows(manifest, "test")):
        raise DataError(
            f"{params.prepare.data} has no test examples to evaluate on; give some a test split, "
            "or raise prepare.split.test"
        )
    logits, costs = _forward(project, params, summary, manifest)
    probes = linear_probes.run(project, params, manifest)
    probes += tasks.problems.load(params.problem).baselines(project)
    known = _knowledge(project, params, len(summary.classes))
    curve = _learning_curve(project, params, manifest)
    conclude(project, params, manifest, logits, probes, known, curve)
    seen = looks.note(project, manifest)
    seconds = time.monotonic() - begun
    _write_metrics(project, params, seconds, costs | {"looks.test": seen})
    report.write(project, params, seconds)


def conclude(
    project: Project,
    params: Params,
    manifest: pd.DataFrame,
    logits: dict[str, Floats],
    probes: Sequence[Baseline],
    known: Knowledge | None,
    curve: LearningCurve | None,
) -> None:
    """Judge the logits [n, classes] of validation and test; write predictions and evaluation.

    `known`: what the backbone still knows; None when nothing below the head has moved. `curve`:
    what more labels would bring; None when there are too few to tell.
    """
    known_labels = DataSummary.read(project.summary).labelling
    words = tasks.problems.load(params.problem).WORDS
    seen, labels = (known_labels.truth(_targets(manifest, split)) for split in DRIFT)
    temperature = evidence.plain(calibration.fit_temperature(logits["validation"], seen))
    several = known_labels.several
    probabilities = {
        "before": labelling.probabilities(logits["test"], several),
        "after": labelling.probabilities(logits["test"], several, temperature),
    }
    majority = baselines.majority(_targets(manifest, "train"), known_labels, len(labels))
    predicted = labelling.answers(probabilities["after"], several)
    tested, resamples = manifest.iloc[_rows(manifest, "test")], _bootstrap(manifest, params)
    plan = ThawPlan.read(project.thaw_plan)
    evaluation = {
        "temperature": temperature,
        "examples": {k: int(v) for k, v in manifest["split"].value_counts().sort_index().items()},
        **evidence.judge(
            labels,
            probabilities,
            [majority, *probes],
            known_labels.classes,
            resamples,
            probe_advice=plan.strategy != "head_only",
        ),
        "retention": retention.judge(
            Retention.read(project.train / "retention.json"),
            known,
            params.retention,
            words.many,
            several,
            old_head=plan.layers[-1].width != 1,  # 0: a record from before it was noted
        ),
        "drift": evidence.plain(asdict(_drift(manifest, logits, several))),
        **evidence.plain(slices.judge(labels, predicted, tested, resamples)),
        "learning_curve": curve and evidence.plain({**asdict(curve), "sentence": curve.sentence}),
    }
    files.write_json(project.evaluate / "evaluation.json", evaluation)
    _write_predictions(project, tested, probabilities["after"], known_labels)


def _drift(manifest: pd.DataFrame, logits: dict[str, Floats], several: bool) -> data_quality.Drift:
    """Validation against test, by what the model says of an example of each group."""

    def said(split: str) -> Floats:
        once = ~manifest["group"].iloc[_rows(manifest, split)].duplicated().to_numpy()
        return labelling.probabilities(logits[split][once], several)

    return data_quality.drift(*map(said, DRIFT))


def _rows(manifest: pd.DataFrame, split: str) -> Ints:
    return np.flatnonzero(manifest["split"].to_numpy() == split).astype(np.int64)


def _targets(manifest: pd.DataFrame, split: str) -> Ints:
    return manifest["target"].to_numpy(np.int64)[_rows(manifest, split)]


def _bootstrap(manifest: pd.DataFrame, params: Params) -> Bootstrap:
    return _resamples(manifest["group"].to_numpy()[_rows(manifest, "test")], params)


def _resamples(groups: Any, params: Params) -> Bootstrap:
    options = params.evaluate
    return Bootstrap(
        metrics.group_index(groups), options.bootstrap, options.confidence, params.seed
    )


def _forward(
    project: Project, params: Params, summary: DataSummary, manifest: pd.DataFrame
) -> tuple[dict[str, Floats], dict[str, float]]:
    """Logits of validation and test [n, classes]; and what a prediction takes: milliseconds of one
    example, and megabytes of weights."""
    from tasks.engine import device
    from tasks.engine.fold import folded

    plan = ThawPlan.read(project.thaw_plan)
    problem = tasks.problems.load(params.problem)
    exact = device.resolve(params.device, "float32")  # as the packaged model predicts
    backbone = problem.backbone(plan.backbone, params.embed, project.root)
    policy = ViewPolicy.read(project.augment / "policy.json")
    examples = problem.examples(project, policy, backbone)
    model, _ = _trained(project, problem, backbone, plan, len(summary.classes))
    size = params.embed.batch_size

    def predict(inputs: Tensor) -> Tensor:
        return serving.predict(problem, model, policy, inputs)

    held = serving.megabytes(model)
    model = folded(exact.host(model))
    found = {}
    for split in ("validation", "test"):
        rows, what = _rows(manifest, split), f"predict {split}"
        found[split] = linear_probes.outputs(predict, examples, rows, size, exact, what)
    rows = _rows(manifest, "test")
    taken = serving.of_one(problem, model, policy, examples, rows, exact)
    costs = {"predict.milliseconds": taken, "predict.megabytes": round(held, 2)}
    return {split: logits.astype(np.float64) for split, logits in found.items()}, costs


def _trained(
    project: Project, problem: Problem, backbone: Backbone, plan: ThawPlan, classes: int
) -> tuple[nn.Module, str]:
    """The trained network, in evaluation mode, and the path of its head."""
    from safetensors.torch import load_file

    head = TrainParams.model_validate(Tuning.read(project.tuning).train).head
    model, path = serving.network(problem, backbone, classes, head, plan.reading)
    model.load_state_dict(load_file(project.train / "weights.safetensors"))
    return model.eval(), path


def _knowledge(project: Project, params: Params, classes: int) -> Knowledge | None:
    """What the trained backbone still knows of what `retention.probe` asks about."""
    from tasks import probe

    if params.retention.own_probe is None:  # training has asked about the validation examples
        return Retention.read(project.train / "retention.json").knowledge
    plan = ThawPlan.read(project.thaw_plan)
    if plan.reading:
        return None  # only the head has learned, and the network around the old one is another
    problem = tasks.problems.load(params.problem)
    backbone = problem.backbone(plan.backbone, params.embed, project.root)
    model, head = _trained(project, problem, backbone, plan, classes)
    return probe.ask(project, params, model, head)


def _learning_curve(
    project: Project, params: Params, manifest: pd.DataFrame
) -> LearningCurve | None:
    """What more labels would bring a linear head on the same features."""
    features, rows = embed.deepest(project, ThawPlan.read(project.thaw_plan).backbone)
    chosen = select.drawn(len(rows), params.seed)
    examples = manifest.iloc[rows[chosen]]
    resamples = _resamples(examples["group"].to_numpy(), params)
    known = DataSummary.read(project.summary).labelling
    truth = known.truth(examples["target"].to_numpy(np.int64))
    kept = np.asarray(features[chosen], np.float32)
    return learning_curve.measure(kept, truth, len(known.classes), resamples, len(rows))


def _write_predictions(
    project: Project, examples: pd.DataFrame, probabilities: Floats, known: Labelling
) -> None:
    """One row a test example: what it is, what it was taken for, and all probabilities."""
    import pandas as pd

    frame = pd.DataFrame(
        {
            "id": examples["id"].to_numpy(),
            "source": examples["source"].to_numpy(),
            "group": examples["group"].to_numpy(),
            "label": examples["label"].to_numpy(),
            "predicted": known.called(known.answers(probabilities)),
            "probability": labelling.confidence(probabilities, known.several),
        }
    )
    shares = pd.DataFrame(probabilities, columns=[f"p_{i}" for i in range(len(known.classes))])
    with files.atomic(project.evaluate / "predictions.parquet") as temporary:
        pd.concat([frame, shares], axis=1).to_parquet(temporary, index=False)
    with files.atomic(project.evaluate / "predictions.csv") as temporary:
        frame[["label", "predicted"]].to_csv(temporary, index=False, lineterminator="\n")


def _write_metrics(
    project: Project, params: Params, seconds: float, measured: dict[str, float]
) -> None:
    """`reports/metrics.json`: one flat object of numbers; `measured`: some that are known."""
    evaluation = files.read_json(project.evaluate / "evaluation.json")
    trained = TrainRun.read(project.train / "run.json")
    flat = dict(measured)
    judged = [name for name in metrics.NAMES if name in evaluation["model"]]
    for name in judged:
        flat |= {f"test.{name}{end}": evaluation["model"][name][key] for end, key in _ENDS.items()}
    for name in ("ece", "nll"):
        flat[f"test.{name}"] = evaluation["model"][name]["value"]
        flat[f"test.{name}_uncalibrated"] = evaluation["uncalibrated"][name]["value"]
    flat["test.examples"] = evaluation["examples"]["test"]
    for baseline in evaluation["baselines"]:
        for name in judged:
            flat[f"baseline.{baseline['name']}.{name}"] = baseline[name]["value"]
    for name in ("seconds", "cpu_seconds", "prefix_seconds", "prefix_bytes", "peak_anonymous_mb"):
        flat[f"train.{name}"] = getattr(trained, name)
    flat["train.prefix_error"] = max(trained.prefix_errors.values(), default=0.0)
    flat |= evaluation["retention"]["figures"]
    repeated = repeat.read(project)
    if folds := repeated["folds"]:
        flat |= {f"folds.accuracy{end}": folds["accuracy"][key] for end, key in _ENDS.items()}
    if seeds := repeated["seeds"]:
        flat |= {f"seeds.accuracy_{key}": seeds[key] for key in ("mean", "spread")}
    if worst := evaluation["worst"]:
        flat["test.worst_slice_accuracy"] = worst["accuracy"]["value"]
    if curve := evaluation["learning_curve"]:
        flat["labels.more"] = curve["more"]
        flat |= {f"labels.gain{end}": curve["gain"][key] for end, key in _ENDS.items()}
    before = costs.total_seconds(costs.before_evaluate(project, params))
    flat["run.seconds"] = round(before + seconds, 2)
    files.write_json(project.reports / "metrics.json", flat)
