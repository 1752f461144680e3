"""Accuracy against CPU seconds: Thawline beside fastai and plain PyTorch.

    python3 -m venv ~/fastai && ~/fastai/bin/pip install -r benchmarks/fastai-requirements.txt
    .venv/bin/python -m benchmarks.peers --fastai-python ~/fastai/bin/python --threads 1 --jobs 2
    .venv/bin/python -m benchmarks.peers --fastai-python ~/fastai/bin/python --quick   # 2 minutes

About 2 hours on 2 cores. All arms start from the same MobileNetV2 weights, train on the same images
in the same size with the same number of threads, choose on the same validation part and are tested
on the same images. CPU seconds are those of the training process and its children from decoded
images in memory (Thawline: in its store) to the final weights; imports, decoding and the evaluation
on test are left out for all. With --threads 1 --jobs 2, two arms at a time have a core each: no CPU
second is then spent waiting for another thread.

First each peer is tuned: with seed 0 every setting of its grid, the best chosen on validation (for
fastai: the best rate for each number of epochs; longer trainings try the best of shorter ones), and
so are Thawline's arms with a named thaw line, but neither its default nor its head alone.
Then each chosen arm runs with seeds 1, 2, …, all arms with one seed before the next seed begins.
Finished runs are kept and not repeated, so that a stopped benchmark goes on where it was:
Thawline's below --work, since they hold for one commit only, those of others in benchmarks/runs, by
kind of machine.
Writes peers.json, peers.md and peers.svg into benchmarks/results (--quick: into --work).

    .venv/bin/python -m benchmarks.peers --again benchmarks/results/peers_fashion_mnist.json …

runs the peers that were chosen then once more, with the rates and epochs of then, in the precision
and layout that are the cheapest here, beside Thawline's default and head_only of now: on another
machine, or with a newer Thawline. Writes peers_again.*.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import peers_report
from benchmarks.arms import data as peer_data
from benchmarks.arms import thawline_arm
from benchmarks.arms.data import Data
from benchmarks.arms.runner import Arm, Run, Runner
from benchmarks.options import benchmark_parser, parsed
from benchmarks.peers_report import Summary
from benchmarks.results_file import Results
from tasks import files

PRECISIONS = ("float32", "bfloat16")
FASTAI = {"epochs": (2, 5), "base_lr": (2e-3, 5e-3, 1e-2, 2e-2, 4e-2)}
FASTAI_LONGER = ((10, 2), (20, 1))  # epochs, with so many of the best rates of those before
PYTORCH = {
    "all": {"epochs": (8,), "learning_rate": (3e-4, 1e-3, 3e-3)},
    "line": {"epochs": (8,), "learning_rate": (1e-4, 3e-4, 1e-3, 3e-3)},
    "head": {"epochs": (50,), "learning_rate": (3e-3, 0.01, 0.03, 0.1)},
}
PYTORCH_LABELS = {
    "all": "PyTorch, everything",
    "line": "PyTorch, Thawline's line, no cache",
    "head": "PyTorch, linear head",
}
THAWLINE: dict[str, dict[str, Any]] = {
    "default": {},
    # One view, as more of them are most of what a head alone costs.
    "head_only": {"freeze.strategy": "head_only", "augment.views": 1},
}
THAW_FRACTIONS = (0.25, 0.5, 0.75)  # each with the best of these rates
THAWLINE_RATES = (0.001, 0.002, 0.004)


def main() -> None:
    options = _options()
    variant = "again" if options.again else ""
    title = "Accuracy against CPU seconds"
    results = Results("peers", title, options.results, options.some, variant)
    runner = Runner.of(options, options.fastai_python, options.jobs)
    rows, values, lines = {}, {}, _preface(options)
    for name in options.data:
        data = peer_data.make(name, options.work, options.quick)
        print(f"{name}: {data.describe()}", flush=True)
        found = again(runner, data, options) if options.again else measure(runner, data, options)
        rows[name] = found["arms"]
        values[name] = found
        lines += _section(name, found)
    peers_report.plot(rows, options.results / f"{results.stem}.svg")
    shown = f"![accuracy against CPU seconds]({results.stem}.svg)"
    results.write({"data": values}, [*lines, shown])


def measure(runner: Runner, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Tune the peers, run all chosen arms with all seeds, and compare."""
    own = _own()
    [first] = runner.runs(data, [(own[0], 0)], "thaw line")
    fast, speeds = _fastest(runner, data, PRECISIONS[: 1 if options.quick else None])
    tuned = _tuned(
        runner, data, _grid(fast, str(first.record["notes"]["thaw_line"]), options.quick)
    )
    before = tuned[_label(FASTAI["epochs"][-1])] if not options.quick else []
    for epochs, rates in FASTAI_LONGER if before else ():
        best = sorted(before, key=_order, reverse=True)[:rates]
        arms = [_fine_tune(run.arm.settings | {"epochs": epochs}) for run in best]
        tuned |= _tuned(runner, data, arms)
        before = tuned[_label(epochs)]
    if not options.quick:
        tuned |= _tuned(runner, data, _thaw_lines())
    # Dear ones first, so that several jobs end together.
    chosen = [*(_best(runs).arm for runs in reversed(tuned.values())), *own]
    tuning = [_brief(run) for found in tuned.values() for run in found]
    return {"speeds": speeds, "tuning": tuning, **compared(runner, data, chosen, options)}


