"""Image classification: one label an image. What each member is for: see `tasks.problems.Problem`.

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
    from tasks.problems.image_classification.parameters import ImageAugment, ImagePrepare
    from tasks.records import Project, ViewPolicy

WORDS = Words("image", "images", "an image", "picture", "pictures")
LIBRARIES = ("torchvision", "timm")
REQUIREMENTS = ("torchvision", "timm", "pillow")
PACKAGED = ("max_pixels", "store_side")
TELLING = ("height", "width", "channels")
LOOKS_WITH = "mobilenet_v2"
FEW_EACH: dict[str, int] = {}
THUMBNAIL = 160  # pixels of the longer side


def sections() -> Sections:
    """How images are prepared and augmented."""
    from tasks.problems.image_classification.parameters import ImageAugment, ImagePrepare

    return Sections(ImagePrepare, ImageAugment)


def proposals(data: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The size of images, and where a manifest's paths start from."""
    from tasks.problems.image_classification import proposing

    return proposing.proposals(data, options)


def recipe(name: str) -> dict[str, Any]:
    """The recipes are written for images, but for how these are augmented."""
    policies = {"few_shot": "none", "long": "trivial"}
    return {"augment.policy": policies.get(name, "flips_crops")}


def places(prepare: PrepareParams) -> dict[str, str]:
    """The folder of a manifest's images, where it is not that of the manifest."""
    images = cast("ImagePrepare", prepare).images
    return {} if images is None else {"prepare.images": images}


def read(params: PrepareParams, root: Path) -> pd.DataFrame:
    """The raw examples: `source`, `label`, `split`, `group`, and `file` and `row` for `store`."""
    from tasks.problems.image_classification import sources

    return sources.read(cast("ImagePrepare", params), root)


def store(
    frame: pd.DataFrame, folder: Path, params: PrepareParams, threads: int
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Decode each image once into `folder`; adds `id`, `offset`, `height`, `width`, `channels`."""
    from tasks.problems.image_classification import image_store

    return image_store.store(frame, folder, cast("ImagePrepare", params), threads)


def near_duplicates(frame: pd.DataFrame, folder: Path) -> npt.NDArray[np.int64]:
    """Pairs of row positions [p, 2] whose pictures are almost the same, also when mirrored."""
    from tasks.problems.image_classification import similarity

    return similarity.near_duplicates(frame, folder)


def details(frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Sizes and channels of the images, and the size of the store."""
    from tasks.problems.image_classification import image_store

    return image_store.details(frame, folder)


def policies() -> list[str]:
    """The policies that have a name."""
    from tasks.problems.image_classification import named_policies

    return list(named_policies.POLICIES)


def policy(params: AugmentParams, seed: int) -> ViewPolicy:
    """The augmentation policy, resolved and tried."""
    from tasks.problems.image_classification import views

    return views.policy(cast("ImageAugment", params), seed)


def preview(project: Project, policy: ViewPolicy, folder: Path) -> None:
    """A picture with an image a class, plain and in its views, and what its rows are called."""
    from tasks.problems.image_classification import views

    views.preview(project, policy, folder)


def in_words(policy: ViewPolicy) -> Views:
    """How many views there are, of which size."""
    from tasks.problems.image_classification import telling

    return telling.in_words(policy)


def examples(project: Project, policy: ViewPolicy, backbone: Backbone) -> Examples:
    """The prepared images as `backbone` wants them: float32 [n, 3, side, side]."""
    from tasks.problems.image_classification import views

    return views.examples(project, policy, backbone)


def backbone(name: str, embed: EmbedParams, root: Path) -> Backbone:
    """A classification model of torchvision or timm with its pretrained weights."""
    from tasks.problems.image_classification import backbones

    return backbones.backbone(name, embed, root)


def build(backbone: Backbone, classes: int, head: HeadParams) -> tuple[nn.Module, str]:
    """The same network with random weights and a new head, and the module path of that head."""
    from tasks.problems.image_classification import backbones

    return backbones.build(backbone.name, classes, head)


def test_views(inputs: Tensor, policy: ViewPolicy) -> list[Tensor]:
    """The inputs [n, 3, side, side], and mirrored ones where the policy says so."""
    from tasks.problems.image_classification import inputs as plain

    return plain.test_views(inputs, policy.test_time)


def fetch(name: str) -> Path:
    """A network's weights: the catalogue's file or the library's own."""
    from tasks.problems.image_classification import weights

    return weights.fetch(name)


def misfit(name: str, policy: ViewPolicy, reason: str) -> str:
    """Most networks take images of some sizes only."""
    return (
        f"{name} does not take images of {policy.shape['image_size']} pixels ({reason}); set "
        "augment.image_size to the size it was made for, such as 224, or choose another"
    )


def baselines(project: Project) -> list[Baseline]:
    """None beside those of all problems."""
    return []


def panels(project: Project) -> list[Panel]:
    """None beside the sections of all problems."""
    return []


def shown(project: Project, rows: Sequence[int]) -> list[Shown]:
    """The images of some manifest rows, no side longer than `THUMBNAIL`."""
    from tasks.problems.image_classification import thumbs

    return [Shown(image=uri) for uri in thumbs.thumbnails(project, rows, THUMBNAIL)]


def usage(record: Mapping[str, Any]) -> tuple[str, str]:
    """A file of a picture; and the library's own constructor, where it makes this network."""
    from tasks.problems.image_classification import telling

    return '["picture.jpg"]', telling.in_plain_pytorch(record)


def assets(project: Project, params: Params, backbone: str) -> dict[str, bytes]:
    """All that pixels need stands in `model.json`."""
    return {}


def asked(given: Sequence[Path], params: PrepareParams) -> pd.DataFrame:
    """Image files, and those inside folders: `path`, and the absolute path."""
    from tasks.problems.image_classification import asking

    return asking.asked(given)


def input_example() -> pd.DataFrame:
    """A small picture as base64."""
    from tasks.problems.image_classification import asking

    return asking.input_example()


def samples(project: Project, rows: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
    """The stored pixels of some manifest rows, uint8 [height, width, 1 or 3]."""
    import pandas as pd

    from tasks.problems.image_classification.image_store import ImageStore

    images = ImageStore(project.prepared, pd.read_parquet(project.manifest))
    return [images.image(row) for row in rows]


if TYPE_CHECKING:  # mypy holds the package to the protocol
    from tasks.problems import Predicting, Problem, Starting, image_classification
    from tasks.problems.image_classification import predictor, starts

    _problem: Problem = image_classification
    _predicting: Predicting = predictor
    _starting: Starting = starts
