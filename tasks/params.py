"""The schema of `params.yaml`: everything a user may change, typed and checked all at once.

One section a stage, in pipeline order. `tasks.params_file` reads and writes the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

import tasks.thaw_strategies
from tasks import plugins, problems
from tasks.errors import nearest
from tasks.redaction import redact

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
NUMBER = "number"  # the tag by which errors tell a number from `auto`
UNFIT = "unfit"  # the kind of error of a value that does not fit to others
_Auto = Annotated[Literal["auto"], Tag("auto")]
_which = Discriminator(lambda value: "auto" if value == "auto" else NUMBER)
NumberOrAuto = Annotated[Annotated[float, Field(gt=0, le=1), Tag(NUMBER)] | _Auto, _which]
CountOrAuto = Annotated[Annotated[int, Field(ge=1, le=1024), Tag(NUMBER)] | _Auto, _which]


class Section(BaseModel):
    """A frozen section that refuses unknown keys, NaN and infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _one_of(value: str, known: Iterable[str], kind: str) -> str:
    """The value, if it is a known name. Raises `ValueError` with the nearest ones."""
    known = list(known)
    if value not in known:
        near = nearest(value, known) or f"; there are {', '.join(known)}"
        raise ValueError(f"there is no such {kind}{near}")
    return value


class SplitParams(Section):
    """How examples without a given split are assigned: by a hash of their group and this salt."""

    validation: Fraction = 0.15
    test: Fraction = 0.2
    salt: int = 0

    @model_validator(mode="after")
    def _leaves_something(self) -> SplitParams:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must leave something to train on (sum below 1)")
        return self


class PrepareParams(Section):
    """Raw data → checked, split manifest and decoded store; a problem adds its own keys."""

    data: str
    label_column: str = "label"
    split_column: str = Field("split", description="manifest: the column with the split")
    group_column: str = Field("group", description="manifest: the column with the group")
    label_separator: str = Field(
        "", description="what stands between several labels of one example, such as |"
    )
    columns: list[str] = []
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.05
    near_duplicates: bool = True
    split: SplitParams = SplitParams()


class AugmentParams(Section):
    """What a training view of an example looks like; a problem adds what its inputs have."""

    policy: str | list[str | dict[str, Any]] = "none"
    views: Count = 4
    refresh_epochs: Annotated[int, Field(ge=0)] = 0
    test_time: str = Field("none", pattern="^none$")


class WeightsFile(Section):
    """Local weights of a backbone, bound to their content."""

    file: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class EmbedParams(Section):
    """The frozen pass of each candidate backbone over the data."""

    backbones: list[str] = Field(min_length=1)
    weights: dict[str, WeightsFile] = {}
    batch_size: Count = 64

    @field_validator("backbones")
    @classmethod
    def _distinct_plain_names(cls, value: list[str]) -> list[str]:
        for name in value:
            if not name or "/" in name or name.startswith("."):
                raise ValueError(f"{name!r} is not a plain backbone name")
        if len(set(value)) < len(value):
            raise ValueError("a backbone is listed twice")
        return value


class SelectParams(Section):
    """The choice of backbone: by its features, within limits, and by a race of the best."""

    backbone: str = "auto"
    prefer: Literal["accuracy", "speed", "size"] = "speed"
    cost_weight: Annotated[float, Field(ge=0, le=1)] = 0.1
    race: Annotated[int, Field(ge=0, le=16)] = 3
    race_from: Annotated[int, Field(ge=0)] = 1000
    max_parameters: Count | None = None
    max_megabytes: Positive | None = None
    max_latency_ms: Positive | None = None
    licences: list[str] = []


class FreezeParams(Section):
    """Which layers thaw in which phase, and how fast they learn."""

    strategy: str = "last_blocks"
    thaw_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    layers: list[str] = []
    learning_rate_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    learning_rates: dict[str, Annotated[float, Field(gt=0, le=10)]] = {}
    phase_epochs: Count = 2
    reinitialise: Annotated[int, Field(ge=0, le=100)] = 0
    lora_rank: Annotated[int, Field(ge=1, le=256)] = 8
    feature_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    epoch_minutes: Positive | None = None
    batch_norm: Literal["train", "frozen"] = "train"
    cache: Literal["auto", "on", "off"] = "auto"
    cache_gigabytes: Positive = 8

    @field_validator("strategy")
    @classmethod
    def _is_a_file(cls, value: str) -> str:
        return _one_of(value, plugins.names(tasks.thaw_strategies), "strategy")


