"""What a training needs, built from a project: network, inputs at each thaw line, first head."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import tasks.problems
from tasks import files, plugins
from tasks.engine import depthwise, heads, low_rank, multi_layer, stochastic_depth
from tasks.engine.device import Compute, resolve
from tasks.engine.feeds import Feed, Fresh, Kept, Refreshed
from tasks.engine.loop import Trainer
from tasks.engine.network import Network, digest
from tasks.engine.parallel import Ranks
from tasks.engine.pooling import Pool
from tasks.engine.prefix import Prefix, cpu_seconds
from tasks.engine.split import chain
from tasks.engine.state import OldPredictions, PhaseData, State
from tasks.errors import ThawlineError
from tasks.freeze import epochs_of
from tasks.params import Params, TrainParams
from tasks.problems import Backbone, Examples
from tasks.records import DataSummary, Phase, Project, ThawPlan, ViewPolicy

PREFIX_VERSION = 1  # raise it when the same frozen part would give other numbers


@dataclass
class Setup:
    """A network about to be trained on a project's data."""

    project: Project
    params: Params
    plan: ThawPlan
    settings: TrainParams
    policy: ViewPolicy
    compute: Compute
    model: nn.Module
    network: Network
    examples: Examples
    rows: dict[str, npt.NDArray[np.int64]]  # split → manifest rows
    targets: dict[str, Tensor]  # split → [n] int64
    classes: int
    digest: str
    kept: heads.Kept | None = None  # of a start whose head goes on
    old: Network | None = None  # as it was, where training is to keep close to its predictions
    ranks: Ranks = field(default_factory=Ranks)
    prefix_seconds: float = 0.0
    prefix_cpu_seconds: float = 0.0
    prefix_computed: int = 0  # views that no cache had
    _data: dict[int, PhaseData] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        project: Project,
        params: Params,
        plan: ThawPlan,
        settings: TrainParams,
        ranks: Ranks | None = None,
    ) -> Setup:
        """Load data and backbone; the weights must be those of the plan."""
        ranks = ranks or Ranks()
        problem = plugins.load(tasks.problems, params.problem)
        compute = ranks.place(resolve(params.device, params.precision))
        policy = ViewPolicy.read(project.augment / "policy.json")
        summary = DataSummary.read(project.summary)
        backbone = problem.backbone(plan.backbone, params.embed, project.root)
        if backbone.weights_sha256 != plan.weights_sha256:
            raise ThawlineError(
                f"the weights of {plan.backbone} are no longer those of the thaw plan; "
                "run: thawline run --from embed"
            )
        torch.manual_seed(params.seed)  # of a random head
        model, head = problem.build(plan.backbone, len(summary.classes), settings.head)
        _transfer(backbone.model, model, head)
        if settings.stochastic_depth is not None:
            stochastic_depth.set_share(model, settings.stochastic_depth)
        if plan.reading:
            classes = len(summary.classes)
            model = multi_layer.MultiLayer(model, head, plan.reading, classes, settings.head)
        model = model.to(compute.device, memory_format=torch.channels_last).eval()
        depthwise.quicken(model, compute)
        examples = problem.examples(project, policy, backbone)
        rows, targets = _learned_from(project)
        old = None
        if isinstance(model, multi_layer.MultiLayer):
            network = model.network()
        else:
            example = compute.send(examples.batch(rows["train"][:1], 0))
            network = Network.of(chain(model, head, example))
            if settings.keep_close_to == "old_predictions":
                old = _old(backbone, example, compute)
        for phase in plan.phases:
            if phase.learns == "lora":
                names = set(phase.learning_rates) - {network.names[-1]}
                low_rank.add(network, names, plan.lora_rank, params.seed)
        return cls(
            project=project,
            params=params,
            plan=plan,
            settings=settings,
            policy=policy,
            compute=compute,
            model=model,
            network=network,
            examples=examples,
            rows=rows,
            targets=targets,
            classes=len(summary.classes),
            # Not the summary's digest, which does not know the order of rows and their stored size.
            digest=files.sha256_file(project.manifest),
            kept=heads.kept(backbone, summary.classes) if settings.head.init == "keep" else None,
            old=old,
            ranks=ranks,
        )

    def racing(self, plan: ThawPlan, settings: TrainParams) -> Setup:
        """The same network and data for another plan and recipe."""
        return replace(
            self,
            plan=plan,
            settings=settings,
            prefix_seconds=0.0,
            prefix_cpu_seconds=0.0,
            prefix_computed=0,
            _data={},
        )

    @property
    def prefix_spared(self) -> bool:
        return self.prefix_seconds > 0 and not self.prefix_computed

    @property
    def prefix_folder(self) -> Path:
        return self.project.scratch / "prefix"

    def trainer(self, folder: Path | None, on_checkpoint: Callable[[State], None]) -> Trainer:
        return Trainer(
            self.network,
            self.plan.phases,
            self.settings,
            seed=self.params.seed,
            compute=self.compute,
            frozen_norms=self.plan.batch_norm == "frozen",
            folder=folder,
            on_checkpoint=on_checkpoint,
            ranks=self.ranks,
        )

    def data(self, index: int) -> PhaseData:
        """The inputs of a phase, at its thaw line; what the plan keeps is computed once."""
        if index not in self._data:
            line = self._line(self.plan.phases[index])
            prefix, keep = self._prefix(self.network, line), self.plan.cache and line > 0
            old = None
            if self.old is not None and line < len(self.network.names) - 1:  # else nothing moves
                # Of the same views as the inputs, so they are kept where those are.
                whole = self._prefix(self.old, len(self.old.names))
                feed = self._feed("train", whole, index, keep)
                old = OldPredictions(feed, self.old.modules[-1])
            self._data[index] = PhaseData(
                self._feed("train", prefix, index, keep),
                self.targets["train"],
                self._feed("validation", prefix, index, keep),
                self.targets["validation"],
                old,
            )
        return self._data[index]

    def init_head(self) -> tuple[float, float]:
        """Start a linear head in closed form, but for rows that are kept, and choose the features
        that a head on many layers reads; returns the seconds and CPU seconds that took.

        The features are those of training mode: thawed batch norms use the statistics of the
        batch, as they will in the first step, and their running statistics move to this data.
        """
        phase = self.plan.phases[0]
        data = self.data(0)
        begun, cpu = time.perf_counter(), cpu_seconds()
        head = self.network.modules[-1]
        linear = heads.linear_of(head) if self.settings.head.init != "random" else None
        selection = multi_layer.selection_of(head)
        if linear is not None or selection is not None:
            frozen_norms = self.plan.batch_norm == "frozen"
            self.network.learn(phase.learning_rates, frozen_norms, phase.learns)
            top = self.network.run(self._line(phase), -1)
            for part in top.modules():
                if not isinstance(part, _BatchNorm):
                    part.training = False  # nothing is dropped from what the head is fitted to
            # Shuffled, as the statistics of a batch of one class would be of no use.
            order = np.random.default_rng(self.params.seed).permutation(len(self.targets["train"]))
            targets = self.targets["train"][order]
            if selection is not None:
                some = multi_layer.SCORED  # all features of all examples may not fit in memory
                features = self._features(top, data.train, order[:some])
                selection.choose(features, targets[:some], self.classes)
                top.append(selection)
            if linear is not None:
                self._solve(linear, self._features(top, data.train, order), targets)
        return time.perf_counter() - begun, self.ranks.total(cpu_seconds() - cpu)[0]

    def _solve(self, linear: nn.Linear, features: Tensor, targets: Tensor) -> None:
        """Put the closed form in a layer, unless it reads something else than pooled features."""
        if features.shape[1] != linear.in_features:
            return
        smoothing = self.settings.label_smoothing
        weight, bias = heads.solve(features, targets, self.classes, smoothing, self.kept)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)

    def _line(self, phase: Phase) -> int:
        """Index of the lowest layer of the network that learns in a phase."""
        return min(self.network.index(name) for name in phase.learning_rates)

    def model_state(self) -> dict[str, Tensor]:
        """All parameters and buffers of the model, on the CPU, under the library's own names."""
        low_rank.merge(self.network)
        return {k: v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}

    def _feed(self, split: str, prefix: Prefix, index: int, keep_views: bool) -> Feed:
        rows = self.rows[split]
        augmented = split == "train" and bool(self.policy.transforms)
        if not keep_views:
            return Fresh(prefix, rows, augmented)
        epochs = epochs_of(self.plan.phases, self.settings.epochs)[index]

        def keep(view: int, on_the_clock: bool = False) -> Tensor:
            dealt = self._deal(prefix, rows, [view]) if on_the_clock else 0
            kept = prefix.keep(rows, view)
            self.prefix_computed += not kept.spared
            if (kept.spared and not dealt) or not on_the_clock:
                self.prefix_seconds += kept.seconds
                self.prefix_cpu_seconds += kept.cpu_seconds
            return kept.values

        if augmented and 0 < self.policy.refresh_epochs < epochs:
            later = partial(keep, on_the_clock=True)  # within a step's time
            return Refreshed(later, self.policy.views, self.policy.refresh_epochs, self.compute)
        views = range(1, min(self.policy.views, epochs) + 1) if augmented else [0]
        self._deal(prefix, rows, views)
        return Kept([self.compute.kept_near(keep(view)) for view in views], self.compute)

    def _deal(self, prefix: Prefix, rows: npt.NDArray[np.int64], views: Sequence[int]) -> int:
        """With several processes, let each compute its share of the views, which all then read."""
        if self.ranks.size == 1:
            return 0
        spared = [prefix.keep(rows, view).spared for view in self.ranks.share(views)]
        computed = int(self.ranks.total(spared.count(False))[0])
        self.prefix_computed += computed
        return computed

    def _prefix(self, network: Network, line: int) -> Prefix:
        reading = self.plan.reading.layers if self.plan.reading else []
        return Prefix(
            folder=self.prefix_folder,
            module=network.run(0, line).eval(),
            examples=self.examples,
            compute=self.compute,
            batch_size=self.params.embed.batch_size,
            identity={
                "version": PREFIX_VERSION,
                "data": self.digest,
                "policy": _without_count(self.policy),
                "weights": digest(network.state(network.names[:line])),
                "layers": network.names[:line] + reading,
                "threads": self.params.threads,
                "torch": torch.__version__,
            },
        )

    def _features(self, top: nn.Module, feed: Feed, order: npt.NDArray[np.int64]) -> Tensor:
        """Output of the layer below the head for a feed's examples in some order, [n, d]."""
        size = self.params.embed.batch_size
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        pool = Pool()
        with torch.no_grad(), self.compute.autocast():
            return torch.cat([pool(top(x)).cpu() for x in feed.batches(batches, 0)])


