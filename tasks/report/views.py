"""What the page shows, gathered from the records of a run."""

from __future__ import annotations

import base64
import itertools
from collections import defaultdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tasks import costs, files, freeze, looks, problems, repeat
from tasks.inspect import sentences
from tasks.params import Params
from tasks.records import (
    SPLITS,
    DataSummary,
    Inspection,
    Project,
    Selection,
    ThawPlan,
    TrainRun,
    Tuning,
    ViewPolicy,
)
from tasks.report import charts, formats
from tasks.retention import Retention

if TYPE_CHECKING:
    import pandas as pd

MATRIX_CLASSES = 100  # beyond this the matrix shows the most confused ones
MATRIX_SHOWN = 50
SUSPECTS = 12  # probably wrong labels that are shown, and outliers

Values = dict[str, Any]


SPENT = {
    "gradients": "forward and backward passes",
    "update": "clipping, optimizer and average",
    "inputs": "waiting for inputs",
    "validation": "validation",
    "checkpoints": "checkpoints",
}


def context(project: Project, params: Params, seconds: float | None) -> Values:
    """All that `page.html.j2` names."""
    import pandas as pd

    problem = problems.load(params.problem)
    policy = ViewPolicy.read(project.augment / "policy.json")
    evaluation = files.read_json(project.evaluate / "evaluation.json")
    plan = ThawPlan.read(project.thaw_plan)
    tuning, run = Tuning.read(project.tuning), TrainRun.read(project.train / "run.json")
    trained = {k: v for k, v in (run.warm_start or {}).items() if k in tuning.train}
    trained = {**tuning.train, **trained}  # a warm start has its own epochs and rate
    return {
        "title": params.register_.model,
        "params": params,
        "evaluation": evaluation,
        "bars": bars(evaluation),
        "curves": curves(pd.read_csv(project.train / "history.csv")),
        "several": evaluation.get("several", False),
        "matrix": matrix(evaluation),
        "confusions": confusions(evaluation),
        "decisions": decisions(evaluation),
        "classes": by_difficulty(evaluation),
        "reliability": reliability(evaluation),
        "mistakes": mistakes(project, params),
        "repeated": repeat.read(project),
        "looks": looks.count(project, pd.read_parquet(project.manifest)),
        "policy": policy,
        "words": problem.WORDS,
        "seen": problem.in_words(policy),
        "panels": problem.panels(project),
        "preview": preview(project),
        "selection": Selection.read(project.selection),
        "plan": plan,
        "layers": layers(
            freeze.with_new_head(plan, len(evaluation["classes"]), tuning.train["head"]["hidden"]),
            trained["learning_rate"],
        ),
        "tuning": tuning,
        "searched": searched(tuning),
        "settings": settings(trained),
        "retention": retention(Retention.read(project.train / "retention.json")),
        "inspection": inspection(project),
        "labels": labels(evaluation["learning_curve"]),
        "data": data(DataSummary.read(project.summary)),
        "stages": stages(project, params, seconds),
        "run": run,
        "spent": SPENT,
        "metrics": files.read_json(project.reports / "metrics.json"),
        "thawline": version("thawline"),
    }


def bars(evaluation: Values) -> list[Values]:
    """The model's accuracy and the baselines', best baseline first."""
    beside = sorted(evaluation["baselines"], key=lambda b: -b["accuracy"]["value"])
    own = {"short": "This model", "kind": "model", **evaluation["model"]}
    others = [
        {**b, "short": b["name"].replace("_", " ").capitalize(), "kind": "baseline"} for b in beside
    ]
    return [own, *others]


def curves(history: pd.DataFrame) -> Values:
    """Two charts over the epochs, and the phases."""
    by_epoch = history.set_index(history["epoch"].astype(float))
    epochs = list(by_epoch.index)
    x = charts.counting_axis(epochs, 44, 408)

    def line(column: str) -> list[tuple[float, float]]:
        values = by_epoch[column].dropna()  # before the first step there is no training loss
        return list(zip(values.index, values, strict=True))

    def chart(title: str, names: dict[str, str]) -> Values:
        series = [charts.Series(name, column, line(column)) for column, name in names.items()]
        values = [value for line in series for _, value in line.points]
        return {"title": title, "series": series, "y": charts.axis(values, 190, 14)}

    phases = []
    for name, rows in history.groupby("phase", sort=False):
        first, last = float(rows["epoch"].min()), float(rows["epoch"].max())
        phases.append({"name": str(name), "start": first - 0.5, "end": last + 0.5})
    return {
        "x": x,
        "phases": phases,
        "charts": [
            chart("Loss", {"train_loss": "training", "validation_loss": "validation"}),
            chart("Accuracy", {"validation_accuracy": "validation"}),
        ],
        "rows": history.to_dict("records"),
    }


