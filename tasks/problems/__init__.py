"""What models are for: one folder a problem, found by its name.

`Problem` says what such a package has; the core calls nothing else of it, and knows no problem by
name. Beside its functions stand three modules, and a fourth if it can: `predictor` (a `Predicting`,
which needs a packaged model folder alone), `pyfunc_model` (the MLflow model as code), `starts` (a
`Starting`), and `onnx_export` (an `Exporting`). A problem whose parameters are not those of
`flows/templates/params.yaml` brings a `params.yaml` with the sections that are other for it.

Everything in a problem's `__init__` is light: a function imports its module when it is called. The
data of all problems become one table, one row an example with its label, or with several that are
one text there (`tasks.labelling`), and their networks chains of layers between which a single
tensor passes; head, loss, metrics and baselines are those of classification (`tasks.engine`,
`tasks.metrics`, `tasks.baselines`).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from tasks import plugins
from tasks.errors import ThawlineError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from torch import Tensor, nn

    from tasks.baselines import Baseline
    from tasks.params import AugmentParams, EmbedParams, HeadParams, Params, PrepareParams
    from tasks.records import Project, ViewPolicy


DEFAULT = "image_classification"


@dataclass(frozen=True)
class Words:
    """What an example is called: in messages, and on the card, whose readers are no engineers."""

    one: str  # image
    many: str  # images
    a: str  # an image
    thing: str  # picture
    things: str  # pictures


@dataclass(frozen=True)
class Sections:
    """The sections of `params.yaml` that each problem has in its own way."""

    prepare: type[PrepareParams]
    augment: type[AugmentParams]


@dataclass(frozen=True)
class Backbone:
    """A pretrained network as its library gives it, and where it came from."""

    name: str
    model: nn.Module  # with its original head
    head: str  # module path of the original head, such as `classifier`; one output: it says nothing
    mean: tuple[float, ...]  # of the inputs' normalisation
    std: tuple[float, ...]
    weights_sha256: str
    weights_source: str
    licence: str
    pretraining: str
    classes: tuple[str, ...] = ()  # of the head, in its order, where it is a packaged model's
    accuracy: float | None = None  # of the weights on what they were trained for, as published


@dataclass(frozen=True)
class Shown:
    """An example for people: a picture of it as a data URI, or its text."""

    image: str = ""
    text: str = ""


@dataclass(frozen=True)
class Views:
    """What the report says of the views that training saw."""

    sentence: str  # goes on from "What training saw: "
    facts: tuple[tuple[str, str], ...] = ()  # beside the transforms


@dataclass(frozen=True)
class Panel:
    """A section of the report that only this problem has: a sentence, and a table."""

    name: str  # its anchor in the page, such as `telling-words`
    title: str
    sentence: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


class Examples(Protocol):
    """The inputs of a network, by manifest row and view."""

    def batch(self, rows: npt.NDArray[np.int64], view: int) -> Tensor:
        """The inputs of some rows [n, …], in order, e.g. float32 [n, 3, side, side].

        The same (rows, view) gives the same numbers; view 0 is the plain one. Any thread may ask.
        Of different lengths, they are padded to the longest of the batch.
        """
        ...

    def lengths(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """How many positions the examples of some rows have, in any view, [n]: the second
        dimension of a batch, and of what layers make of it, until they are pooled. None where all
        have as many."""
        ...


class Problem(Protocol):
    """What a package in this folder has, in the order in which a run needs it."""

    # --- what it is called, and what it is made of

    @property
    def WORDS(self) -> Words:
        """What an example is called."""
        ...

    @property
    def LIBRARIES(self) -> Sequence[str]:
        """Distributions beside torch whose versions change its numbers, such as torchvision."""
        ...

    @property
    def REQUIREMENTS(self) -> Sequence[str]:
        """Distributions that its packaged model needs beside torch, NumPy, pandas, safetensors."""
        ...

    @property
    def PACKAGED(self) -> Sequence[str]:
        """Keys of the section `prepare` that the packaged model needs too, such as `store_side`."""
        ...

    @property
    def TELLING(self) -> Sequence[str]:
        """Columns that `store` adds and that should not tell the label, such as `height`."""
        ...

    @property
    def LOOKS_WITH(self) -> str:
        """The backbone by whose features data is looked at before there is a project for it."""
        ...

    @property
    def FEW_EACH(self) -> Mapping[str, int]:
        """Recipe → examples a class, on average, below which a new project gets it, fewest first;
        none: the number of all examples alone decides."""
        ...

    def sections(self) -> Sections:
        """Its own kinds of the sections `prepare` and `augment`, which `tasks.params` checks."""
        ...

    # --- a new project

    def proposals(self, data: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """Key path → value that `thawline new` writes for some data beside what all problems get.

        `options`: keys of `prepare` that the user gave as options, and their values; they are
        written too, but for those that are proposed here. Raises `ThawlineError` for a wrong one.
        """
        ...

    def recipe(self, name: str) -> dict[str, Any]:
        """Key path → value of a recipe (`tasks.recipes`) that is another one for this problem."""
        ...

    def places(self, prepare: PrepareParams) -> dict[str, str]:
        """Key path → path of each place that `read` reads beside `prepare.data`, where it has some.

        The stage `prepare` must depend on each, or changes of it would go unseen.
        """
        ...

    # --- data (`tasks.prepare`)

    def read(self, params: PrepareParams, root: Path) -> pd.DataFrame:
        """The raw examples of `params.data`, a path relative to the project or absolute.

        One row each: `source` (str, for people), `label` (str; with `params.label_separator` all
        that it has, see `tasks.labelling.canonical`), `split` (train | validation | test, or
        missing), `group` (str, or missing), what `store` needs, and `params.columns` after
        `records.COLUMN`. `attrs["ignored"]`: names of files that were passed over. Raises
        `DataError` when the data is unusable.
        """
        ...

    def store(
        self, frame: pd.DataFrame, folder: Path, params: PrepareParams, threads: int
    ) -> tuple[pd.DataFrame, list[dict[str, str]]]:
        """Decode each example once into `folder`, in the order of the rows of `frame`.

        Returns the rows that can be read, with `id` (sha256 of the decoded content, hex) and
        columns with the place in `folder`; and the others as `{source, reason}`. Raises `DataError`
        when there is no room.
        """
        ...

    def near_duplicates(self, frame: pd.DataFrame, folder: Path) -> npt.NDArray[np.int64]:
        """Pairs of row positions [p, 2] of `frame` (what `store` added) that are almost equal."""
        ...

    def details(self, frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
        """Facts of this kind of data for the report, JSON-ready; sizes in bytes end in `_bytes`."""
        ...

    # --- views (`tasks.augment`, `tasks.engine`)

    def policies(self) -> list[str]:
        """The names that `augment.policy` may have; `none`, no augmentation, is one of them."""
        ...

    def policy(self, params: AugmentParams, seed: int) -> ViewPolicy:
        """The augmentation policy, resolved and tried. Raises `ParamsError` or `UnknownName`."""
        ...

    def preview(self, project: Project, policy: ViewPolicy, folder: Path) -> None:
        """Write what training sees: `preview.png`, of equal rows and columns, and `preview.json`,
        the names of its `rows` and `columns`. Nothing, where there is nothing to see."""
        ...

    def in_words(self, policy: ViewPolicy) -> Views:
        """The same in words."""
        ...

    def examples(self, project: Project, policy: ViewPolicy, backbone: Backbone) -> Examples:
        """The inputs of a network."""
        ...

    def test_views(self, inputs: Tensor, policy: ViewPolicy) -> list[Tensor]:
        """What a prediction is averaged over, of a batch of view 0; at least that batch itself."""
        ...

    # --- networks (`tasks.embed`, `tasks.engine`, `tasks.package`)

    def backbone(self, name: str, embed: EmbedParams, root: Path) -> Backbone:
        """A pretrained network, its weights checked.

        Raises `UnknownName`, or `ThawlineError` when there are no such weights.
        """
        ...

    def build(self, backbone: Backbone, classes: int, head: HeadParams) -> tuple[nn.Module, str]:
        """The same architecture with random weights and a new head, and that head's module path.

        The keys below the head are those of the backbone.
        """
        ...

    def fetch(self, name: str) -> Path:
        """Bring a network's weights to this machine; raises as `backbone`."""
        ...

    def misfit(self, name: str, policy: ViewPolicy, reason: str) -> str:
        """The sentence for a network that does not take such inputs, with what to do."""
        ...

    # --- judging (`tasks.evaluate`)

    def baselines(self, project: Project) -> list[Baseline]:
        """Further answers on the test examples, in the order of the manifest, that the model must
        beat, such as those of counted words: learned from training and validation alone, and cheap.

        Beside them stand the commonest class and linear probes, which all problems have.
        """
        ...

    # --- what people see (`tasks.report`, `tasks.card`)

    def panels(self, project: Project) -> list[Panel]:
        """Sections of the report that only this problem has; asked when all is evaluated."""
        ...

    def shown(self, project: Project, rows: Sequence[int]) -> list[Shown]:
        """Some manifest rows for people."""
        ...

    def usage(self, record: Mapping[str, Any]) -> tuple[str, str]:
        """Of a packaged model's `model.json`: the argument of `predict` in the card's example, and
        Markdown on loading the weights without Thawline, or nothing."""
        ...

    # --- using (`tasks.package`, `tasks.predict`, `tasks.gate`, `tasks.tracking`)

    def assets(self, project: Project, params: Params, backbone: str) -> dict[str, bytes]:
        """Name → content of further files that the packaged model needs, such as a vocabulary."""
        ...

    def asked(self, given: Sequence[Path], params: PrepareParams) -> pd.DataFrame:
        """What `thawline predict` was given, one row an example: columns for people, which head the
        predictions, and `INPUT`, as the predictor takes it.

        Raises `DataError` for what does not exist and when nothing is left.
        """
        ...

    def samples(self, project: Project, rows: Sequence[int]) -> list[Any]:
        """Some manifest rows as the predictor takes them: NumPy arrays of numbers, or texts."""
        ...

    def input_example(self) -> pd.DataFrame:
        """One input, of one column, as a REST client can send it."""
        ...


