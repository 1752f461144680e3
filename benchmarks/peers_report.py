"""Tables, intervals and the plot of the peers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import plots
from benchmarks.arms.runner import Run

RESAMPLES = 4000
CONFIDENCE = 0.95
COLOURS = {
    "thawline": "tab:blue",
    "fastai": "tab:orange",
    "transformers": "tab:orange",
    "pytorch": "tab:green",
    "counted": "tab:green",
}

Hits = npt.NDArray[np.float64]  # [seeds, test examples]


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} … {self.high:.2f})"


@dataclass(frozen=True)
class Summary:
    """One arm over its seeds."""

    runs: list[Run]

    @property
    def label(self) -> str:
        return self.runs[0].arm.label

    @property
    def kind(self) -> str:
        return self.runs[0].arm.kind

    @property
    def hits(self) -> Hits:
        return np.stack([run.right for run in self.runs]).astype(np.float64)

    def median(self, name: str) -> float:
        return statistics.median(float(run.record[name]) for run in self.runs)

    @property
    def validation(self) -> float:
        return statistics.mean(float(run.record["validation_accuracy"]) for run in self.runs)

    @property
    def others(self) -> float:
        return max(float(run.record["others"]) for run in self.runs)


def interval(hits: Hits, against: Hits | None = None) -> Interval:
    """Accuracy in percent, or its difference to another arm's on the same test examples.

    The pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1(2), 386–411): test examples
    and seeds are crossed factors, and both are resampled with replacement, independently; the
    examples are the same for both arms (paired), the seeds are not. It is conservative for
    crossed random effects.
    """
    random = np.random.default_rng(0)
    count = hits.shape[1]
    parts = [hits] if against is None else [hits, against]
    drawn = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        weights = np.bincount(random.integers(count, size=count), minlength=count)
        means = [random.choice(part @ weights, len(part)).mean() / count for part in parts]
        drawn[i] = means[0] - (means[1] if against is not None else 0.0)
    value = hits.mean() - (against.mean() if against is not None else 0.0)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(100 * float(value), 100 * float(low), 100 * float(high))


def best_by_validation(summaries: Sequence[Summary], kind: str) -> Summary:
    """The arm of a kind with the best mean validation accuracy; of equal ones the cheaper."""
    chosen = [s for s in summaries if s.kind == kind]
    return max(chosen, key=lambda s: (s.validation, -s.median("cpu_seconds")))


def rows(summaries: Sequence[Summary], kind: str = "fastai") -> list[dict[str, Any]]:
    """One row an arm, against the best tuned arm of a kind."""
    peer = best_by_validation(summaries, kind)
    found = []
    for summary in summaries:
        cost = summary.median("cpu_seconds")
        other = None if summary is peer else interval(summary.hits, peer.hits)
        found.append(
            {
                "arm": summary.label,
                "kind": summary.kind,
                "settings": summary.runs[0].arm.settings,
                "seeds": [run.seed for run in summary.runs],
                "validation_accuracy": summary.validation,
                "test_accuracy": interval(summary.hits).__dict__,
                "cpu_seconds": cost,
                "seconds": summary.median("seconds"),
                "against": peer.label,
                "difference": other and other.__dict__,
                "cpu_ratio": cost / peer.median("cpu_seconds"),
                "most_others": summary.others,
                "runs": [run.record for run in summary.runs],
            }
        )
    return found


def equal_cost(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """Each Thawline arm against the cheapest fastai arm that costs at least as much."""
    found = []
    for own in (s for s in summaries if s.kind == "thawline"):
        cost = own.median("cpu_seconds")
        peers = [s for s in summaries if s.kind == "fastai" and s.median("cpu_seconds") >= cost]
        if peers:
            peer = min(peers, key=lambda s: s.median("cpu_seconds"))
            found.append(
                {
                    "arm": own.label,
                    "cpu_seconds": cost,
                    "against": peer.label,
                    "its_cpu_seconds": peer.median("cpu_seconds"),
                    "difference": interval(own.hits, peer.hits).__dict__,
                }
            )
    return found


def table(found: list[dict[str, Any]], kind: str = "fastai") -> list[str]:
    """The rows as Markdown, cheapest first; `kind` is that of the reference."""
    lines = [
        "| arm | seeds | test accuracy % (95 %) | CPU s | seconds | difference to the best "
        f"{kind} in points (95 %) | its CPU s / this |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(found, key=lambda row: float(row["cpu_seconds"])):
        difference = row["difference"] and Interval(**row["difference"])
        lines.append(
            f"| {row['arm']} | {len(row['seeds'])} | {Interval(**row['test_accuracy'])} | "
            f"{row['cpu_seconds']:.1f} | {row['seconds']:.1f} | {difference or '(the reference)'} "
            f"| {1 / row['cpu_ratio']:.1f}× |"
        )
    return lines


def equal_cost_table(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| arm | CPU s | fastai with at least as many | its CPU s | difference in points (95 %) |",
        "|---|---|---|---|---|",
    ]
    return lines + [
        f"| {row['arm']} | {row['cpu_seconds']:.1f} | {row['against']} | "
        f"{row['its_cpu_seconds']:.1f} | {Interval(**row['difference'])} |"
        for row in found
    ]


def plot(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Test accuracy against CPU seconds, one panel a data set."""
    with plots.drawn(path, len(found)) as axes:
        for axis, (name, arms) in zip(axes, found.items(), strict=True):
            for row in arms:
                accuracy = Interval(**row["test_accuracy"])
                reach = [[accuracy.value - accuracy.low], [accuracy.high - accuracy.value]]
                place, colour = (row["cpu_seconds"], accuracy.value), COLOURS[row["kind"]]
                axis.errorbar(*place, yerr=reach, fmt="o", color=colour, capsize=3)
                axis.annotate(row["arm"], place, (5, 4), textcoords="offset points", fontsize=7)
            axis.set(xscale="log", xlabel="CPU seconds, median", title=name)
            axis.set_ylabel("test accuracy, % (95 % interval)")