class SearchRange(Section):
    """The range of one tuned parameter: `low`..`high`, or `choices`."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: list[bool | int | float | str | list[int]] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> SearchRange:
        if self.choices is not None:
            if self.low is not None or self.high is not None or not self.choices:
                raise ValueError("give either choices (at least one) or low and high")
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError("give low < high, or choices")
        elif self.log and self.low <= 0:
            raise ValueError("a log range needs low > 0")
        return self


class TuneParams(Section):
    """The search before training; it changes only what `space` names."""

    trials: Annotated[int, Field(ge=0)] = 0
    minutes: Positive | None = None
    fidelity: Literal["head", "short", "full"] = "head"
    max_megabytes: Positive | None = None
    max_latency_ms: Positive | None = None
    max_drop: Annotated[float, Field(ge=0, le=1)] | None = None
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    storage: str | None = None
    space: dict[str, SearchRange] = {}

    @field_validator("storage")
    @classmethod
    def _holds_no_password(cls, value: str | None) -> str | None:
        if value is not None and redact(value) != value:
            raise ValueError(
                "has a password in clear, which git, DVC and MLflow would keep; put it into an "
                "environment variable and write $NAME in its place"
            )
        return value

    @property
    def searches(self) -> bool:
        """Whether there is a budget: of trials, of minutes, or of both."""
        return self.trials > 0 or self.minutes is not None

    @model_validator(mode="after")
    def _sees_what_is_lost(self) -> TuneParams:
        if self.max_drop is not None and self.fidelity != "full":
            raise ValueError("max_drop is measured after whole trainings: set fidelity to full")
        return self


class HeadParams(Section):
    """The new layers on top of the backbone."""

    hidden: list[Count] = []
    dropout: Fraction = 0.0
    init: Literal["closed_form", "random", "keep"] = "closed_form"

    @model_validator(mode="after")
    def _can_be_kept(self) -> HeadParams:
        if self.init == "keep" and self.hidden:
            raise ValueError("init: keep takes over a linear head, so hidden must be []")
        return self


class TrainParams(Section):
    """The one training loop."""

    head: HeadParams = HeadParams()
    epochs: Count = 8
    batch_size: Count = 32
    micro_batch: Annotated[int, Field(ge=0)] = 0
    learning_rate: NumberOrAuto = 0.001
    schedule: Literal["cosine", "one_cycle", "constant", "plateau"] = "cosine"
    warmup: Fraction = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    label_smoothing: Fraction = 0.1
    mix: Literal["none", "mixup", "cutmix"] = "mixup"
    mix_alpha: Positive = 0.2
    contrast: Annotated[float, Field(ge=0)] = 0.0
    balance: Literal["none", "class_weights", "sampling", "focal"] = "none"
    dropout: Fraction | None = None
    stochastic_depth: Fraction | None = None
    keep_close_to: Literal["none", "old_predictions", "source_head"] = "none"
    keep_weight: Positive = 1.0
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.98
    patience: Annotated[int, Field(ge=0)] = 0
    average_weights: Literal["none", "blend_with_start"] = "none"
    devices: CountOrAuto = 1
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 10

    @model_validator(mode="after")
    def _classes_are_whole(self) -> TrainParams:
        if self.contrast and self.mix != "none":
            raise ValueError("contrast draws whole examples of a class together; set mix: none")
        if self.contrast and (0 < self.micro_batch < self.batch_size or self.devices != 1):
            raise ValueError("contrast needs each batch whole; set micro_batch: 0 and devices: 1")
        return self


NEVER_CHANGES_A_RESULT = {"checkpoint_seconds"}  # of `TrainParams`: no part of what identifies one


VALIDATION_EXAMPLES = "data/prepared/manifest.parquet"


class RetentionParams(Section):
    """What the backbone must still know after training, and the examples it is asked about."""

    probe: str = VALIDATION_EXAMPLES
    max_drop: Annotated[float, Field(ge=0, le=1)] | None = None

    @property
    def own_probe(self) -> str | None:
        """Data other than the project's validation examples, if it is to be asked about."""
        return None if self.probe == VALIDATION_EXAMPLES else self.probe


class EvaluateParams(Section):
    """Metrics on the test split, with intervals."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 1000
    mistakes: Annotated[int, Field(ge=0, le=200)] = 24


class RepeatParams(Section):
    """The training again, to see how much of its result is luck."""

    folds: Annotated[int, Field(ge=0, le=100)] = 0
    seeds: Annotated[int, Field(ge=1, le=100)] = 1

    @field_validator("folds")
    @classmethod
    def _none_or_some(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one fold leaves nothing to learn from; 0 is none")
        return value


class PackageParams(Section):
    """The model folder."""

    description: str = ""
    data_licence: str = ""
    onnx: bool = False


class RegisterParams(Section):
    """Names in MLflow."""

    experiment: Annotated[str, Field(min_length=1)] = "thawline"
    model: Annotated[str, Field(min_length=1, pattern=r"^[^/:.%\"']+$")] = "model"


class PromoteParams(Section):
    """When a challenger takes the champion's place (`tasks.gate`)."""

    when_undecided: Literal["keep", "ask", "promote_if_not_worse"] = "keep"
    approve: bool = False
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    min_gain: Fraction = 0.005
    max_loss: Annotated[float, Field(gt=0, lt=1)] = 0.01
    class_margin: Fraction = 0.05
    folds_below: Annotated[int, Field(ge=0)] = 1000
    max_calibration_error: Annotated[float, Field(gt=0, le=1)] | None = 0.05
    max_latency_ms: Positive | None = None
    max_megabytes: Positive | None = None
    require_certificate: bool = True


