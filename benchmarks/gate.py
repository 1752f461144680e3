"""Does the gate keep its word? Simulated pairs of models whose true difference is known.

    .venv/bin/python -m benchmarks.gate             # 5 minutes of one core
    .venv/bin/python -m benchmarks.gate --quick     # seconds

Every pair goes through `tasks.gate.judge` with the default parameters: answers on ten uneven
classes, calibrated probabilities, a tenth, a fifth or three tenths of the examples judged
differently by the two models. Then pairs that are undecided get the examples that the gate asked
for and are judged again; a class is made to die; examples come in groups; and pairs of recipes that
are equally good are cross-validated for real (ridge regression). Writes gate.json and gate.md into
benchmarks/results (with --quick into --work).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.options import benchmark_parser, parsed
from benchmarks.results_file import Results
from tasks import files, gate, metrics
from tasks.gate import Evidence, GateParams, Loaded, Verdict, power
from tasks.gate.power import Claims
from tasks.paired import Pairs
from tasks.params import PromoteParams

RULES = GateParams()
CLAIMS = Claims(RULES.confidence, RULES.min_gain, RULES.max_loss)
IF_NOT_WORSE = PromoteParams(when_undecided="promote_if_not_worse")
SIZES = (200, 1000, 10_000)
APART = (0.1, 0.2, 0.3)  # shares of examples on which one model alone is right
POINTS = ("-1", "0", "detectable", "detected at 95 %")
CLASSES = 10
WEIGHTS = np.linspace(1, 5, CLASSES) / np.linspace(1, 5, CLASSES).sum()
FOLLOWED = {200: 100, 1000: 100, 10_000: 50}  # undecided pairs a truth that get what they ask for
FOLDS, TRAINED, FEATURES = 5, 200, 12


@dataclass(frozen=True)
class Truth:
    """How two models differ over all examples that there could be."""

    gain: float  # accuracy of the challenger less that of the champion
    apart: float
    together: int = 1  # examples that share one answer
    dead: int | None = None  # a class that the challenger has all wrong

    def frames(
        self, count: int, generator: np.random.Generator, first: int = 0
    ) -> list[pd.DataFrame]:
        """The predictions of challenger and champion on `count` examples."""
        groups = np.arange(count) // self.together
        drawn = groups[-1] + 1
        labels = generator.choice(CLASSES, drawn, p=WEIGHTS)[groups]
        said = generator.uniform(0.6, 1, drawn)[groups]
        lost = labels == self.dead
        right = (generator.random(drawn)[groups] < said) & ~lost
        flips = np.where(right, (self.apart + self.gain) / 1.6, (self.apart - self.gain) / 0.4)
        other = right ^ (generator.random(drawn)[groups] < flips) | lost
        ids = first + np.arange(count)
        shared = pd.DataFrame({"id": ids, "group": first + groups, "label": labels})
        wrong = (labels + 1) % CLASSES
        return [
            shared.assign(predicted=np.where(each, labels, wrong), probability=said)
            for each in (right, other)
        ]


def judged(challenger: pd.DataFrame, champion: pd.DataFrame) -> Verdict:
    return gate.judge(evidence("challenger", challenger), evidence("champion", champion), RULES)


def evidence(name: str, frame: pd.DataFrame, folds: pd.DataFrame | None = None) -> Evidence:
    """A model against which nothing else speaks."""
    certificate: dict[str, Any] = {"data": "data", "holds": True}
    certificate["sha256"] = files.sha256_json(certificate)
    first = frame.iloc[0]
    labels, probabilities = {first["id"]: first["predicted"]}, {first["id"]: first["probability"]}
    loaded = Loaded(None, name, labels=labels, probabilities=probabilities)
    return Evidence(name, name, frame, folds, None, "data", certificate, loaded)


def truths(size: int) -> dict[str, list[Truth]]:
    """What is simulated at a test size, by its name; one truth for each of `APART`."""

    def gain(name: str, apart: float) -> float:
        if not name.startswith("detect"):
            return int(name) / 100
        wanted = power.POWER if name == "detectable" else 0.95
        return power.detectable(Pairs(size * apart, 0, size), CLAIMS, wanted)

    return {name: [Truth(gain(name, apart), apart) for apart in APART] for name in POINTS}


def rates(found: list[Verdict]) -> dict[str, float]:
    """Shares of the decisions, of promotions by `promote_if_not_worse`, and of refusals a rule."""
    failed = Counter(r.name for v in found for r in v.rules if r.state == "failed")
    return {
        **{x: float(np.mean([v.decision == x for v in found])) for x in DECISIONS},
        "if_not_worse": float(np.mean([v.action(IF_NOT_WORSE) == "promote" for v in found])),
        **{f"failed.{name}": n / len(found) for name, n in sorted(failed.items())},
    }


DECISIONS = ("promote", "keep", "undecided")


def simulated(
    options: list[Truth], size: int, pairs: int, follow: int, generator: np.random.Generator
) -> dict[str, Any]:
    """The decisions on `pairs` pairs, and how often the examples asked for have decided."""
    found: list[Verdict] = []
    followed: list[Verdict] = []
    for number in range(pairs):
        truth = options[number % len(options)]
        frames = truth.frames(size, generator)
        found.append(judged(*frames))
        if found[-1].needed and len(followed) < follow:
            more = truth.frames(found[-1].needed, generator, size)
            joined = [pd.concat(each, ignore_index=True) for each in zip(frames, more, strict=True)]
            followed.append(judged(*joined))
    asked = [verdict.needed for verdict in found if verdict.needed]
    return {
        "gains": [truth.gain for truth in options],
        "pairs": pairs,
        **rates(found),
        "needed": float(np.median(asked)) if asked else None,
        "followed": len(followed),
        "decided": float(np.mean([v.decision != "undecided" for v in followed]))
        if followed
        else None,
    }


def usual(size: int, pairs: int, generator: np.random.Generator) -> dict[str, Any]:
    """As above, with another truth for each pair, as challengers usually are."""
    options = [Truth(gain, 0.2) for gain in generator.normal(0, power.USUAL, pairs)]
    return simulated(options, size, pairs, pairs, generator)


def cross_validated(pairs: int, generator: np.random.Generator) -> dict[str, float]:
    """Two recipes as good as each other: ridge regression on the one or the other half of features.

    Each judged on a test set of a quarter, and by folds.
    """
    any_calibration = GateParams(max_calibration_error=None)
    found = []
    for number in range(pairs):
        count = TRAINED + TRAINED // 4
        labels = generator.integers(0, 2, count)
        inputs = generator.normal(0, 1, (count, FEATURES)) + 0.6 * labels[:, None]
        models = []
        for name, half in (("a", slice(0, FEATURES // 2)), ("b", slice(FEATURES // 2, None))):
            own, test = inputs[:, half], np.arange(TRAINED, count)
            frame = _answers(test, labels, _ridge(own, labels, np.arange(TRAINED), test))
            part = np.arange(count) % FOLDS
            parts = [
                _answers(
                    np.flatnonzero(part == fold),
                    labels,
                    _ridge(own, labels, np.flatnonzero(part != fold), np.flatnonzero(part == fold)),
                ).assign(fold=fold)
                for fold in range(FOLDS)
            ]
            models.append(evidence(f"{name} {number}", frame, pd.concat(parts)))
        found.append(gate.judge(models[0], models[1], any_calibration))
    return rates(found)


def _ridge(inputs: metrics.Floats, labels: metrics.Ints, train: Any, test: Any) -> Any:
    """Which of two classes the test rows are taken for."""
    wide = np.column_stack([inputs, np.ones(len(inputs))])
    gram = wide[train].T @ wide[train] + np.eye(wide.shape[1])
    weights = np.linalg.solve(gram, wide[train].T @ (2 * labels[train] - 1))
    return (wide[test] @ weights > 0).astype(np.int64)


def _answers(rows: metrics.Ints, labels: metrics.Ints, predicted: Any) -> pd.DataFrame:
    columns = {"id": rows, "group": rows, "label": labels[rows]}
    return pd.DataFrame(columns | {"predicted": predicted, "probability": 0.8})


def main() -> None:
    options = parsed(benchmark_parser("gate", __doc__))
    results = Results("gate", "The gate on pairs of known truth", options.results)
    pairs, sizes = (30, SIZES[:2]) if options.quick else (1000, SIZES)
    generator = np.random.default_rng(0)
    values: dict[str, Any] = {"pairs": pairs, "sizes": {}}
    for size in sizes:
        follow = min(pairs, FOLLOWED[size])
        each = truths(size)
        values["sizes"][size] = {
            **{name: simulated(each[name], size, pairs, follow, generator) for name in POINTS},
            "usual": usual(size, 4 * follow, generator),
            "dead": simulated([Truth(0.05, 0.2, dead=0)], size, pairs // 5, 0, generator),
            "groups": simulated([Truth(-0.01, 0.2, 4)], size, pairs // 2, 0, generator),
        }
        print(f"{size:,} examples done", flush=True)
    values["folds"] = cross_validated(pairs, generator)
    results.write(values, table(values))


def table(values: dict[str, Any]) -> list[str]:
    lines = [
        f"{values['pairs']:,} pairs a row (fewer of *usual*, *dead* and *groups*), shares in %. "
        "*N decides*: of pairs that were undecided and got the examples that the gate asked for, "
        "those that were decided then; *if not worse*: promoted under "
        "`promote.when_undecided: promote_if_not_worse`.",
        "",
        "| test examples | truth, points | promote | keep | undecided | if not worse | median N "
        "| N decides (of) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size, rows in values["sizes"].items():
        lines += [_line(size, name, row) for name, row in rows.items()]
    folds = " | ".join(f"{100 * values['folds'][name]:.1f}" for name in (*DECISIONS, IF))
    return [
        *lines,
        f"| {TRAINED + TRAINED // 4} in folds | 0 | {folds} | | |",
        "",
        "*Detectable*: what the gate says that it promotes four times in five. *Usual*: another "
        f"truth for each pair, around 0 with a standard deviation of {100 * power.USUAL:g} "
        "points. *Dead*: the smallest class is lost, the others gain. *Groups*: worse by a point, "
        "and each four examples are one.",
    ]


IF = "if_not_worse"


def _line(size: int, name: str, row: dict[str, Any]) -> str:
    shares = " | ".join(f"{100 * row[key]:.1f}" for key in (*DECISIONS, IF))
    gains = f" ({min(row['gains']) * 100:+.1f} to {max(row['gains']) * 100:+.1f})"
    told = name + (gains if len(set(row["gains"])) > 1 else "")
    needed = f"{row['needed']:,.0f}" if row["needed"] else ""
    decided = f"{100 * row['decided']:.0f} ({row['followed']})" if row["followed"] else ""
    return f"| {size:,} | {told} | {shares} | {needed} | {decided} |"


if __name__ == "__main__":
    main()