def matrix(evaluation: Values) -> Values:
    """The confusion matrix as rows of cells; of very many classes, the most confused ones."""
    names = evaluation["classes"]
    shown = list(range(len(names)))
    if len(names) > MATRIX_CLASSES:
        wrong: dict[int, int] = defaultdict(int)
        for true, called, examples in evaluation["confusion"]:
            if true != called:
                wrong[true] += examples
        shown = sorted(sorted(wrong, key=lambda c: (-wrong[c], c))[:MATRIX_SHOWN])
    cells = {(true, called): examples for true, called, examples in evaluation["confusion"]}
    support = [score["support"] for score in evaluation["per_class"]]

    def cell(true: int, called: int) -> Values:
        examples = cells.get((true, called), 0)
        share = examples / max(support[true], 1)
        # A tenth of a class taken for another is much: the root makes it visible.
        tint = share if true == called else share**0.5
        right = true == called
        return {
            "called": names[called],
            "examples": examples,
            "tint": round(tint, 3),
            "right": right,
        }

    rows = [
        {
            "name": names[true],
            "support": support[true],
            "cells": [cell(true, called) for called in shown],
        }
        for true in shown
    ]
    return {"names": [names[c] for c in shown], "rows": rows, "all": len(names)}


def confusions(evaluation: Values, most: int = 8) -> list[Values]:
    """The commonest confusions of two classes, either way, in words."""
    pairs: dict[tuple[int, int], int] = defaultdict(int)
    for true, called, examples in evaluation["confusion"]:
        if true != called:
            pairs[(min(true, called), max(true, called))] += examples
    total = sum(pairs.values())
    names = evaluation["classes"]
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [
        {"one": names[i], "other": names[j], "examples": n, "share": n / total}
        for (i, j), n in ranked[:most]
    ]


def decisions(evaluation: Values) -> list[Values]:
    """Of several labels, how often each was found, missed and wrongly said; the most wrong first.

    In place of a confusion matrix: no label is said instead of another one.
    """
    rows = []
    for score in evaluation["per_class"] if evaluation.get("several") else []:
        found = round(score["recall"]["value"] * score["support"]) if score["recall"] else 0
        missed, wrong = score["support"] - found, score["predicted"] - found
        rows.append({"name": score["name"], "found": found, "missed": missed, "wrong": wrong})
    return sorted(rows, key=lambda row: -(row["missed"] + row["wrong"]))


def by_difficulty(evaluation: Values) -> list[Values]:
    """Classes, the one with the lowest F1 first, those without any example last."""
    scores: list[Values] = evaluation["per_class"]
    return sorted(scores, key=lambda s: s["f1"]["value"] if s["f1"] else 2)


def reliability(evaluation: Values) -> Values:
    """The two diagrams, before and after the temperature, on the same square."""
    diagrams = [
        {
            "title": title,
            "bins": evaluation["reliability"][name],
            "ece": evaluation[figures]["ece"],
            "nll": evaluation[figures]["nll"],
        }
        for name, title, figures in (
            ("before", "Before", "uncalibrated"),
            ("after", "After", "model"),
        )
    ]
    most = max(b["examples"] for d in diagrams for b in d["bins"])
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
    return {
        "diagrams": diagrams,
        "most": most or 1,
        "x": charts.Axis(0, 1, 44, 408, ticks),
        "y": charts.Axis(0, 1, 252, 18, ticks),
    }


