"""tune: the merged training parameters, and the search behind them where one was asked for.

Only what `tune.space` names may change, and only for something better: the best trial of the
search (`tasks.search`) has to do as well as the written values on validation data that the search
did not see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks import embed, evidence, files, metrics, retrain, search
from tasks.errors import ThawlineError
from tasks.freeze import epochs_of
from tasks.metrics import Bootstrap, Comparison, Ints
from tasks.params import NEVER_CHANGES_A_RESULT, Params, TrainParams, get
from tasks.params import replace as replace_params
from tasks.records import DataSummary, Phase, Project, Selection, ThawPlan, Tuning
from tasks.search import Judged

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.engine.state import PhaseData

RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)  # of `train.learning_rate: auto`
SHORT = 0.1  # of the epochs: the fidelity `short`


def run(project: Project, params: Params) -> None:
    """Write the merged training parameters and the evidence behind what was tuned.

    Raises `ThawlineError` when the phases of the thaw plan take more than `train.epochs`.
    """
    epochs_of(ThawPlan.read(project.thaw_plan).phases, params.train.epochs)  # or refused
    params, raced, why_rate = _rate(project, params)
    rates = {"train.learning_rate": float(params.train.learning_rate)} if raced else {}
    if not params.tune.trials:
        why = why_rate or "not tuned: tune.trials is 0"
        Tuning(_train(params), rates, raced, why).write(project.tuning)
        return
    trials, study = _searched(project, params)
    if not trials:
        raise ThawlineError("no tuning trial ended with a finite loss; narrow tune.space")
    chosen, why, study["confirmed"] = _confirmed(project, params, trials)
    tuned = _train(replace_params(params, chosen))
    told = [{key: x for key, x in trial.items() if key != "right"} for trial in trials]
    why = f"{why}; {why_rate}".rstrip("; ")
    Tuning(tuned, {**rates, **chosen}, told, why, study).write(project.tuning)


def _train(params: Params) -> dict[str, Any]:
    return params.train.model_dump(exclude=NEVER_CHANGES_A_RESULT)


def _rate(project: Project, params: Params) -> tuple[Params, list[dict[str, Any]], str]:
    """The parameters with a rate in place of `auto`, the standings of the race, and why."""
    if params.train.learning_rate != "auto":
        return params, [], ""
    from tasks import race
    from tasks.engine.setup import Setup

    plan = ThawPlan.read(project.thaw_plan)
    entrants = [
        race.Entrant(f"{rate:g}", plan, params.train.model_copy(update={"learning_rate": rate}))
        for rate in RATES
    ]
    setup = Setup.make(project, params, plan, entrants[0].settings)
    standings = race.run(setup, entrants)
    race.check(standings)
    losses = race.losses(standings)
    rate = RATES[losses.index(min(losses))]
    trials = [
        {"number": number, "values": {"train.learning_rate": tried}, **row}
        for number, (tried, row) in enumerate(zip(RATES, standings, strict=True))
    ]
    why = f"of {len(RATES)} rates, {rate:g} has the lowest validation loss in a short race"
    return replace_params(params, {"train.learning_rate": rate}), trials, why


def _searched(project: Project, params: Params) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The trials of the study, which is kept in scratch under all that determines it."""
    options = params.tune
    halves = Halves.of(project, params)
    ladder = _Ladder(project, params, halves)
    key = {
        "space": {path: tried.model_dump() for path, tried in options.space.items()},
        "train": _train(params),
        "inputs": [files.sha256_file(path) for path in (project.manifest, project.thaw_plan)],
        "policy": files.sha256_file(project.augment / "policy.json"),
        "fidelity": options.fidelity,
        "seed": params.seed,
        "threads": params.threads,
    }
    return search.run(
        project.scratch / "tune" / f"{files.sha256_json(key)[:24]}.db",
        options.space,
        {path: get(params, path) for path in options.space},
        ladder.judge,
        fidelity=options.fidelity,
        trials=options.trials,
        minutes=options.minutes,
        seed=params.seed,
    )