INPUT = "input"  # the column of `Problem.asked` that the predictor takes


class Predictor(Protocol):
    """A packaged model, loaded and checked."""

    digest: str
    record: dict[str, Any]  # `model.json`

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        """Raises `ThawlineError` when a file is not the one that was packaged."""
        ...

    def predict(self, inputs: Sequence[Any]) -> pd.DataFrame:
        """One row an input: `label`, `probability`, `error`, and `p_<class>` for each class, as
        `tasks.packaged.answers` makes them.

        One that cannot be read gets no label, NaN probabilities, and the reason in `error`.
        """
        ...


class Predicting(Protocol):
    """The module `predictor`, which a packaged model carries."""

    @property
    def Predictor(self) -> type[Predictor]: ...

    def describe(self, project: Project, params: Params, backbone: str) -> dict[str, Any]:
        """What `model.json` says of the network (`network`) and of its inputs (`inputs`)."""
        ...


class Start(Protocol):
    """What a packaged model was, as far as a next training needs to know."""

    @property
    def backbone(self) -> str: ...

    @property
    def classes(self) -> list[str]: ...

    @property
    def linear(self) -> bool:
        """Whether the head has a row a class on the backbone's own features."""
        ...

    @property
    def values(self) -> dict[str, Any]:
        """Key path → value that the next training has to share, such as the size of inputs."""
        ...


