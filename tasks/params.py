"""`params.yaml`: everything a user may change, typed, checked all at once, read as DVC reads it.

One section a stage, in pipeline order. YAML 1.2 by ruamel, the parser that DVC uses, so that
`1e-4`, `on` and `010` mean the same to both.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks import files
from tasks.errors import ParamsError, nearest

PARAMS_FILE = "params.yaml"
MAX_BYTES = 1_000_000  # a params file is written by hand; more is a mistake or an attack

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys, NaN and infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
    """Raw data → checked, deduplicated, split manifest and decoded store."""

    data: str
    images: str | None = None
    path_column: str = "path"
    label_column: str = "label"
    split_column: str = "split"
    group_column: str = "group"
    store_side: Count = 256
    max_pixels: Count = 50_000_000
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.05
    near_duplicates: bool = True
    split: SplitParams = SplitParams()


class AugmentParams(Section):
    """What a training view of an image looks like."""

    policy: str | list[str | dict[str, Any]] = "flips_crops"
    views: Count = 4
    image_size: Annotated[int, Field(ge=32, le=1024)] = 224
    resize: Literal["squash", "crop", "pad"] = "squash"


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
    """The choice of backbone from its features."""

    backbone: str = "auto"
    cost_weight: Annotated[float, Field(ge=0, le=1)] = 0.1


class FreezeParams(Section):
    """Which layers thaw in which phase, and how fast they learn."""

    strategy: str = "last_blocks"
    thaw_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    learning_rate_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.85
    head_epochs: Count = 3
    batch_norm: Literal["train", "frozen"] = "train"
    cache: Literal["auto", "on", "off"] = "auto"


class SearchRange(Section):
    """The range of one tuned parameter: `low`..`high`, or `choices`."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: list[float] | None = None

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
    """The search on cached features before training; it changes only what `space` names."""

    trials: Annotated[int, Field(ge=0)] = 0
    space: dict[str, SearchRange] = {}


class HeadParams(Section):
    """The new layers on top of the backbone."""

    hidden: list[Count] = []
    dropout: Fraction = 0.2
    init: Literal["closed_form", "random"] = "closed_form"


class TrainParams(Section):
    """The one training loop."""

    head: HeadParams = HeadParams()
    epochs: Count = 8
    batch_size: Count = 32
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Fraction = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    label_smoothing: Fraction = 0.1
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.98
    patience: Annotated[int, Field(ge=0)] = 0
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 10


