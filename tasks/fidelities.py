"""What a trial does at each fidelity: a head on cached features, or a training of its own."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import ValidationError

from tasks import embed, labelling, ridge, serving, side_training
from tasks.errors import ThawlineError
from tasks.labelling import Ints, Labels
from tasks.params import Params
from tasks.params import replace as replace_params
from tasks.records import DataSummary, Phase, Project, Selection, ThawPlan
from tasks.search import Beyond, Judged

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.engine.state import PhaseData
    from tasks.ridge import Ridge

log = logging.getLogger(__name__)

SHORT = 0.1  # of the epochs, but one at least: the fidelity `short`
HEAD_STEPS = 40  # that a head takes at most where it starts in closed form, near its end already


@dataclass(frozen=True)
class Halves:
    """Manifest rows: training, and validation in a half for the search and one to confirm it."""

    train: Ints
    search: Ints
    confirm: Ints
    targets: Labels  # of the whole manifest
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
            DataSummary.read(project.summary).labelling.truth(
                manifest["target"].to_numpy(np.int64)
            ),
            groups,
        )


class Ladder:
    """What a trial does at each fidelity, within the limits of the section `tune`."""

    def __init__(self, project: Project, params: Params, halves: Halves) -> None:
        self.project, self.params, self.halves = project, params, halves
        self.features = Features.of(project, halves)
        self.plan = ThawPlan.read(project.thaw_plan)
        self.refused = self._refused()

    def judge(self, fidelity: str, values: dict[str, Any]) -> Judged:
        """Raises `Diverged` when the training's loss is no longer finite, and `Beyond` a limit, or
        where values that could be tried with others do not go together."""
        try:
            params = replace_params(self.params, values)
        except ValidationError as error:
            raise Beyond(".".join(map(str, error.errors()[0]["loc"])) or "train", 1.0) from None
        if beyond := self.refused.get(tuple(params.train.head.hidden)):
            raise Beyond(*beyond)
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
        most = params.tune.max_drop if fidelity == "full" else None
        found = side_training.run(
            self.project,
            params,
            plan,
            settings,
            rows,
            "validation that the search does not see",
            measure_drop=most is not None,
            alone=params.tune.workers == 1,
        )
        if most is not None and found.drop is not None and found.drop > most:
            raise Beyond("tune.max_drop", found.drop - most)
        wanted = self.halves.targets[self.halves.confirm]
        said = labelling.answers(found.logits, wanted.ndim == 2, cut=0.0)
        right = labelling.right(wanted, said)
        return Judged(found.loss, found.accuracy, right)

    def _refused(self) -> dict[tuple[int, ...], tuple[str, float]]:
        """Hidden layers that make the network larger or slower than it may be: limit and excess.

        They alone change either, so that all are known before a trial. What is too slow has an
        excess of 1, as measured times would differ from run to run.
        """
        limits, written = self.params.tune, self.params.train.head
        most, slowest = limits.max_megabytes, limits.max_latency_ms
        found: dict[tuple[int, ...], tuple[str, float]] = {}
        if most is None and slowest is None:
            return found
        tried = limits.space.get("train.head.hidden")
        for hidden in tried.choices or [] if tried else [written.hidden]:
            head = written.model_copy(update={"hidden": hidden})
            served = serving.Expected(
                self.project, self.params, self.plan.backbone, head, self.plan.reading
            )
            if most is not None and served.megabytes > most:
                found[tuple(head.hidden)] = "tune.max_megabytes", served.megabytes - most
            elif slowest is not None and (taken := served.milliseconds()) > slowest:
                log.warning("a head with hidden layers %s: %.1f ms an example", hidden, taken)
                found[tuple(head.hidden)] = "tune.max_latency_ms", 1.0
        return found


@dataclass(frozen=True)
class Features:
    """The cached features that a head alone is trained on."""

    data: PhaseData  # validation: the half for the search
    confirm: Tensor  # [n, d]
    targets: Tensor  # of those
    classes: int
    ridge: Ridge  # of the training examples

    @classmethod
    def of(cls, project: Project, halves: Halves) -> Features:
        import torch

        from tasks.engine import labels
        from tasks.engine.device import resolve
        from tasks.engine.feeds import Kept
        from tasks.engine.state import PhaseData

        kept, rows = embed.deepest(project, Selection.read(project.selection).backbone)
        features = torch.from_numpy(np.array(kept))
        scaled = (features - features.mean(0)) / (features.std(0) + 1e-6)
        place = pd.Series(np.arange(len(rows)), index=rows)
        compute = resolve("cpu", "float32")

        def part(chosen: Ints) -> tuple[Tensor, Tensor]:
            return scaled[place[chosen].to_numpy(copy=True)], labels.tensor(halves.targets[chosen])

        (train, targets), (inside, known), (confirm, other) = map(
            part, (halves.train, halves.search, halves.confirm)
        )
        data = PhaseData(Kept([train], compute), targets, Kept([inside], compute), known)
        classes = len(DataSummary.read(project.summary).classes)
        solution = ridge.fit(train.numpy(), targets.numpy(), classes)
        return cls(data, confirm, other, classes, solution)

    def judge(self, params: Params) -> Judged:
        """A head of its own for a trial, by the one training loop, from where training begins.

        One that begins in closed form takes at most `HEAD_STEPS` steps.
        """
        import torch
        from torch import nn

        from tasks.engine import heads, labels
        from tasks.engine.device import resolve
        from tasks.engine.loop import Trainer
        from tasks.engine.network import Network

        settings, data = params.train, self.data
        torch.manual_seed(params.seed)
        width = self.confirm.shape[1]
        head = nn.Sequential(*heads.layers(width, self.classes, settings.head))
        linear = heads.linear_of(head)
        if linear is not None and settings.head.init != "random":
            start = heads.scaled(self.ridge, data.train_targets, settings.label_smoothing)
            linear.load_state_dict(dict(zip(("weight", "bias"), start, strict=True)))
            data = replace(data, steps=HEAD_STEPS)
            epochs = HEAD_STEPS * settings.batch_size // len(data.train_targets)
            settings = settings.model_copy(update={"epochs": min(settings.epochs, max(1, epochs))})
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
        known = data.validation_targets
        with torch.no_grad():
            (inputs,) = data.validation.batches([np.arange(len(known))], 0)
            logits, confirmed = head(inputs), head(self.confirm)
        loss = labels.loss(logits, known).item()  # without smoothing
        accuracy = labels.right(logits, known).float().mean().item()
        right: npt.NDArray[np.bool_] = labels.right(confirmed, self.targets).numpy()
        return Judged(loss, accuracy, right)