class RetrainParams(Section):
    """When changed data is worth another training (`tasks.decision`), and from what it starts
    (`tasks.warm_start`)."""

    min_new: Fraction = 0.05
    min_examples: Count = 20
    on_shift: bool = True
    confidence: Annotated[float, Field(gt=0.5, le=0.995)] = 0.99
    start: Literal["auto", "pretrained"] = "auto"
    overlap: Literal["queue", "skip"] = "queue"
    branch: Annotated[str, Field(min_length=1, max_length=200)] = "thawline/data"


class Params(Section):
    """The whole of `params.yaml`."""

    problem: str = problems.DEFAULT
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    prepare: SerializeAsAny[PrepareParams]
    augment: SerializeAsAny[AugmentParams] = Field(default={}, validate_default=True)
    embed: EmbedParams
    select: SelectParams = SelectParams()
    freeze: FreezeParams = FreezeParams()
    tune: TuneParams = TuneParams()
    train: TrainParams = TrainParams()
    retention: RetentionParams = RetentionParams()
    repeat: RepeatParams = RepeatParams()
    evaluate: EvaluateParams = EvaluateParams()
    package: PackageParams = PackageParams()
    register_: RegisterParams = Field(RegisterParams(), alias="register")
    promote: PromoteParams = PromoteParams()
    retrain: RetrainParams = RetrainParams()

    @field_validator("problem")
    @classmethod
    def _is_a_folder(cls, value: str) -> str:
        return _one_of(value, problems.names(), "problem")

    @field_validator("prepare", "augment", mode="before")
    @classmethod
    def _is_that_of_the_problem(cls, value: Any, info: ValidationInfo) -> Any:
        own = _own(str(info.field_name), info.data.get("problem"))
        if type(value) is PrepareParams or type(value) is AugmentParams:
            value = value.model_dump(exclude_unset=True)
        return own.model_validate(value)

    @model_validator(mode="after")
    def _fits_together(self) -> Params:
        found = [
            InitErrorDetails(
                type=PydanticCustomError(UNFIT, "{reason}", {"reason": reason}),
                loc=(path,),
                input=None,
            )
            for path, reason in _unfit(self)
        ]
        if found:
            raise ValidationError.from_exception_data("Params", found)
        return self


def _own(section: str, problem: str | None) -> type[BaseModel]:
    """A problem's kind of a section; of one that there is not, the default's."""
    known = problem in problems.names()
    own = problems.load(problem if problem and known else problems.DEFAULT).sections()
    return own.prepare if section == "prepare" else own.augment


def _unfit(params: Params) -> Iterator[tuple[str, str]]:
    """Key paths whose values do not fit to others, and why."""
    listed = params.embed.backbones
    chosen = params.select.backbone
    if chosen != "auto" and chosen not in listed:
        yield "select.backbone", f"embed.backbones does not list {chosen!r} ({', '.join(listed)})"
    for name in params.embed.weights:
        if name not in listed:
            yield f"embed.weights.{name}", f"embed.backbones does not list it ({', '.join(listed)})"
    if params.device == "cpu" and params.precision == "float16":
        yield "precision", "float16 needs a GPU; on device cpu use bfloat16 or float32"
    if isinstance(policy := params.augment.policy, str):
        try:
            known = problems.load(params.problem).policies()
            _one_of(policy, known, "policy")
        except ValueError as error:
            lists = type(params.augment).model_fields["policy"].annotation is not str
            otherwise = "; or give a list of transforms" if lists else ""
            yield "augment.policy", f"{error} (it is {policy!r}){otherwise}"
    if params.prepare.label_separator:
        yield from _unfit_for_several(params.train)
    strategy = plugins.load(tasks.thaw_strategies, params.freeze.strategy)
    if params.train.head.init == "keep" and hasattr(strategy, "reading"):
        reason = f"keep takes over rows that read one layer, and {params.freeze.strategy!r} many"
        yield "train.head.init", f"{reason}; set it to closed_form, or choose another strategy"
    if params.freeze.reinitialise and hasattr(strategy, "choose"):
        reason = f"starts layers anew, which {params.freeze.strategy!r} may leave frozen"
        yield "freeze.reinitialise", f"{reason}; set it to 0, or choose a strategy such as all"
    before = epochs_before_the_last_phase(params.freeze)
    if before >= params.train.epochs:
        yield (
            "train.epochs",
            f"is {params.train.epochs}, but before its last phase freeze.strategy "
            f"{params.freeze.strategy!r} takes {before}; raise train.epochs above {before}, or "
            f"lower freeze.phase_epochs ({params.freeze.phase_epochs})",
        )
    if params.tune.searches and not params.tune.space:
        key = "tune.trials" if params.tune.trials else "tune.minutes"
        yield key, "is above 0 but tune.space is empty"
    for path, tried in params.tune.space.items():
        if reason := _not_tunable(params, path, tried):
            yield f"tune.space.{path}", reason


