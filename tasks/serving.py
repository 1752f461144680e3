"""What a prediction takes: the time of one example, and the size of the network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks import problems
from tasks.params import HeadParams, Params
from tasks.records import DataSummary, Project, Reading, ViewPolicy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tasks.engine.device import Compute
    from tasks.problems import Backbone, Examples, Problem

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


def megabytes(model: nn.Module) -> float:
    """The size of a network's weights and buffers, in millions of bytes."""
    return sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6


def network(
    problem: Problem, backbone: Backbone, classes: int, head: HeadParams, reading: Reading | None
) -> tuple[nn.Module, str]:
    """A backbone with a new head, which may be one on many layers, and the path of that."""
    model: nn.Module
    model, path = problem.build(backbone, classes, head)
    if reading is None:
        return model, path
    from tasks.engine.multi_layer import MultiLayer
    from tasks.engine.split import HEAD

    return MultiLayer(model, path, reading, classes, head), HEAD


class Expected:
    """A backbone with a new head before it is trained: what a prediction will take.

    In float32 and folded, as the packaged model predicts, with the device and threads of `params`.
    """

    def __init__(
        self,
        project: Project,
        params: Params,
        backbone: str,
        head: HeadParams,
        reading: Reading | None = None,
    ) -> None:
        self.project, self.params = project, params
        self.problem = problems.load(params.problem)
        self.backbone = self.problem.backbone(backbone, params.embed, project.root)
        classes = len(DataSummary.read(project.summary).classes)
        self.model, _ = network(self.problem, self.backbone, classes, head, reading)

    @property
    def megabytes(self) -> float:
        return megabytes(self.model)

    def milliseconds(self) -> float:
        """Of one example, measured now."""
        from tasks.engine import device
        from tasks.engine.fold import folded

        compute = device.resolve(self.params.device, "float32")
        policy = ViewPolicy.read(self.project.augment / "policy.json")
        examples = self.problem.examples(self.project, policy, self.backbone)
        rows = np.arange(len(pd.read_parquet(self.project.manifest, columns=["target"])))
        hosted = folded(compute.host(self.model))
        return of_one(self.problem, hosted, policy, examples, rows, compute)


def of_one(
    problem: Problem,
    model: nn.Module,
    policy: ViewPolicy,
    examples: Examples,
    rows: npt.NDArray[np.int64],
    compute: Compute,
) -> float:
    """The milliseconds of one example of a typical length among `rows`."""
    import torch

    from tasks.engine import lengths

    one = compute.send(examples.batch(lengths.typical(rows, examples.lengths(rows)), 0))
    with torch.inference_mode():
        # To the CPU: a GPU is asked to have finished.
        return milliseconds(lambda: predict(problem, model, policy, one).cpu())
