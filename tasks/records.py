"""What the stages hand to each other: where it lies, and the shape of the smaller records.

Stages exchange files; a record is the typed form of a small JSON file. Larger things are Parquet
(manifest, predictions), NumPy arrays (features) and safetensors (weights).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks import files

if TYPE_CHECKING:
    from tasks.labelling import Labelling

SPLITS = ("train", "validation", "test")
COLUMN = "column."  # in the manifest, before the names of `prepare.columns`


@dataclass(frozen=True)
class Project:
    """The places of a project, all relative to its root."""

    root: Path

    @property
    def prepared(self) -> Path:
        """Manifest, decoded store and summary of the data."""
        return self.root / "data/prepared"

    @property
    def manifest(self) -> Path:
        """One row a usable example, in a stable order; the row number is its index in the store.

        Columns: `id` (sha256 of the decoded content, hex), `label` (str; several labels are joined,
        see `tasks.labelling`), `target` (int, index into `summary.labelling.names`), `split`
        (train | validation | test), `group` (str: near-duplicates share one), `source` (str: where
        it came from, for people), and what the problem adds.
        """
        return self.prepared / "manifest.parquet"

    @property
    def summary(self) -> Path:
        """A `DataSummary` as JSON."""
        return self.prepared / "summary.json"

    @property
    def augment(self) -> Path:
        """`policy.json` (a `ViewPolicy`), `plain.json` (of view 0 alone), and where there is
        something to see `preview.png` and `preview.json` (names of its `rows` and `columns`)."""
        return self.root / "outputs/augment"

    def features(self, backbone: str) -> Path:
        """Of one backbone: `embedding.json` (an `Embedding`) and one `.npy` a depth."""
        return self.root / "outputs/features" / backbone

    @property
    def selection(self) -> Path:
        """A `Selection` as JSON."""
        return self.root / "outputs/select.json"

    @property
    def inspection(self) -> Path:
        """An `Inspection` as JSON: what the data says before training."""
        return self.root / "outputs/inspect.json"

    @property
    def thaw_plan(self) -> Path:
        """A `ThawPlan` as JSON."""
        return self.root / "outputs/thaw_plan.json"

    @property
    def tuning(self) -> Path:
        """A `Tuning` as JSON: the merged training parameters."""
        return self.root / "outputs/tune.json"

    @property
    def train(self) -> Path:
        """`weights.safetensors`, `history.csv` (a row an epoch), `run.json` (a `TrainRun`),
        `retention.json` (a `tasks.retention.Retention`)."""
        return self.root / "outputs/train"

    @property
    def repeat(self) -> Path:
        """`repeat.json`, and with folds `predictions.parquet`."""
        return self.root / "outputs/repeat"

    @property
    def evaluate(self) -> Path:
        """`predictions.parquet`, `evaluation.json`."""
        return self.root / "outputs/evaluate"

    @property
    def reports(self) -> Path:
        """`metrics.json`, `report.html`."""
        return self.root / "reports"

    @property
    def models(self) -> Path:
        """The packaged model."""
        return self.root / "models"

    @property
    def scratch(self) -> Path:
        """What can be deleted at any time when nothing runs: caches, checkpoints, spools, locks."""
        return self.root / ".thawline"


def _read(path: Path) -> Any:
    return files.read_json(path)


@dataclass(frozen=True)
class DataSummary:
    """What `prepare` found, for people and for the report."""

    problem: str
    classes: list[str]  # what a network has outputs for, in their order
    counts: dict[str, dict[str, int]]  # split → `label`, as in the manifest → examples
    digest: str  # of ids, labels, splits and groups: the version of the data
    unreadable: list[dict[str, str]]  # source, reason
    exact_duplicates: list[dict[str, str]]  # source, kept, action
    near_duplicate_groups: int  # groups of more than one example
    near_duplicate_examples: int  # examples in those groups
    conflicts: list[dict[str, str]]  # same content, different label: source, label, other_label
    given_splits: list[str]  # splits that the data brought
    details: dict[str, Any] = field(default_factory=dict)  # what the problem adds, such as sizes
    combinations: list[list[int]] | None = None  # of several labels: classes of each `target`

    @property
    def labelling(self) -> Labelling:
        """What the numbers in `target` stand for."""
        from tasks.labelling import Labelling

        return Labelling(self.classes, self.combinations)

    def examples_of(self, split: str) -> dict[str, int]:
        """Class → examples of a split that have it, among others or alone."""
        if self.combinations is None:
            return self.counts[split]
        from tasks.labelling import parts

        found = dict.fromkeys(self.classes, 0)
        for label, examples in self.counts[split].items():
            for name in parts(label):
                found[name] += examples
        return found

    @classmethod
    def read(cls, path: Path) -> DataSummary:
        return cls(**_read(path))

    def write(self, path: Path) -> None:
        value = asdict(self)
        if self.combinations is None:  # the record of one label an example has no such key
            del value["combinations"]
        files.write_json(path, value)


@dataclass(frozen=True)
class ViewPolicy:
    """The augmentation policy, resolved: what it takes to make view `v` of an example again.

    View 0 is the plain one (evaluation); views 1… are augmented, each example's random choices
    drawn from a generator seeded with (`seed`, view, example id).
    """

    problem: str
    seed: int
    views: int  # augmented views that are kept when the frozen part is cached
    shape: dict[str, Any]  # of the inputs, the problem's own, such as `image_size`
    transforms: list[dict[str, Any]]  # [{name, arguments}]
    refresh_epochs: int = 0  # the kept views are others after so many epochs; 0: never
    test_time: str = "none"  # what predictions are averaged over; none: the plain view

    def at(self, epoch: int) -> int:
        """The number of the kept view that an epoch sees: they take turns, until others come."""
        turn, epoch = divmod(epoch, self.refresh_epochs) if self.refresh_epochs else (0, epoch)
        return 1 + turn * self.views + epoch % self.views

    def behind(self, view: int) -> ViewPolicy:
        """What of the policy a view depends on: not how many there are; the plain one on its
        shape alone."""
        shared = replace(self, views=0, refresh_epochs=0, test_time="none")
        return shared if view else replace(shared, seed=0, transforms=[])

    def as_json(self) -> dict[str, Any]:
        """One flat object, the shape in its place."""
        flat: dict[str, Any] = {}
        for key, value in asdict(self).items():
            flat |= value if key == "shape" else {key: value}
        return flat

    @classmethod
    def read(cls, path: Path) -> ViewPolicy:
        value = _read(path)
        known = {field.name for field in fields(cls)}
        shape = {key: value.pop(key) for key in list(value) if key not in known}
        return cls(shape=shape, **value)

    def write(self, path: Path) -> None:
        files.write_json(path, self.as_json())


@dataclass(frozen=True)
class Layer:
    """One layer in a backbone's order; a thaw line can lie below any of them."""

    name: str  # a path of modules, such as `features.14`; the last layer is `head`
    parameters: int
    buffers: int
    flops: int  # multiply-adds of one example's forward pass
    output_bytes: int  # of one example's output, in 2-byte floats
    width: int = 0  # of one example's output, pooled; 0: a record from before it was noted
    item_bytes: int = 2  # of one number of that output in the precision of `embed`

    @property
    def kept_bytes(self) -> int:
        """Of one example's output, as it is kept."""
        return self.output_bytes // 2 * self.item_bytes