class Starting(Protocol):
    """The module `starts`."""

    def write(self, folder: Path, origin: str, path: Path) -> Start:
        """Write a packaged folder as one file that `embed.weights` can name; `origin`: its name."""
        ...

    def copy(self, folder: Path, target: Path) -> str:
        """Copy what a folder of pretrained weights needs; returns the sha256 for `embed.weights`.

        Raises `ThawlineError` when it is no such folder, or the problem's weights are files.
        """
        ...


class Exporting(Protocol):
    """The module `onnx_export`."""

    def add(self, folder: Path, project: Project, threads: int) -> dict[str, Any]:
        """Write `model.onnx` into a packaged folder and check it on test examples.

        Returns what was found. Raises `ThawlineError` when it cannot be written, or differs.
        """
        ...


def names() -> list[str]:
    """The problems that there are."""
    return plugins.names(sys.modules[__name__])


def load(name: str) -> Problem:
    """A problem by its name; `UnknownName` lists what there is."""
    return cast(Problem, plugins.load(sys.modules[__name__], name))


def predicting(name: str) -> Predicting:
    """What uses a packaged model of a problem."""
    return cast(Predicting, _module(name, "predictor"))


def starting(name: str) -> Starting:
    """What makes a start of a packaged model."""
    return cast(Starting, _module(name, "starts"))


def exporting(name: str) -> Exporting:
    """What writes a packaged model as ONNX; `ThawlineError` where a problem has no such thing."""
    folder = folder_of(name)
    if not (folder / "onnx_export.py").is_file():
        raise ThawlineError(
            f"a model for {name} cannot be written as ONNX; set package.onnx: false"
        )
    return cast(Exporting, _module(name, "onnx_export"))


def folder_of(name: str) -> Path:
    """The folder of a problem; `UnknownName` as `load`."""
    return Path(str(plugins.load(sys.modules[__name__], name).__file__)).parent


def _module(name: str, part: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}.{part}")
