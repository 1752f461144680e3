"""tune: a search over training parameters on cached features; seconds, not hours.

A trial trains the head alone on the chosen backbone's frozen features, by the one training loop,
and is judged by its validation loss. Only what `tune.space` names may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks import embed
from tasks.errors import Diverged, ThawlineError
from tasks.freeze import epochs_of
from tasks.params import NEVER_CHANGES_A_RESULT, Params, SearchRange, TrainParams
from tasks.params import replace as replace_params
from tasks.progress import progress
from tasks.records import (
    DataSummary,
    Phase,
    Project,
    Selection,
    ThawPlan,
    Tuning,
)

RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)  # of `train.learning_rate: auto`

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.engine.state import PhaseData


def run(project: Project, params: Params) -> None:
    """Write the merged training parameters and the evidence behind what was tuned.

    Raises `ThawlineError` when the phases of the thaw plan take more than `train.epochs`.
    """
    epochs_of(ThawPlan.read(project.thaw_plan).phases, params.train.epochs)  # or refused
    params, raced, why_rate = _rate(project, params)
    rates = {"train.learning_rate": float(params.train.learning_rate)} if raced else {}
    written = params.train.model_dump(exclude=NEVER_CHANGES_A_RESULT)
    if not params.tune.trials:
        why = why_rate or "not tuned: tune.trials is 0"
        Tuning(written, rates, raced, why).write(project.tuning)
        return
    trials = _search(project, params)
    if not trials:
        raise ThawlineError("no tuning trial ended with a finite loss; narrow tune.space")
    best = min(trials, key=lambda trial: (trial["validation_loss"], trial["number"]))
    tuned = replace_params(params, best["values"]).train.model_dump(exclude=NEVER_CHANGES_A_RESULT)
    changed = ", ".join(f"{k.removeprefix('train.')} {v:.3g}" for k, v in best["values"].items())
    why = (
        f"trial {best['number']} of {len(trials)} has the lowest validation loss "
        f"({best['validation_loss']:.4f}): {changed}"
    )
    Tuning(tuned, {**rates, **best["values"]}, trials, f"{why}; {why_rate}".rstrip("; ")).write(
        project.tuning
    )


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


def _search(project: Project, params: Params) -> list[dict[str, Any]]:
    """Run the trials; the values written in `params.yaml` are the first one where they fit."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data, width, classes = _data(project)
    sampler = optuna.samplers.TPESampler(seed=params.seed)
    study = optuna.create_study(sampler=sampler)
    start = {path: _written(params.train, path) for path in params.tune.space}
    if all(_allows(params.tune.space[path], value) for path, value in start.items()):
        study.enqueue_trial(start)
    trials = []
    with progress("tuning", params.tune.trials) as advance:
        for _ in range(params.tune.trials):
            trial = study.ask()
            values = {path: _suggest(trial, path, r) for path, r in params.tune.space.items()}
            settings = replace_params(params, values).train
            try:
                loss, accuracy = _judge(data, width, classes, params, settings)
            except Diverged:  # this trial has failed, others go on
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, loss)
                trials.append(
                    {
                        "number": trial.number,
                        "values": values,
                        "validation_loss": loss,
                        "validation_accuracy": accuracy,
                    }
                )
                advance(1, loss=loss, accuracy=accuracy)
    return trials


def _judge(
    data: PhaseData, width: int, classes: int, params: Params, settings: TrainParams
) -> tuple[float, float]:
    """Validation loss (without smoothing) and accuracy of a head trained with some settings."""
    import torch
    from torch import nn
    from torch.nn import functional

    from tasks.engine import heads
    from tasks.engine.device import resolve
    from tasks.engine.loop import Trainer
    from tasks.engine.network import Network

    torch.manual_seed(params.seed)
    head = nn.Sequential(*heads.layers(width, classes, settings.head))
    trainer = Trainer(
        Network(["head"], [head]),
        [Phase("head", None, {"head": 1.0})],
        settings,
        seed=params.seed,
        compute=resolve("cpu", "float32"),
        frozen_norms=False,
        folder=None,
    )
    trainer.fit(lambda _: data)
    with torch.no_grad():
        (inputs,) = data.validation.batches([_all(data.validation_targets)], 0)
        logits = head(inputs)
    loss = functional.cross_entropy(logits, data.validation_targets).item()
    accuracy = (logits.argmax(1) == data.validation_targets).float().mean().item()
    return round(loss, 6), round(accuracy, 6)


def _data(project: Project) -> tuple[PhaseData, int, int]:
    """Training and validation features of the chosen backbone, their width, and the classes."""
    import numpy as np
    import pandas as pd
    import torch

    from tasks.engine.device import resolve
    from tasks.engine.feeds import Kept
    from tasks.engine.state import PhaseData

    kept, rows = embed.deepest(project, Selection.read(project.selection).backbone)
    features = torch.from_numpy(np.array(kept))
    manifest = pd.read_parquet(project.manifest, columns=["split", "target"]).iloc[rows]
    compute = resolve("cpu", "float32")
    scaled = (features - features.mean(0)) / (features.std(0) + 1e-6)

    def part(split: str) -> tuple[Kept, Tensor]:
        chosen = torch.from_numpy((manifest["split"] == split).to_numpy())
        targets = torch.from_numpy(manifest["target"].to_numpy().astype(np.int64))[chosen]
        return Kept([scaled[chosen]], compute), targets

    classes = len(DataSummary.read(project.summary).classes)
    return PhaseData(*part("train"), *part("validation")), features.shape[1], classes


def _all(targets: Tensor) -> Any:
    import numpy as np

    return np.arange(len(targets))


def _suggest(trial: Any, path: str, choices: SearchRange) -> float:
    if choices.choices is not None:
        return float(trial.suggest_categorical(path, choices.choices))
    return float(trial.suggest_float(path, choices.low, choices.high, log=choices.log))


def _allows(choices: SearchRange, value: float) -> bool:
    if choices.choices is not None:
        return value in choices.choices
    return bool(choices.low is not None and choices.high is not None) and (
        choices.low <= value <= choices.high  # type: ignore[operator]
    )


def _written(train: TrainParams, path: str) -> float:
    value: Any = train
    for key in path.split(".")[1:]:
        value = getattr(value, key)
    return float(value)