@dataclass(frozen=True)
class Embedding:
    """What `embed` found out about one backbone."""

    backbone: str
    weights_sha256: str
    weights_source: str
    licence: str
    pretraining: str
    layers: list[Layer]
    depths: dict[str, str]  # layer name → file of its pooled features, [n, d] float32, n = not test
    rows: str  # file of the manifest rows those features belong to, [n] int64
    accuracy: float | None = None  # that the weights were published with, where that is known

    @property
    def deepest(self) -> str:
        """The name of the deepest layer whose features were kept."""
        return [layer.name for layer in self.layers if layer.name in self.depths][-1]

    @classmethod
    def read(cls, path: Path) -> Embedding:
        value = _read(path)
        return cls(**{**value, "layers": [Layer(**x) for x in value["layers"]]})

    def write(self, path: Path) -> None:
        files.write_json(path, asdict(self))


@dataclass(frozen=True)
class Candidate:
    """One backbone's standing in the choice."""

    backbone: str
    parameters: int
    flops: int
    ridge: float  # leave-one-out accuracy of a ridge head on the deepest features, but for test's
    knn: float  # leave-one-out accuracy of k nearest neighbours
    score: float  # higher is better
    rank: int  # by the race where there was one, else by score
    licence: str = ""
    ruled_out: str = ""  # the limit that it is beyond
    race: list[dict[str, Any]] = field(default_factory=list)  # its rounds, see `tasks.contest`
    pretraining: str = ""
    prior: float | None = None  # accuracy that the weights were published with
    depths: dict[str, float] = field(default_factory=dict)  # layer → `ridge` on its features


@dataclass(frozen=True)
class Selection:
    """The chosen backbone, the evidence, and what the next stages need to know of it."""

    backbone: str
    why: str  # one sentence
    candidates: list[Candidate]  # by rank
    weights_sha256: str
    weights_source: str
    licence: str
    pretraining: str
    layers: list[Layer]
    examples: int  # of the training split
    classes: int
    agreement: dict[str, Any] = field(default_factory=dict)  # of the race with the scores

    @classmethod
    def read(cls, path: Path) -> Selection:
        value = _read(path)
        return cls(
            **{
                **value,
                "candidates": [Candidate(**x) for x in value["candidates"]],
                "layers": [Layer(**x) for x in value["layers"]],
            }
        )

    def write(self, path: Path) -> None:
        files.write_json(path, asdict(self))


