"""What the figures of a test split say, in numbers and in words: `evaluation.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tasks import calibration, labelling, metrics, paired
from tasks.baselines import Baseline
from tasks.labelling import Floats, Labels
from tasks.metrics import Bootstrap, Interval
from tasks.paired import Comparison

DIGITS = 6  # of figures in the record


def judge(
    labels: Labels,
    probabilities: dict[str, Floats],
    beside: Sequence[Baseline],
    classes: list[str],
    bootstrap: Bootstrap,
    probe_advice: bool,
) -> dict[str, Any]:
    """Everything that the report and the model card say about the test split, JSON-ready.

    `probabilities`: [n, classes] before and after the temperature.
    """
    after = probabilities["after"]
    several = labels.ndim == 2
    predicted = labelling.answers(after, several)
    model = metrics.answers(labels, predicted, len(classes), bootstrap)
    calibrated = calibration.calibration(after, labels, bootstrap)
    return {
        "classes": classes,
        **({"several": True} if several else {}),
        "confidence": bootstrap.confidence,
        "groups": bootstrap.clusters,
        "headline": _headline(model["accuracy"], len(labels), bootstrap.confidence, several),
        "model": plain(model | calibrated),
        "uncalibrated": plain(calibration.calibration(probabilities["before"], labels, bootstrap)),
        "baselines": [
            _against(
                labels, predicted, model["accuracy"], baseline, len(classes), bootstrap, advice
            )
            for baseline in beside
            for advice in [probe_advice and baseline.name == "linear_probe"]
        ],
        "per_class": [
            plain(asdict(x)) for x in metrics.per_class(labels, predicted, classes, bootstrap)
        ],
        "confusion": [] if several else _confusion(labels, predicted, len(classes)),
        "coverage": plain(calibration.coverage(after, labels, bootstrap)),
        "reliability": {
            name: plain(calibration.reliability(values, labels))
            for name, values in probabilities.items()
        },
    }


def _confusion(labels: Labels, predicted: Labels, classes: int) -> list[list[int]]:
    """True class, called class and how often, where it is not never."""
    cells = metrics.confusion(labels, predicted, classes)
    true, called = np.nonzero(cells)
    return [[int(i), int(j), int(cells[i, j])] for i, j in zip(true, called, strict=True)]


def _against(
    labels: Labels,
    predicted: Labels,
    accuracy: Interval,
    baseline: Baseline,
    classes: int,
    bootstrap: Bootstrap,
    advice: bool,
) -> dict[str, Any]:
    """A baseline's figures and the verdict on the model beside it."""
    figures = metrics.answers(labels, baseline.predicted, classes, bootstrap)
    comparison = paired.compare(
        labels, predicted, baseline.predicted, bootstrap.groups, bootstrap.confidence
    )
    return {
        "name": baseline.name,
        "title": baseline.title,
        **plain(figures),
        "comparison": plain(asdict(comparison)),
        "sentence": verdict(baseline.title, accuracy, figures["accuracy"], comparison, advice),
        "details": baseline.details,
    }


def verdict(
    title: str,
    model: Interval,
    baseline: Interval,
    comparison: Comparison,
    advice: bool = False,
) -> str:
    """The comparison in words; `advice`: what to do when training has bought nothing."""
    gap = comparison.difference
    points = f"{100 * abs(gap.value):.1f} points"
    other, own = percent(baseline.value), percent(model.value)
    if comparison.verdict == "better":
        span = f"{100 * gap.low:.1f} to {100 * gap.high:.1f}"
        return f"{title} does worse ({other} against {own}): {points} behind, interval {span}."
    cheaper = " freeze.strategy: head_only would give as much for less." if advice else ""
    if comparison.verdict == "worse":
        cheaper = " Set freeze.strategy to head_only, or lower the learning rate." if advice else ""
        span = f"{-100 * gap.high:.1f} to {-100 * gap.low:.1f}"
        return (
            f"{title} does better ({other} against {own}): {points} ahead, interval {span}."
            f"{cheaper}"
        )
    half = 50 * (gap.high - gap.low)
    return (
        f"{title} does as well ({other} against {own}; not distinguishable: these test examples "
        f"tell apart no less than about {half:.1f} points).{cheaper}"
    )


def _headline(accuracy: Interval, examples: int, confidence: float, several: bool) -> str:
    low, high = 100 * accuracy.low, 100 * accuracy.high
    whole = "All labels right" if several else "Right"
    return (
        f"{whole} on {percent(accuracy.value)} of {examples:,} test examples "
        f"({100 * confidence:g}% interval {low:.1f}–{high:.1f}%)."
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def plain(value: Any) -> Any:
    """JSON-ready, floats rounded: the last bits differ between machines and say nothing."""
    if isinstance(value, Interval):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return round(value, DIGITS) if isinstance(value, float) else value