def mistakes(project: Project, params: Params) -> list[Values]:
    """The most confident wrong answers, as people see them."""
    import pandas as pd

    columns = ["id", "source", "label", "predicted", "probability"]
    predictions = pd.read_parquet(project.evaluate / "predictions.parquet", columns=columns)
    wrong = predictions[predictions["label"] != predictions["predicted"]]
    worst = wrong.sort_values(["probability", "id"], ascending=[False, True])
    worst = worst.head(params.evaluate.mistakes)
    ids = pd.read_parquet(project.manifest, columns=["id"])["id"]
    places = pd.Series(range(len(ids)), index=ids.to_numpy())
    rows = [int(places[id_]) for id_ in worst["id"]]
    looks_like = problems.load(params.problem).shown(project, rows)
    told = zip(worst.to_dict("records"), looks_like, strict=True)
    return [{**{str(k): v for k, v in row.items()}, "example": seen} for row, seen in told]


def preview(project: Project) -> Values | None:
    """The augmentation preview as a data URI, and the names of its rows and columns."""
    picture, names = (project.augment / f"preview.{kind}" for kind in ("png", "json"))
    if not (picture.is_file() and names.is_file()):
        return None
    data = base64.b64encode(picture.read_bytes()).decode()
    return {"image": f"data:image/png;base64,{data}", **files.read_json(names)}


def layers(plan: ThawPlan, learning_rate: float) -> list[Values]:
    """The plan, a row a layer: when it thaws, how fast it learns, what it costs."""
    total = sum(layer.flops for layer in plan.layers) or 1
    starts = {phase.name: freeze.start(plan.layers, phase) for phase in plan.phases}
    rows = []
    for place, layer in enumerate(plan.layers):
        rates = {
            phase.name: learning_rate * phase.learning_rates[layer.name]
            for phase in plan.phases
            if layer.name in phase.learning_rates
        }
        rows.append(
            {
                "name": layer.name,
                "parameters": layer.parameters,
                "statistics": layer.buffers > 0,  # such as those of batch norms
                "share": layer.flops / total,
                "rates": rates,
                "line": layer.name == plan.thaw_line,
                "cached": [name for name, start in starts.items() if plan.cache and place < start],
            }
        )
    return rows


def settings(train: Values, prefix: str = "") -> list[tuple[str, str]]:
    """The training parameters, each by its key path below `train`."""
    rows: list[tuple[str, str]] = []
    for key, value in train.items():
        inner = isinstance(value, dict)
        path = f"{prefix}{key}"
        rows += settings(value, f"{path}.") if inner else [(path, plain(value) or "none")]
    return rows


def retention(record: Retention) -> Values:
    """The curve from the pretrained to the fine-tuned weights: two charts and their points."""

    def chart(title: str, figure: str, kind: str, name: str) -> Values:
        points = [(point.alpha, getattr(point, figure)) for point in record.curve]
        axis = charts.axis([value for _, value in points], 190, 14)
        return {"title": title, "series": [charts.Series(name, kind, points)], "y": axis}

    drawn = [chart("Accuracy", "accuracy", "validation_accuracy", "validation")]
    if record.curve and record.curve[0].agreement is not None:
        drawn.append(chart("Agreement", "agreement", "agreement", "with the old predictions"))
    return {
        "curve": record.curve,
        "best": record.best,
        "used": record.used,
        "x": charts.Axis(0, 1, 44, 408, (0.0, 0.25, 0.5, 0.75, 1.0)),
        "charts": drawn,
    }


def inspection(project: Project) -> Values | None:
    """What the data said before training, in words, and the examples to look at."""
    import pandas as pd

    if not project.inspection.is_file():
        return None
    found = Inspection.read(project.inspection)
    ids = pd.read_parquet(project.manifest, columns=["id"])["id"]
    places = pd.Series(range(len(ids)), index=ids.to_numpy())

    def shown(examples: list[Values]) -> list[Values]:
        some = examples[:SUSPECTS]
        rows = [int(places[example["id"]]) for example in some]
        problem = problems.load(DataSummary.read(project.summary).problem)
        looks_like = problem.shown(project, rows)
        return [{**one, "example": seen} for one, seen in zip(some, looks_like, strict=True)]

    return {
        "sentences": list(sentences(found)),
        "certificate": found.certificate,
        "examples": found.examples,
        "found": found.found,
        "label_errors": shown(found.label_errors),
        "outliers": shown(found.outliers),
    }


