"""The baselines that cost next to nothing: a linear head on each frozen candidate, on test.

The chosen backbone's comes first: what fine-tuning has bought is what lies above it. Another
candidate's may still beat the model, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tasks import baselines, embed
from tasks.baselines import Baseline
from tasks.metrics import Ints
from tasks.params import Params
from tasks.progress import progress
from tasks.records import DataSummary, Embedding, Project, Selection, ThawPlan, ViewPolicy

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from tasks.engine.device import Compute
    from tasks.problems import Backbone, Examples


def run(project: Project, params: Params, manifest: pd.DataFrame) -> list[Baseline]:
    """What a ridge head on each candidate's deepest features says of the test examples."""
    chosen = ThawPlan.read(project.thaw_plan).backbone
    candidates = Selection.read(project.selection).candidates
    out = {candidate.backbone for candidate in candidates if candidate.ruled_out}
    others = [name for name in params.embed.backbones if name != chosen and name not in out]
    found = [_probe(project, params, manifest, chosen)]
    for name in others:
        title = f"A linear probe on the frozen candidate {name}"
        probe = _probe(project, params, manifest, name)
        found.append(Baseline(f"linear_probe_{name}", title, probe.predicted, probe.details))
    return found


def _probe(project: Project, params: Params, manifest: pd.DataFrame, name: str) -> Baseline:
    features, rows = embed.deepest(project, name)
    known = DataSummary.read(project.summary).labelling
    splits, truth = manifest["split"].to_numpy(), known.truth(manifest["target"].to_numpy(np.int64))
    fitted = np.flatnonzero(splits[rows] == "train")
    test = _features(project, params, name, np.flatnonzero(splits == "test"))
    train = features, truth[rows[fitted]]
    return baselines.linear_probe(train, test, len(known.classes), fitted)


def _features(project: Project, params: Params, name: str, rows: Ints) -> npt.NDArray[np.float32]:
    """The deepest features of some rows, as `embed` computes them: [n, d]."""

    import tasks.problems
    from tasks.engine.device import resolve

    problem = tasks.problems.load(params.problem)
    compute = resolve(params.device, params.precision)
    backbone = problem.backbone(name, params.embed, project.root)
    policy = ViewPolicy.read(project.augment / "policy.json")
    examples = problem.examples(project, policy, backbone)
    frozen = _up_to_deepest(project, backbone, examples)
    compute.host(frozen)
    what = f"frozen features of test, {name}"
    return outputs(frozen, examples, rows, params.embed.batch_size, compute, what)


def _up_to_deepest(project: Project, backbone: Backbone, examples: Examples) -> nn.Module:
    """The frozen backbone as far as the deepest layer that `embed` kept, pooled as it did."""
    from torch import nn

    from tasks.engine import pooling
    from tasks.engine.fold import folded
    from tasks.engine.split import chain

    embedding = Embedding.read(project.features(backbone.name) / "embedding.json")
    example = examples.batch(np.zeros(1, np.int64), 0)
    cut = chain(backbone.model.eval(), backbone.head, example)
    frozen = folded(cut.part(0, cut.index(embedding.deepest) + 1))
    return nn.Sequential(frozen, pooling.of(cut.model)).eval()


def outputs(
    model: Callable[[Tensor], Tensor],
    examples: Examples,
    rows: Ints,
    size: int,
    compute: Compute,
    what: str,
) -> npt.NDArray[np.float32]:
    """What the model gives for the plain view of some rows: [n, d]."""
    import torch

    from tasks.engine import lengths

    found = np.zeros((0, 1), np.float32)
    batches = lengths.batches(len(rows), size, examples.lengths(rows))
    with torch.inference_mode(), progress(what, len(rows)) as advance:
        for chosen in batches:
            inputs = compute.send(examples.batch(rows[chosen], 0))
            with compute.autocast():
                outputs = model(inputs).float().cpu().numpy()
            if not len(found):
                found = np.empty((len(rows), outputs.shape[1]), np.float32)
            found[chosen] = outputs
            advance(len(outputs))
    return found