@dataclass(frozen=True)
class Inspection:
    """What the data says before training; examples as `id`, `source`, `split` and `label`."""

    certificate: dict[str, Any]  # that nothing leaks, bound to the data's digest; `holds`
    examples: int  # of training and validation, that were looked at
    label_errors: list[dict[str, Any]]  # the surest first, with `likely` and `confidence`
    outliers: list[dict[str, Any]]  # the farthest first, with `distance`
    odd_classes: list[dict[str, Any]]  # `label`, `recall`, `spread`, `apart`
    telling_columns: list[dict[str, Any]]  # `column`, `accuracy`, `majority`
    drift: dict[str, Any]  # training against validation: `p_value`, `differs`, `distance`, `label`
    balance: dict[str, Any]  # training examples of the `smallest` and `largest` class; `ratio`
    found: dict[str, int] = field(default_factory=dict)  # how many `label_errors` and `outliers`

    @classmethod
    def read(cls, path: Path) -> Inspection:
        return cls(**_read(path))

    def write(self, path: Path) -> None:
        files.write_json(path, asdict(self))


Learns = Literal["all", "norms", "biases", "lora"]


@dataclass(frozen=True)
class Phase:
    """A stretch of training in which the same layers learn."""

    name: str
    epochs: int | None  # None: the rest of train.epochs
    learning_rates: dict[str, float]  # layer → rate relative to train.learning_rate; others frozen
    learns: Learns = "all"  # which parameters of these layers; of the head always all


@dataclass(frozen=True)
class Reading:
    """What a head reads that looks at more than the last layer: pooled outputs, concatenated."""

    layers: list[str]  # whose pooled outputs are concatenated, from the input up
    width: int  # of the concatenation
    kept: int  # features among them that the head reads


@dataclass(frozen=True)
class ThawPlan:
    """Which layers learn when and how fast, and what of the frozen part can be kept."""

    strategy: str
    backbone: str
    weights_sha256: str
    layers: list[Layer]
    phases: list[Phase]
    thaw_line: str  # the lowest layer that learns in any phase
    frozen_share: float  # share of the forward compute below the thaw line of all phases
    cache: bool  # keep the output of the layers below each phase's thaw line
    cache_bytes: int  # of that output for all views, scratch that can be deleted
    batch_norm: Literal["train", "frozen"]
    why: str
    lora_rank: int = 8  # where a phase learns by `lora`
    race: list[dict[str, Any]] = field(default_factory=list)  # of `auto`: how each depth did
    reading: Reading | None = None  # None: the head reads the layer below it, as usual
    reinitialised: list[str] = field(default_factory=list)  # layers that start with random weights

    @classmethod
    def read(cls, path: Path) -> ThawPlan:
        value = _read(path)
        reading = value.get("reading")
        return cls(
            **{
                **value,
                "layers": [Layer(**x) for x in value["layers"]],
                "phases": [Phase(**x) for x in value["phases"]],
                "reading": reading and Reading(**reading),
            }
        )

    def write(self, path: Path) -> None:
        files.write_json(path, asdict(self))


@dataclass(frozen=True)
class Tuning:
    """The training parameters after tuning and the evidence behind them."""

    train: dict[str, Any]  # of `TrainParams`, but for `NEVER_CHANGES_A_RESULT`
    changed: dict[str, Any]  # key path → tuned value
    trials: list[dict[str, Any]]  # number, values, validation_loss, validation_accuracy
    why: str
    study: dict[str, Any] = field(default_factory=dict)  # of the search, see `tasks.search`

    @classmethod
    def read(cls, path: Path) -> Tuning:
        return cls(**_read(path))

    def write(self, path: Path) -> None:
        files.write_json(path, asdict(self))


@dataclass(frozen=True)
class TrainRun:
    """The record of one training: what ran, what it cost, and the proof that frozen = frozen."""

    run_key: str  # ours, made before the tracking server is asked; a tag of the MLflow run
    mlflow_run_id: str | None  # None: the tracking server did not answer; found by run_key later
    resumed_from_step: int  # 0: never interrupted
    steps: int
    best_epoch: int
    stopped_early: bool
    frozen_before: dict[str, str]  # phase → sha256 of all frozen parameters and buffers
    frozen_after: dict[str, str]
    seconds: float  # from decoded inputs to final weights; the prefix pass is charged when cached
    cpu_seconds: float
    prefix_seconds: float  # of that, the frozen prefix
    prefix_cached: bool  # whether a cache spared it
    peak_anonymous_mb: float
    device: str
    precision: str
    threads: int
    versions: dict[str, str]
    # Seconds of the steps by what they did: what bounds the speed.
    spent: dict[str, float] = field(default_factory=dict)
    prefix_computed: int = 0  # views of the frozen prefix that no cache had
    prefix_found: int = 0  # and those that one had
    prefix_bytes: int = 0  # of all of them, as kept on disk
    # Thaw line → relative error, against float32, of what is kept there in a lower precision.
    prefix_errors: dict[str, float] = field(default_factory=dict)
    # The version that it went on from: `model`, `version`, `digest`, and its `epochs` and
    # `learning_rate`, which are other ones then.
    warm_start: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: Path) -> TrainRun:
        return cls(**_read(path))

    def write(self, path: Path) -> None:
        files.write_json(path, asdict(self))
