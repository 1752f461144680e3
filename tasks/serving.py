"""What a prediction takes: the time of one example, and the size of the network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tasks import problems
from tasks.params import HeadParams, Params
from tasks.records import DataSummary, Project, ViewPolicy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tasks.engine.device import Compute
    from tasks.problems import Examples, Problem

TIMED, WARM_UP = 25, 5  # calls that are timed, and those before that are not counted


def milliseconds(call: Callable[[], object]) -> float:
    """The median time of a call, which has to wait for its result where a GPU computes it."""
    taken = []
    for _ in range(WARM_UP + TIMED):
        begun = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - begun))
    return round(statistics.median(taken[WARM_UP:]), 3)


def predict(problem: Problem, model: nn.Module, policy: ViewPolicy, inputs: Tensor) -> Tensor:
    """Logits [n, classes], a mean over the views of `augment.test_time`."""
    import torch

    views = problem.test_views(inputs, policy)
    return torch.stack([model(view) for view in views]).mean(0)


def of_one(
    problem: Problem,
    model: nn.Module,
    policy: ViewPolicy,
    examples: Examples,
    rows: np.ndarray,
    compute: Compute,
) -> float:
    """The milliseconds of one example of a typical length among `rows`."""
    import torch

    from tasks.engine import lengths

    one = compute.send(examples.batch(lengths.typical(rows, examples.lengths(rows)), 0))
    with torch.inference_mode():
        # To the CPU: a GPU is asked to have finished.
        return milliseconds(lambda: predict(problem, model, policy, one).cpu())


def megabytes(model: nn.Module) -> float:
    """The size of a network's weights and buffers, in millions of bytes."""
    return sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6


def expected(
    project: Project, params: Params, backbone: str, head: HeadParams, timed: bool
) -> tuple[float, float | None]:
    """Megabytes, and where `timed` milliseconds of an example, of a backbone with this new head.

    In float32 and folded, as the packaged model predicts, with the device and threads of `params`.
    """
    from tasks.engine import device
    from tasks.engine.fold import folded

    problem = problems.load(params.problem)
    loaded = problem.backbone(backbone, params.embed, project.root)
    model, _ = problem.build(loaded, len(DataSummary.read(project.summary).classes), head)
    size = megabytes(model)
    if not timed:
        return size, None
    compute = device.resolve(params.device, "float32")
    policy = ViewPolicy.read(project.augment / "policy.json")
    examples = problem.examples(project, policy, loaded)
    rows = np.arange(len(pd.read_parquet(project.manifest, columns=["target"])))
    hosted = folded(compute.host(model))
    return size, of_one(problem, hosted, policy, examples, rows, compute)