def again(runner: Runner, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """The arms of an earlier result, but for Thawline's, as they were chosen then; the way to
    compute is chosen anew, as Thawline's is."""
    earlier = files.read_json(options.again)
    found = earlier["data"][data.name]
    fast, speeds = _fastest(runner, data, PRECISIONS[: 1 if options.quick else None])
    peers = [
        Arm(row["arm"], row["kind"], row["settings"] | fast[row["kind"]])
        for row in found["arms"]
        if row["kind"] != "thawline" and row["arm"] not in options.leave_out
    ]
    tuned = {"on": earlier["machine"], "date": earlier["date"]}
    compared_now = compared(runner, data, [*peers, *_own()], options)
    return {"speeds": speeds, "tuning": found["tuning"], "tuned": tuned, **compared_now}


def compared(
    runner: Runner, data: Data, chosen: Sequence[Arm], options: argparse.Namespace
) -> dict[str, Any]:
    """All arms with all seeds, but the one that they were tuned with."""
    wanted = [(arm, seed) for seed in range(1, options.seeds + 1) for arm in chosen]
    runs: dict[str, list[Run]] = {arm.label: [] for arm in chosen}
    for run in runner.runs(data, wanted, "comparison"):
        runs[run.arm.label].append(run)
    summaries = [Summary(found) for found in runs.values()]
    default = next(arm.label for arm in chosen if arm.kind == "thawline" and not arm.settings)
    return {
        "examples": data.describe(),
        "arms": peers_report.rows(summaries),
        "equal_cost": peers_report.equal_cost(summaries),
        "before_training": {
            stage: runs[default][-1].record["notes"]["stages"][stage]
            for stage in thawline_arm.before(data)
        },
    }


def _fastest(
    runner: Runner, data: Data, precisions: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Each peer's way to compute that costs the least CPU here: a run of one epoch each."""
    chosen: dict[str, dict[str, Any]] = {}
    speeds: list[dict[str, Any]] = []
    in_precisions: list[dict[str, Any]] = [{"precision": precision} for precision in precisions]
    in_layouts = [way | {"channels_last": x} for way in in_precisions for x in (False, True)]
    plain: dict[str, Any] = {"part": "all", "epochs": 1, "learning_rate": 1e-3}
    fine_tune: dict[str, Any] = {"epochs": 1, "base_lr": 2e-3}
    for kind, common, ways in (
        ("pytorch", plain, in_precisions),
        ("fastai", fine_tune, in_layouts),
    ):
        arms = [Arm(f"{kind} {way}", kind, common | way) for way in ways]
        runs = runner.runs(data, [(arm, 0) for arm in arms], "speed")
        speeds += [_brief(run) for run in runs]
        fastest = min(zip(ways, runs, strict=True), key=lambda x: float(x[1].record["cpu_seconds"]))
        chosen[kind] = fastest[0]
    return chosen, speeds


def _grid(fast: dict[str, dict[str, Any]], line: str, quick: bool) -> list[Arm]:
    """The settings of each peer; one of each label goes on."""
    arms = []
    for epochs in FASTAI["epochs"][: 2 if quick else None]:
        for rate in FASTAI["base_lr"][: 1 if quick else None]:
            arms.append(_fine_tune({**fast["fastai"], "epochs": epochs, "base_lr": rate}))
    for part, grid in PYTORCH.items():
        common = fast["pytorch"] | {"part": part} | ({"line": line} if part == "line" else {})
        for value in list(product(*grid.values()))[: 1 if quick else None]:
            settings = common | dict(zip(grid, value, strict=True))
            arms.append(Arm(PYTORCH_LABELS[part], "pytorch", settings))
    return arms


def _own() -> list[Arm]:
    return [Arm(f"Thawline, {name}", "thawline", changed) for name, changed in THAWLINE.items()]


def _thaw_lines() -> list[Arm]:
    return [
        Arm(
            f"Thawline, thaw_fraction {fraction}",
            "thawline",
            {"freeze.thaw_fraction": fraction, "train.learning_rate": rate},
        )
        for fraction in THAW_FRACTIONS
        for rate in THAWLINE_RATES
    ]


def _fine_tune(settings: dict[str, Any]) -> Arm:
    return Arm(_label(settings["epochs"]), "fastai", settings)


def _label(epochs: Any) -> str:
    return f"fastai, fine_tune({epochs})"


def _tuned(runner: Runner, data: Data, arms: Sequence[Arm]) -> dict[str, list[Run]]:
    """Every setting with seed 0, by label."""
    found: dict[str, list[Run]] = {}
    for run in runner.runs(data, [(arm, 0) for arm in arms], "tuning"):
        found.setdefault(run.arm.label, []).append(run)
    return found


def _order(run: Run) -> tuple[float, float]:
    return run.record["validation_accuracy"], -run.record["validation_loss"]


def _best(runs: Iterable[Run]) -> Run:
    return max(runs, key=_order)


def _brief(run: Run) -> dict[str, Any]:
    names = ("validation_accuracy", "test_accuracy", "cpu_seconds", "seconds", "others")
    figures = {name: run.record[name] for name in names}
    return {"arm": run.arm.label, "settings": run.arm.settings, **figures}


def _preface(options: argparse.Namespace) -> list[str]:
    return [
        f"Same weights (MobileNetV2), images, splits and threads ({options.threads}, arms at a "
        f"time: {options.jobs}) for all; CPU seconds from decoded images to final weights,",
        "Thawline's frozen pass charged. All arms but Thawline's default and head_only are tuned",
        "on validation with seed 0. Intervals: pigeonhole bootstrap over test examples and seeds",
        "(Owen 2007), paired by example for differences. fastai starts from pixels already in the",
        "network's size, in bfloat16 or channels_last where that is cheaper; Thawline resizes",
        "within its time.",
        "",
    ]


def _section(name: str, found: dict[str, Any]) -> list[str]:
    """The Markdown on one data set."""
    arms, lucky = found["arms"], max(
        (x for x in found["tuning"] if x["arm"].startswith("fastai")),
        key=lambda x: float(x["test_accuracy"]),
    )  # fmt: skip
    before = ", ".join(f"{k} {v['cpu_seconds']:.1f}" for k, v in found["before_training"].items())
    speeds = "; ".join(f"{x['arm']}: {x['cpu_seconds']:.1f}" for x in found["speeds"])
    settings = "; ".join(f"{x['arm']}: {x['settings']}" for x in arms if x["kind"] != "thawline")
    return [
        f"## {name}",
        "",
        f"{found['examples']}. The reference is {arms[0]['against']}, the best on validation over "
        "all seeds.",
        "",
        *peers_report.table(arms),
        "",
        "At equal cost: each Thawline arm against the cheapest fastai arm that has at least as "
        "many CPU seconds.",
        "",
        *peers_report.equal_cost_table(found["equal_cost"]),
        "",
        f"Once before any Thawline training (CPU seconds with imports, not in the table): {before}."
        f" Most cores that others used during a run: {max(x['most_others'] for x in arms):.1f}.",
        "",
        f"The fastai setting that happened to do best on test (seed 0): {lucky['settings']}, "
        f"{100 * lucky['test_accuracy']:.2f} %.",
        "",
        f"CPU seconds of one epoch by way to compute: {speeds}.",
        "",
        f"Chosen settings: {settings}.",
        *([f"Tuned on {tuned['on']}, {tuned['date']}."] if (tuned := found.get("tuned")) else []),
        "",
    ]


def _options() -> argparse.Namespace:
    parser = benchmark_parser("peers", __doc__, seeds=3, data=peer_data.NAMES)
    add = parser.add_argument
    add("--fastai-python", required=True, help="of the environment with fastai")
    add("--again", type=Path, metavar="RESULT", help="with the settings of this earlier result")
    add("--leave-out", nargs="+", default=[], metavar="ARM", help="arms of it that are not run")
    return parsed(parser)


if __name__ == "__main__":
    main()