class EvaluateParams(Section):
    """Metrics on the test split, with intervals."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 1000
    mistakes: Annotated[int, Field(ge=0, le=200)] = 24


class PackageParams(Section):
    """The model folder."""

    description: str = ""


class RegisterParams(Section):
    """Names in MLflow."""

    experiment: Annotated[str, Field(min_length=1)] = "thawline"
    model: Annotated[str, Field(min_length=1, pattern=r"^[^/:.%\"']+$")] = "model"


class Params(Section):
    """The whole of `params.yaml`."""

    problem: str = "image_classification"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    prepare: PrepareParams
    augment: AugmentParams = AugmentParams()
    embed: EmbedParams
    select: SelectParams = SelectParams()
    freeze: FreezeParams = FreezeParams()
    tune: TuneParams = TuneParams()
    train: TrainParams = TrainParams()
    evaluate: EvaluateParams = EvaluateParams()
    package: PackageParams = PackageParams()
    register_: RegisterParams = Field(RegisterParams(), alias="register")

    @model_validator(mode="after")
    def _fits_together(self) -> Params:
        chosen = self.select.backbone
        if chosen != "auto" and chosen not in self.embed.backbones:
            listed = ", ".join(self.embed.backbones)
            raise ValueError(
                f"select.backbone is {chosen!r}, which embed.backbones does not list ({listed})"
            )
        for name in self.embed.weights:
            if name not in self.embed.backbones:
                raise ValueError(f"embed.weights names {name!r}, which embed.backbones lacks")
        if self.device == "cpu" and self.precision == "float16":
            raise ValueError("precision float16 needs a GPU; on device cpu use bfloat16 or float32")
        for path in self.tune.space:
            if not path.startswith("train."):
                raise ValueError(f"tune.space names {path!r}; only train.* can be tuned")
            if not isinstance(get(self, path), float):
                raise ValueError(f"tune.space names {path!r}, which is not a decimal number")
            tried = self.tune.space[path]
            for end in tried.choices or (tried.low, tried.high):
                _try_value(self.train, path, end)
        if self.tune.trials and not self.tune.space:
            raise ValueError("tune.trials is above 0 but tune.space is empty")
        return self


def _try_value(train: TrainParams, path: str, value: Any) -> None:
    """Raises `ValueError` when a tuned value would not be a valid parameter."""
    tree = train.model_dump()
    *parents, key = path.split(".")[1:]
    node = tree
    for parent in parents:
        node = node[parent]
    node[key] = value
    try:
        TrainParams.model_validate(tree)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ValueError(f"tune.space.{path} reaches {value:g}: {reason}") from None


def get(params: BaseModel, path: str) -> Any:
    """The value at a key path such as `train.head.dropout`."""
    value: Any = params
    for key in path.split("."):
        try:
            value = getattr(value, "register_" if key == "register" else key)
        except AttributeError:
            raise ValueError(
                f"{path!r} is not a parameter{nearest(path, key_paths(Params))}"
            ) from None
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


def key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All key paths of a schema, such as `prepare.split.salt`."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        yield path
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from key_paths(kind, f"{path}.")


def load(root: Path) -> Params:
    """Read and check a project's `params.yaml`.

    Raises `ParamsError` with every problem, one a line, each naming its key path.
    """
    path = root / PARAMS_FILE
    if not path.is_file():
        raise ParamsError(
            f"{root} is not a Thawline project: it has no {PARAMS_FILE}; "
            "go to a project folder or make one with: thawline new DIR --data PATH"
        )
    return check(parse(path.read_bytes(), str(path)), str(path))


def check(tree: Any, where: str = PARAMS_FILE) -> Params:
    """Check parsed parameters; `where` names their origin in the error."""
    if not isinstance(tree, dict):
        raise ParamsError(f"{where} must be a mapping of sections, not {type(tree).__name__}")
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise ParamsError(
            f"{where} cannot be used:\n" + "\n".join(f"  {x}" for x in lines)
        ) from None


def parse(data: bytes, where: str = PARAMS_FILE) -> Any:
    """Parse YAML 1.2 safely: no aliases, no duplicate keys, a size limit, UTF-8."""
    if len(data) > MAX_BYTES:
        raise ParamsError(f"{where} is larger than {MAX_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParamsError(f"{where} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    yaml = YAML(typ="safe", pure=True)
    try:
        for token in yaml.scan(io.StringIO(text)):
            if type(token).__name__ == "AliasToken":
                line = token.start_mark.line + 1
                raise ParamsError(f"{where}, line {line}: YAML aliases (*name) are not allowed")
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ParamsError(f"{where}{line}: not valid YAML: {problem}") from None
    except RecursionError:
        raise ParamsError(f"{where}: nested too deeply") from None


def set_values(root: Path, assignments: list[str]) -> Params:
    """Write `key=value` assignments into `params.yaml`, keeping its comments.

    Nothing is written when any assignment, or the whole afterwards, is wrong.
    """
    path = root / PARAMS_FILE
    load(root)
    yaml = YAML()  # round trip: comments and layout stay
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096
    tree = yaml.load(path.read_text(encoding="utf-8-sig"))
    known = list(key_paths(Params))
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        key = key.strip()
        if not separator:
            raise ParamsError(f"--set {assignment!r} is not key=value, such as train.epochs=8")
        open_ended = any(key.startswith(f"{p}.") for p in ("tune.space", "embed.weights"))
        if key not in known and not open_ended:
            raise ParamsError(f"--set: {key!r} is not a parameter{nearest(key, known)}")
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[last] = parse(text.encode(), f"--set {key}")
    stream = io.StringIO()
    yaml.dump(tree, stream)
    params = check(parse(stream.getvalue().encode(), str(path)), str(path))
    with files.atomic(path) as temporary:
        temporary.write_text(stream.getvalue(), encoding="utf-8")
    return params


def _explain(problem: Any) -> str:
    """One line for one pydantic error, naming the key path."""
    path = ".".join(str(part) for part in problem["loc"])
    kind, message, value = problem["type"], problem["msg"], problem["input"]
    if kind == "extra_forbidden":
        siblings = _fields_at(problem["loc"][:-1])
        last = str(problem["loc"][-1])
        elsewhere = [p for p in key_paths(Params) if p.rsplit(".", 1)[-1] == last and p != path]
        hint = nearest(last, siblings) or (f": did you mean {elsewhere[0]!r}?" if elsewhere else "")
        return f"{path}: unknown key{hint}"
    if kind == "missing":
        return f"{path}: is required"
    message = message.removeprefix("Value error, ")
    if not path:
        return message
    shown = "" if isinstance(value, dict) else f" (it is {value!r})"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{path}: must be a finite number{shown}"
    return f"{path}: {message[0].lower()}{message[1:]}{shown}"


def _fields_at(loc: tuple[Any, ...]) -> list[str]:
    """The names allowed at a place of the schema."""
    model: Any = Params
    for part in loc:
        field = next(
            (f for n, f in model.model_fields.items() if part in (n, f.alias)),
            None,
        )
        kind = field.annotation if field else None
        if get_origin(kind) is dict:
            return []
        candidates = [kind, *get_args(kind)]
        model = next(
            (k for k in candidates if isinstance(k, type) and issubclass(k, BaseModel)), None
        )
        if model is None:
            return []
    return [f.alias or n for n, f in model.model_fields.items()]