def searched(tuning: Tuning) -> Values | None:
    """The history of a search: each trial of the highest fidelity, and the best so far."""
    if not tuning.study:
        return None
    highest = max(len(trial["losses"]) for trial in tuning.trials)
    ended = [trial for trial in tuning.trials if len(trial["losses"]) == highest]
    numbers = [float(trial["number"]) for trial in ended]
    losses = [float(trial["validation_loss"]) for trial in ended]
    so_far = list(itertools.accumulate(losses, min))
    series = [
        charts.Series("each trial", "agreement", list(zip(numbers, losses, strict=True))),
        charts.Series("best so far", "expected", list(zip(numbers, so_far, strict=True))),
    ]
    chart = {"title": "Validation loss", "series": series, "y": charts.axis(losses, 190, 14)}
    best = numbers[losses.index(min(losses))]
    return {"chart": chart, "x": charts.counting_axis(numbers, 44, 408), "best": best}


def labels(curve: Values | None) -> Values | None:
    """Accuracy against labelled examples: what was measured, and how it would go on."""
    if curve is None:
        return None
    measured = list(zip(map(float, curve["sizes"]), curve["accuracy"], strict=True))
    now, doubled = float(curve["examples"]), 2.0 * curve["examples"]
    later = [(now, curve["now"]), (doubled, curve["doubled"])]

    def line(name: str, kind: str, points: list[tuple[float, Values]], end: str) -> charts.Series:
        return charts.Series(name, kind, [(size, figure[end]) for size, figure in points])

    series = [
        line("measured", "measured", measured, "value"),
        line("expected", "expected", later, "value"),
        *(
            line(f"interval, {end} end", "bound", [*measured, *later], end)
            for end in ("low", "high")
        ),
    ]
    ends = [figure[end] for _, figure in [*measured, *later] for end in ("low", "high")]
    chart = {"title": "Accuracy", "series": series, "y": charts.axis(ends, 190, 14)}
    return {**curve, "chart": chart, "x": charts.axis([0.0, doubled], 44, 408), "rows": measured}


def data(summary: DataSummary) -> Values:
    """The data's state: examples by class and split, what was set aside, and facts."""
    rows: list[Values] = []
    own = {split: summary.examples_of(split) for split in SPLITS if split in summary.counts}
    for name in summary.classes:
        counts = [own.get(split, {}).get(name, 0) for split in SPLITS]
        rows.append({"name": name, "counts": counts, "total": sum(counts)})
    most = max(sum(row["counts"]) for row in rows)
    totals = [sum(summary.counts.get(split, {}).values()) for split in SPLITS]
    return {
        "summary": summary,
        "splits": SPLITS,
        "rows": rows,
        "totals": totals,
        "most": most or 1,
        "facts": [fact(k, v) for k, v in summary.details.items() if not _of_records(v)],
        "listings": [
            {"title": worded(key), "rows": rows, "columns": list(rows[0])}
            for key, rows in summary.details.items()
            if _of_records(rows) and rows
        ],
    }


def worded(key: str) -> str:
    """store_bytes → Store"""
    return key.removesuffix("_bytes").replace("_", " ").capitalize()


def _of_records(value: Any) -> bool:
    """Whether it is a list to show as a table, be it empty."""
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def fact(key: str, value: Any) -> tuple[str, str]:
    """A fact of the problem in words: its name and its value."""
    name = worded(key)
    if isinstance(value, dict):
        parts = [(k.replace("_", " "), plain(v)) for k, v in value.items() if v not in ([], "")]
        return name, " · ".join(f"{k} {v}" for k, v in parts)
    return name, formats.size(value) if key.endswith("_bytes") else plain(value)


def plain(value: Any) -> str:
    """A number, a text or a list of them."""
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:,}" if numeric else str(value)


def stages(project: Project, params: Params, seconds: float | None) -> Values:
    """Seconds and memory of each stage so far."""
    rows = costs.before_evaluate(project, params)
    if seconds is not None:
        rows = [*rows, costs.StageCost("evaluate", seconds)]
    return {
        "rows": rows,
        "longest": max((row.seconds or 0 for row in rows), default=0) or 1,
        "total": costs.total_seconds(rows),
        "unknown": [row.stage for row in rows if row.seconds is None],
    }
