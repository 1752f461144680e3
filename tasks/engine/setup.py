"""What a training needs, built from a project: network, inputs at each thaw line, first head."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import tasks.problems
from tasks import files, versions
from tasks.engine import (
    depthwise,
    dropout,
    heads,
    labels,
    layout,
    lengths,
    low_rank,
    multi_layer,
    pooling,
    stochastic_depth,
)
from tasks.engine.device import Compute, resolve
from tasks.engine.feeds import ByClass, Feed, Fresh, Kept, Refreshed
from tasks.engine.fold import folded
from tasks.engine.lengths import Values
from tasks.engine.loop import Trainer
from tasks.engine.memory import mapped
from tasks.engine.network import Network, digest
from tasks.engine.parallel import Ranks
from tasks.engine.prefix import Account, Prefix, cpu_seconds
from tasks.engine.split import chain
from tasks.engine.state import OldPredictions, PhaseData, State
from tasks.engine.view_cache import View, ViewCache
from tasks.errors import ThawlineError
from tasks.freeze import epochs_of
from tasks.labelling import Labelling
from tasks.params import Params, TrainParams
from tasks.problems import Backbone, Examples
from tasks.records import DataSummary, Phase, Project, ThawPlan, ViewPolicy

PREFIX_VERSION = 3  # raise it when the same frozen part would give other numbers


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
    targets: dict[str, Tensor]  # split → targets, as in `tasks.engine.labels`
    classes: int
    digest: str
    kept: heads.Kept | None = None  # of a start whose head goes on
    goes_on: bool = False  # from all weights of an earlier training, those of its head too
    old: Network | None = None  # as it was, where training is to keep close to its predictions
    ranks: Ranks = field(default_factory=Ranks)
    account: Account = field(default_factory=Account)
    _data: dict[int, PhaseData] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        project: Project,
        params: Params,
        plan: ThawPlan,
        settings: TrainParams,
        ranks: Ranks | None = None,
        policy: ViewPolicy | None = None,
        start: Path | None = None,
    ) -> Setup:
        """Load data and backbone; the weights must be those of the plan.

        `policy`: another one than the project's, such as one with another seed. `start`: weights
        to go on from, as `model_state` gave them for the same network and classes.
        """
        ranks = ranks or Ranks()
        problem = tasks.problems.load(params.problem)
        compute = ranks.place(resolve(params.device, params.precision))
        policy = policy or ViewPolicy.read(project.augment / "policy.json")
        summary = DataSummary.read(project.summary)
        backbone = problem.backbone(plan.backbone, params.embed, project.root)
        _require_contrast(plan, settings)
        if backbone.weights_sha256 != plan.weights_sha256:
            raise ThawlineError(
                f"the weights of {plan.backbone} are no longer those of the thaw plan; "
                "run: thawline run --from embed"
            )
        model, head = _model(params, plan, settings, backbone, summary.classes, compute, start)
        examples = problem.examples(project, policy, backbone)
        rows, targets = _learned_from(project, summary.labelling)
        old = None
        if isinstance(model, multi_layer.MultiLayer):
            network = model.network()
        else:
            example = compute.send(examples.batch(rows["train"][:1], 0))
            network = Network.of(chain(model, head, example))
            if settings.keep_close_to != "none":
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
            goes_on=start is not None,
            old=old,
            ranks=ranks,
        )

    def racing(self, plan: ThawPlan, settings: TrainParams) -> Setup:
        """The same network and data for another plan and recipe."""
        return replace(self, plan=plan, settings=settings, account=Account(), _data={})

    @property
    def cache(self) -> ViewCache:
        budget = int(self.params.freeze.cache_gigabytes * 1e9)
        return ViewCache(self.project.scratch / "prefix", budget)

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
            self._data.clear()  # phases do not come again, and a GPU may hold all views of one
            line = self._line(self.plan.phases[index])
            prefix, keep = self._prefix(self.network, line), self.plan.cache and line > 0
            train = self._feed("train", prefix, index, keep)
            old = None
            if self.old is not None and line < len(self.network.names) - 1:  # else nothing moves
                # Of the same views as the inputs, so they are kept where those are.
                whole = self._prefix(self.old, len(self.old.names))
                said = self._feed("train", whole, index, keep)
                if self.settings.keep_close_to == "source_head":
                    size = self.params.embed.batch_size
                    said = ByClass.of(said, self.targets["train"], self.classes, size)
                old = OldPredictions(said, self.old.modules[-1])
            self._data[index] = PhaseData(
                train,
                self.targets["train"],
                self._feed("validation", prefix, index, keep),
                self.targets["validation"],
                old,
            )
        return self._data[index]

    def note_error(self, index: int) -> None:
        """Note how far the precision is off where a phase's inputs are kept, if it may be."""
        line = self._line(self.plan.phases[index])
        rounded = self.compute.dtype != torch.float32
        if rounded and self.plan.cache and line > 0 and not self.ranks.rank:
            prefix = self._prefix(self.network, line)
            error = prefix.error(self.rows["train"], self._views("train", index)[0])
            if math.isfinite(error):  # float16 may overflow, and the record is JSON
                self.account.errors[self.network.names[line]] = error

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
        closed = self.settings.head.init != "random" and not self.goes_on
        linear = heads.linear_of(head) if closed else None
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
            if len(phase.learning_rates) > 1:  # what is below the head moves on, and it with it
                order = order[: heads.START_EXAMPLES]
            targets = self.targets["train"][order]
            if selection is not None:
                some = multi_layer.SCORED  # all features of all examples may not fit in memory
                features = self._features(top, data.train, order[:some])
                selection.choose(features, targets[:some], self.classes)
                top.append(selection)
            if linear is not None:
                self._solve(linear, self._features(top, data.train, order), targets)
        return time.perf_counter() - begun, self.ranks.total(cpu_seconds() - cpu)[0]

    def right(self) -> npt.NDArray[np.bool_]:
        """Which validation examples the network, as it is, is right on, [n]."""
        last = len(self.plan.phases) - 1
        suffix = folded(self.network.run(self._line(self.plan.phases[last])))
        size = self.params.embed.batch_size
        targets = self.targets["validation"]
        feed, found = self.data(last).validation, np.empty(len(targets), np.bool_)
        batches = lengths.batches(len(found), size, feed.lengths)
        for chosen, inputs in zip(batches, feed.batches(batches, 0), strict=True):
            logits = self.compute.forward(suffix, inputs).cpu()
            found[chosen] = labels.right(logits, targets[torch.from_numpy(chosen)]).numpy()
        return found

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
        rows, views = self.rows[split], self._views(split, index)
        if not keep_views:
            return Fresh(prefix, rows, views != [0])

        def keep(view: int) -> View:
            return prefix.keep(rows, view, self._on_the_way(split, prefix, index, view))

        if views[-1] > self.policy.views:
            later = partial(self._charged, split, keep, on_the_clock=True)
            return Refreshed(later, self.policy.at, self.compute, self.examples.lengths(rows))
        self._deal(keep, views)
        kept = [self._charged(split, keep, view) for view in views]
        return Kept(self.compute.kept_near(kept), self.compute)

    def _charged(
        self, split: str, keep: Callable[[int], View], view: int, on_the_clock: bool = False
    ) -> Values:
        """A kept view, charged; `on_the_clock`: of a step, which measures what it computes."""
        dealt = self._deal(keep, [view]) if on_the_clock else 0
        kept = keep(view)
        paid = on_the_clock and bool(kept.computed or dealt)
        self.account.charge(split, view, kept, paid)
        return kept.values

    def _deal(self, keep: Callable[[int], View], views: Sequence[int]) -> int:
        """With several processes, let each compute its share of the views, which all then read."""
        if self.ranks.size == 1:
            return 0
        computed = sum(keep(view).computed for view in self.ranks.share(views))
        total = int(self.ranks.total(computed)[0])
        self.account.computed += total
        return total

    def _views(self, split: str, index: int) -> list[int]:
        """The numbers of the views that a phase sees."""
        if split != "train" or not self.policy.transforms:
            return [0]
        epochs = epochs_of(self.plan.phases, self.settings.epochs)[index]
        return sorted({self.policy.at(epoch) for epoch in range(epochs)})

    def _on_the_way(self, split: str, prefix: Prefix, index: int, view: int) -> list[int]:
        """The lower thaw lines, lowest first, at which this or a later phase sees a view too."""
        later = range(index, len(self.plan.phases))
        seen = [i for i in later if view in self._views(split, i)]
        lines = {self._line(self.plan.phases[i]) for i in seen}
        return sorted(line for line in lines if 0 < line < len(prefix.modules))

    def _prefix(self, network: Network, line: int) -> Prefix:
        reading = self.plan.reading.layers if self.plan.reading else []
        below = list(zip(network.names, network.modules, strict=True))[:line]
        return Prefix(
            cache=self.cache,
            modules=[module.eval() for _, module in below],
            layers=[f"{name} {digest(module.state_dict())}" for name, module in below],
            examples=self.examples,
            policy=self.policy,
            compute=self.compute,
            batch_size=self.params.embed.batch_size,
            identity={
                "version": PREFIX_VERSION,
                # Networks of equal tensors may compute or normalise otherwise.
                "backbone": self.plan.backbone,
                "weights": self.plan.weights_sha256,  # whose vocabulary, say, is in no layer
                "data": self.digest,
                "reading": reading,
                "threads": self.params.threads,
                "libraries": versions.libraries(self.params.problem),
            },
        )

    def _features(self, top: nn.Module, feed: Feed, order: npt.NDArray[np.int64]) -> Tensor:
        """Output of the layer below the head for a feed's examples in some order, [n, d], in a
        mapped file."""
        sizes = None if feed.lengths is None else feed.lengths[order]
        batches = lengths.batches(len(order), self.params.embed.batch_size, sizes)
        if len(batches) > 1 and len(batches[-1]) == 1:  # of one, a batch norm has no statistics
            batches[-2:] = [np.concatenate(batches[-2:])]
        pool, features = pooling.of(self.model), torch.empty(0)
        with torch.no_grad(), self.compute.autocast():
            inputs_of = feed.batches([order[chosen] for chosen in batches], 0)
            for i, (chosen, inputs) in enumerate(zip(batches, inputs_of, strict=True)):
                found = pool(top(inputs)).cpu()
                if not i:
                    features = mapped(self.project.scratch, (len(order), found.shape[1]))
                features[chosen] = found
        return features