def _learned_from(
    project: Project,
) -> tuple[dict[str, npt.NDArray[np.int64]], dict[str, Tensor]]:
    """Manifest rows and targets of the splits that training may see."""
    manifest = pd.read_parquet(project.manifest, columns=["split", "target"])
    rows = {
        split: np.flatnonzero((manifest["split"] == split).to_numpy())
        for split in ("train", "validation")
    }
    targets = manifest["target"].to_numpy(np.int64)
    return rows, {split: torch.from_numpy(targets[chosen]) for split, chosen in rows.items()}


def _old(backbone: Backbone, example: Tensor, compute: Compute) -> Network:
    """The pretrained network with its own head, which nothing moves."""
    model = backbone.model.eval().requires_grad_(False)
    model = model.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Network.of(chain(model, backbone.head, example))


def _without_count(policy: ViewPolicy) -> dict[str, object]:
    """A view does not depend on how many there are."""
    return dict(replace(policy, views=0, refresh_epochs=0, test_time="none").__dict__)


def _transfer(backbone: nn.Module, model: nn.Module, head: str) -> None:
    """Copy the pretrained weights below the head; anything else that is missing is a defect."""
    own = {
        key: value
        for key, value in backbone.state_dict().items()
        if key != head and not key.startswith(f"{head}.")
    }
    result = model.load_state_dict(own, strict=False)
    lost = [key for key in result.missing_keys if not key.startswith(head)]
    if lost or result.unexpected_keys:
        raise ThawlineError(f"backbone and model differ in {(lost + result.unexpected_keys)[:3]}")
