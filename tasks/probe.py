"""Examples of the user's own that show what a backbone knew and still knows (`retention.probe`).

They may be of other classes than the project's: say, those that the backbone was good at before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks import labelling, retention
from tasks.errors import DataError
from tasks.labelling import Labels
from tasks.params import Params
from tasks.records import Project, ThawPlan, ViewPolicy
from tasks.retention import Knowledge, Sight

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from tasks.engine.device import Compute
    from tasks.engine.network import Network
    from tasks.problems import Examples, Problem


def ask(project: Project, params: Params, trained: nn.Module, head: str) -> Knowledge:
    """What the `trained` network, whose head is at path `head`, still knows of the probe.

    Raises `DataError` when the probe cannot be used.
    """
    import tasks.problems
    from tasks.engine import device, pooling
    from tasks.engine.network import Network
    from tasks.engine.split import chain

    problem = tasks.problems.load(params.problem)
    compute = device.resolve(params.device, params.precision)
    plan = ThawPlan.read(project.thaw_plan)
    backbone = problem.backbone(plan.backbone, params.embed, project.root)
    policy = ViewPolicy.read(project.augment / "policy.json")
    with _prepared(project, params, problem) as (place, targets):
        examples = problem.examples(place, policy, backbone)
        example = compute.send(examples.batch(np.zeros(1, np.int64), 0))
        before, after = (
            Network.of(chain(model.to(compute.device).eval(), path, example))
            for model, path in ((backbone.model, backbone.head), (trained, head))
        )
        pool = pooling.of(backbone.model)
        size, old_head = params.embed.batch_size, before.modules[-1]
        first, last = (
            _sight(network, old_head, examples, len(targets), size, compute, pool)
            for network in (before, after)
        )
    return retention.compare(first, last, targets)


def _sight(
    network: Network,
    old_head: nn.Module,
    examples: Examples,
    count: int,
    size: int,
    compute: Compute,
    pool: nn.Module,
) -> Sight:
    import torch

    from tasks.engine import blend

    body = network.run(0, -1)
    parts = []
    for begin in range(0, count, size):
        rows = np.arange(begin, min(begin + size, count))
        with torch.no_grad(), compute.autocast():
            top = body(compute.send(examples.batch(rows, 0)))
        parts.append(blend.sight(top, old_head, compute, pool))
    return blend.joined(parts)


@contextmanager
def _prepared(
    project: Project, params: Params, problem: Problem
) -> Iterator[tuple[Project, Labels]]:
    """The probe's examples as `prepare` would leave them, in scratch, and their labels."""
    asked = params.prepare.model_copy(update={"data": params.retention.probe})
    try:
        frame = problem.read(asked, project.root)
    except DataError as error:
        reason = str(error).removeprefix("prepare.data: ")
        raise DataError(f"retention.probe: {reason}") from None
    project.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="probe-", dir=project.scratch) as scratch:
        place = Project(Path(scratch))
        place.prepared.mkdir(parents=True)
        frame, _ = problem.store(_drawn(frame, params.seed), place.prepared, asked, params.threads)
        if len(frame) < 2:
            many = problem.WORDS.many
            raise DataError(f"retention.probe: {params.retention.probe} has no readable {many}")
        frame.to_parquet(place.manifest, index=False)
        known = labelling.of(frame["label"].unique(), bool(asked.label_separator))
        yield place, known.truth(labelling.targets(frame["label"]))


def _drawn(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    from tasks.engine.blend import PROBE_EXAMPLES

    chosen = np.random.default_rng(seed).permutation(len(frame))[:PROBE_EXAMPLES]
    return frame.iloc[np.sort(chosen)].reset_index(drop=True)
