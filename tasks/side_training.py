"""One training from start to end outside the stage `train`: no record, no checkpoints, only what it
learned. What `repeat` and `tune` are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks import linear_probes
from tasks.metrics import Ints
from tasks.params import Params, TrainParams
from tasks.records import DataSummary, Project, ThawPlan, ViewPolicy

if TYPE_CHECKING:
    from tasks.engine.setup import Setup

Rows = dict[str, Ints]  # `train`, `validation`, `test` → manifest rows


@dataclass(frozen=True)
class SideTraining:
    """What is kept on validation, and what that network says of other rows."""

    loss: float  # on validation, without smoothing and weights
    accuracy: float
    logits: npt.NDArray[np.float32]  # [n, classes] of the rows `test`
    drop: float | None = None  # of the backbone's skill, see `Knowledge`, where it was asked for


def run(
    project: Project,
    params: Params,
    plan: ThawPlan,
    settings: TrainParams,
    rows: Rows,
    what: str,
    *,
    measure_drop: bool = False,
    alone: bool = True,
) -> SideTraining:
    """Train by a plan on some rows of a project, with the seed of `params` for all that is drawn;
    `what` it is, for the progress bar. `alone`: no other process writes to the cache.

    Raises `Diverged` when the loss is no longer finite.
    """
    import torch

    import tasks.problems
    from tasks.engine.device import resolve
    from tasks.engine.setup import Setup

    policy = replace(ViewPolicy.read(project.augment / "policy.json"), seed=params.seed)
    setup = Setup.make(project, params, plan, settings, policy=policy)
    learn_from(setup, rows)
    setup.init_head()
    state = setup.trainer(None, lambda state: None).fit(setup.data)
    trained = setup.model_state()  # low-rank updates are in the model from here on
    best = state.history[state.best_epoch]
    loss, accuracy, drop = best["validation_loss"], best["validation_accuracy"], None
    if settings.average_weights != "none" or measure_drop:
        from tasks.engine import blend

        retained, weights = blend.run(setup, trained)
        setup.model.load_state_dict(weights)
        drop = retained.knowledge.drop if retained.knowledge else 0.0
        if retained.used != 1.0:  # the weights that are kept are no epoch's
            point = retained.at(retained.used)
            loss, accuracy = point.loss, point.accuracy
    if alone:
        setup.cache.close()
    problem = tasks.problems.load(params.problem)
    exact = resolve(params.device, "float32")
    setup.model.eval()

    def predict(inputs: torch.Tensor) -> torch.Tensor:
        views = problem.test_views(inputs, setup.policy)
        return torch.stack([setup.model(view) for view in views]).mean(0)

    size = params.embed.batch_size
    logits = linear_probes.outputs(predict, setup.examples, rows["test"], size, exact, what)
    return SideTraining(loss, accuracy, logits, drop)


def learn_from(setup: Setup, rows: Rows) -> None:
    """Let a setup learn from other rows than the project's own, and validate on others."""
    from tasks.engine import labels

    targets: Any = pd.read_parquet(setup.project.manifest, columns=["target"])["target"]
    known = DataSummary.read(setup.project.summary).labelling
    truth = known.truth(targets.to_numpy(np.int64))
    setup.rows = {name: rows[name] for name in ("train", "validation")}
    setup.targets = {name: labels.tensor(truth[part]) for name, part in setup.rows.items()}