@dataclass(frozen=True)
class Halves:
    """Manifest rows: training, and validation in a half for the search and one to confirm it."""

    train: Ints
    search: Ints
    confirm: Ints
    targets: Ints  # of the whole manifest
    groups: Any

    @classmethod
    def of(cls, project: Project, params: Params) -> Halves:
        """Groups stay together. Raises `ThawlineError` where there is too little to halve."""
        manifest = pd.read_parquet(project.manifest, columns=["split", "target", "group"])
        splits, groups = manifest["split"].to_numpy(), manifest["group"].to_numpy()
        validation = np.flatnonzero(splits == "validation")
        names = np.unique(groups[validation])
        if len(names) < 2:
            raise ThawlineError("tuning needs at least two validation examples; add some")
        drawn = np.random.default_rng(params.seed).permutation(len(names))
        first = np.isin(groups[validation], names[drawn[: len(names) // 2]])
        return cls(
            np.flatnonzero(splits == "train"),
            validation[~first],
            validation[first],
            manifest["target"].to_numpy(np.int64),
            groups,
        )


def _confirmed(
    project: Project, params: Params, trials: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The values to train with, why, and how the best trial does on the half of validation that the
    search did not see, beside the written values: `examples` and a `Comparison`."""
    highest = max(len(trial["losses"]) for trial in trials)
    ended = [t for t in trials if len(t["losses"]) == highest and not t["pruned"]] or trials
    best = min(ended, key=lambda trial: (trial["validation_loss"], trial["number"]))
    shown = ", ".join(
        f"{k.removeprefix('train.')} {v:.3g}" if isinstance(v, float) else f"{k[6:]} {v}"
        for k, v in best["values"].items()
    )
    why = (
        f"trial {best['number']} of {len(trials)} has the lowest validation loss "
        f"({best['validation_loss']:.4f}): {shown}"
    )
    written = trials[0]
    if written is best or written["values"] != {p: get(params, p) for p in params.tune.space}:
        return best["values"], why, {}
    halves = Halves.of(project, params)
    judged = _compared(best["right"], written["right"], halves.groups[halves.confirm], params)
    told = evidence.plain({"examples": len(halves.confirm), **asdict(judged)})
    where = f"on {len(halves.confirm)} validation examples that the search did not see"
    gap = f"{100 * judged.difference.value:+.1f} points"
    if judged.difference.value < 0:
        why = f"{why}; but {where} it does worse than the written values ({gap}), which stay"
        return {p: get(params, p) for p in params.tune.space}, why, told
    return best["values"], f"{why}; {where}: {gap}, {judged.verdict}", told


def _compared(best: str, written: str, groups: Any, params: Params) -> Comparison:
    """Right answers of two trials, as strings of 0 and 1, example by example."""
    ours, theirs = (np.array([int(x) for x in right], np.int64) for right in (best, written))
    options = params.evaluate
    resamples = Bootstrap(
        metrics.group_index(groups), options.bootstrap, options.confidence, params.seed
    )
    return metrics.compare(np.ones_like(ours), ours, theirs, resamples)


class _Ladder:
    """What a trial does at each fidelity."""

    def __init__(self, project: Project, params: Params, halves: Halves) -> None:
        self.project, self.params, self.halves = project, params, halves
        self.features = _Features.of(project, halves)
        self.plan = ThawPlan.read(project.thaw_plan)

    def judge(self, fidelity: str, values: dict[str, Any]) -> Judged:
        """Raises `Diverged` when the training's loss is no longer finite."""
        params = replace_params(self.params, values)
        if fidelity == "head":
            return self.features.judge(params)
        settings, plan = params.train, self.plan
        if fidelity == "short":
            plan = replace(plan, phases=[replace(p, epochs=p.epochs and 1) for p in plan.phases])
            epochs = max(math.ceil(SHORT * settings.epochs), len(plan.phases))
            settings = settings.model_copy(update={"epochs": epochs})
        rows = {
            "train": self.halves.train,
            "validation": self.halves.search,
            "test": self.halves.confirm,
        }
        what = "validation that the search does not see"
        found = retrain.run(self.project, params, plan, settings, rows, what)
        right = found.logits.argmax(1) == self.halves.targets[self.halves.confirm]
        return Judged(found.loss, found.accuracy, right)


@dataclass(frozen=True)
class _Features:
    """The cached features that a head alone is trained on."""

    data: PhaseData  # validation: the half for the search
    confirm: Tensor  # [n, d]
    targets: Tensor  # of those [n]
    classes: int

    @classmethod
    def of(cls, project: Project, halves: Halves) -> _Features:
        import torch

        from tasks.engine.device import resolve
        from tasks.engine.feeds import Kept
        from tasks.engine.state import PhaseData

        kept, rows = embed.deepest(project, Selection.read(project.selection).backbone)
        features = torch.from_numpy(np.array(kept))
        scaled = (features - features.mean(0)) / (features.std(0) + 1e-6)
        place = pd.Series(np.arange(len(rows)), index=rows)
        compute = resolve("cpu", "float32")

        def part(chosen: Ints) -> tuple[Tensor, Tensor]:
            return scaled[place[chosen].to_numpy()], torch.from_numpy(halves.targets[chosen])

        (train, targets), (inside, known), (confirm, other) = map(
            part, (halves.train, halves.search, halves.confirm)
        )
        data = PhaseData(Kept([train], compute), targets, Kept([inside], compute), known)
        return cls(data, confirm, other, len(DataSummary.read(project.summary).classes))

    def judge(self, params: Params) -> Judged:
        """A head of its own for a trial, by the one training loop."""
        import torch
        from torch import nn
        from torch.nn import functional

        from tasks.engine import heads
        from tasks.engine.device import resolve
        from tasks.engine.loop import Trainer
        from tasks.engine.network import Network

        settings: TrainParams = params.train
        torch.manual_seed(params.seed)
        width = self.confirm.shape[1]
        head = nn.Sequential(*heads.layers(width, self.classes, settings.head))
        trainer = Trainer(
            Network(["head"], [head]),
            [Phase("head", None, {"head": 1.0})],
            settings,
            seed=params.seed,
            compute=resolve("cpu", "float32"),
            frozen_norms=False,
            folder=None,
        )
        trainer.fit(lambda _: self.data)
        known = self.data.validation_targets
        with torch.no_grad():
            (inputs,) = self.data.validation.batches([np.arange(len(known))], 0)
            logits, confirmed = head(inputs), head(self.confirm)
        loss = functional.cross_entropy(logits, known).item()  # without smoothing
        accuracy = (logits.argmax(1) == known).float().mean().item()
        right: npt.NDArray[np.bool_] = (confirmed.argmax(1) == self.targets).numpy()
        return Judged(loss, accuracy, right)
