"""Text classification: one label a text, or several. What each member is for: see
`tasks.problems.Problem`.

Each function imports its module when it is called, so that looking a problem up stays cheap. No
module here may share a name with a function: importing it would put it in the function's place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tasks.problems import Panel, Sections, Shown, Views, Words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from torch import Tensor, nn

    from tasks.baselines import Baseline
    from tasks.params import AugmentParams, EmbedParams, HeadParams, Params, PrepareParams
    from tasks.problems import Backbone, Examples
    from tasks.problems.text_classification.parameters import TextAugment, TextPrepare
    from tasks.records import Project, ViewPolicy

WORDS = Words("text", "texts", "a text", "text", "texts")
LIBRARIES = ("transformers", "tokenizers")
REQUIREMENTS = ("transformers", "tokenizers")
PACKAGED = ("max_characters",)
TELLING = ("characters",)
LOOKS_WITH = "minilm_l6"
FEW_EACH = {"few_shot": 16, "contrastive": 128}  # docs/decisions/0034-recipes-for-texts.md


def sections() -> Sections:
    """How texts are prepared and augmented."""
    from tasks.problems.text_classification.parameters import TextAugment, TextPrepare

    return Sections(TextPrepare, TextAugment)


def proposals(data: Path, options: Mapping[str, str]) -> dict[str, Any]:
    """Which column holds the text."""
    from tasks.problems.text_classification import proposing

    return proposing.proposals(data, options)


def recipe(name: str) -> dict[str, Any]:
    """What of the recipes is another for texts."""
    from tasks.problems.text_classification import text_recipes

    return text_recipes.RECIPES[name]


def places(prepare: PrepareParams) -> dict[str, str]:
    """None beside the data."""
    return {}


def read(params: PrepareParams, root: Path) -> pd.DataFrame:
    """The raw examples: `source`, `label`, `split`, `group`, and `text` for `store`."""
    from tasks.problems.text_classification import sources

    return sources.read(cast("TextPrepare", params), root)


def store(
    frame: pd.DataFrame, folder: Path, params: PrepareParams, threads: int
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Write all texts into one file; adds `id`, `offset`, `bytes`, `characters`."""
    from tasks.problems.text_classification import text_store

    return text_store.store(frame, folder, cast("TextPrepare", params), threads)


def near_duplicates(frame: pd.DataFrame, folder: Path) -> npt.NDArray[np.int64]:
    """Pairs of row positions [p, 2] whose texts are almost the same."""
    from tasks.problems.text_classification import similarity

    return similarity.near_duplicates(frame, folder)


def details(frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Lengths of the texts, and the size of the store."""
    from tasks.problems.text_classification import text_store

    return text_store.details(frame, folder)


def policies() -> list[str]:
    """The policies that have a name."""
    return ["none", "token_dropout"]


def policy(params: AugmentParams, seed: int) -> ViewPolicy:
    """The augmentation policy, resolved."""
    from tasks.problems.text_classification import views

    return views.policy(cast("TextAugment", params), seed)


def preview(project: Project, policy: ViewPolicy, folder: Path) -> None:
    """A text is no picture."""


def in_words(policy: ViewPolicy) -> Views:
    """How many tokens of a text are seen, and how many are hidden."""
    from tasks.problems.text_classification import telling

    return telling.in_words(policy)


def examples(project: Project, policy: ViewPolicy, backbone: Backbone) -> Examples:
    """The tokens of the prepared texts: int64 [n, t]."""
    from tasks.problems.text_classification import views

    return views.examples(project, policy, backbone)


def backbone(name: str, embed: EmbedParams, root: Path) -> Backbone:
    """An encoder of the BERT family with its pretrained weights."""
    from tasks.problems.text_classification import backbones

    return backbones.backbone(name, embed, root)


def build(backbone: Backbone, classes: int, head: HeadParams) -> tuple[nn.Module, str]:
    """The same encoder with random weights and a new head, and the module path of that head."""
    from tasks.problems.text_classification import backbones

    return backbones.build(backbone, classes, head)


def test_views(inputs: Tensor, policy: ViewPolicy) -> list[Tensor]:
    """The inputs alone."""
    return [inputs]


def fetch(name: str) -> Path:
    """The folder of an encoder: the catalogue's, or one of the hub."""
    from tasks.problems.text_classification import weights

    return weights.fetch(name)


def misfit(name: str, policy: ViewPolicy, reason: str) -> str:
    """Encoders take texts up to some length only."""
    return (
        f"{name} does not take texts of {policy.shape['max_tokens']} tokens ({reason}); lower "
        "augment.max_tokens, or choose another backbone"
    )


def baselines(project: Project) -> list[Baseline]:
    """Counted words."""
    from tasks.problems.text_classification import counted_words

    return counted_words.baselines(project)


def panels(project: Project) -> list[Panel]:
    """Accuracy by length and by unknown words, and the words that tell."""
    from tasks.problems.text_classification import report_panels

    return report_panels.panels(project)


def shown(project: Project, rows: Sequence[int]) -> list[Shown]:
    """The texts of some manifest rows, shortened."""
    from tasks.problems.text_classification import showing

    return showing.shown(project, rows)


def usage(record: Mapping[str, Any]) -> tuple[str, str]:
    """A sentence; and loading the weights with transformers."""
    from tasks.problems.text_classification import telling

    return telling.usage(record)


def assets(project: Project, params: Params, backbone: str) -> dict[str, bytes]:
    """The vocabulary."""
    from tasks.problems.text_classification import predictor, weights

    found = weights.find(backbone, params.embed, project.root)
    return {predictor.VOCABULARY: found.vocabulary.encode()}


def asked(given: Sequence[Path], params: PrepareParams) -> pd.DataFrame:
    """Text files, and tables with a text a row."""
    from tasks.problems.text_classification import asking

    return asking.asked(given, cast("TextPrepare", params))


def input_example() -> pd.DataFrame:
    """A sentence."""
    from tasks.problems.text_classification import asking

    return asking.input_example()


def samples(project: Project, rows: Sequence[int]) -> list[str]:
    """The texts of some manifest rows."""
    import pandas as pd

    from tasks.problems.text_classification.text_store import TextStore

    texts = TextStore(project.prepared, pd.read_parquet(project.manifest))
    return [texts.text(row) for row in rows]


if TYPE_CHECKING:  # mypy holds the package to the protocol
    from tasks.problems import Predicting, Problem, Starting, text_classification
    from tasks.problems.text_classification import predictor, starts

    _problem: Problem = text_classification
    _predicting: Predicting = predictor
    _starting: Starting = starts