def _model(
    params: Params,
    plan: ThawPlan,
    settings: TrainParams,
    backbone: Backbone,
    classes: Sequence[str],
    compute: Compute,
    start: Path | None,
) -> tuple[nn.Module, str]:
    """The network with the pretrained weights below a new head, or all weights of `start`, on its
    device; the head's path."""
    torch.manual_seed(params.seed)  # of a random head
    problem = tasks.problems.load(params.problem)
    model, head = problem.build(backbone, len(classes), settings.head)
    if start is not None:
        _go_on(model, start)
    else:
        _transfer(backbone.model, model, (head, *plan.reinitialised))
    if settings.dropout is not None:
        dropout.set_share(model, head, settings.dropout)
    if settings.stochastic_depth is not None:
        stochastic_depth.set_share(model, settings.stochastic_depth)
    if plan.reading:
        model = multi_layer.MultiLayer(model, head, plan.reading, len(classes), settings.head)
    model = compute.host(model).eval()
    depthwise.quicken(model, compute)
    if compute.device.type == "cpu":
        layout.keep(model)
    return model, head


def _require_contrast(plan: ThawPlan, settings: TrainParams) -> None:
    """Raises `ThawlineError` where the contrastive loss has nothing to move."""
    heads_only = all(len(phase.learning_rates) == 1 for phase in plan.phases)
    if settings.contrast and heads_only:
        raise ThawlineError(
            f"train.contrast moves what lies below the head, of which strategy {plan.strategy!r} "
            "lets nothing learn; set it to 0, or choose another strategy"
        )