def _unfit_for_several(train: TrainParams) -> Iterator[tuple[str, str]]:
    """What of a training is made for one label an example alone."""
    told = "and with prepare.label_separator an example may have several, or none"
    if train.balance == "sampling":
        reason = f"sampling draws examples by their one class, {told}"
        yield "train.balance", f"{reason}; use class_weights or focal"
    if train.contrast:
        yield "train.contrast", f"draws examples of one class together, {told}; set it to 0"
    if train.keep_close_to != "none":
        reason = f"{train.keep_close_to} is made for a head for one class an example"
        yield "train.keep_close_to", f"{reason}, {told}; set it to none"
    if train.head.init == "keep":
        reason = "keep takes over rows of a head for one class an example"
        yield "train.head.init", f"{reason}, {told}; set it to closed_form"


def epochs_before_the_last_phase(freeze: FreezeParams) -> int:
    """What a strategy says of itself, since its plan needs a network's layers."""
    strategy = plugins.load(tasks.thaw_strategies, freeze.strategy)
    return (getattr(strategy, "PHASES", 1) - 1) * freeze.phase_epochs


def _not_tunable(params: Params, path: str, tried: SearchRange) -> str:
    """Why a parameter cannot be tuned, or not over this range; empty: it can."""
    if not path.startswith("train."):
        return "only train.* can be tuned"
    try:
        written = get(params, path)
        is_number = isinstance(written, int | float) and not isinstance(written, bool)
        if tried.choices is None and not is_number:
            return "is no number; give choices instead of low and high"
        if path.split(".")[1] in NEVER_CHANGES_A_RESULT:
            return "never changes a result"
        if "auto" in (tried.choices or []):
            return "auto is found before the search; leave it out, or tune no rate"
        for end in tried.choices or (tried.low, tried.high):
            if isinstance(written, int) and isinstance(end, float) and end.is_integer():
                end = int(end)
            tried_with = _try_value(params.train, path, end)
            if params.prepare.label_separator:
                for key, reason in _unfit_for_several(tried_with):
                    if key == path:
                        return f"reaches {end}: {reason}"
    except ValueError as error:
        return str(error)
    return ""


def _try_value(train: TrainParams, path: str, value: Any) -> TrainParams:
    """The section with a tuned value; raises `ValueError` when it would not be a valid one."""
    tree = train.model_dump()
    *parents, key = path.split(".")[1:]
    node = tree
    for parent in parents:
        node = node[parent]
    node[key] = value
    try:
        return TrainParams.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"reaches {value}: {error.errors()[0]['msg']}") from None


def get(params: BaseModel, path: str) -> Any:
    """The value at a key path such as `train.head.dropout`."""
    value: Any = params
    for key in path.split("."):
        try:
            value = getattr(value, "register_" if key == "register" else key)
        except AttributeError:
            raise ValueError(f"{path!r} is not a parameter{nearest(path, key_paths())}") from None
    return value


def replace(params: Params, values: dict[str, Any]) -> Params:
    """The same parameters with the values at some key paths changed, checked again."""
    tree = params.model_dump(by_alias=True)
    for path, value in values.items():
        *parents, key = path.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[key] = value
    return Params.model_validate(tree)


def key_paths(problem: Any = problems.DEFAULT) -> Iterator[str]:
    """All key paths that parameters for a problem may have, such as `prepare.split.salt`."""
    return _key_paths(Params, "", problem)


def _key_paths(model: type[BaseModel], prefix: str, problem: Any) -> Iterator[str]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        yield path
        kind = kind_of(model, name, problem)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _key_paths(kind, f"{path}.", problem)


def kind_of(model: type[BaseModel], name: str, problem: Any) -> Any:
    """The type of a field; that of a section may be the problem's own."""
    if model is Params and name in ("prepare", "augment"):
        return _own(name, problem)
    return model.model_fields[name].annotation
