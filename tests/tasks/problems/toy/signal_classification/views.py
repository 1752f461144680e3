from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tasks.problems.signal_classification import data
from tasks.problems.signal_classification.parameters import SignalAugment
from torch import Tensor

from tasks import files
from tasks.records import Project, ViewPolicy


def policy(augment: SignalAugment, seed: int) -> ViewPolicy:
    noisy = augment.policy == "noise"
    return ViewPolicy(
        problem="signal_classification",
        seed=seed,
        views=augment.views if noisy else 1,
        shape={},
        transforms=[{"name": "noise", "arguments": {"std": augment.noise}}] if noisy else [],
        refresh_epochs=augment.refresh_epochs if noisy else 0,
    )


@dataclass(frozen=True)
class SignalExamples:
    signals: npt.NDArray[np.float32]
    ids: list[str]
    policy: ViewPolicy

    def batch(self, rows: npt.NDArray[np.int64], view: int) -> Tensor:
        """float32 [n, length]."""
        found = self.signals[rows].copy()
        for step in self.policy.transforms if view else ():
            for signal, row in zip(found, rows, strict=True):
                seed = files.number(f"{self.policy.seed}:{view}:{self.ids[int(row)]}")
                noise = np.random.default_rng(seed).normal(0, step["arguments"]["std"], len(signal))
                signal += noise.astype(np.float32)
        return torch.from_numpy(found)

    def lengths(self, rows: npt.NDArray[np.int64]) -> None:
        """All signals have one."""


def examples(project: Project, policy: ViewPolicy) -> SignalExamples:
    """Of the stored signals; the manifest may lack all but their ids and places."""
    ids = pd.read_parquet(project.manifest, columns=["id"])["id"].tolist()
    return SignalExamples(data.signals(project.prepared), ids, policy)