def _learned_from(
    project: Project, labelling: Labelling
) -> tuple[dict[str, npt.NDArray[np.int64]], dict[str, Tensor]]:
    """Manifest rows and targets of the splits that training may see."""
    manifest = pd.read_parquet(project.manifest, columns=["split", "target"])
    rows = {
        split: np.flatnonzero((manifest["split"] == split).to_numpy())
        for split in ("train", "validation")
    }
    truth = labelling.truth(manifest["target"].to_numpy(np.int64))
    return rows, {split: labels.tensor(truth[chosen]) for split, chosen in rows.items()}


def _old(backbone: Backbone, example: Tensor, compute: Compute) -> Network:
    """The pretrained network with its own head, which nothing moves.

    Raises `ThawlineError` when it came without one.
    """
    own = heads.linear_of(backbone.model.get_submodule(backbone.head))
    if own is not None and own.out_features < 2:
        raise ThawlineError(
            f"{backbone.name} has no head of its own, so there are no old predictions to keep; set "
            "train.keep_close_to: none"
        )
    model = backbone.model.eval().requires_grad_(False)
    return Network.of(chain(compute.host(model), backbone.head, example))


def _go_on(model: nn.Module, start: Path) -> None:
    """Load all weights of an earlier training; raises `ThawlineError` where they do not fit."""
    try:
        model.load_state_dict(load_file(start))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ThawlineError(
            f"the weights to go on from are of another network ({reason}); start from the "
            "pretrained backbone with: thawline retrain --cold --force"
        ) from None


def _transfer(backbone: nn.Module, model: nn.Module, new: Sequence[str]) -> None:
    """Copy the pretrained weights but those of the parts `new`; a defect where others lack."""

    def is_new(key: str) -> bool:
        return any(key == part or key.startswith(f"{part}.") for part in new)

    own = {key: value for key, value in backbone.state_dict().items() if not is_new(key)}
    result = model.load_state_dict(own, strict=False)
    lost = [key for key in result.missing_keys if not is_new(key)]
    if lost or result.unexpected_keys:
        raise ThawlineError(f"backbone and model differ in {(lost + result.unexpected_keys)[:3]}")
